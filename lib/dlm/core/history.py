"""What happened, for those who ask: events by object, by its name as people write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Row

from dlm import did as codec
from dlm.core import accounts, dids, secrets, sites, storages
from dlm.db import events, rules
from dlm.db.engine import Tx
from dlm.errors import InvalidInput, NotFound
from dlm.types import Page


def list_events(
    tx: Tx, page: Page, object_: str | None = None, name: str | None = None, actor: str | None = None
) -> tuple[Sequence[Row[Any]], str | None]:
    """(events newest first, cursor); of one object when `object_` and `name` say which. At most two statements.

    What happened to an account and its tokens is for itself, and for who sees what is private of all.
    A DID is named scope:name, a rule by its UUID; account, scope, site, storage and secret by name; others by number.
    """
    if name is not None and object_ is None:
        raise InvalidInput("a name alone says not which object", field="object", hint=f"one of {', '.join(NAMED)}")
    object_id = None if object_ is None or name is None else _id(tx, object_, name)
    only_account = None if accounts.sees_private(tx.actor) else tx.actor.account_id or 0
    rows = events.list_page(tx, object_, object_id, actor, only_account, _before(page), page.limit)
    return rows, str(rows[-1].id) if len(rows) == page.limit else None


def _id(tx: Tx, object_: str, name: str) -> int:
    find = NAMED.get(object_)
    if find is not None:
        return int(find(tx, name).id)
    if name.isascii() and name.isdigit() and len(name) < 19:
        return int(name)
    raise InvalidInput(f"a {object_} is named by its number", field="name")


def _before(page: Page) -> int | None:
    if page.after is None:
        return None
    if not (page.after.isascii() and page.after.isdigit() and len(page.after) < 19):
        raise InvalidInput("this is no cursor of this list", field="after")
    return int(page.after)


def _did(tx: Tx, name: str) -> Row[Any]:
    return dids.get(tx, *codec.parse(name, "name"), field="name")


def _rule(tx: Tx, name: str) -> Row[Any]:
    row = rules.get(tx, name)
    if row is None:
        raise NotFound(f"there is no rule {codec.shown(name)}", field="name")
    return row


NAMED: Mapping[str, Callable[[Tx, str], Row[Any]]] = {
    "account": accounts.get_account,
    "scope": accounts.get_scope,
    "site": sites.get_site,
    "storage": storages.get_storage,
    "secret": secrets.get_secret,
    "did": _did,
    "rule": _rule,
}
