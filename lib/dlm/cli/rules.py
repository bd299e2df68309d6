"""Rules: declare, plan, watch, look at, change and end promises."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from dlm.cli import showing
from dlm.cli.accounts import LIMIT
from dlm.cli.client import Client, named
from dlm.cli.output import Column, Item
from dlm.cli.progress import Look, watch
from dlm.cli.session import Noun, Session, pass_session
from dlm.cli.units import COPIES, DID, DURATION, MOMENT, Or, counted, shown_ago, shown_moment, shown_size
from dlm.errors import InvalidInput

# A person has to do something, or nothing will happen any more: watching longer shows nothing new.
RESTING = ("ok", "stuck", "impossible", "suspended", "waiting_approval", "gone")
COLUMNS = (
    Column("RULE", "id"),
    Column("STATE", "state"),
    Column("DID", "did"),
    Column("COPIES", lambda item: str(item["copies"]), is_right=True),
    Column("ON", "storages"),
    Column("FILES", "files", is_right=True),
    Column("ACCOUNT", "account"),
    Column("SINCE", lambda item: shown_moment(item["state_since"])),
    Column("REASON", lambda item: item["reason"] or ""),
)
LOCK_COLUMNS = (
    Column("DID", "did"),
    Column("STORAGE", "storage"),
    Column("FILES", "files", is_right=True),
    Column("OK", "files_ok", is_right=True),
    Column("STUCK", "files_stuck", is_right=True),
    Column("SIZE", lambda item: shown_size(item["size_bytes"]), is_right=True),
)
HISTORY_COLUMNS = (
    Column("AT", lambda item: shown_moment(item["at"])),
    Column("WHAT", "action"),
    Column("BY", "actor"),
    Column("CAUSE", "cause"),
    Column("AFTER", "after"),
)


@click.group(cls=Noun)
def rule() -> None:
    """Promises: how many copies, where, for how long."""


def wished(command: Any) -> Any:
    """The words of a wish, the same for `add` and `plan`."""
    options = (
        click.argument("did", type=DID),
        click.option("--copies", type=COPIES, required=True, help="How many, or '*' for every storage that matches."),
        click.option("--on", "storages", required=True, metavar="EXPR", help="e.g. 'tier=1&country=AU'."),
        click.option("--spread", metavar="KEY", help="Copies differ in it, e.g. site or country."),
        click.option("--grouping", help="all, dataset (the default) or none: what stays together."),
        click.option("--weight", metavar="KEY", help="Storages with more of this attribute are taken more often."),
        click.option("--sources", metavar="EXPR", help="Copy only from storages that match."),
        click.option("--delay", type=DURATION, help="Begin after this, e.g. 12h; without it at once."),
        click.option("--starts", type=MOMENT, help="Or the moment it begins."),
        click.option("--lifetime", type=DURATION, help="From its start, e.g. 365d; without it for ever."),
        click.option("--expires", type=MOMENT, help="Or the moment it ends."),
        click.option("--priority", type=int, help="1 (low) to 5 (urgent); 3 is usual."),
        click.option("--activity", help="What it is for; a word of your own."),
        click.option("--account", help="Who is charged; default: you."),
        click.option("--comment"),
        click.option("--locked", is_flag=True, help="May not be cancelled until it is unlocked."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def body_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The request's members for the words that were given."""
    names = {"delay": "delay_s", "starts": "starts_at", "lifetime": "lifetime_s", "expires": "expires_at"}
    return {names.get(key, key): value for key, value in given.items() if value is not None and value is not False}


@rule.command("add")
@wished
@click.option("--idempotency-key", metavar="TEXT", help="The same call with the same key makes no second rule.")
@click.option("--watch", "is_watched", is_flag=True, help="Show progress until it is ok.")
@pass_session
def add_rule(session: Session, idempotency_key: str | None, is_watched: bool, **given: Any) -> None:
    """Declare a rule. It is written as intent and answered at once; the daemons do the rest."""
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
    item = session.client.post("/rules", body_of(given), headers)
    session.out.line(f"rule {item['id']}  {item['did']}  {wish_of(item)}")
    if is_watched:
        watch_rule(session, item["id"])
    else:
        begins = f"{item['reason']}   " if item["reason"] else ""
        session.out.said(f"{item['state']:<10}{begins}watch it: dlm-admin rule watch {item['id']}", item)


