"""From the settings to a database: the embedded server's, or the one whose address is given."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from dlm.clock import Clock
from dlm.config import Settings
from dlm.db import migrate
from dlm.db.embedded import EmbeddedPostgres
from dlm.db.engine import Database, translated
from dlm.errors import InvalidInput
from dlm.vault import Vault

DRIVER = "postgresql+psycopg"


def embedded(settings: Settings) -> EmbeddedPostgres | None:
    """The supervisor of the embedded server, which need not run; None when the settings name another PostgreSQL."""
    if settings.database_dsn:
        return None
    bin_dir = Path(settings.database_bin_dir) if settings.database_bin_dir else None
    return EmbeddedPostgres(Path(settings.database_embedded_dir), bin_dir)


def address(settings: Settings) -> str:
    """The DSN in force; InvalidInput for one that is none."""
    server = embedded(settings)
    if server is not None:
        return server.dsn()
    try:
        driver = sa.make_url(settings.database_dsn).drivername
    except sa.exc.ArgumentError:
        driver = ""
    if driver != DRIVER:  # what was given is not repeated: there may be a password in it
        hint = f"{DRIVER}://USER:PASSWORD@HOST:PORT/NAME"
        raise InvalidInput(f"database.dsn does not begin with {DRIVER}://", field="database_dsn", hint=hint)
    return settings.database_dsn


def without_password(dsn: str) -> tuple[str, str | None]:
    """(the DSN as libpq's programs take it, without its password; the password, None when it has none)."""
    url = sa.make_url(dsn)
    password = url.password or url.query.get("password")
    plain = sa.URL.create("postgresql", url.username, None, url.host, url.port, url.database, url.query)
    shown = plain.difference_update_query(["password"]).render_as_string(hide_password=False)
    return shown, None if password is None else str(password)


def open_database(settings: Settings, clock: Clock | None = None) -> Database:
    """A pool on the database in force. It connects when first used, and starts no server."""
    return Database(
        address(settings),
        clock,
        pool_size=settings.database_pool_size,
        statement_timeout_s=settings.database_statement_timeout_s,
        lock_timeout_s=settings.database_lock_timeout_s,
        way_out="dlm-admin up" if not settings.database_dsn else "does it run, and is database.dsn right?",
        vault=Vault(settings.secrets_key_file, settings.secrets_key),
    )


def revisions(dsn: str) -> tuple[str | None, str | None]:
    """(revision of the database, revision of this code); Transient while the database does not answer."""
    try:
        return migrate.current(dsn)
    except sa.exc.DBAPIError as error:
        raise translated(error) from error
