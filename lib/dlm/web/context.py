"""What a view needs of its request: a transaction by the caller, the owner check, pages and streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from flask import Response, current_app, g, request, stream_with_context

from dlm.config import Settings
from dlm.core import accounts
from dlm.core.authorize import authorize
from dlm.db.engine import Database, Tx
from dlm.errors import DlmError
from dlm.types import Page
from dlm.web.body import NDJSON
from dlm.web.gathering import Gathering

STREAM_FIRST, STREAM_PAGE = 200, 2000  # lines: the first come soon, and memory stays flat
_LINE = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z

FetchPage = Callable[[Tx, Page], tuple[Sequence[Any], str | None]]
Show = Callable[[Any], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Web:
    """What the app was made with, and who waits for a turn."""

    database: Database
    settings: Settings
    identities: Gathering = field(default_factory=Gathering)
    declarations: Gathering = field(default_factory=Gathering)


def web() -> Web:
    return current_app.extensions["dlm"]


@contextmanager
def begin(name: str) -> Iterator[Tx]:
    """One transaction by the caller. It does not commit while it is open whether the caller owns what was changed."""
    with web().database.begin(f"web.{name}", g.identity) as tx:
        yield tx
        if g.must_own:
            authorize(g.identity, g.permission)


def own(*owners: str) -> None:
    """Settle the route's permission for objects of these accounts; Denied when it does not reach to all of them.

    A view whose permission is granted for `:own` calls it before it changes anything, and `begin` insists.
    """
    for owner in owners:
        authorize(g.identity, g.permission, owner=owner)
    g.must_own = g.must_own and not owners


def own_scopes(tx: Tx, scopes: Iterable[str]) -> None:
    """Settle the route's permission for everything in these scopes: their owners own it. At most one statement."""
    if g.must_own:
        own(*(row.account for row in accounts.get_scopes(tx, sorted(set(scopes))).values()))


def own_account(account_id: int) -> None:
    """Settle the route's permission for what the account of this id owns."""
    own(g.identity.account if account_id == g.identity.account_id else "another account")


@contextmanager
def as_one(prefix: str, alone: str = "body") -> Iterator[None]:
    """Name fields as a caller with one item knows them: without `prefix`, its place among many; that is `alone`."""
    try:
        yield
    except DlmError as error:
        if error.field:
            error.field = error.field.removeprefix(prefix).removeprefix(".") or alone
        raise


def listed(name: str, fetch: FetchPage, page: Page, show: Show = dict) -> Response | dict[str, Any]:
    """One page as {"items", "next"}, or everything from there on as NDJSON when Accept asks for it.

    A stream reads page by page, each in its own short transaction: a slow reader holds neither memory nor a snapshot.
    """
    if NDJSON not in request.accept_mimetypes.values():
        rows, cursor = _page(name, fetch, page)
        return {"items": [show(row) for row in rows], "next": cursor}
    first = _page(name, fetch, Page(STREAM_FIRST, page.after))  # what is wrong shows before the status is sent
    return Response(stream_with_context(_lines(name, fetch, first, show)), mimetype=NDJSON)


def _page(name: str, fetch: FetchPage, page: Page) -> tuple[Sequence[Any], str | None]:
    with begin(name) as tx:
        return fetch(tx, page)


def _lines(name: str, fetch: FetchPage, found: tuple[Sequence[Any], str | None], show: Show) -> Iterator[bytes]:
    other = current_app.json.default  # type: ignore[attr-defined]
    while True:
        rows, cursor = found
        yield b"".join([orjson.dumps(show(row), other, _LINE) for row in rows])
        if cursor is None:
            return
        found = _page(name, fetch, Page(STREAM_PAGE, cursor))
