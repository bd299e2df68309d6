"""One clock. Every transaction reads it once and binds the value; no SQL says `now()` (architecture 5).

Leases and expiry thereby follow the database's time, whatever a daemon's host believes.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Protocol


class Clock(Protocol):
    def now(self, connection: Any) -> datetime:
        """The moment that the transaction on `connection` takes as present, with time zone."""


class DatabaseClock:
    """The database's own time; one statement."""

    def now(self, connection: Any) -> datetime:
        return connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()


class ManualClock:
    """A clock that moves only when told, for tests and the simulator."""

    def __init__(self, start: datetime) -> None:
        self.moment = start

    def now(self, connection: Any) -> datetime:
        return self.moment

    def advance(self, seconds: float) -> datetime:
        self.moment += timedelta(seconds=seconds)
        return self.moment
