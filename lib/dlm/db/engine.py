"""Connections and transactions.

`Database.begin(name)` opens one transaction and yields a `Tx`: connection, the one reading of the clock, and who acts.
SQL is written for psycopg (`%(name)s`); `now` and `actor` are bound for every statement.
"""

from __future__ import annotations

import re
import time
from collections import namedtuple
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.rows import RowMaker
from psycopg.types.json import Jsonb
from psycopg.types.string import TextLoader
from sqlalchemy.engine import Connection, Row

from dlm import effects
from dlm.clock import Clock, DatabaseClock
from dlm.errors import Conflict, DlmError, InvalidInput, Transient
from dlm.types import Identity
from dlm.vault import Vault

SYSTEM = Identity(account_id=None, account="dlm", roles=frozenset({"daemon"}))
PING_AFTER_S = 1.0  # a connection that rested so long is asked whether it lives: a way to the server and back
RESTS_SINCE = "dlm.rests_since"


@dataclass(slots=True)
class Tx:
    """One open transaction. `now` was read once, at its beginning."""

    connection: Connection
    now: datetime
    actor: Identity = SYSTEM
    statements: int = field(default=0)
    vault: Vault = field(default_factory=Vault)  # what secrets are opened with; without keys, as it is made here

    def run(self, sql: str, **values: Any) -> psycopg.Cursor[Any]:
        """Execute one statement; dicts must be wrapped with `json()`; lists become arrays (cast them).

        By the driver: what SQLAlchemy makes of each statement's result took an eighth of a POST's processor time.
        """
        self.statements += 1
        values["now"] = self.now
        cursor = self.driver.cursor(row_factory=_named)
        cursor.execute(sql, values)
        return cursor

    def rows(self, sql: str, **values: Any) -> Sequence[Row[Any]]:
        return self.run(sql, **values).fetchall()

    def one(self, sql: str, **values: Any) -> Row[Any] | None:
        return self.run(sql, **values).fetchone()

    def scalar(self, sql: str, **values: Any) -> Any:
        row = self.one(sql, **values)
        return None if row is None else row[0]

    def stream(self, sql: str, size: int = 1000, **values: Any) -> Iterator[Row[Any]]:
        """Rows through a server-side cursor, `size` at a time: memory stays flat."""
        self.statements += 1
        values["now"] = self.now
        options = {"stream_results": True, "max_row_buffer": size}  # of this statement, not of the connection
        result = self.connection.exec_driver_sql(sql, values, execution_options=options)
        with result:
            yield from result

    @property
    def driver(self) -> psycopg.Connection[Any]:
        """The driver's own connection, in this transaction."""
        return self.connection.connection.dbapi_connection  # type: ignore[return-value]

    def lock_session(self, key: int) -> None:
        """Hold the advisory lock `key` until the transaction ends."""
        self.run("SELECT pg_advisory_xact_lock(%(key)s)", key=key)


def _named(cursor: psycopg.Cursor[Any]) -> RowMaker[Any]:
    """Makes a row whose columns are attributes; of columns that have one name, the first."""
    result = cursor.pgresult
    return _row_maker(*map(result.fname, range(result.nfields))) if result is not None else _row_maker()


@lru_cache(maxsize=1000)
def _row_maker(*names: bytes) -> RowMaker[Any]:
    return namedtuple("Row", [name.decode() for name in names], rename=True)._make  # type: ignore[attr-defined]


def json(value: Any) -> Jsonb | None:
    """The value as a JSONB parameter; None stays SQL NULL."""
    return None if value is None else Jsonb(value)


class Database:
    """A pool of connections to one PostgreSQL, and the clock that transactions read."""

    def __init__(
        self,
        dsn: str,
        clock: Clock | None = None,
        *,
        pool_size: int = 5,
        statement_timeout_s: float = 60,
        lock_timeout_s: float = 10,
        way_out: str | None = None,
        vault: Vault | None = None,
    ) -> None:
        self.dsn = dsn
        self.vault = vault or Vault()
        self.way_out = way_out  # what a person does when the database does not answer
        self.clock: Clock = clock or DatabaseClock()
        options = f"-c statement_timeout={int(statement_timeout_s * 1000)} -c lock_timeout={int(lock_timeout_s * 1000)} -c timezone=UTC"
        self.engine = sa.create_engine(
            dsn,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=10,
            connect_args={"connect_timeout": 5, "options": options, "application_name": "dlm"},
        )

        sa.event.listen(self.engine, "connect", _load_uuids_as_text)
        sa.event.listen(self.engine, "checkin", _note_rest)
        sa.event.listen(self.engine, "checkout", self._ping)

    def _ping(self, connection: Any, record: Any, _proxy: object) -> None:
        """Let a connection that rested be replaced when it is dead; one that was in use a moment ago is not asked."""
        if time.monotonic() - record.info.get(RESTS_SINCE, time.monotonic()) < PING_AFTER_S:
            return
        try:
            self.engine.dialect.do_ping(connection)
        except psycopg.Error as error:
            raise sa.exc.InvalidatePoolError() from error

    @contextmanager
    def begin(self, name: str, actor: Identity = SYSTEM, *, commit: bool = True) -> Iterator[Tx]:
        """One READ COMMITTED transaction called `name`; `commit=False` (a dry run) rolls back at the end.

        Errors of the database leave as ours: a broken constraint as Conflict, what may pass as Transient.
        """
        try:
            with self._connected() as connection:
                tx = Tx(connection, self.clock.now(connection), actor, vault=self.vault)
                yield tx
                if not commit:
                    connection.rollback()
                    return
                effects.point(f"{name}:before-commit")
                connection.commit()
            effects.point(f"{name}:after-commit")
        except (psycopg.Error, sa.exc.DBAPIError) as error:
            ours = translated(error)
            if isinstance(ours, Transient) and not getattr(cause_of(error), "sqlstate", None):
                ours.hint = ours.hint or self.way_out
            raise ours from error
        except sa.exc.TimeoutError as error:
            raise Transient("all database connections are in use") from error

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """A connection in a transaction; the pool forgets one that the server has closed."""
        with self.engine.connect() as connection:
            connection.begin()  # what the driver executes by itself would not begin it for SQLAlchemy
            try:
                yield connection
            except psycopg.OperationalError as error:
                if getattr(connection.connection.dbapi_connection, "broken", True):
                    connection.invalidate(error)
                raise

    def wait_until_up(self, timeout_s: float, pause_s: float = 0.5) -> None:
        """Return once the database answers; Transient after `timeout_s`."""
        limit = time.monotonic() + timeout_s
        while True:
            try:
                with self.begin("wait"):
                    return
            except Transient:
                if time.monotonic() >= limit:
                    raise
                time.sleep(pause_s)

    def dispose(self) -> None:
        self.engine.dispose()


