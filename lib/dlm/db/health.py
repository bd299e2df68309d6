"""What `doctor` asks the database about itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime

from dlm.db.engine import Tx
from dlm.db.migrate import month_after
from dlm.db.models import PARTITIONED


def server_version(tx: Tx) -> tuple[int, str]:
    """(major version, version in words); one statement."""
    row = tx.one(
        "SELECT current_setting('server_version_num')::int / 10000 AS major, current_setting('server_version') AS text"
    )
    assert row is not None
    return row.major, row.text


def server_time(tx: Tx) -> datetime:
    """The database's own time, whatever clock the transaction reads; one statement."""
    moment: datetime = tx.scalar("SELECT clock_timestamp()")
    return moment


def missing_partitions(tx: Tx, today: date, months: int) -> Sequence[str]:
    """The partitions of this month and the `months` after it that are not there; one statement."""
    wanted = [f"{table}_{month_after(today, ahead):%Y_%m}" for table in PARTITIONED for ahead in range(months + 1)]
    rows = tx.rows(
        "SELECT name FROM unnest(%(wanted)s::text[]) AS w (name) WHERE to_regclass(name) IS NULL ORDER BY 1",
        wanted=wanted,
    )
    return [row.name for row in rows]
