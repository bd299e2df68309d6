"""`doctor`: is everything here as dlm needs it? One line each, with the way out where it is not."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import click

import dlm
from dlm.cli import host, running
from dlm.cli.client import Client
from dlm.cli.output import coloured
from dlm.cli.session import Session, Verb, pass_session
from dlm.cli.units import counted, shown_seconds, shown_size
from dlm.core import credentials, mover, secrets
from dlm.db import daemons, health
from dlm.db.engine import Database, Tx
from dlm.db.opening import embedded, open_database, revisions
from dlm.errors import DlmError

OK, WARN, FAIL = "ok", "warn", "fail"
SKEW_WARN_S, SKEW_FAIL_S = 2.0, 60.0
FREE_WARN, FREE_FAIL = 0.10, 0.02
OLDEST, NEWEST = 15, 18
MARKER_TIMEOUT_S = 5.0
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)")


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at."""

    what: str
    state: str
    text: str
    hint: str | None = None


@click.command(cls=Verb)
@pass_session
def doctor(session: Session) -> None:
    """Look at Python, packages, settings, database, storages, daemons, disk. Exit status 1 when something fails."""
    failed = False
    for line in examine(session):
        failed = failed or line.state == FAIL
        hint = f"   → {line.hint}" if line.hint else ""
        session.out.said(f" {coloured(f'{line.state:<5}', line.state)} {line.what:<11} {line.text}{hint}", asdict(line))
    if failed:
        raise click.exceptions.Exit(1)


def examine(session: Session) -> Iterator[Line]:
    """The lines, cheapest first; what needs the database is left out when there is none."""
    yield python()
    yield packages()
    settings = guarded("settings", lambda: _settings(session))
    yield settings
    if settings.state == FAIL:
        return
    yield token(Path(session.settings.client_token_file), has_other=bool(session.settings.client_token))
    yield from disks(session)
    yield guarded("web", lambda: web(session), "dlm-admin up")
    yield from _database(session)


def guarded(what: str, look: Callable[[], Line], hint: str | None = None) -> Line:
    """The line, or one that tells the error which came instead."""
    try:
        return look()
    except DlmError as error:
        return Line(what, FAIL, error.detail, hint or error.hint)


def python() -> Line:
    text = f"{sys.version.split()[0]} in {sys.prefix}"
    is_new = sys.version_info >= (3, 11)
    return Line("python", OK if is_new else FAIL, text, None if is_new else "3.11 or newer is needed")


def packages() -> Line:
    """Whether what dlm needs to run is installed."""
    needed = [text for text in requires("dlm") or () if "extra ==" not in text]
    names = [match[1] for text in needed if (match := _REQUIREMENT.match(text))]
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        return Line("packages", FAIL, f"missing: {' '.join(missing)}", f"pip install {' '.join(missing)}")
    return Line("packages", OK, f"dlm {dlm.__version__} and the {len(names)} it needs")


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _settings(session: Session) -> Line:
    settings = session.settings
    kind = "embedded PostgreSQL" if embedded(settings) is not None else "the PostgreSQL of database.dsn"
    return Line("settings", OK, f"valid; {kind}, web at {running.url_of(settings)}, files in {session.run_dir}")


def token(path: Path, has_other: bool) -> Line:
    """Whether there is a token, and that only its owner can read it."""
    try:
        mode = path.stat().st_mode & 0o777
    except OSError:
        state = OK if has_other else WARN
        return Line("token", state, f"no file {path}", None if has_other else "dlm-admin db init")
    if mode & 0o077:
        return Line("token", FAIL, f"{path} has mode {mode:04o}: others can read it", f"chmod 600 {path}")
    return Line("token", OK, f"{path}, mode {mode:04o}")


def disks(session: Session) -> Iterator[Line]:
    """How much room is left where logs and the embedded database stand."""
    server = embedded(session.settings)
    places = [session.run_dir, *([server.home] if server is not None else [])]
    for place in dict.fromkeys(places):
        free_bytes, share = host.free_share(place)
        state = FAIL if share < FREE_FAIL else WARN if share < FREE_WARN else OK
        text = f"{shown_size(free_bytes)} free ({share:.0%}) for {place}"
        yield Line("disk", state, text, None if state == OK else "make room before it is full")


def web(session: Session) -> Line:
    url = session.url
    started = time.monotonic()
    found = Client(url, "", timeout_s=running.PROBE_S).get("/version")
    return Line("web", OK, f"dlm {found['version']} at {url}, answers in {1000 * (time.monotonic() - started):.0f} ms")


