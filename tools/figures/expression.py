"""`expression`: a storage expression over 1,000 storages, cold (a new snapshot) and warm (the same one again)."""

from __future__ import annotations

import time
from collections.abc import Iterator

from dlm.core import expression
from dlm.db import storages
from figures import worlds
from figures.measuring import Bench, Figure, Place, Race, World

TEXT = "(share<=3&country=AU|country=CH)\\(site=site7|name=s1*)&type=disk"
STORAGES, ROUNDS = 1000, 200


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    for name, act in (("cold", cold), ("warm", warm)):
        yield from bench.run(Race(f"expression-{name}", "ms", STANDING, act), STORAGES, 1)


def prepare(place: Place) -> None:
    with place.database.begin("bench.prepare") as tx:
        worlds.base(tx, place.size, 20)


STANDING = World("storages", prepare)


def cold(place: Place) -> dict[str, float]:
    return {"": _mean(place, is_new=True)}


def warm(place: Place) -> dict[str, float]:
    return {"": _mean(place, is_new=False)}


def _mean(place: Place, is_new: bool) -> float:
    """Seconds of one evaluation, parsed anew each time when cold; reading the storages is not counted."""
    with place.database.begin("bench.look") as tx:
        found = storages.snapshot(tx)
    snapshot, parsed = expression.Snapshot(found), expression.parse(TEXT)
    matched = expression.evaluate(parsed, snapshot)
    assert matched
    start = time.perf_counter()
    for _ in range(ROUNDS):
        if is_new:
            snapshot, parsed = expression.Snapshot(found), expression.parse(TEXT)
        assert expression.evaluate(parsed, snapshot) == matched
    return (time.perf_counter() - start) / ROUNDS
