"""`up` and `down`: everything on this host, started and stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click

from dlm.cli import databases, host
from dlm.cli.client import Client
from dlm.cli.session import URL_FILE, Session, Verb, pass_session
from dlm.cli.units import shown_seconds
from dlm.config import Settings
from dlm.db import daemons
from dlm.db.opening import embedded, open_database
from dlm.errors import InvalidInput, Transient

READY_S = 60.0
PROBE_S = 2.0  # whoever has the port may be something that never answers
EVERYWHERE = ("", "0.0.0.0", "::")


@click.command(cls=Verb)
@pass_session
def up(session: Session) -> None:
    """Start what does not run: the database (if embedded), the web, the daemons. Ready when it returns."""
    settings = session.settings
    if settings.web_port == 0:
        raise InvalidInput("a free port would be another at each start", field="web_port", hint="--set web.port=8410")
    facts: dict[str, Any] = {"url": url_of(settings)}
    _step(session, "database", lambda: _database(settings, facts))
    web, workers = host.services(session.run_dir)
    _step(session, "web", lambda: _web(session, web, facts))
    (session.run_dir / URL_FILE).write_text(facts["url"] + "\n")
    _step(session, "daemons", lambda: _daemons(session, workers, facts))
    session.out.said(f"dlm is running.  API and docs  {facts['url']}/api/v1/docs   stop: dlm-admin down", facts)


def _step(session: Session, label: str, act: Callable[[], str]) -> None:
    """Do it, and print the line that it returns with the time it took."""
    started = time.monotonic()
    text = act()
    session.out.line(f" ✓ {label:<12}{text}   {shown_seconds(round(time.monotonic() - started, 1))}")


def url_of(settings: Settings) -> str:
    """Where the web service of this host is reached from this host."""
    name = "127.0.0.1" if settings.web_host in EVERYWHERE else settings.web_host
    return f"http://{f'[{name}]' if ':' in name else name}:{settings.web_port}"


def _database(settings: Settings, facts: dict[str, Any]) -> str:
    facts["database"] = databases.prepare(settings)
    kind = "embedded PostgreSQL in" if embedded(settings) is not None else "PostgreSQL at"
    return f"{kind} {facts['database']['where']}, token in {facts['database']['token_file']}"


def _web(session: Session, service: host.Service, facts: dict[str, Any]) -> str:
    was = service.pid()
    pid = service.start(host.environment(session.config_path, session.flags))
    client = Client(facts["url"], "", timeout_s=PROBE_S)
    service.wait(lambda: _answers(client), READY_S)
    facts["web"] = {"pid": pid, "log": str(service.log), "was_running": was is not None}
    return f"{facts['url']}   {'runs already' if was else f'log {service.log}'}"


def _answers(client: Client) -> bool:
    try:
        return bool(client.get("/health")["status"] == "ok")
    except Transient:
        return False


def _daemons(session: Session, service: host.Service, facts: dict[str, Any]) -> str:
    was = service.pid()
    pid = service.start(host.environment(session.config_path, session.flags))
    names: list[str] = []
    database = open_database(session.settings)

    def is_ready() -> bool:
        with database.begin("admin.daemons") as tx:
            names[:] = [row.name for row in daemons.list_all(tx) if row.pid == pid]
        return len(names) >= len(DAEMONS)

    try:
        service.wait(is_ready, READY_S)
    finally:
        database.dispose()
    facts["daemons"] = {"pid": pid, "log": str(service.log), "was_running": was is not None, "names": names}
    return f"{' '.join(name for name in DAEMONS if name in names)}   {'run already' if was else f'log {service.log}'}"


DAEMONS = ("judge", "conveyor", "reaper", "auditor")  # what `dlm-daemon all` runs


@click.command(cls=Verb)
@pass_session
def down(session: Session) -> None:
    """Stop what runs on this host: daemons, web, and the database if it is embedded."""
    stopped = [service.name for service in reversed(list(host.services(session.run_dir))) if service.stop()]
    server = embedded(session.settings)
    if server is not None and server.is_running():
        server.stop()
        stopped.append("database")
    session.out.said(f"stopped: {', '.join(stopped)}" if stopped else "nothing ran", {"stopped": stopped})
