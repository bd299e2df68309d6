"""`scale`, by hand: one catalogue of as many files as asked for, from registration to the end of its rule.

Each stage is a process of its own on the same database, so that its memory is known; what it wrote to the log, and how
many transaction ids it took, is told beside its speed. Nothing is repeated: at 10^7 files this takes an hour.
"""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dlm.core import dids, replicas, rules
from dlm.core import files as columns
from dlm.db.engine import Database
from figures import register, worlds
from figures.letgo import let_go
from figures.measuring import (
    STATEMENT_TIMEOUT_S,
    Bench,
    CannotMeasure,
    Figure,
    Place,
    check_invariants,
    in_process,
    in_unit,
)

NEW = 10_000
RANGE = 100_000  # files whose copies arrive in one transaction
NEED_BYTES, NEED_BYTES_PER_FILE = 8 * 10**9, 5_000  # the log; tables, indexes, and what a sort puts aside
PER = {"files/s": "B/file", "copies/s": "B/copy"}
SHOWN_BYTES = 4 << 20  # smaller relations are left out
TABLES = "did, attachment, replica, request, change, lock, rule"


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage took."""

    seconds: float
    peak_rss_mb: float
    wal_bytes: int
    xids: int
    sizes: list[tuple[str, int, int]]  # of tables and indexes: name, bytes, rows


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    require_disk(bench, files)
    with bench.database() as dsn:
        for name, unit, n, act in stages(files):
            stage = in_process(run, dsn, act, files, bench.directory)
            yield from told(name, unit, n, stage)


def require_disk(bench: Bench, files: int) -> None:
    """Say what is needed; CannotMeasure where the disk of a server of our own has less."""
    need = NEED_BYTES + NEED_BYTES_PER_FILE * files
    if not (bench.directory / "db").exists():
        print(f"scale: the server's disk needs {need / 1e9:.0f} GB", flush=True)
        return
    free = shutil.disk_usage(bench.directory).free
    there = f"{bench.directory.parent}, where {free / 1e9:.0f} GB are free"
    print(f"scale: needs {need / 1e9:.0f} GB in {there}", flush=True)
    if free < need:
        raise CannotMeasure(f"{files:,} files need {need / 1e9:.0f} GB of disk: fewer --files, or another --dir")


def stages(files: int) -> list[tuple[str, str, int, Callable[[Place], None]]]:
    """(name, unit, units of work, what is done), in order."""
    return [
        ("register", "files/s", files, begin),
        ("vacuum after registering", "s", 1, vacuum),
        ("fold", "s", 1, fold),
        ("judge", "copies/s", 2 * files, place),
        ("sizes placed", "", files, vacuum),
        ("arrive", "copies/s", 2 * files, arrive),
        ("vacuum after arrivals", "s", 1, vacuum),
        ("ok", "s", 1, become_ok),
        ("resync", "s", 1, resync),
        ("evaluate", "s", 1, evaluate),
        ("verify", "s", 1, verify),
        ("sizes ok", "", files, vacuum),
        ("letgo", "copies/s", 2 * files, let_go),
        ("vacuum after letting go", "s", 1, vacuum),
        ("verify at the end", "s", 1, verify),
    ]


def told(name: str, unit: str, n: int, stage: Stage) -> Iterator[Figure]:
    """The stage's speed, its log and transaction ids; or the sizes it found, per file of `n`, with their rows."""
    if name.startswith("sizes"):
        for relation, size, rows in stage.sizes:
            yield _figure(f"scale {name} {relation}", size / n, "B/file", rows, stage)
        return
    yield _figure(f"scale {name}", in_unit(unit, stage.seconds, n), unit, n, stage)
    if unit.endswith("/s"):
        yield _figure(f"scale {name} log", stage.wal_bytes / n, PER[unit], n, stage)
        yield _figure(f"scale {name} transaction ids", stage.xids, "ids", n, stage)


def _figure(name: str, value: float, unit: str, n: int, stage: Stage) -> Figure:
    return Figure(name, round(value, 2), unit, n, "none", 0.0, 0.0, round(stage.peak_rss_mb, 1), 0)


