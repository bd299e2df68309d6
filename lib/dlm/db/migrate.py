"""Bring a database to the newest schema, and keep monthly partitions ahead of the calendar."""

from __future__ import annotations

from datetime import date, datetime
from importlib.resources import files

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from dlm.db.engine import Tx
from dlm.db.models import PARTITIONED

MONTHS_AHEAD = 3
PARTITION_LOCK = 0x646C6D03  # advisory: two processes that start at once would both make the month


def _config(dsn: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("dlm.db") / "migrations"))
    config.attributes["dsn"] = dsn
    return config


def upgrade(dsn: str, revision: str = "head") -> None:
    """Run the migrations up to `revision`; each in its own transaction, with lock and statement timeouts."""
    command.upgrade(_config(dsn), revision)


def current(dsn: str) -> tuple[str | None, str | None]:
    """(revision of the database, revision of this code)."""
    engine = sa.create_engine(dsn)
    try:
        with engine.connect() as connection:
            have = MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
    return have, ScriptDirectory.from_config(_config(dsn)).get_current_head()


def month_after(day: date, months: int = 1) -> date:
    """The first day of the month `months` after that of `day`."""
    index = day.year * 12 + day.month - 1 + months
    return date(index // 12, index % 12 + 1, 1)


def partition_statements(table: str, today: date, months: int = MONTHS_AHEAD) -> list[str]:
    """DDL that makes the partitions of `table` for this month and the `months` after it, where missing."""
    statements = []
    for ahead in range(months + 1):
        start, end = month_after(today, ahead), month_after(today, ahead + 1)
        name = f"{table}_{start:%Y_%m}"
        statements.append(f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF {table} {_bounds(start, end)}")
    return statements


def _bounds(start: date, end: date) -> str:
    """The months' ends in UTC, whatever the time zone of the session: else neighbours made by others overlap."""
    return f"FOR VALUES FROM ('{start} 00:00+00') TO ('{end} 00:00+00')"


def ensure_partitions(tx: Tx, now: datetime) -> None:
    """Make the coming months' partitions; the default partition takes what falls outside.

    Rows that it took because a month was not made in time (no daemon had run for a while) move into their month: with
    them in the way the month could never be made.
    """
    tx.lock_session(PARTITION_LOCK)
    for table, column in PARTITIONED.items():
        for ahead in range(MONTHS_AHEAD + 1):
            start, end = month_after(now.date(), ahead), month_after(now.date(), ahead + 1)
            name = f"{table}_{start:%Y_%m}"
            if tx.scalar("SELECT to_regclass(%(name)s) IS NOT NULL", name=name):
                continue
            tx.run(f"CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
            tx.run(
                f"""WITH moved AS (DELETE FROM {table}_default
                                    WHERE {column} >= '{start} 00:00+00' AND {column} < '{end} 00:00+00' RETURNING *)
                    INSERT INTO {name} SELECT * FROM moved"""
            )
            tx.run(f"ALTER TABLE {table} ATTACH PARTITION {name} {_bounds(start, end)}")
