"""Accounts, their tokens, and their scopes."""

from __future__ import annotations

from typing import Any

import click

from dlm.cli.client import named
from dlm.cli.output import Column, Item
from dlm.cli.session import Noun, Session, pass_session
from dlm.cli.units import DURATION, SIZE, shown_moment, shown_size
from dlm.errors import InvalidInput

ACCOUNT_COLUMNS = (
    Column("ACCOUNT", "name"),
    Column("KIND", "kind"),
    Column("ROLES", "roles"),
    Column("EMAIL", "email"),
    Column("CREATED", lambda item: shown_moment(item["created_at"])),
    Column("CLOSED", lambda item: shown_moment(item["closed_at"])),
)
TOKEN_COLUMNS = (
    Column("TOKEN", "id", is_right=True),
    Column("ACCOUNT", "account"),
    Column("LABEL", "label"),
    Column("CREATED", lambda item: shown_moment(item["created_at"])),
    Column("EXPIRES", lambda item: shown_moment(item["expires_at"])),
    Column("REVOKED", lambda item: shown_moment(item["revoked_at"])),
)
SCOPE_COLUMNS = (
    Column("SCOPE", "name"),
    Column("OWNER", "account"),
    Column("CREATED", lambda item: shown_moment(item["created_at"])),
)
USAGE_COLUMNS = (
    Column("ACCOUNT", "account"),
    Column("STORAGE", "storage"),
    Column("FILES", "charged_files", is_right=True),
    Column("CHARGED", lambda item: shown_size(item["charged_bytes"]), is_right=True),
    Column("LIMIT", lambda item: shown_size(item["limit_bytes"]), is_right=True),
    Column("LEFT", lambda item: left(item), is_right=True),
)
LIMIT = click.option("--limit", type=click.IntRange(1), help="At most so many.")


def left(item: Item) -> str:
    """What remains of the limit."""
    return "-" if item["limit_bytes"] is None else shown_size(item["limit_bytes"] - item["charged_bytes"])


@click.group(cls=Noun)
def account() -> None:
    """Who uses dlm, and how much they may hold."""


@account.command("list")
@LIMIT
@pass_session
def list_accounts(session: Session, limit: int | None) -> None:
    """Accounts by name."""
    session.out.table(session.client.items("/accounts", limit), ACCOUNT_COLUMNS, "no accounts")


@account.command("show")
@click.argument("name")
@pass_session
def show_account(session: Session, name: str) -> None:
    """One account."""
    _show(session, session.client.get(named("accounts", name)))


def _show(session: Session, item: Item) -> None:
    labels = [
        ("account", item["name"]),
        ("kind", item["kind"]),
        ("roles", item["roles"] or "none"),
        ("email", item["email"]),
        ("created", shown_moment(item["created_at"])),
        ("closed", item["closed_at"] and shown_moment(item["closed_at"])),
    ]
    session.out.facts(item, labels)


@account.command("add")
@click.argument("name")
@click.option("--kind", default="person", show_default=True, help="person, group or service.")
@click.option("--role", "roles", multiple=True, help="admin, operator, user or reader; may be repeated.")
@click.option("--email")
@pass_session
def add_account(session: Session, name: str, kind: str, roles: tuple[str, ...], email: str | None) -> None:
    """Make an account."""
    body = {"name": name, "kind": kind, "roles": list(roles), "email": email}
    item = session.client.post("/accounts", body)
    session.out.said(f"account {name}   a token for it: dlm-admin token add {name}", item)


@account.command("set")
@click.argument("name")
@click.option("--role", "roles", multiple=True, help="The roles from now on; may be repeated.")
@click.option("--email", help="'' takes it away.")
@pass_session
def set_account(session: Session, name: str, roles: tuple[str, ...], email: str | None) -> None:
    """Change an account's roles or address."""
    body: dict[str, Any] = {"roles": list(roles)} if roles else {}
    if email is not None:
        body["email"] = email or None
    if not body:
        raise InvalidInput("nothing to change is named", hint="--role, --email")
    _show(session, session.client.patch(named("accounts", name), body))


@account.command("close")
@click.argument("name")
@pass_session
def close_account(session: Session, name: str) -> None:
    """Close an account: its tokens end at once, its rules and data stay."""
    item = session.client.delete(named("accounts", name))
    session.out.said(f"account {name} is closed; its rules and data stay", item)


@account.command("limit")
@click.argument("name")
@click.argument("storage")
@click.argument("size", metavar="SIZE|none")
@pass_session
def limit_account(session: Session, name: str, storage: str, size: str) -> None:
    """Set how much an account may be charged at a storage."""
    limit_bytes = None if size == "none" else SIZE.convert(size, None, None)
    session.client.call("PUT", named("accounts", name, "limits", storage), {"limit_bytes": limit_bytes})
    shown = "no limit" if limit_bytes is None else f"at most {shown_size(limit_bytes)}"
    session.out.said(f"{name} at {storage}: {shown}", {"account": name, "storage": storage, "limit_bytes": limit_bytes})


@account.command("usage")
@click.argument("name", required=False)
@pass_session
def usage_of_account(session: Session, name: str | None) -> None:
    """What accounts are charged, and their limits, by storage."""
    items = session.client.get("/usage/accounts", account=name)["items"]
    session.out.table(items, USAGE_COLUMNS, "nothing is charged, and no limits are set")


@click.group(cls=Noun)
def token() -> None:
    """What lets an account in."""


@token.command("list")
@click.argument("account", required=False)
@pass_session
def list_tokens(session: Session, account: str | None) -> None:
    """An account's tokens (default: your own); never their text."""
    items = session.client.get("/tokens", account=account)["items"]
    session.out.table(items, TOKEN_COLUMNS, "no tokens")


@token.command("add")
@click.argument("account", required=False)
@click.option("--label", default="", help="What it is for.")
@click.option("--lifetime", type=DURATION, help="e.g. 90d; without it the token does not expire.")
@pass_session
def add_token(session: Session, account: str | None, label: str, lifetime: float | None) -> None:
    """Make a token (default: for yourself). Its text is shown this once."""
    body: dict[str, Any] = {"label": label, "lifetime_s": None if lifetime is None else round(lifetime)}
    if account is not None:
        body["account"] = account
    item = session.client.post("/tokens", body)
    session.out.said(item["token"], item)  # alone on its line, so that $(…) takes it


@token.command("revoke")
@click.argument("number", type=int)
@pass_session
def revoke_token(session: Session, number: int) -> None:
    """Revoke a token, by the number that `token list` shows."""
    session.client.delete(named("tokens", number))
    session.out.said(f"token {number} is revoked", {"id": number})


@click.group(cls=Noun)
def scope() -> None:
    """Namespaces of DIDs, each owned by an account."""


@scope.command("list")
@LIMIT
@pass_session
def list_scopes(session: Session, limit: int | None) -> None:
    """Scopes by name."""
    session.out.table(
        session.client.items("/scopes", limit), SCOPE_COLUMNS, "no scopes   make one: dlm-admin scope add NAME"
    )


@scope.command("add")
@click.argument("name")
@click.option("--account", help="Who owns it; default: you.")
@pass_session
def add_scope(session: Session, name: str, account: str | None) -> None:
    """Make a scope."""
    item = session.client.post("/scopes", {"name": name} | ({"account": account} if account else {}))
    session.out.said(f"scope {name}, owned by {item['account']}", item)
