"""`verify`: all invariants of the catalogue, as `dlm-admin verify` looks at them, over a million files."""

from __future__ import annotations

from collections.abc import Iterator

from dlm.core import verify
from figures import resync
from figures.measuring import Bench, Figure, Place, Race


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    yield from bench.run(Race("verify", "s", resync.OK, look, is_verified=False), 10 * files)


def look(place: Place) -> None:
    with place.database.begin("bench.verify") as tx:
        assert verify.verify(tx) == []