# ------------------------------------------------------------------------------------------- in the child process


def run(dsn: str, act: Callable[[Place], None], size: int, directory: Path) -> Stage:
    """Do one stage, and look at what it took."""
    database = Database(dsn, statement_timeout_s=STATEMENT_TIMEOUT_S)
    wal, xid = _position(database)
    start = time.perf_counter()
    act(Place(database, size, directory))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wal_after, xid_after = _position(database)
    stage = Stage(seconds, peak, wal_after - wal, xid_after - xid, _sizes(database))
    database.dispose()
    return stage


def _position(database: Database) -> tuple[int, int]:
    """(bytes of log written so far, the newest transaction id)."""
    with database.engine.connect() as connection:
        row = connection.exec_driver_sql(
            "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn, pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
        ).one()
    return int(row[0]), int(row[1])


def _sizes(database: Database) -> list[tuple[str, int, int]]:
    """Bytes and rows (as the last ANALYZE saw them) of the large tables without their indexes, and of each index.

    The last is the whole database, per file.
    """
    with database.engine.connect() as connection:
        rows = connection.exec_driver_sql(
            f"""SELECT relname, size, rows FROM (
                    SELECT relname, reltuples::bigint AS rows,
                           CASE relkind WHEN 'r' THEN pg_table_size(oid) ELSE pg_relation_size(oid) END AS size
                      FROM pg_class WHERE relkind IN ('r', 'i') AND relnamespace = 'public'::regnamespace) c
                 WHERE size > {SHOWN_BYTES} ORDER BY size DESC"""
        ).all()
        whole = connection.exec_driver_sql(
            """SELECT pg_database_size(current_database()),
                      (SELECT reltuples::bigint FROM pg_class WHERE oid = 'did'::regclass)"""
        ).one()
    return [(row[0], int(row[1]), int(row[2])) for row in [*rows, ("database", *whole)]]


def begin(place: Place) -> None:
    """An empty dataset, and all files registered in it through the core."""
    with place.database.begin("bench.prepare", worlds.ACTOR) as tx:
        worlds.base(tx)
        dids.add_collections(tx, [dids.NewCollection("bench", "ds")])
    register.register(place)


def fold(place: Place) -> None:
    """The judge looks at what was registered, as it would have meanwhile."""
    worlds.judge_all(place.database)


def place(place: Place) -> None:
    with place.database.begin("bench.declare", worlds.ACTOR) as tx:
        rules.declare(tx, [rules.Declaration("bench:ds", 2, "type=disk", spread="site")])
    worlds.judge_all(place.database)


def arrive(place: Place) -> None:
    """Every copy arrives: bare SQL, as a conveyor leaves it, so that there is something to judge and to let go."""
    with place.database.begin("bench.look") as tx:
        span = tx.one("SELECT min(did_id) AS low, max(did_id) AS high FROM request")
    assert span is not None
    for start in range(span.low, span.high + 1, RANGE):
        with place.database.begin("bench.arrive") as tx:
            worlds.arrive_between(tx, start, start + RANGE - 1)
    with place.database.begin("bench.arrive") as tx:
        worlds.count(tx)


def become_ok(place: Place) -> None:
    worlds.judge_all(place.database)
    with place.database.begin("bench.look") as tx:
        assert tx.scalar("SELECT state FROM rule") == "ok"


def resync(place: Place) -> None:
    with place.database.begin("bench.due") as tx:
        tx.run("UPDATE rule SET next_judge_at = %(now)s")
    worlds.judge_all(place.database)


def evaluate(place: Place) -> None:
    """New files are registered, attached, and placed."""
    items = [{"name": f"new.{i}", "size_bytes": 1000, "adler32": f"{i:08x}"} for i in range(1, NEW + 1)]
    with place.database.begin("bench.register", worlds.ACTOR) as tx:
        replicas.register(tx, "origin", columns.read(items, "bench"), dataset=("bench", "ds"))
    worlds.judge_all(place.database)


def vacuum(place: Place) -> None:
    with place.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"VACUUM (ANALYZE) {TABLES}")


def verify(place: Place) -> None:
    check_invariants(place.database)