def _note_rest(_connection: object, record: Any) -> None:
    record.info[RESTS_SINCE] = time.monotonic()


def _load_uuids_as_text(connection: psycopg.Connection[Any], _record: object) -> None:
    """Public ids are text everywhere above SQL."""
    connection.adapters.register_loader("uuid", TextLoader)


# A constraint's name is part of the schema; these are the ones a caller can run into by bad or unlucky input.
_CONSTRAINTS: dict[str, DlmError] = {
    "uq_scope_name": Conflict("this scope exists already", field="name"),
    "uq_site_name": Conflict("a site of this name exists already", field="name"),
    "uq_storage_name": Conflict("a storage of this name exists already", field="name"),
    "uq_account_name": Conflict("an account of this name exists already", field="name"),
    "uq_did_scope_id_name": Conflict("this DID exists already; names are never used twice", field="name"),
    "uq_rule_live": Conflict("another rule asks for this already", field="copies", hint="see: dlm-admin rule list --did DID"),
    "uq_secret_name": Conflict("a secret of this name exists already", field="name"),
    "uq_protocol_storage_id_scheme": Conflict("the storage has a protocol of this scheme already", field="scheme"),
}
_PASSING = ("40001", "40P01", "55P03", "57014", "57P01", "57P02", "57P03", "53")  # and class 08, and no SQLSTATE at all


# Of the driver's words only these are told: the rest may hold what was in the DSN.
_CAUSES = {
    "connection refused": "connection refused",
    "no such file or directory": "nothing listens on its socket",
    "failed to resolve host": "no such host",
    "could not translate host name": "no such host",
    "name or service not known": "no such host",
    "password authentication failed": "it refuses the password",
    "no password supplied": "it wants a password",
    "no pg_hba.conf entry": "it does not let this host in",
    "starting up": "it is starting",
    "shutting down": "it is stopping",
    "too many clients": "it has no connection left",
    "timeout": "no answer in time",
}
_PLACE = re.compile(r'connection to server (?:at|on socket) "([^"]+)"(?: \([^)]*\))?(?:, port (\d+))?')
_MISSING = re.compile(r'(database|role) "[^"]*" does not exist')


def _away(said: str) -> str:
    """'the database at 127.0.0.1:5432 does not answer: connection refused'."""
    place = _PLACE.search(said)
    where = f" at {':'.join(filter(None, place.groups()))}" if place else ""
    missing = _MISSING.search(said)
    cause = missing[0] if missing else next((told for words, told in _CAUSES.items() if words in said.lower()), None)
    return f"the database{where} does not answer{f': {cause}' if cause else ' at the moment'}"


def cause_of(error: Exception) -> BaseException | None:
    """The driver's error, which SQLAlchemy may have wrapped."""
    return error.orig if isinstance(error, sa.exc.DBAPIError) else error


def translated(error: Exception) -> DlmError:
    """The error of ours that tells the caller what to do about a database error."""
    cause = cause_of(error)
    state = getattr(cause, "sqlstate", None) or ""
    diag = getattr(cause, "diag", None)
    constraint = getattr(diag, "constraint_name", None)
    if constraint in _CONSTRAINTS:
        known = _CONSTRAINTS[constraint]
        return type(known)(known.detail, field=known.field, hint=known.hint)
    if not state and not isinstance(cause, (psycopg.OperationalError, psycopg.InterfaceError)):
        raise error  # the driver refuses what we gave it: a fault of ours
    if not state or state[:2] in ("08", "57"):
        return Transient(_away(str(cause)))
    if state.startswith(_PASSING):
        return Transient("the database is busy")
    if state == "42P01":
        return Transient("the database has no schema yet, or an old one", hint="bring it up to date: dlm-admin db upgrade")
    if state == "23505":
        return Conflict(f"this exists already ({constraint})")
    if state[:2] == "22":
        return InvalidInput(f"a value is out of range: {getattr(diag, 'message_primary', cause)}")
    raise error
