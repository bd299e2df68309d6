"""Use cases around accounts: who may come in (tokens), what they own (scopes), how much they may hold (limits)."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.engine import Row

from dlm import did as codec
from dlm.core.authorize import in_force
from dlm.core.names import FIRST_PAGE, check_name, check_text
from dlm.db import accounts, events, storages
from dlm.db.engine import Tx
from dlm.errors import Conflict, InvalidInput, NotFound, Unauthenticated
from dlm.types import Identity, Page

KINDS = ("person", "group", "service")
TOKEN_PREFIX = "dlm_"
TOKEN_CHARACTERS = len(TOKEN_PREFIX) + 43  # 256 bits, url-safe
MAX_TOKEN_LIFETIME_S = 10 * 366 * 86400
MAX_BYTES = 2**63 - 1
KEEP: Any = object()  # an argument that was not given: leave as it is


def add_account(
    tx: Tx, name: str, kind: str = "person", *, email: str | None = None, roles: Sequence[str] = ()
) -> Row[Any]:
    """The new account. Conflict when the name is taken, also by a closed account."""
    check_name(name)
    _check_roles(roles)
    check_text(email, "email")
    if kind not in KINDS:
        raise InvalidInput(f"{kind!r} is no kind of account", field="kind", hint=f"one of {', '.join(KINDS)}")
    row = accounts.insert(tx, name, kind, email, roles)
    if row is None:
        raise Conflict(f"account {name} exists already", field="name")
    events.record(tx, "account", row.id, "added", after=_shown(row))
    return row


def ensure_account(tx: Tx, name: str, kind: str = "person", roles: Sequence[str] = ()) -> Row[Any]:
    """The account of that name, made if there is none; what exists is not changed. For the first start."""
    return accounts.get(tx, name) or add_account(tx, name, kind, roles=roles)


def id_of(tx: Tx, name: str) -> int:
    """The account's id; NotFound. The caller's own is known from its token; else one statement."""
    if tx.actor.account_id is not None and name == tx.actor.account:
        return tx.actor.account_id
    found: int = get_account(tx, name).id
    return found


def get_account(tx: Tx, name: str, field: str = "account") -> Row[Any]:
    """The account, closed or not."""
    row = accounts.get(tx, name)
    if row is None:
        raise NotFound(f"there is no account {codec.shown(name)}", field=field)
    return row


def sees_private(identity: Identity, name: str | None = None) -> bool:
    """May they see the address of the account, and what happened to it and its tokens? Without a name: of all."""
    return in_force().allows(identity, "account.private", name)


def list_accounts(tx: Tx, page: Page = FIRST_PAGE) -> tuple[Sequence[Row[Any]], str | None]:
    """(accounts by name, cursor of the next page)."""
    rows = accounts.list_page(tx, page.after or "", page.limit)
    return rows, rows[-1].name if len(rows) == page.limit else None


def update_account(tx: Tx, name: str, *, email: str | None = KEEP, roles: Sequence[str] = KEEP) -> Row[Any]:
    """The account with another address or other roles. Conflict when it is closed."""
    before = _held(tx, name)
    new_email = before.email if email is KEEP else email
    new_roles = before.roles if roles is KEEP else roles
    check_text(new_email, "email")
    _check_roles(new_roles)
    return _write(tx, before, "updated", new_email, new_roles, None)


def close_account(tx: Tx, name: str) -> Row[Any]:
    """The account, closed: its tokens end at once, its rules and data stay."""
    before = _held(tx, name)
    return _write(tx, before, "closed", before.email, before.roles, tx.now)


def _held(tx: Tx, name: str) -> Row[Any]:
    row = accounts.hold(tx, name)
    if row is None:
        raise NotFound(f"there is no account {codec.shown(name)}", field="account")
    if row.closed_at is not None:
        raise Conflict(f"account {name} is closed", field="account")
    return row


def _write(
    tx: Tx, before: Row[Any], action: str, email: str | None, roles: Sequence[str], closed_at: datetime | None
) -> Row[Any]:
    after = accounts.update(tx, before.id, email, roles, closed_at)
    assert after is not None
    events.record(tx, "account", before.id, action, before=_shown(before), after=_shown(after))
    return after


def _shown(row: Row[Any]) -> dict[str, Any]:
    return {"name": row.name, "kind": row.kind, "email": row.email, "roles": list(row.roles)}


def _check_roles(roles: Sequence[str]) -> None:
    for index, role in enumerate(roles):
        check_name(role, f"roles[{index}]")


# ------------------------------------------------------------------------------------------------------ tokens


def make_token(tx: Tx, account: str, label: str = "", lifetime_s: int | None = None) -> tuple[str, Row[Any]]:
    """(text, row) of a new token. The text is seen here and never again: only its hash is kept.

    It ends at the latest with the token that asks for it: what was lent for an hour makes nothing that stays.
    """
    check_text(label, "label")
    if lifetime_s is not None and not 0 < lifetime_s <= MAX_TOKEN_LIFETIME_S:
        raise InvalidInput("a token lives for 1 second to 10 years", field="lifetime_s")
    owner = _held(tx, account)
    text = TOKEN_PREFIX + secrets.token_urlsafe(32)
    expires_at = None if lifetime_s is None else tx.now + timedelta(seconds=lifetime_s)
    ends = [moment for moment in (expires_at, tx.actor.expires_at) if moment is not None]
    row = accounts.insert_token(tx, owner.id, _digest(text), label, min(ends, default=None))
    events.record(tx, "account", owner.id, "token made", after={"token": row.id, "label": label})
    return text, row


def identify(tx: Tx, text: str, request_id: str = "") -> Identity:
    """Whose token this is. Unauthenticated, with the same words, for whatever reason it is not valid."""
    well_formed = len(text) == TOKEN_CHARACTERS and text.startswith(TOKEN_PREFIX) and text.isascii()
    row = accounts.holder(tx, _digest(text)) if well_formed else None
    if row is None:
        raise Unauthenticated("the token is not valid", hint="dlm-admin token add ACCOUNT makes a new one")
    return Identity(row.id, row.name, frozenset(row.roles), request_id, row.expires_at)


def list_tokens(tx: Tx, account: str | None = None) -> Sequence[Row[Any]]:
    """Tokens of one account, or all, newest first."""
    return accounts.list_tokens(tx, None if account is None else get_account(tx, account).id)


def revoke_token(tx: Tx, token_id: int, account_id: int | None = None) -> Row[Any]:
    """The token, of no use from now on; again does no harm. NotFound also when the account given has no such token."""
    row = accounts.revoke_token(tx, token_id, account_id)
    if row is None:
        raise NotFound(f"there is no token {token_id}", field="token")
    events.record(tx, "account", row.account_id, "token revoked", after={"token": row.id, "label": row.label})
    return row


def _digest(text: str) -> bytes:
    # The text holds 256 random bits, so a fast hash is enough: there is nothing to guess.
    return hashlib.sha256(text.encode("ascii")).digest()


# ------------------------------------------------------------------------------------------------------ scopes


def add_scope(tx: Tx, name: str, account: str) -> Row[Any]:
    """The new scope (id, name, account_id, created_at), owned by the account."""
    codec.check_scope(name, "name")
    owner = _held(tx, account)
    row = accounts.insert_scope(tx, name, owner.id)
    if row is None:
        raise Conflict(f"scope {name} exists already", field="name")
    events.record(tx, "scope", row.id, "added", after={"name": name, "account": account})
    return row


def get_scope(tx: Tx, name: str, field: str = "scope") -> Row[Any]:
    """(id, name, account_id, account, created_at) of the scope."""
    return get_scopes(tx, [name], field)[name]


def get_scopes(tx: Tx, names: Sequence[str], field: str = "scope") -> dict[str, Row[Any]]:
    """The scopes by name. NotFound for the first that is not there."""
    found = accounts.scopes(tx, sorted(set(names)))
    for name in names:
        if name not in found:
            raise NotFound(
                f"there is no scope {codec.shown(name)}", field=field, hint="dlm-admin scope add NAME makes it"
            )
    return found


def list_scopes(tx: Tx, page: Page = FIRST_PAGE) -> tuple[Sequence[Row[Any]], str | None]:
    """(scopes by name, cursor of the next page)."""
    rows = accounts.list_scopes(tx, page.after or "", page.limit)
    return rows, rows[-1].name if len(rows) == page.limit else None


# ------------------------------------------------------------------------------------------------------ limits


def set_limit(tx: Tx, account: str, storage: str, limit_bytes: int | None) -> None:
    """Set how many bytes the account may be charged at the storage; None takes the limit away."""
    if limit_bytes is not None and not 0 <= limit_bytes <= MAX_BYTES:
        raise InvalidInput(f"a limit is 0 to {MAX_BYTES} bytes, or null for none", field="limit_bytes")
    owner = _held(tx, account)
    place = storages.get(tx, storage)
    if place is None:
        raise NotFound(f"there is no storage {codec.shown(storage)}", field="storage")
    before = accounts.set_limit(tx, owner.id, place.id, limit_bytes)
    events.record(
        tx,
        "account",
        owner.id,
        "limit set",
        before={"storage": storage, "limit_bytes": before},
        after={"storage": storage, "limit_bytes": limit_bytes},
    )
