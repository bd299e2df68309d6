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
        statements.append(
            f"CREATE TABLE IF NOT EXISTS {table}_{start:%Y_%m} PARTITION OF {table} FOR VALUES FROM ('{start}') TO ('{end}')"
        )
    return statements


def ensure_partitions(tx: Tx, now: datetime) -> None:
    """Make the coming months' partitions; the default partition takes what falls outside."""
    for table in PARTITIONED:
        for statement in partition_statements(table, now.date()):
            tx.run(statement)
