"""The database on this host: made, started, brought up to date; and the first account and token."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import click

from dlm import config
from dlm.cli import host
from dlm.cli.session import Noun, Session, pass_session, read_token
from dlm.cli.units import shown_seconds
from dlm.config import Settings
from dlm.core import accounts, secrets
from dlm.db import migrate
from dlm.db.binaries import find_binaries
from dlm.db.embedded import EmbeddedPostgres
from dlm.db.engine import Database
from dlm.db.opening import address, embedded, open_database, revisions, without_password
from dlm.errors import Conflict, NotFound, Unauthenticated

ROOT = "root"
TIMEOUT_S = 10.0


@click.group(cls=Noun)
def db() -> None:
    """The database: the embedded one, or the PostgreSQL that database.dsn names."""


@db.command("init")
@pass_session
def init(session: Session) -> None:
    """Make the database, its schema, the first account (root), its token, and the key of secrets. Again does no harm."""
    started = time.monotonic()
    item = prepare(session.settings)
    spent = shown_seconds(round(time.monotonic() - started, 1))
    first = f"account {ROOT}, token in {item['token_file']}"
    session.out.said(f"database {item['where']}, revision {item['revision']}, {first}   {spent}", item)


def prepare(settings: Settings) -> dict[str, Any]:
    """Start (if embedded), migrate, and let the first administrator in; what is there already stays."""
    server = embedded(settings)
    if server is not None:
        server.start()
    bring_up(settings)
    database = open_database(settings)
    try:
        with database.begin("admin.first-key") as tx:
            secrets.ensure_key(tx)
        token_file = first_token(database, settings)
    finally:
        database.dispose()
    where = settings.database_dsn.partition("@")[2] if server is None else str(server.directory)
    return {"where": where, "revision": revisions(address(settings))[1], "account": ROOT, "token_file": str(token_file)}


def bring_up(settings: Settings) -> bool:
    """Wait for the database and run what migrations are missing; True when there were any."""
    database = open_database(settings)
    try:
        database.wait_until_up(TIMEOUT_S)
        have, need = revisions(address(settings))
        if have != need:
            migrate.upgrade(address(settings))
        with database.begin("admin.partitions") as tx:
            migrate.ensure_partitions(tx, tx.now)
    finally:
        database.dispose()
    return have != need


def first_token(database: Database, settings: Settings) -> Path:
    """The file with a token of the first administrator; made unless the one there is valid."""
    path = Path(settings.client_token_file)
    with database.begin("admin.bootstrap") as tx:
        accounts.ensure_account(tx, ROOT, roles=("admin",))
        try:
            accounts.identify(tx, read_token(path))
            return path
        except Unauthenticated:
            text, _ = accounts.make_token(tx, ROOT, "made by dlm-admin db init")
    host.write_secret(path, text)
    return path


def _server(session: Session) -> EmbeddedPostgres:
    server = embedded(session.settings)
    if server is None:
        hint = "it is started and stopped where it runs"
        raise Conflict("database.dsn names a PostgreSQL that is not dlm's own", field="database_dsn", hint=hint)
    return server


@db.command("start")
@pass_session
def start(session: Session) -> None:
    """Start the embedded server; when it runs already, say so."""
    server = _server(session)
    before, started = server.is_running(), time.monotonic()
    server.start()
    told = "runs already" if before else f"started in {shown_seconds(round(time.monotonic() - started, 1))}"
    session.out.said(f"PostgreSQL in {server.directory} {told}", server.status())


@db.command("stop")
@pass_session
def stop(session: Session) -> None:
    """Stop the embedded server; services wait for it until it is back."""
    server = _server(session)
    if server.directory.exists():
        server.stop()
    session.out.said(
        f"PostgreSQL in {server.directory} is stopped", {"directory": str(server.directory), "running": False}
    )


@db.command("status")
@pass_session
def status(session: Session) -> None:
    """Whether the database answers, and which schema it has. Exit status 75 when it does not answer."""
    server = embedded(session.settings)
    item: dict[str, Any] = {"embedded": server is not None, **(server.status() if server is not None else {})}
    if server is not None and not server.is_running():
        session.out.facts(
            item, [("state", "stopped"), ("directory", server.directory), ("start it", "dlm-admin db start")]
        )
        raise click.exceptions.Exit(75)
    database = open_database(session.settings)
    try:
        database.wait_until_up(0)
        with database.begin("admin.status") as tx:
            item["version"] = tx.scalar("SHOW server_version")
    finally:
        database.dispose()
    item["revision"], item["newest_revision"] = revisions(address(session.settings))
    labels = [
        ("state", "running"),
        ("version", item["version"]),
        ("revision", _revision(item)),
        *((key, item.get(key)) for key in ("directory", "pid", "log")),
    ]
    session.out.facts(item, [(label, str(value) if value is not None else None) for label, value in labels])


def _revision(item: dict[str, Any]) -> str:
    if item["revision"] == item["newest_revision"]:
        return f"{item['revision']}, the newest"
    return f"{item['revision'] or 'none'}; this program needs {item['newest_revision']}: dlm-admin db upgrade"


@db.command("upgrade")
@pass_session
def upgrade(session: Session) -> None:
    """Bring the schema up to date, and make the coming months' partitions."""
    changed = bring_up(session.settings)
    revision = revisions(address(session.settings))[0]
    session.out.said(
        f"revision {revision}{'' if changed else ', nothing to do'}", {"revision": revision, "changed": changed}
    )


@db.command("psql", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@pass_session
def psql(session: Session, arguments: tuple[str, ...]) -> None:
    """psql on the database; arguments are its own, after `--`."""
    client = _psql(session.settings)
    url, password = without_password(address(session.settings))
    environment = {**config.for_others(), **({"PGPASSWORD": password} if password else {})}
    os.execve(client, [client, "--dbname", url, *arguments], environment)  # others can read the arguments, not this


def _psql(settings: Settings) -> str:
    """The psql that comes with the server's programs, else the one in the PATH."""
    server = embedded(settings)
    if server is not None:
        beside = find_binaries(server.bin_dir) / "psql"
        if beside.exists():
            return str(beside)
    found = shutil.which("psql")
    if found is None:
        raise NotFound("there is no psql", hint="install postgresql-client")
    return found
