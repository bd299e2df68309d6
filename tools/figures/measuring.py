"""How a figure comes about: dlm and its yardstick in turns, each on a copy of one world, in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from dlm.core import verify
from dlm.db import migrate
from dlm.db.engine import Database

TEMPLATE = "bench_template"
STATEMENT_TIMEOUT_S = 1800


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result; the yardstick does the same in the same run. ratio > 1: dlm is ahead."""

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
class Place:
    """Where a measurement is made: a database, the size of its world, and a directory that is the race's own."""

    database: Database
    size: int
    directory: Path


Prepare = Callable[[Place], None]
# What is done; the seconds it took, by name, where the whole is not what counts.
Act = Callable[[Place], Mapping[str, float] | None]


@dataclass(frozen=True, slots=True)
class Race:
    """The same work done by dlm and by its yardstick, on worlds that `prepare` makes once, and `arrange` each time.

    A unit that ends in "/s" is a rate, any other ("s", "ms", "µs/file") a time for `n` units of work.
    """

    figure: str
    unit: str
    prepare: Prepare
    ours: Act
    yardstick: str = "none"
    bare: Act | None = None
    bare_prepare: Prepare | None = None  # when the yardstick needs another world
    arrange: Prepare | None = None
    is_verified: bool = True  # the invariants are looked at after each run of ours


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement, in a process of its own."""

    seconds: Mapping[str, float]
    peak_rss_mb: float
    statements: int


class Bench:
    """Makes worlds and runs races over them, on one server and one disk."""

    def __init__(self, dsn: str, directory: Path, repeat: int) -> None:
        self.dsn = dsn
        self.directory = directory
        self.repeat = repeat
        self._number = 0
        self._made: tuple[Prepare, int] | None = None

    def run(self, race: Race, size: int, n: int | None = None, repeat: int | None = None) -> list[Figure]:
        """The race's figures, medians of `repeat` runs over a world of `size`, in turns so that drift meets both."""
        own, theirs = [], []
        for_bare = race.bare_prepare or race.prepare
        with self._world(race.prepare, size) as world, self._world(for_bare, size, world) as other:
            for _ in range(repeat or self.repeat):
                if race.bare is not None:
                    theirs.append(self._sample(other, race, race.bare, size, is_ours=False))
                own.append(self._sample(world, race, race.ours, size, is_ours=True))
        return [_figure(race, name, n or size, own, theirs) for name in own[0].seconds]

    @contextmanager
    def _world(self, prepare: Prepare, size: int, same: str | None = None) -> Iterator[str]:
        """The name of a database as `prepare` makes it; `same` is taken where it was made that way already."""
        if same is not None and self._made == (prepare, size):
            yield same
            return
        with self._database(TEMPLATE) as (name, dsn):
            in_process(_prepare, dsn, prepare, size, self.directory)
            self._made = (prepare, size)
            yield name

    @contextmanager
    def _database(self, template: str) -> Iterator[tuple[str, str]]:
        self._number += 1
        name = f"bench_{self._number}"
        admin(self.dsn, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        try:
            yield name, make_url(self.dsn).set(database=name).render_as_string(hide_password=False)
        finally:
            admin(self.dsn, f"DROP DATABASE {name} WITH (FORCE)")

    def _sample(self, world: str, race: Race, act: Act, size: int, *, is_ours: bool) -> Sample:
        with self._database(world) as (_, dsn):
            return in_process(_measure, dsn, race, act, size, self.directory, is_ours)


def _figure(race: Race, name: str, n: int, own: list[Sample], theirs: list[Sample]) -> Figure:
    seconds = statistics.median(sample.seconds[name] for sample in own)
    bare = [sample.seconds.get(name, sample.seconds.get("", 0.0)) for sample in theirs]
    ratios = [b / sample.seconds[name] for sample, b in zip(own, bare, strict=True)] if theirs else [0.0]
    return Figure(
        figure=f"{race.figure} {name}".strip(),
        value=in_unit(race.unit, seconds, n),
        unit=race.unit,
        n=n,
        yardstick=race.yardstick,
        yardstick_value=in_unit(race.unit, statistics.median(bare), n) if theirs else 0.0,
        ratio=round(statistics.median(ratios), 3),
        peak_rss_mb=round(max(sample.peak_rss_mb for sample in own), 1),
        statements=round(statistics.median(sample.statements for sample in own)),
    )


def in_unit(unit: str, seconds: float, n: int) -> float:
    """The seconds that `n` units of work took, as a rate or a time."""
    if unit.endswith("/s"):
        return round(n / seconds, 1)
    scale = {"s": 1.0, "ms": 1e3, "µs": 1e6}[unit.partition("/")[0]] / (n if "/" in unit else 1)
    return round(seconds * scale, 3)


def derived(figure: str, ours: Figure, than: Figure, yardstick: str) -> Figure:
    """How one figure stands to another one of the same kind; ratio > 1: it is the better one."""
    is_rate = ours.unit.endswith("/s")
    ratio = ours.value / than.value if is_rate else than.value / ours.value
    return Figure(
        figure, ours.value, ours.unit, ours.n, yardstick, than.value, round(ratio, 3), ours.peak_rss_mb, ours.statements
    )


def admin(dsn: str, statement: str) -> None:
    """Execute a statement that no transaction may hold."""
    database = Database(dsn)
    try:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(statement)
    finally:
        database.dispose()


def make_template(dsn: str) -> None:
    """A database with the schema and nothing in it."""
    admin(dsn, f"DROP DATABASE IF EXISTS {TEMPLATE}")
    admin(dsn, f"CREATE DATABASE {TEMPLATE}")
    template = make_url(dsn).set(database=TEMPLATE).render_as_string(hide_password=False)
    migrate.upgrade(template)
    admin(template, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements")


# ------------------------------------------------------------------------------------------- in the child process


def in_process(act: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `act` run in a process of its own, so that peak memory is that of one measurement."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(act, *arguments).result()


def _prepare(dsn: str, prepare: Prepare, size: int, directory: Path) -> None:
    database = Database(dsn, statement_timeout_s=STATEMENT_TIMEOUT_S)
    shutil.rmtree(directory / "files", ignore_errors=True)
    prepare(Place(database, size, directory))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")
        connection.exec_driver_sql("CHECKPOINT")
    database.dispose()


def _measure(dsn: str, race: Race, act: Act, size: int, directory: Path, is_ours: bool) -> Sample:
    database = Database(dsn, statement_timeout_s=STATEMENT_TIMEOUT_S)
    place = Place(database, size, directory)
    shutil.rmtree(directory / "files", ignore_errors=True)
    if race.arrange is not None:
        race.arrange(place)
    before = _statements(database)
    gc.collect()
    start = time.perf_counter()
    named = act(place)
    seconds = {"": time.perf_counter() - start} if named is None else dict(named)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sample = Sample(seconds, peak, _statements(database) - before - 1)
    if is_ours and race.is_verified:
        _check_invariants(database)
    database.dispose()
    return sample


def _check_invariants(database: Database) -> None:
    with database.begin("bench.verify") as tx:
        found = verify.verify(tx)
    if found:
        raise AssertionError("the invariants do not hold after this figure:\n" + "\n".join(map(str, found)))


def _statements(database: Database) -> int:
    """Statements that clients sent to this database so far."""
    with database.engine.connect() as connection:
        return int(
            connection.exec_driver_sql(
                """SELECT coalesce(sum(calls), 0) FROM pg_stat_statements
                    WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
                      AND query !~* '^(begin|commit|rollback|deallocate)'"""
            ).scalar_one()
        )