def _database(session: Session) -> Iterator[Line]:
    server = embedded(session.settings)
    if server is not None and not server.is_running():
        yield Line("database", FAIL, f"the embedded server in {server.directory} does not run", "dlm-admin db start")
        return
    database = open_database(session.settings)
    try:
        line = guarded("database", lambda: _reach(database))
        yield line
        if line.state == FAIL:
            return
        schema = guarded("schema", lambda: _schema(database.dsn))
        yield schema
        with database.begin("admin.doctor") as tx:
            yield skew(tx)
            if schema.state != FAIL:
                yield from _catalogue(tx)
    except DlmError as error:
        yield Line("database", FAIL, error.detail, error.hint)
    finally:
        database.dispose()


def _reach(database: Database) -> Line:
    started = time.monotonic()
    with database.begin("admin.doctor") as tx:
        major, text = health.server_version(tx)
    spent = f"PostgreSQL {text}, answers in {1000 * (time.monotonic() - started):.0f} ms"
    if major < OLDEST:
        return Line("database", FAIL, spent, f"PostgreSQL {OLDEST} to {NEWEST} is needed")
    return Line(
        "database", OK if major <= NEWEST else WARN, spent, None if major <= NEWEST else f"tested up to {NEWEST}"
    )


def _schema(dsn: str) -> Line:
    have, need = revisions(dsn)
    if have == need:
        return Line("schema", OK, f"revision {have}, the newest")
    return Line("schema", FAIL, f"revision {have or 'none'}; this program needs {need}", "dlm-admin db upgrade")


def skew(tx: Tx) -> Line:
    """How far this host's clock is from the database's, which dlm goes by."""
    off_s = abs((datetime.now(UTC) - health.server_time(tx)).total_seconds())
    state = FAIL if off_s > SKEW_FAIL_S else WARN if off_s > SKEW_WARN_S else OK
    hint = None if state == OK else "set this host's clock (NTP)"
    return Line("time", state, f"{off_s:.1f} s between this host and the database", hint)


def _catalogue(tx: Tx) -> Iterator[Line]:
    missing = health.missing_partitions(tx, tx.now.date(), 1)
    if missing:
        yield Line("partitions", WARN, f"missing: {' '.join(missing)}", "dlm-admin db upgrade")
    else:
        yield Line("partitions", OK, "there for this month and the next")
    yield guarded("secrets", lambda: keys(tx))
    yield from markers(tx)
    yield seen(tx)


def keys(tx: Tx) -> Line:
    """Whether the keys of all secrets are on this host."""
    known, under, missing = secrets.keys(tx)
    if missing:
        number = sum(under[key] for key in missing)
        text = f"{counted(number, 'secret')} under key {' '.join(missing)}, which is not in {tx.vault.where}"
        return Line("secrets", FAIL, text, "put that key there, from where it is kept")
    if not known:
        return Line("secrets", WARN, "there is no key: none can be kept", "dlm-admin db init")
    return Line("secrets", OK, f"{counted(sum(under.values()), 'secret')}, key {known[0]} in {tx.vault.where}")


def markers(tx: Tx) -> Iterator[Line]:
    """Whether every storage can be reached from this host and is the one it should be."""
    refs = credentials.refs(tx)
    absent = mover.absent(refs.values(), MARKER_TIMEOUT_S)
    for storage_id, reason in sorted(absent.items()):
        name = refs[storage_id].storage_name
        hint = f"fine if it is not to be reached from this host; else dlm-admin why storage {name}"
        yield Line("storage", WARN, f"{name}: {reason}", hint)
    if refs and not absent:
        yield Line("storages", OK, f"{counted(len(refs), 'storage')}, each with its marker")
    if not refs:
        yield Line("storages", WARN, "none yet", "dlm-admin storage add NAME --site SITE --path DIR")


def seen(tx: Tx) -> Line:
    """Whether every kind of daemon was seen lately."""
    ago = {row.name: (tx.now - row.seen_at).total_seconds() for row in reversed(daemons.list_all(tx))}
    silent = [name for name in running.DAEMONS if ago.get(name, 1e9) > 60]
    if silent:
        return Line("daemons", WARN, f"not seen in the last minute: {' '.join(silent)}", "dlm-admin up")
    latest = max(ago[name] for name in running.DAEMONS)
    return Line("daemons", OK, f"{' '.join(running.DAEMONS)}, all seen < {shown_seconds(max(1, round(latest)))} ago")
