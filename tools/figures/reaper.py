"""`reaper`: 10,000 files of 1 KiB on POSIX that nothing holds any more; until their rows and they are gone, durably."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from dlm import config
from dlm.daemons.reaper import Reaper
from dlm.did import derived_paths
from figures import worlds
from figures.measuring import Bench, Figure, Place, Race, World

CONTENT = b"x" * 1024
SETTINGS = {"breaker_delete_share": "1", "breaker_delete_files": "1000000"}


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    yardstick = "bare SQL, unlink, rmdir, one syncfs"
    race = Race("reaper", "files/s", UNWANTED, reap, yardstick, reap_bare, arrange=arrange)
    yield from bench.run(race, files // 10)


def prepare(place: Place) -> None:
    with place.database.begin("bench.prepare", worlds.ACTOR) as tx:
        worlds.on_disk(tx, place.directory, 1)
        worlds.files(tx, place.size, at=None, size_bytes=len(CONTENT))
        worlds.replicas(tx, "ds", "s1", size_bytes=len(CONTENT))
        tx.run("UPDATE replica SET tombstone_at = %(now)s")


UNWANTED = World("files that nothing holds", prepare)


def arrange(place: Place) -> None:
    worlds.take_roots(place)
    worlds.write_files(place.directory / "files" / "s1", paths(place.size), CONTENT)
    os.sync()


def paths(number: int) -> list[str]:
    return derived_paths("bench", [f"ds.{i}" for i in range(1, number + 1)])


def reap(place: Place) -> None:
    reaper = Reaper(place.database, config.load(None, {}, SETTINGS))
    deleted = 0
    while done := reaper.run_once().counts.get("deleted", 0):
        deleted += done
    assert deleted == place.size


def reap_bare(place: Place) -> None:
    root = place.directory / "files" / "s1"
    with place.database.begin("bench.bare") as tx:
        tx.run("UPDATE replica SET state = 'deleting', claimed_until = %(now)s, fence = 1")
        tx.run(
            """INSERT INTO proof (did_id, storage_id, made_at, fence, wanted, witnesses, cause)
               SELECT did_id, storage_id, %(now)s, 1, 0, '{}', 'unwanted' FROM replica"""
        )
    for path in paths(place.size):
        _remove(root, path)
    os.sync()
    with place.database.begin("bench.bare") as tx:
        tx.run("DELETE FROM replica WHERE state = 'deleting'")
        tx.run("UPDATE storage_usage SET used_bytes = 0, used_files = 0")


def _remove(root: Path, path: str) -> None:
    os.unlink(root / path)
    with contextlib.suppress(OSError):  # not empty yet
        os.rmdir(os.path.dirname(root / path))
        os.rmdir(os.path.dirname(os.path.dirname(root / path)))
