"""Stopping what runs beside a test at the moment that matters, and worlds for races on the judge's side."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from catalogue import Beside, wait_until_blocked
from dlm import effects
from dlm.clock import ManualClock
from dlm.db.engine import Database
from world import DAY, World

PATIENCE_S = 20


def racing_world(database: Database, clock: ManualClock, root: Path) -> World:
    """Storages a and b, and origin, which holds the files and which no expression of these tests matches."""
    world = World(database, clock, root, breaker_delete_share=1)
    world.add_storage("a", "perth")
    world.add_storage("b", "bern")
    world.add_storage("origin", "perth", type="source")
    return world


class Gate:
    """Stops whoever first reaches the point `name`, until it is opened."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._reached, self._opened = threading.Event(), threading.Event()
        effects.install(self._arrive)

    def _arrive(self, name: str) -> None:
        if name == self.name and not self._reached.is_set():
            self._reached.set()
            assert self._opened.wait(PATIENCE_S)

    def stops(self, act: Callable[[], Any]) -> Beside:
        """Run `act` beside us until it stands here."""
        beside = Beside(act)
        assert self._reached.wait(PATIENCE_S), beside.errors
        return beside

    def open(self, *beside: Beside) -> None:
        """Let go on, and wait for these to end; none of them may have failed."""
        self._opened.set()
        assert [each.finish() for each in beside] == [[]] * len(beside), [each.errors for each in beside]


def blocked(world: World, act: Callable[[], Any], number: int = 1) -> Beside:
    """Run `act` beside us until it waits for a lock."""
    beside = Beside(act)
    wait_until_blocked(world.database, number)
    return beside


def settled(world: World) -> None:
    world.settle()
    world.check()


def emptied(world: World) -> None:
    """At rest after everything had its time to go."""
    settled(world)
    world.later(2 * DAY)
    world.later(2 * DAY)
    world.check()


def placed(world: World, files: int, copies: int = 1) -> None:
    """All the files are under the one rule, its locks of the right size, and it is ok."""
    with world.begin() as tx:
        assert tx.scalar("SELECT sum(files) FROM lock WHERE NOT is_released") == files * copies
        assert tx.scalar("SELECT count(*) FROM rule WHERE state = 'ok'") == 1
    assert world.count("a") + world.count("b") == files * copies


def doomed(world: World) -> None:
    """Two files of which the replicas at `a` are due to be deleted."""
    world.many("origin", 2)
    rule = world.declare("ds", 1, "a")
    world.settle()
    world.cancel(rule)
    world.settle()
    world.clock.advance(2 * DAY)


# state: (change of the files in use, what else is so then)
SET = {
    "available": (0, "verified_at = %(now)s, next_check_at = %(now)s + interval '1 day', tombstone_at = %(now)s"),
    "unverified": (0, "verified_at = NULL, next_check_at = %(now)s"),
    "bad": (0, "verified_at = NULL, next_check_at = NULL"),
    "lost": (-1, "verified_at = NULL, next_check_at = NULL"),
    "deleted": (-1, "verified_at = NULL, next_check_at = NULL, quiet_until = %(now)s + interval '10 minutes'"),
}


def turn(world: World, state: str) -> None:
    """Make the replica of f0 at `a` what the state says, on disk and in the accounts, too."""
    used, columns = SET[state]
    if state == "bad":
        world.path("a", "f0").write_bytes(b"rotten!")
    if used:
        world.path("a", "f0").unlink()
    with world.begin() as tx:
        tx.run(
            f"""WITH r AS (UPDATE replica r SET state = '{state}', {columns} FROM did d, storage s
                            WHERE d.id = r.did_id AND d.name = 'f0' AND s.id = r.storage_id AND s.name = 'a'
                          RETURNING r.storage_id, r.size_bytes)
               UPDATE storage_usage u
                  SET used_bytes = used_bytes + {used} * size_bytes, used_files = used_files + {used}
                 FROM r WHERE u.storage_id = r.storage_id"""
        )
