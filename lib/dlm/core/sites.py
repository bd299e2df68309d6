"""Use cases around sites: the failure domains in which storages stand."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Row

from dlm import did as codec
from dlm.core.names import FIRST_PAGE, check_name, check_text
from dlm.db import changes, events, sites
from dlm.db.engine import Tx
from dlm.errors import Conflict, InvalidInput, NotFound
from dlm.types import ChangeKind, Page

_COUNTRY = re.compile(r"[A-Z]{2}")
FACTS: Mapping[str, Any] = {"country": None, "city": None, "latitude": None, "longitude": None}


def add_site(tx: Tx, name: str, facts: Mapping[str, Any] | None = None) -> Row[Any]:
    """The new site; `facts` may name country, city, latitude and longitude."""
    check_name(name)
    values = {**FACTS, **(facts or {})}
    _check(values)
    row = sites.insert(tx, name, values)
    if row is None:
        raise Conflict(
            f"site {name} exists already", field="name", hint="names are never used twice, also not after deletion"
        )
    events.record(tx, "site", row.id, "added", after={"name": name, **values})
    return row


def get_site(tx: Tx, name: str, field: str = "site") -> Row[Any]:
    """The site of that name."""
    row = sites.get(tx, name)
    if row is None:
        raise _not_found(name, field)
    return row


def list_sites(tx: Tx, page: Page = FIRST_PAGE) -> tuple[Sequence[Row[Any]], str | None]:
    """(sites by name, cursor of the next page)."""
    rows = sites.list_page(tx, page.after or "", page.limit)
    return rows, rows[-1].name if len(rows) == page.limit else None


def update_site(tx: Tx, name: str, facts: Mapping[str, Any]) -> Row[Any]:
    """The site with these facts; what is not named stays. The country is part of expressions, so rules look again."""
    row = _held(tx, name)
    before = {key: getattr(row, key) for key in FACTS}
    values = {**before, **facts}
    _check(values)
    after = sites.update(tx, row.id, values)
    events.record(tx, "site", row.id, "updated", before=before, after=values)
    if before["country"] != values["country"]:
        changes.add(tx, ChangeKind.STORAGES)
    return after


def delete_site(tx: Tx, name: str) -> None:
    """Delete a site at which no storage stands."""
    row = _held(tx, name)
    if sites.has_storage(tx, row.id):
        raise Conflict(f"storages stand at site {name}", field="site", hint="retire them first")
    sites.delete(tx, row.id)
    events.record(tx, "site", row.id, "deleted", before={"name": name})


def _held(tx: Tx, name: str) -> Row[Any]:
    row = sites.hold(tx, name)
    if row is None:
        raise _not_found(name, "site")
    return row


def _not_found(name: str, field: str) -> NotFound:
    return NotFound(f"there is no site {codec.shown(name)}", field=field)


def _check(values: Mapping[str, Any]) -> None:
    for unknown in values.keys() - FACTS.keys():
        raise InvalidInput(f"a site has no {unknown!r}", field=unknown, hint=f"it has {', '.join(FACTS)}")
    for field in ("country", "city"):
        check_text(values[field], field)
    if values["country"] is not None and not _COUNTRY.fullmatch(values["country"]):
        hint = "two capital letters of ISO 3166, e.g. AU or CH"
        raise InvalidInput(f"{codec.shown(values['country'])} is no code of a country", field="country", hint=hint)
    for field, most in (("latitude", 90), ("longitude", 180)):
        value = values[field]
        if value is not None and not (math.isfinite(value) and -most <= value <= most):
            raise InvalidInput(f"{field} is -{most} to {most} degrees", field=field)
