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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from dlm.core import verify
from dlm.db import migrate
from dlm.db.engine import Database

TEMPLATE = "bench_template"
STATEMENT_TIMEOUT_S = 7200
LONG_S = 30.0  # what takes longer is measured once; its line says so
KEPT_WORLDS = 4  # worlds that wait for another figure that is measured on them
LARGE_BYTES = 64 << 20  # a database up to here is copied through the log, which needs no checkpoint
PRELOADED = ["dlm.daemons.judge", "dlm.daemons.conveyor", "dlm.daemons.reaper", "dlm.core.verify"]


class CannotMeasure(Exception):
    """What a figure needs is not here."""


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
    runs: int = 1  # of which this is the median

    @property
    def statements_each(self) -> float:
        """Statements per unit of work."""
        return self.statements / self.n


@dataclass(frozen=True, slots=True)
class Place:
    """Where a measurement is made: a database, the size of its world, and a directory that is the race's own."""

    database: Database
    size: int
    directory: Path


Prepare = Callable[[Place], None]
# What is done; by name what was measured, mostly seconds, where the time of the whole is not what counts.
Act = Callable[[Place], Mapping[str, float] | None]


@dataclass(frozen=True, slots=True)
class World:
    """A catalogue as `prepare` makes it, upon another one where that has been made already.

    Worlds of one name and size are the same: it is made once, and copied for every measurement.
    """

    name: str
    prepare: Prepare
    on: World | None = None


