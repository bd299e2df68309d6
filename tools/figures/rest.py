"""`rest`: the whole system with nothing to do, on an embedded database of its own: memory (PSS) and processor."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from dlm.db import migrate
from dlm.db.embedded import EmbeddedPostgres
from dlm.db.engine import Database
from figures import worlds
from figures.measuring import Bench, Figure, Place, Race, World
from figures.services import Program, Web

SETTLE_S, WATCH_S = 10.0, 30.0


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    race = Race("rest", "", NOTHING, watch, units={"memory": "MB", "cpu": "% CPU"}, is_verified=False)
    yield from bench.run(race, 1, repeat=1)


def prepare(place: Place) -> None:
    """Nothing: the database measured is another one, with the defaults of `dlm-admin up`."""


NOTHING = World("nothing", prepare)


def watch(place: Place) -> dict[str, float]:
    """(MB, percent of one core) of web, all daemons in one process, and the database server with its processes."""
    server = EmbeddedPostgres(place.directory / "resting")
    server.start()
    try:
        migrate.upgrade(server.dsn("postgres"))
        database = Database(server.dsn("postgres"))
        with database.begin("bench.prepare") as tx:
            worlds.base(tx)
        resting = Place(database, 1, place.directory)
        with Web(resting) as web, Program(resting, "dlm.daemons.main", "all", run_dir=place.directory) as daemons:
            database.dispose()
            assert web.process and daemons.process
            return _watch([web.process.pid, daemons.process.pid, int(server.status()["pid"])])
    finally:
        server.stop()
        server.remove()


def _watch(roots: list[int]) -> dict[str, float]:
    time.sleep(SETTLE_S)
    before = _cpu_s(_tree(roots))
    time.sleep(WATCH_S)
    after = _tree(roots)
    return {"memory": sum(map(_pss_mb, after)), "cpu": 100 * (_cpu_s(after) - before) / WATCH_S}


def _tree(roots: Iterable[int]) -> list[int]:
    """The processes and all below them."""
    found = list(roots)
    for pid in found:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def _cpu_s(pids: Iterable[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _pss_mb(pid: int) -> float:
    """The process's share of memory: pages used by several are divided among them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