def wish_of(item: Item) -> str:
    """'2 × type=disk  spread site'."""
    spread = f"  spread {item['spread']}" if item["spread"] else ""
    return f"{item['copies']} × {item['storages']}{spread}"


@rule.command("plan")
@wished
@pass_session
def plan_rule(session: Session, **given: Any) -> None:
    """What a rule would do: what is there, what moves from where, the space after. Nothing is written."""
    item = session.client.post("/rules/plan", body_of(given))
    session.out.object(item)
    for line in showing.plan(item):
        session.out.line(line)


@rule.command("list")
@click.option("--did", "did_name", type=DID, help="On this DID.")
@click.option("--account")
@click.option("--state", help="e.g. stuck; rules that are gone are shown only with `gone`.")
@click.option("--storage", help="That hold something there.")
@LIMIT
@pass_session
def list_rules(session: Session, did_name: str | None, limit: int | None, **filters: Any) -> None:
    """Rules, newest first."""
    session.out.table(session.client.items("/rules", limit, did=did_name, **filters), COLUMNS, "no rules")


@rule.command("show")
@click.argument("uuid", metavar="RULE")
@pass_session
def show_rule(session: Session, uuid: str) -> None:
    """One rule: its state, how far it is, why, and what is next."""
    item = session.client.get(named("rules", uuid))
    why = session.client.get(named("why", "rules", uuid))
    locks = list(session.client.items(named("rules", uuid, "locks"), 1000))
    item = item | {"reason": why["reason"]}
    session.out.object(item | {"next": why["next"]})
    came_from = next((step["from"] for step in why["chain"] if "from" in step), None)
    for line in showing.rule(item, locks, why["next"], came_from):
        session.out.line(line)


@rule.command("watch")
@click.argument("uuid", metavar="RULE")
@click.option("--timeout", type=DURATION, help="Give up watching after this, with exit status 75.")
@pass_session
def watch_command(session: Session, uuid: str, timeout: float | None) -> None:
    """Show a rule's progress until it is ok. Ctrl-C stops watching, never the work.

    Ends with status 1 when the rule is stuck, impossible or suspended.
    """
    watch_rule(session, uuid, timeout)


def watch_rule(session: Session, uuid: str, timeout_s: float | None = None) -> None:
    """Watch the rule until it rests; ends the command with status 1 when that is not `ok` or `gone`."""
    started = time.monotonic()
    last = watch(session, lambda: look_at_rule(session.client, uuid, started), timeout_s, ("judge", "conveyor"))
    if last.word not in ("ok", "gone"):
        raise click.exceptions.Exit(1)


def look_at_rule(client: Client, uuid: str, started: float) -> Look:
    """How far a rule is. Bytes are in proportion to files: the server counts files."""
    item = client.get(named("rules", uuid))
    progress, state = item["progress"], item["state"]
    look = Look(
        {"replicating": "copying", "letting_go": "letting go"}.get(state, state),
        progress["files_ok"],
        progress["files"],
        is_over=state in RESTING,
        facts=item,
    )
    if progress["files"]:
        look.total_bytes, look.is_estimate = progress["bytes"], True
        look.done_bytes = progress["bytes"] * progress["files_ok"] // progress["files"]
    if look.is_over:
        locks = list(client.items(named("rules", uuid, "locks"), 1000))
        look.text = "\n".join(showing.end_of_watch(item, locks, time.monotonic() - started))
    return look


@rule.command("cancel")
@click.argument("uuids", nargs=-1, required=True, metavar="RULE…")
@pass_session
def cancel_rules(session: Session, uuids: Sequence[str]) -> None:
    """End rules: what no other rule holds waits in the undo window, then goes."""
    for uuid in uuids:
        before = session.client.get(named("rules", uuid))
        if before["state"] in ("letting_go", "gone"):
            session.out.said(f"rule {uuid} has ended already, {shown_ago(before['state_since'])}", before)
            continue
        item = session.client.delete(named("rules", uuid))
        files = counted(item["progress"]["files"], "replica")
        until = item["undo_until"] and shown_moment(item["undo_until"])
        undo = f"\n undo     until {until}: declare a rule again and everything stays" if until else ""
        goes = f"what no other rule holds of its {files} waits in the undo window, then goes"
        text = f"rule {uuid} lets go: {goes if until else 'it held nothing'}{undo}"
        session.out.said(text, item)


