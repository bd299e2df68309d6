"""The real daemons, on a real PostgreSQL and real files, in step with a small model of what people asked for.

Hypothesis makes up the story: files come and go, rules are declared and end, storages disappear, bytes rot, daemons run
in any order, time passes. After every step the invariants hold (`World.check`, without the harm that the story did
behind dlm's back and nobody has noticed yet). When the faults have stopped, everything that is wanted is there, and
nothing else.

Every file stays intact at `origin`, from where it came, so that what the story breaks can be repaired.
`DLM_MODEL_EXAMPLES` and `DLM_MODEL_STEPS` make it longer.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dlm.clock import ManualClock
from dlm.core import amending, audit, moving, verify
from dlm.daemons.judge import Judge
from dlm.db import storages
from dlm.db.embedded import EmbeddedPostgres
from dlm.db.engine import Database
from dlm.errors import CannotPlace, Conflict, InvalidInput
from world import DAY, SCOPE, World

EXAMPLES = int(os.environ.get("DLM_MODEL_EXAMPLES", "20"))
STEPS = int(os.environ.get("DLM_MODEL_STEPS", "25"))

SITES = {"a": "perth", "b": "bern", "c": "oslo"}  # where rules want copies
DATASETS = ("one", "two")
EXPRESSIONS = ("type=disk", "a", "b|c", "a|b")
NUMBERS = itertools.count(1)
ROUNDS = 20  # in which the world comes to rest at the latest


@dataclass
class Promise:
    """A rule, as whoever declared it remembers it."""

    target: str
    copies: int
    storages: frozenset[str]
    expires_at: datetime | None


def places(expression: str) -> frozenset[str]:
    return frozenset(SITES if expression == "type=disk" else expression.split("|"))


class Story(RuleBasedStateMachine):
    server: EmbeddedPostgres
    template: str

    @initialize()
    def begin(self) -> None:
        self.name = f"model_{os.getpid()}_{next(NUMBERS)}"
        self.clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
        self.database = Database(self.server.create_database(self.name, self.template), clock=self.clock)
        self.root = Path(tempfile.mkdtemp(prefix="dlm-model-"))
        shares = {"breaker_delete_share": 1, "breaker_loss_share": 1, "auditor_cycle_s": DAY}
        self.world = World(self.database, self.clock, self.root, **shares)
        for storage, site in SITES.items():
            self.world.add_storage(storage, site)
        self.world.add_storage("origin", "perth", type="source")
        self.world.judge = Judge(self.database, self.world.settings)
        self.contents: dict[str, bytes] = {}
        self.members: dict[str, set[str]] = {dataset: set() for dataset in DATASETS}
        self.promises: dict[str, Promise] = {}
        self.moves: dict[str, str] = {}  # old rule to new
        self.starts: dict[str, datetime] = {}  # of delayed rules
        self.away: set[str] = set()
        self.harm: set[tuple[str, str]] = set()  # (file, storage) that the story spoilt
        for dataset in DATASETS:
            self._put(dataset, 2)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self._settle()
        finally:
            self.database.dispose()
            self.server.drop_database(self.name)
            shutil.rmtree(self.root)

    # -- what people do ---------------------------------------------------------------------------------------------

    def _put(self, dataset: str, number: int) -> None:
        names = [f"f{len(self.contents) + index}" for index in range(number)]
        new = {name: f"{name} ".encode() * len(name) for name in names}
        self.world.put("origin", new, dataset)
        self.contents |= new
        self.members[dataset] |= new.keys()

    @precondition(lambda self: "origin" not in self.away and len(self.contents) < 15)
    @rule(dataset=st.sampled_from(DATASETS), number=st.integers(1, 3))
    def register(self, dataset: str, number: int) -> None:
        self._put(dataset, number)

    @rule(dataset=st.sampled_from(DATASETS), data=st.data())
    def attach(self, dataset: str, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.contents)))
        self.world.attach(dataset, name)
        self.members[dataset].add(name)

    @rule(dataset=st.sampled_from(DATASETS), data=st.data())
    def detach(self, dataset: str, data: st.DataObject) -> None:
        if self.members[dataset]:
            name = data.draw(st.sampled_from(sorted(self.members[dataset])))
            self.world.detach(dataset, name)
            self.members[dataset].remove(name)

    @rule(
        on=st.sampled_from([*DATASETS, "both", "f0"]),
        copies=st.integers(1, 2),
        expression=st.sampled_from(EXPRESSIONS),
        grouping=st.sampled_from(["all", "dataset", "none"]),
        lifetime_s=st.sampled_from([None, None, 7200]),
        delay_s=st.sampled_from([None, None, 600, 5000]),
    )
    def declare(
        self, on: str, copies: int, expression: str, grouping: str, lifetime_s: int | None, delay_s: int | None
    ) -> None:
        if on == "both" and not self._has_box():
            self.world.container("both", *DATASETS)
        try:
            made = self.world.declare(on, copies, expression, grouping=grouping, lifetime_s=lifetime_s, delay_s=delay_s)
        except (CannotPlace, Conflict):
            return  # more copies than match; the same rule stands
        start = self.clock.moment + timedelta(seconds=delay_s or 0)
        end = None if lifetime_s is None else start + timedelta(seconds=lifetime_s)
        if delay_s:
            self.starts[made] = start
        self.promises[made] = Promise(on, copies, places(expression), end)

    def _has_box(self) -> bool:
        with self.world.begin() as tx:
            return bool(tx.scalar("SELECT EXISTS (SELECT FROM did WHERE name = 'both')"))

    @precondition(lambda self: self.promises)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        uuid = data.draw(st.sampled_from(sorted(self.promises, key=list(self.promises).index)))
        self.world.cancel(uuid)
        del self.promises[uuid]
        self.moves.pop(uuid, None)

    @precondition(lambda self: self.promises)
    @rule(data=st.data(), copies=st.integers(1, 3))
    def set_copies(self, data: st.DataObject, copies: int) -> None:
        uuid = data.draw(st.sampled_from(sorted(self.promises, key=list(self.promises).index)))
        try:
            with self.world.begin() as tx:
                amending.update(tx, uuid, {"copies": copies})
        except (CannotPlace, Conflict):
            return  # more than match; another rule asks for that; its time is over
        self.promises[uuid].copies = copies

    @precondition(lambda self: self.promises)
    @rule(data=st.data(), expression=st.sampled_from(EXPRESSIONS))
    def move(self, data: st.DataObject, expression: str) -> None:
        uuid = data.draw(st.sampled_from(sorted(self.promises, key=list(self.promises).index)))
        old = self.promises[uuid]
        try:
            with self.world.begin() as tx:
                made = moving.move(tx, uuid, {"storages": expression}).id
        except (CannotPlace, Conflict, InvalidInput):
            return  # more copies than match; it is moving already, or its time is over; it is there
        self.promises[made] = Promise(old.target, old.copies, places(expression), old.expires_at)
        self.moves[uuid] = made

    # -- what the world does ----------------------------------------------------------------------------------------

    def _copies(self) -> list[tuple[str, str]]:
        """(file, storage) of what is on the storages that are there, besides origin."""
        found = []
        for storage in sorted(SITES.keys() - self.away):
            found += [(name, storage) for name in sorted(self.contents) if self.world.path(storage, name).exists()]
        return found

    @rule(how=st.sampled_from(["lose", "corrupt"]), data=st.data())
    def spoil(self, how: str, data: st.DataObject) -> None:
        copies = self._copies()
        if not copies:
            return
        name, storage = data.draw(st.sampled_from(copies))
        path = self.world.path(storage, name)
        path.unlink() if how == "lose" else path.write_bytes(b"?" * len(self.contents[name]))
        self.harm.add((name, storage))

    @rule(storage=st.sampled_from([*SITES, "origin"]))
    def move_root(self, storage: str) -> None:
        """The storage's root goes away, or comes back."""
        here, there = self.root / storage, self.root / f"{storage}.away"
        if storage in self.away:
            there.rename(here)
            self.away.remove(storage)
        else:
            here.rename(there)
            self.away.add(storage)

    @rule(seconds=st.sampled_from([1, 61, 3600, 2 * DAY]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(daemon=st.sampled_from(["judge", "judge", "conveyor", "conveyor", "reaper", "auditor"]))
    def run_once(self, daemon: str) -> None:
        getattr(self.world, daemon).run_once()

    @rule()
    def run_all(self) -> None:
        self.world.settle()

    # -- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "world"):
            return
        with self.world.begin() as tx:
            found = verify.verify(tx) + verify.verify_files(tx)
        left = [finding for finding in found if not self._is_known(str(finding))]
        assert left == [], "\n".join(map(str, left))
        for uuid in self.starts.keys() & self.promises.keys():
            if self.starts[uuid] > self.clock.moment:
                facts = self.world.rule(uuid)
                assert facts["state"] == "declared" and not facts["progress"]["locks"], facts

    def _is_known(self, finding: str) -> bool:
        if any(f"storage {storage}:" in finding for storage in self.away) and "can be compared" in finding:
            return True
        return any(f"{SCOPE}:{name} at {storage}:" in finding for name, storage in self.harm)

    # -- how it ends ------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """The faults stop, every storage is looked through; then promises are kept, and nothing else stands."""
        for storage in sorted(self.away):
            self.move_root(storage)
        for _ in range(ROUNDS):
            self.world.later(3600)
            if self._is_over():
                break
        for storage in SITES:
            with self.world.begin() as tx:
                place = storages.get(tx, storage)
                assert place is not None
                audit.start_check(tx, place.id, confirm_lost=True)
            self.world.settle()
        self.harm.clear()
        for _ in range(ROUNDS):
            self.world.later(DAY / 2)
        self.holds()
        self._kept()

    def _is_over(self) -> bool:
        with self.world.begin() as tx:
            return not tx.scalar("SELECT EXISTS (SELECT FROM audit WHERE state = 'running')")

    def _kept(self) -> None:
        now = self.clock.moment
        self._moved()
        live = {uuid: p for uuid, p in self.promises.items() if p.expires_at is None or p.expires_at > now}
        states = {uuid: self.world.rule(uuid) for uuid in live}
        assert {rule["state"] for rule in states.values()} <= {"ok"}, states
        wanted = {name: [p for p in live.values() if name in self._below(p.target)] for name in self.contents}
        for name, promises in wanted.items():
            where = {storage for file, storage in self._copies() if file == name}
            for promise in promises:
                assert len(where & promise.storages) >= promise.copies, (name, where, promise)
            assert where <= frozenset().union(*(p.storages for p in promises)), (name, where, promises)
            assert len(where) <= sum(promise.copies for promise in promises), (name, where, promises)
            for storage in where:
                assert self.world.path(storage, name).read_bytes() == self.contents[name]
        with self.world.begin() as tx:
            assert tx.scalar("SELECT count(*) FROM request") == 0
            assert tx.scalar("SELECT count(*) FROM change") == 0

    def _moved(self) -> None:
        """What was moved to a rule that came to be ok has ended; the move of what is gone before that was taken back."""
        for old in [uuid for uuid in self.moves if uuid in self.promises]:
            facts = self.world.rule(old)
            if facts["state"] == "gone" and facts["moves_to"] is not None:
                del self.promises[old]
                continue
            successor = self.world.rule(self.moves[old])
            while successor["state"] == "gone" and successor["moves_to"] is not None:
                successor = self.world.rule(successor["moves_to"])
            assert successor["state"] != "ok", (old, successor)

    def _below(self, target: str) -> set[str]:
        if target == "both":
            return set().union(*self.members.values())
        return self.members.get(target, {target})


def test_what_people_asked_for_is_kept_whatever_happens(server: EmbeddedPostgres, template: str) -> None:
    class Told(Story):
        pass

    Told.server, Told.template = server, template
    run_state_machine_as_test(
        Told,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
