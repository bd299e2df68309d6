"""Requests: what is on its way, waits, or is stuck; and trying it again."""

from __future__ import annotations

from typing import Any

import click

from dlm.cli.accounts import LIMIT
from dlm.cli.client import named
from dlm.cli.output import Column, Item
from dlm.cli.session import Noun, Session, pass_session
from dlm.cli.units import DID, counted, shown_moment, shown_size
from dlm.errors import InvalidInput

COLUMNS = (
    Column("REQUEST", lambda item: str(item["id"]), is_right=True),
    Column("STATE", "state"),
    Column("DID", "did"),
    Column("FROM", "source"),
    Column("TO", "storage"),
    Column("SIZE", lambda item: shown_size(item["size_bytes"]), is_right=True),
    Column("TRIED", "attempts", is_right=True),
    Column("NEXT", lambda item: shown_moment(item["next_attempt_at"])),
    Column("ERROR", lambda item: item["error"] or ""),
)
ATTEMPT_COLUMNS = (
    Column("AT", lambda item: shown_moment(item["ended_at"])),
    Column("FROM", "source"),
    Column("OUTCOME", "outcome"),
    Column("ERROR", lambda item: item["error"] or ""),
)


@click.group(cls=Noun)
def request() -> None:
    """Copies on their way: each request is one wish to create one replica."""


@request.command("list")
@click.option("--rule", help="That serve this rule.")
@click.option("--storage", help="To this destination.")
@click.option("--did", "did_name", type=DID, help="Of this file, or of the files of this dataset.")
@click.option("--state", help="queued, active or parked.")
@LIMIT
@pass_session
def list_requests(session: Session, did_name: str | None, limit: int | None, **filters: Any) -> None:
    """Requests that are queued, active or parked."""
    items = session.client.items("/requests", limit, did=did_name, **filters)
    session.out.table(items, COLUMNS, "nothing is on its way, and nothing waits")


@request.command("show")
@click.argument("number", metavar="REQUEST")
@pass_session
def show_request(session: Session, number: str) -> None:
    """One request and its attempts."""
    item = session.client.get(named("requests", number))
    labels = [
        ("request", str(item["id"])),
        ("state", item["state"] + (", cancelled" if item["is_cancelled"] else "")),
        ("did", f"{item['did']}  {shown_size(item['size_bytes'])}"),
        ("way", f"{item['source'] or '?'} → {item['storage']}"),
        ("purpose", "a repair" if item["is_repair"] else "a copy"),
        ("next", shown_moment(item["next_attempt_at"])),
        ("error", item["error"]),
    ]
    session.out.facts(item, labels)
    if not session.as_json:
        _tried(session, item)


def _tried(session: Session, item: Item) -> None:
    session.out.line()
    session.out.table(item["tried"], ATTEMPT_COLUMNS, "not tried yet")


@request.command("retry")
@click.argument("number", metavar="REQUEST", required=False)
@click.option("--rule", help="All that serve this rule.")
@click.option("--storage", help="All to this destination.")
@click.option("--did", "did_name", type=DID, help="All of this file or dataset.")
@click.option("--all", "everything", is_flag=True, help="Every one there is.")
@pass_session
def retry(session: Session, number: str | None, did_name: str | None, everything: bool, **filters: Any) -> None:
    """Try requests that are parked, or wait for their next attempt, again now, with all their attempts."""
    which = {key: value for key, value in (*filters.items(), ("did", did_name)) if value is not None}
    if (number is not None) + bool(which) + everything != 1:
        raise InvalidInput("say which: a request, or --rule, --storage, --did, or --all", field="request")
    if number is not None:
        item = session.client.post(named("requests", number, "retry"), {})
        session.out.said(f"request {number} is tried again now", item)
        return
    item = session.client.post("/requests/retry", which)
    were = f": {item['parked']:,} parked, {item['waited']:,} waiting" if item["retried"] else ""
    session.out.said(f"{counted(item['retried'], 'request')} tried again now{were}", item)
