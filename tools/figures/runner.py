"""What every figure needs: a server, fresh databases, one process per measurement, medians, and the table."""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from dlm.core import verify
from dlm.db import migrate
from dlm.db.embedded import EmbeddedPostgres
from dlm.db.engine import Database

FIGURES = ("judge", "register")
OPTIONS = ("shared_buffers=1GB", "max_wal_size=4GB", "checkpoint_timeout=30min", "work_mem=64MB")
TEMPLATE = "bench_template"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result; the yardstick does the same bare, in the same run. ratio > 1: dlm is ahead."""

    figure: str
    value: float
    unit: str
    n: int
    yardstick: str
    yardstick_value: float
    ratio: float
    peak_rss_mb: float
    statements: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement, in a process of its own."""

    seconds: float
    peak_rss_mb: float
    statements: int


@dataclass(frozen=True, slots=True)
class Race:
    """The same work done by dlm and bare; each is given a database and the size of the world that `prepare` made."""

    figure: str
    unit: str
    yardstick: str
    prepare: Callable[[Database, int], None]
    ours: Callable[[Database, int], None]
    bare: Callable[[Database, int], None]


class Bench:
    """Gives each measurement a fresh database and a fresh process, and the invariants a look after each."""

    def __init__(self, dsn: str, repeat: int) -> None:
        self.dsn = dsn
        self.repeat = repeat
        self._number = 0

    def compare(self, race: Race, size: int, n: int) -> Figure:
        """Medians of `repeat` runs of ours and bare over a world of `size`, in turns so that drift meets both; `n` units of work."""
        own, theirs = [], []
        for _ in range(self.repeat):
            theirs.append(self.sample(race.prepare, race.bare, size, is_ours=False))
            own.append(self.sample(race.prepare, race.ours, size, is_ours=True))
        seconds = statistics.median(s.seconds for s in own)
        bare_seconds = statistics.median(s.seconds for s in theirs)
        return Figure(
            figure=race.figure,
            value=round(n / seconds, 1),
            unit=race.unit,
            n=n,
            yardstick=race.yardstick,
            yardstick_value=round(n / bare_seconds, 1),
            ratio=round(statistics.median(b.seconds / o.seconds for o, b in zip(own, theirs, strict=True)), 3),
            peak_rss_mb=round(max(s.peak_rss_mb for s in own), 1),
            statements=round(statistics.median(s.statements for s in own)),
        )

    def sample(self, prepare: Callable[..., Any], act: Callable[..., None], size: int, *, is_ours: bool) -> Sample:
        with self.fresh_database() as dsn:
            _in_child(_prepare, dsn, prepare, size)
            return _in_child(_measure, dsn, act, size, is_ours)

    @contextmanager
    def fresh_database(self) -> Iterator[str]:
        self._number += 1
        name = f"bench_{self._number}"
        _admin(self.dsn, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        try:
            yield make_url(self.dsn).set(database=name).render_as_string(hide_password=False)
        finally:
            _admin(self.dsn, f"DROP DATABASE {name}")


def _admin(dsn: str, statement: str) -> None:
    database = Database(dsn)
    try:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(statement)
    finally:
        database.dispose()


def _prepare(dsn: str, prepare: Callable[..., Any], size: int) -> None:
    database = Database(dsn, statement_timeout_s=1800)
    prepare(database, size)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")
        connection.exec_driver_sql("CHECKPOINT")
    database.dispose()


def _measure(dsn: str, act: Callable[..., None], size: int, is_ours: bool) -> Sample:
    database = Database(dsn, statement_timeout_s=1800)
    before = _statements(database)
    gc.collect()
    start = time.perf_counter()
    act(database, size)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sample = Sample(seconds, peak, _statements(database) - before - 1)
    if is_ours:
        with database.begin("bench.verify") as tx:
            found = verify.verify(tx)
        if found:
            raise AssertionError("the invariants do not hold after this figure:\n" + "\n".join(map(str, found)))
    database.dispose()
    return sample


def _statements(database: Database) -> int:
    """Statements that clients sent to this database so far; 0 where pg_stat_statements is not there."""
    with database.engine.connect() as connection:
        if connection.exec_driver_sql("SELECT 1 FROM pg_extension WHERE extname = 'pg_stat_statements'").first() is None:
            return 0
        return connection.exec_driver_sql(
            """SELECT coalesce(sum(calls), 0) FROM pg_stat_statements
                WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
                  AND query !~* '^(begin|commit|rollback|deallocate)'"""
        ).scalar_one()


def _in_child(act: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `act` run in a process of its own, so that peak memory is that of one measurement."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(act, arguments)


@contextmanager
def _server(dsn: str | None) -> Iterator[str]:
    if dsn is not None:
        yield dsn
        return
    with tempfile.TemporaryDirectory(prefix="dlm-bench-", dir="/tmp") as directory:
        server = EmbeddedPostgres(Path(directory) / "db", options=OPTIONS)
        server.start()
        try:
            yield server.dsn("postgres")
        finally:
            server.stop()
            server.remove()


def _make_template(dsn: str) -> None:
    _admin(dsn, f"DROP DATABASE IF EXISTS {TEMPLATE}")
    _admin(dsn, f"CREATE DATABASE {TEMPLATE}")
    template = make_url(dsn).set(database=TEMPLATE).render_as_string(hide_password=False)
    migrate.upgrade(template)
    _admin(template, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools/bench", description=__doc__)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(FIGURES)}; default all")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="append one JSON line per figure to this file")
    parser.add_argument("--dsn")
    options = parser.parse_args(arguments)
    unknown = set(options.figures) - set(FIGURES)
    if unknown:
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    print(f"{'figure':<22}{'dlm':>12}{'bare':>12}  {'unit':<12}{'ratio':>7}{'n':>10}{'MB':>7}{'stmts':>8}  yardstick", flush=True)
    with _server(options.dsn) as dsn:
        _make_template(dsn)
        bench = Bench(dsn, options.repeat)
        for name in options.figures or FIGURES:
            for figure in importlib.import_module(f"figures.{name}").measure(bench, options.files):
                _show(figure, options.json)
    return 0


def _show(figure: Figure, path: Path | None) -> None:
    f = figure
    print(
        f"{f.figure:<22}{f.value:>12,.0f}{f.yardstick_value:>12,.0f}  {f.unit:<12}{f.ratio:>7.2f}{f.n:>10,}{f.peak_rss_mb:>7.0f}"
        f"{f.statements:>8,}  {f.yardstick}",
        flush=True,
    )
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(asdict(figure)) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