@dataclass(frozen=True, slots=True)
class Race:
    """The same work done by dlm and by its yardstick, on copies of one world, each of which `arrange` makes ready.

    A unit that ends in "/s" is a rate, "s", "ms" or "µs/file" a time for `n` units of work; others are as measured.
    """

    figure: str
    unit: str
    world: World
    ours: Act
    yardstick: str = "none"
    bare: Act | None = None
    bare_world: World | None = None  # when the yardstick needs another one
    arrange: Prepare | None = None
    units: Mapping[str, str] = field(default_factory=dict)  # of parts that are told in another unit, each for one
    is_verified: bool = True  # the invariants are looked at after the first run of ours


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement, in a process of its own."""

    measured: Mapping[str, float]
    took_s: float
    peak_rss_mb: float
    statements: int


class Bench:
    """Makes worlds and runs races over them, on one server and one disk."""

    def __init__(self, dsn: str, directory: Path, repeat: int) -> None:
        self.dsn = dsn
        self.directory = directory
        self.repeat = repeat
        self._number = 0
        self._worlds: dict[tuple[str, int], str] = {}

    def run(self, race: Race, size: int, n: int | None = None, repeat: int | None = None) -> list[Figure]:
        """The race's figures, medians of `repeat` runs over a world of `size`, in turns so that drift meets both.

        What takes longer than LONG_S is run once.
        """
        own: list[Sample] = []
        theirs: list[Sample] = []
        while len(own) < (repeat or self.repeat) and not (own and own[0].took_s > LONG_S):
            if race.bare is not None:
                theirs.append(self._sample(race.bare_world or race.world, race, race.bare, size))
            own.append(self._sample(race.world, race, race.ours, size, is_verified=race.is_verified and not own))
        return [_figure(race, name, n or size, own, theirs) for name in own[0].measured]

    @contextmanager
    def database(self, template: str = TEMPLATE) -> Iterator[str]:
        """The address of a new copy of a database, which goes at the end."""
        name = self._copy(template)
        try:
            yield self._dsn(name)
        finally:
            self._drop(name)

    def _world(self, world: World, size: int) -> str:
        """The name of the database that holds this world, made if need be; the one unused for longest goes."""
        key = (world.name, size)
        name = self._worlds.pop(key, None)
        if name is None:
            name = self._copy(self._world(world.on, size) if world.on else TEMPLATE)
            in_process(_prepare, self._dsn(name), world.prepare, size, self.directory)
        self._worlds[key] = name
        while len(self._worlds) > KEPT_WORLDS:
            self._drop(self._worlds.pop(next(iter(self._worlds))))
        return name

    def _copy(self, template: str) -> str:
        self._number += 1
        name = f"bench_{self._number}"
        how = "FILE_COPY" if query(self.dsn, f"SELECT pg_database_size('{template}')") > LARGE_BYTES else "WAL_LOG"
        admin(self.dsn, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY {how}")
        return name

    def _drop(self, name: str) -> None:
        admin(self.dsn, f"DROP DATABASE {name} WITH (FORCE)")

    def _dsn(self, name: str) -> str:
        return make_url(self.dsn).set(database=name).render_as_string(hide_password=False)

    def _sample(self, world: World, race: Race, act: Act, size: int, *, is_verified: bool = False) -> Sample:
        with self.database(self._world(world, size)) as dsn:
            return in_process(_measure, dsn, race.arrange, act, size, self.directory, is_verified)

    def close(self) -> None:
        """Drop the worlds that are kept."""
        for name in self._worlds.values():
            self._drop(name)
        self._worlds.clear()


def _figure(race: Race, name: str, n: int, own: list[Sample], theirs: list[Sample]) -> Figure:
    unit, units = (race.units[name], 1) if name in race.units else (race.unit, n)
    values = [sample.measured[name] for sample in own]
    bare = [sample.measured.get(name, 0.0) for sample in theirs]
    ratios = [theirs / ours for ours, theirs in zip(values, bare, strict=True)] if any(bare) else [0.0]
    return Figure(
        figure=f"{race.figure} {name}".strip(),
        value=in_unit(unit, statistics.median(values), units),
        unit=unit,
        n=n,
        yardstick=race.yardstick if any(bare) else "none",
        yardstick_value=in_unit(unit, statistics.median(bare), units) if any(bare) else 0.0,
        ratio=round(statistics.median(ratios), 3),
        peak_rss_mb=round(max(sample.peak_rss_mb for sample in own), 1),
        statements=round(statistics.median(sample.statements for sample in own)),
        runs=len(own),
    )


def in_unit(unit: str, seconds: float, n: int) -> float:
    """The seconds that `n` units of work took, as a rate or a time."""
    if unit.endswith("/s"):
        return round(n / seconds, 1)
    scale = {"s": 1.0, "ms": 1e3, "µs": 1e6}.get(unit.partition("/")[0], 1.0) / (n if "/" in unit else 1)
    return round(seconds * scale, 3)


def derived(figure: str, ours: Figure, than: Figure, yardstick: str) -> Figure:
    """How one figure stands to another one of the same kind; ratio > 1: it is the better one."""
    is_rate = ours.unit.endswith("/s")
    ratio = ours.value / than.value if is_rate else than.value / ours.value
    return replace(ours, figure=figure, yardstick=yardstick, yardstick_value=than.value, ratio=round(ratio, 3))


def admin(dsn: str, statement: str) -> None:
    """Execute a statement that no transaction may hold."""
    database = Database(dsn)
    try:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(statement)
    finally:
        database.dispose()


def query(dsn: str, statement: str) -> Any:
    """The one value that a statement finds."""
    database = Database(dsn)
    try:
        with database.engine.connect() as connection:
            return connection.exec_driver_sql(statement).scalar_one()
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
    """The result of `act` run in a process of its own, so that peak memory is that of one measurement.

    Whoever ends the bench ends that process, too, and need not wait for a statement of an hour.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(act, *arguments).result()
        except (SystemExit, KeyboardInterrupt):
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _prepare(dsn: str, prepare: Prepare, size: int, directory: Path) -> None:
    database = Database(dsn, statement_timeout_s=STATEMENT_TIMEOUT_S)
    shutil.rmtree(directory / "files", ignore_errors=True)
    prepare(Place(database, size, directory))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")
        connection.exec_driver_sql("CHECKPOINT")
    database.dispose()


def _measure(dsn: str, arrange: Prepare | None, act: Act, size: int, directory: Path, is_verified: bool) -> Sample:
    database = Database(dsn, statement_timeout_s=STATEMENT_TIMEOUT_S)
    place = Place(database, size, directory)
    shutil.rmtree(directory / "files", ignore_errors=True)
    if arrange is not None:
        arrange(place)
    before = _statements(database)
    gc.collect()
    start = time.perf_counter()
    named = act(place)
    took_s = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sample = Sample({"": took_s} if named is None else dict(named), took_s, peak, _statements(database) - before - 1)
    if is_verified:
        check_invariants(database)
    database.dispose()
    return sample


def check_invariants(database: Database) -> None:
    """AssertionError that tells what breaks an invariant."""
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
