"""What goes on: why, events, breakers, daemons, and the one look at everything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click

from dlm.cli import showing
from dlm.cli.client import at, named
from dlm.cli.output import Column, Item, coloured, plain, safe
from dlm.cli.session import Noun, Session, Verb, pass_session
from dlm.cli.storages import state as storage_state
from dlm.cli.units import counted, shown_moment, shown_seconds
from dlm.core.conveyor import request_uuid
from dlm.errors import InvalidInput

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
OBJECTS = ("account", "scope", "site", "storage", "secret", "did", "replica", "rule", "request", "breaker")
EVENT_COLUMNS = (
    Column("AT", lambda item: shown_moment(item["at"])),
    Column("OBJECT", lambda item: f"{item['object']} {item['name'] or item['object_id'] or ''}"),
    Column("WHAT", "action"),
    Column("BY", "actor"),
    Column("CAUSE", lambda item: item["cause"] or ""),
    Column("AFTER", lambda item: plain(item["after"]) if item["after"] else ""),
)
BREAKER_COLUMNS = (
    Column("BREAKER", "id", is_right=True),
    Column("STORAGE", lambda item: str(item["storage"] or "all")),
    Column(
        "STOPS", lambda item: {"delete": "deletions", "loss": "declaring losses"}.get(item["act"], str(item["act"]))
    ),
    Column("OPENED", lambda item: shown_moment(item["opened_at"])),
    Column("BY", "opened_by"),
    Column("CLOSED", lambda item: shown_moment(item["closed_at"])),
    Column("REASON", "reason"),
)
DAEMON_COLUMNS = (
    Column("DAEMON", "name"),
    Column("HOST", "host"),
    Column("PID", lambda item: str(item["pid"]), is_right=True),
    Column("SEEN", lambda item: f"{shown_seconds(round(item['seen_s_ago']))} ago"),
    Column("SINCE", lambda item: shown_moment(item["started_at"])),
    Column("LAST PASS", lambda item: plain(item["counts"]) or "nothing to do"),
)


@click.command(cls=Verb)
@click.argument("words", nargs=-1, required=True, metavar="DID | RULE | STORAGE | request REQUEST")
@click.option("--at", "storage", metavar="STORAGE", help="Of a file: only its replica there.")
@pass_session
def why(session: Session, words: tuple[str, ...], storage: str | None) -> None:
    """Why something is as it is: the facts that led to it, and what happens next, when."""
    item = session.client.get(_why_path(words), at=storage)
    session.out.object(item)
    for line in () if session.as_json else showing.why(item):
        session.out.line(line)


def _why_path(words: tuple[str, ...]) -> str:
    if len(words) == 1:
        if _UUID.fullmatch(words[0]):
            return named("why", "rules", words[0])
        return at("why/dids", words[0]) if ":" in words[0] else named("why", "storages", words[0])
    nouns = {"did": "dids", "rule": "rules", "request": "requests", "storage": "storages"}
    if len(words) != 2 or words[0] not in nouns:
        raise InvalidInput("say what: a DID, or `rule RULE`, `request REQUEST`, `storage NAME`", field="words")
    if words[0] == "did":
        return at("why/dids", words[1])
    name = words[1]
    if words[0] == "request" and name.isdecimal():
        name = request_uuid(int(name))  # the list shows numbers
    return named("why", nouns[words[0]], name)


@click.group(cls=Noun)
def event() -> None:
    """What happened, who did it."""


@event.command("list")
@click.argument("words", nargs=-1, metavar="[OBJECT [NAME] | DID | RULE | STORAGE]")
@click.option("--actor", help="Only what this account or daemon did.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@pass_session
def list_events(session: Session, words: tuple[str, ...], actor: str | None, limit: int) -> None:
    """Events, newest first; of one kind of object (`storage`), or one object (`storage perth-disk`, `ska:eb-m001`)."""
    if len(words) > 2:
        raise InvalidInput("at most an object and its name", field="words", hint="e.g. event list storage perth-disk")
    which = dict(zip(("object", "name"), _object(words), strict=False))
    session.out.table(
        session.client.items("/events", limit, actor=actor, **which), EVENT_COLUMNS, "nothing is recorded"
    )


def _object(words: tuple[str, ...]) -> tuple[str, ...]:
    """The kind of object and its name; a name alone tells its kind."""
    if len(words) != 1 or words[0] in OBJECTS:
        return words
    if ":" in words[0]:
        return ("did", words[0])
    return ("rule" if _UUID.fullmatch(words[0]) else "storage", words[0])


@click.group(cls=Noun)
def breaker() -> None:
    """What is stopped until a person says so."""


@breaker.command("list")
@click.option("--closed", is_flag=True, help="Those that were closed, too.")
@pass_session
def list_breakers(session: Session, closed: bool) -> None:
    """Breakers that are open."""
    items = session.client.get("/breakers", closed="true" if closed else None)["items"]
    session.out.table(items, BREAKER_COLUMNS, "no breaker is open")


@breaker.command("hold")
@click.argument("reason")
@pass_session
def hold(session: Session, reason: str) -> None:
    """Hold all deletions, everywhere, until the breaker is closed."""
    item = session.client.post("/breakers", {"reason": reason})
    session.out.said(f"all deletions are held   go on: dlm-admin breaker close {item['id']}", item)


@breaker.command("close")
@click.argument("number", metavar="BREAKER")
@pass_session
def close(session: Session, number: str) -> None:
    """Close a breaker: what it stopped goes on, with a new window."""
    if not number.isdecimal():
        raise InvalidInput(f"{number!r} is no number of a breaker", field="breaker", hint="see: dlm-admin breaker list")
    session.client.delete(named("breakers", number))
    session.out.said(f"breaker {number} is closed", {"id": int(number)})


@click.group(cls=Noun)
def daemon() -> None:
    """The processes that do the work."""


@daemon.command("status")
@pass_session
def daemon_status(session: Session) -> None:
    """Every daemon process seen in the last day, and what its last pass did."""
    items = session.client.get("/daemons")["items"]
    session.out.table(items, DAEMON_COLUMNS, "no daemon was seen in the last day   start them: dlm-admin up")


@click.command(cls=Verb)
@pass_session
def status(session: Session) -> None:
    """One look: are promises kept, what waits, which storages and daemons need one."""
    item = session.client.get("/status")
    session.out.object(item)
    for line in () if session.as_json else overview(item):
        session.out.line(line)


def overview(item: Item) -> Iterator[str]:
    """The one look; an arrow marks what needs a person, with the command that explains it below."""
    promises = dict(item["promises"])
    states = "   ".join(coloured(f"{number:,} {name}", name) for name, number in promises.items() if name != "total")
    yield f" promises   {counted(promises['total'], 'rule')}   {states}".rstrip()
    yield f" queues     {_queues(item['queues'])}"
    yield from _storages(item["storages"])
    for breaker in item["breakers"]:
        place = breaker["storage"] or "all storages"
        yield safe(f" breaker    {place}: {breaker['act']} stopped: {breaker['reason']} ←")
    yield f" daemons    {_daemons(item['daemons'])}"
    yield from (f" look       {command}" for command in _commands(item))


def _queues(queues: Item) -> str:
    conveyor = queues["conveyor"]
    oldest = f" (oldest due {shown_seconds(round(conveyor['oldest_due_s']))})" if conveyor["oldest_due_s"] else ""
    parts = [
        f"judge {queues['judge']['changes'] + queues['judge']['rules_due']:,}",
        f"conveyor {conveyor['queued'] + conveyor['active']:,}{oldest}",
        *([f"{conveyor['parked']:,} parked ←"] if conveyor["parked"] else []),
        f"reaper {queues['reaper']['tombstones']:,} in the window",
        f"auditor {queues['auditor']['checks_due']:,} due",
    ]
    return "   ".join(parts)


def _storages(storages: Item) -> Iterator[str]:
    odd = storages["look_at"]
    parts = [f"{storages['total'] - len(odd)} fine"]
    for item in odd[:5]:
        arrow = "" if item["is_available"] else " ←"
        parts.append(f"{item['name']} {storage_state({**item, **_reasons(item)})}{arrow}")
    if len(odd) > 5:
        parts.append(f"{len(odd) - 5} more ←")
    yield safe(f" storages   {'   '.join(parts)}")
    for group in storages["held_up"][:5]:
        verb = "copy waits" if group["files"] == 1 else "copies wait"
        yield safe(
            f"            {group['storage']}: {group['files']:,} {verb}: {group['error_class'].replace('_', ' ')} ←"
        )


def _reasons(item: Item) -> dict[str, Any]:
    return {"unavailable_reason": item["reason"], "switch_reason": item["reason"]}


def _daemons(daemons: Item) -> str:
    alive = {name: facts for name, facts in daemons.items() if facts["alive"]}
    if not alive:
        return "none seen in the last minute ←   start them: dlm-admin up"
    latest = max(facts["seen_s_ago"] for facts in alive.values())
    names = " ".join(f"{name}×{facts['alive']}" for name, facts in alive.items())
    silent = "".join(
        f"   {name} silent for {shown_seconds(facts['seen_s_ago'])} ←"
        for name, facts in daemons.items()
        if name not in alive
    )
    return f"{names}, all seen < {shown_seconds(max(1, round(latest + 0.5)))} ago{silent}"


def _commands(item: Item) -> Iterator[str]:
    """The commands that explain what the arrows point at."""
    if item["queues"]["conveyor"]["parked"]:
        yield "dlm-admin request list --state parked"
    if item["promises"].get("impossible"):
        yield "dlm-admin rule list --state impossible"
    if item["promises"].get("stuck"):
        yield "dlm-admin rule list --state stuck"
    for storage in item["storages"]["look_at"][:5]:
        if not storage["is_available"]:
            yield f"dlm-admin why storage {storage['name']}"
    for name in dict.fromkeys(group["storage"] for group in item["storages"]["held_up"][:5]):
        yield f"dlm-admin why storage {name}"
    if item["breakers"]:
        yield "dlm-admin breaker list"