_SWITCHES = ("locked", "suspended")  # off is something else than not named


@rule.command("set")
@click.argument("uuid", metavar="RULE")
@click.option("--copies", type=COPIES, help="More are made; of fewer, the others go once these are verified.")
@click.option("--delay", type=DURATION, help="Begin after this; only while it has not begun.")
@click.option("--starts", type=Or(MOMENT, "now"), metavar="MOMENT|now", help="Or the moment it begins.")
@click.option(
    "--lifetime", type=Or(DURATION, "forever"), metavar="DURATION|forever", help="From now, or from its start."
)
@click.option("--expires", type=MOMENT, help="Or the moment it ends.")
@click.option("--priority", type=int, help="1 (low) to 5 (urgent).")
@click.option("--comment")
@click.option("--activity")
@click.option("--suspend/--resume", "suspended", default=None, help="Do nothing for it; go on.")
@click.option("--lock/--unlock", "locked", default=None, help="Forbid cancelling it; allow it.")
@pass_session
def set_rule(session: Session, uuid: str, **given: Any) -> None:
    """Change a rule."""
    body = body_of({key: value for key, value in given.items() if key not in _SWITCHES})
    body |= {key: given[key] for key in _SWITCHES if given[key] is not None}
    for key, name, word in (("lifetime", "lifetime_s", "forever"), ("starts", "starts_at", "now")):
        if given[key] == word:
            body[name] = None
    if not body:
        raise InvalidInput("nothing to change is named", hint="dlm-admin rule set --help")
    item = session.client.patch(named("rules", uuid), body)
    ends = "for ever" if item["expires_at"] is None else f"until {shown_moment(item['expires_at'])}"
    begins = [item["reason"]] if item["state"] == "declared" and item["reason"] else []
    switches = [word for word in _SWITCHES if item[word]]
    words = [f"{item['copies']} × {item['storages']}", *begins, f"priority {item['priority']}", ends, *switches]
    session.out.said(f"rule {uuid}  {item['state']} since {shown_ago(item['state_since'])}  {', '.join(words)}", item)


@rule.command("move")
@click.argument("uuid", metavar="RULE")
@click.argument("storages", metavar="EXPRESSION")
@click.option("--copies", type=COPIES, help="Another number of copies, or '*'.")
@click.option("--spread", metavar="KEY|none")
@click.option("--grouping", help="all, dataset or none: what stays together.")
@click.option("--weight", metavar="KEY|none")
@click.option("--sources", metavar="EXPR|none", help="Copy only from storages that match.")
@click.option("--idempotency-key", metavar="TEXT", help="The same call with the same key makes no second rule.")
@click.option("--watch", "is_watched", is_flag=True, help="Show progress until the new rule is ok.")
@pass_session
def move_rule(session: Session, uuid: str, idempotency_key: str | None, is_watched: bool, **given: Any) -> None:
    """Move a rule to other storages: a new rule with all else of the old one, which lets go when that is ok."""
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
    clearable = ("spread", "weight", "sources")
    body = {key: value for key, value in given.items() if value is not None}
    body |= {key: None for key in clearable if given[key] == "none"}
    item = session.client.post(named("rules", uuid, "move"), body, headers)
    session.out.line(f"rule {item['id']}  {item['did']}  {wish_of(item)}")
    if is_watched:
        watch_rule(session, item["id"])
    else:
        text = f"rule {uuid} stays until it is ok   watch it: dlm-admin rule watch {item['id']}"
        session.out.said(f"{item['state']:<10}{text}", item)


@rule.command("locks")
@click.argument("uuid", metavar="RULE")
@LIMIT
@pass_session
def list_locks(session: Session, uuid: str, limit: int | None) -> None:
    """What a rule holds, where."""
    session.out.table(session.client.items(named("rules", uuid, "locks"), limit), LOCK_COLUMNS, "it holds nothing")


@rule.command("history")
@click.argument("uuid", metavar="RULE")
@LIMIT
@pass_session
def show_history(session: Session, uuid: str, limit: int | None) -> None:
    """What happened to a rule, newest first."""
    items = session.client.items(named("rules", uuid, "history"), limit)
    session.out.table(items, HISTORY_COLUMNS, "nothing is recorded")
