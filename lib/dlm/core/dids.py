"""Use cases around DIDs: make collections, fill and empty them, describe them, end them.

An ended DID (deleted, or expired) lets its own rules go and can be neither attached nor filled. It stays in the
collections that hold it: what a container or dataset promises about its contents stands until they are detached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Row

from dlm import did as codec
from dlm.core import metadata as free
from dlm.core.accounts import get_scope, get_scopes
from dlm.core.names import FIRST_PAGE, check_batch, cursor_id, meant
from dlm.db import accounts, changes, dids, events, query
from dlm.db.engine import Tx
from dlm.errors import Conflict, InvalidInput, NotFound
from dlm.types import ChangeKind, Checksums, DidKind, Page, Query

Ref = tuple[str, str]  # (scope, name)
SHOWN_SCOPES = 10  # in a hint


@dataclass(frozen=True, slots=True)
class NewCollection:
    """A dataset or container to make."""

    scope: str
    name: str
    kind: DidKind = DidKind.DATASET
    is_monotonic: bool = False
    metadata: Mapping[str, Any] | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Attached:
    """How many children were new, and how many were there already."""

    added: int
    existing: int


@dataclass(frozen=True, slots=True)
class Filter:
    """Which DIDs of a scope to list; `pattern` takes '*', a query asks what is said about them (see core/query)."""

    scope: str
    pattern: str | None = None
    kind: DidKind | None = None
    query: Query | None = None


# --------------------------------------------------------------------------------------------------- finding


def get(tx: Tx, scope: str, name: str, field: str = "did") -> Row[Any]:
    """The DID (id, scope, name, kind, account, size_bytes, files, checksums, is_open, …), ended or not."""
    row = dids.get(tx, scope, name)
    if row is None:
        raise _not_found(tx, (scope, name), field)
    return row


def get_live(tx: Tx, scope: str, name: str, field: str = "did") -> Row[Any]:
    """The DID; Conflict when it has ended."""
    row = get(tx, scope, name, field)
    if row.deleted_at is not None:
        raise Conflict(f"{_shown((scope, name))} has ended", field=field)
    return row


def resolve(tx: Tx, refs: Sequence[Ref], field: str = "dids", *, live: bool = True) -> list[Row[Any]]:
    """(id, kind, size_bytes, files, …) of each DID, in order; NotFound for the first that is not there.

    With `live`, Conflict for the first that has ended. A `field` with `{}` in it takes the index itself.
    """
    rows = list(dids.resolve(tx, [scope for scope, _ in refs], [name for _, name in refs]))
    place = field if "{}" in field else field + "[{}]"
    for index, row in enumerate(rows):
        if row.id is None:
            raise _not_found(tx, refs[index], place.format(index))
        if live and row.is_ended:
            raise Conflict(f"{_shown(refs[index])} has ended", field=place.format(index))
    return rows


def list_dids(tx: Tx, which: Filter, page: Page = FIRST_PAGE) -> tuple[Sequence[Row[Any]], str | None]:
    """(DIDs of the scope that have not ended, by name; cursor of the next page)."""
    scope = get_scope(tx, which.scope)
    like = None if which.pattern is None else query.like(tuple(which.pattern.split("*")))
    wanted = dids.Wanted(like, which.kind, which.query)
    rows = dids.list_in_scope(tx, scope.id, wanted, page.after or "", page.limit)
    return rows, rows[-1].name if len(rows) == page.limit else None


def contents(tx: Tx, scope: str, name: str, page: Page = FIRST_PAGE) -> tuple[Sequence[Row[Any]], str | None]:
    """(what the collection holds directly, cursor of the next page)."""
    rows = dids.contents(tx, get(tx, scope, name).id, cursor_id(page.after) or 0, page.limit)
    return rows, str(rows[-1].id) if len(rows) == page.limit else None


def parents(tx: Tx, scope: str, name: str, page: Page = FIRST_PAGE) -> tuple[Sequence[Row[Any]], str | None]:
    """(the collections that hold the DID directly, cursor of the next page)."""
    rows = dids.parents(tx, get(tx, scope, name).id, cursor_id(page.after) or 0, page.limit)
    return rows, str(rows[-1].id) if len(rows) == page.limit else None


def totals_below(tx: Tx, items: Iterable[tuple[int, str]]) -> dict[int, tuple[int, int]]:
    """(files, bytes) of those of the (id, kind) that are containers: the sum over the datasets below each; at most one
    statement. A file in two of them counts twice: to count files once would be to read them all."""
    containers = {id_ for id_, kind in items if kind == DidKind.CONTAINER}
    return dids.totals_below(tx, containers) if containers else {}


def _shown(ref: Ref) -> str:
    return codec.shown(f"{ref[0]}:{ref[1]}")


def _not_found(tx: Tx, ref: Ref, field: str) -> NotFound:
    """The error, with what was probably meant, or what there is."""
    scope, name = ref
    scopes = [row.name for row in accounts.list_scopes(tx, "", SHOWN_SCOPES)]
    if accounts.scopes(tx, [scope]):
        near = meant(name, dids.near(tx, scope, name))
        hint = near.replace("'", f"'{scope}:", 1) if near else f"see: dlm-admin did list {scope}"
    else:
        hint = meant(scope, scopes) or f"scopes you can see: {', '.join(scopes) or 'none yet'}"
    return NotFound(f"{_shown(ref)} is not registered", field=field, hint=hint)


# ------------------------------------------------------------------------------------------------ collections


def add_collections(tx: Tx, items: Sequence[NewCollection]) -> list[int]:
    """Make datasets and containers; their ids, in order. All or none."""
    check_batch(len(items), "dids")
    for index, item in enumerate(items):
        _check_new(tx, item, f"dids[{index}]")
    scopes = get_scopes(tx, [item.scope for item in items])
    new = [
        dids.NewRow(scopes[item.scope].id, item.name, item.kind, item.is_monotonic, item.metadata, item.expires_at)
        for item in items
    ]
    rows = dids.insert_collections(tx, new, tx.actor.account_id)
    made = {row.ordinal - 1: row.id for row in rows}
    _require_all_made(items, made)
    events.record_many(tx, "did", "added", [(made[index], None, _new_shown(item)) for index, item in enumerate(items)])
    return [made[index] for index in range(len(items))]


def _check_new(tx: Tx, item: NewCollection, field: str) -> None:
    codec.check_scope(item.scope, f"{field}.scope")
    codec.check_name(item.name, f"{field}.name")
    if item.kind not in (DidKind.DATASET, DidKind.CONTAINER):
        hint = "files are registered with a replica"
        raise InvalidInput("a collection is a dataset or a container", field=f"{field}.kind", hint=hint)
    if item.metadata is not None:
        free.check(item.metadata, f"{field}.metadata")
    _check_expiry(tx, item.expires_at, f"{field}.expires_at")


def _require_all_made(items: Sequence[NewCollection], made: Mapping[int, int]) -> None:
    seen: set[Ref] = set()
    for index, item in enumerate(items):
        if (item.scope, item.name) in seen:
            raise InvalidInput(f"{_shown((item.scope, item.name))} is here twice", field=f"dids[{index}]")
        seen.add((item.scope, item.name))
        if index not in made:
            detail = f"{_shown((item.scope, item.name))} exists already"
            raise Conflict(detail, field=f"dids[{index}]", hint="names are never used twice, also not after deletion")


def _new_shown(item: NewCollection) -> dict[str, Any]:
    expires_at = item.expires_at and item.expires_at.isoformat()
    return {"did": f"{item.scope}:{item.name}", "kind": str(item.kind), "expires_at": expires_at}


def set_open(tx: Tx, scope: str, name: str, is_open: bool) -> None:
    """Close a collection (nothing is attached or detached any more), or open it again."""
    row = _held(tx, scope, name)
    _require_collection(row)
    if row.is_open == is_open:
        return
    dids.set_open(tx, row.id, is_open)
    events.record(tx, "did", row.id, "opened" if is_open else "closed", after={"files": row.files})


def _held(tx: Tx, scope: str, name: str) -> Row[Any]:
    """The DID, its row locked; Conflict when it has ended."""
    row = dids.hold(tx, scope, name)
    if row is None:
        raise _not_found(tx, (scope, name), "did")
    _require_live(row)
    return row


def _require_live(row: Row[Any]) -> None:
    if row.deleted_at is not None:
        raise Conflict(f"{_shown((row.scope, row.name))} ended at {row.deleted_at:%Y-%m-%d %H:%M}", field="did")


def _require_collection(row: Row[Any]) -> None:
    if row.kind == DidKind.FILE:
        raise Conflict(f"{_shown((row.scope, row.name))} is a file, not a dataset or container", field="did")


# ------------------------------------------------------------------------------------------ attach and detach


def attach(
    tx: Tx,
    scope: str,
    name: str,
    children: Sequence[Ref],
    expected: Mapping[int, tuple[int | None, Checksums]] | None = None,
) -> Attached:
    """Attach files to a dataset, or collections to a container. Those that are there already are counted, not refused.

    `expected` says, by index, which size and checksums the caller believes a file to have; Conflict if the catalogue
    knows others. A container holds datasets or containers, not both.
    """
    parent = require_open(tx, scope, name)
    check_batch(len(children), "children")
    if parent.kind == DidKind.CONTAINER:
        tx.lock_session(dids.CONTAINER_LOCK)
    rows = resolve(tx, children, "children")
    _check_expected(rows, expected or {})
    _check_children(tx, parent, children, rows)
    return put_in(tx, parent, [row.id for row in rows], [row.size_bytes for row in rows])


def require_open(tx: Tx, scope: str, name: str, field: str = "did") -> Row[Any]:
    """The collection, which is open now. (`put_in` asks again, on the locked row.)"""
    row = get(tx, scope, name, field)
    _require_live(row)
    _require_collection(row)
    if not row.is_open:
        raise Conflict(f"{_shown((scope, name))} is closed", field=field, hint="open it again to change what it holds")
    return row


def put_in(tx: Tx, parent: Row[Any], child_ids: Sequence[int], sizes: Sequence[int]) -> Attached:
    """Attach checked children (each once or more) to an open collection; at most five statements."""
    unique = dict(zip(child_ids, sizes, strict=True))
    new = dids.attach(tx, parent.id, list(unique), list(unique.values()))
    if new.ids:
        note_attached(tx, parent, new.ids, new.size_bytes)
    added = len(new.ids or ())
    return Attached(added, len(child_ids) - added)


def note_attached(tx: Tx, parent: Row[Any], child_ids: Sequence[int], size_bytes: int) -> None:
    """Count children that were attached just now, and tell the judge and the record; four statements.

    Conflict when the collection was closed or ended meanwhile: the attachment must then roll back.
    """
    _count(tx, parent, len(child_ids), size_bytes)
    changes.add(tx, ChangeKind.ATTACHED, did_id=parent.id, file_ids=child_ids)
    events.record(tx, "did", parent.id, "attached", after={"number": len(child_ids), "size_bytes": size_bytes})


def detach(tx: Tx, scope: str, name: str, children: Sequence[Ref]) -> int:
    """Take children out of a collection; how many were in it. Conflict when it is monotonic or closed."""
    parent = require_open(tx, scope, name)
    check_batch(len(children), "children")
    if parent.is_monotonic:
        raise Conflict(f"{_shown((scope, name))} is monotonic: nothing is ever taken out of it", field="did")
    if parent.kind == DidKind.CONTAINER:
        tx.lock_session(dids.CONTAINER_LOCK)
    rows = resolve(tx, children, "children", live=False)
    gone = dids.detach(tx, parent.id, [row.id for row in rows])
    if not gone.ids:
        return 0
    _count(tx, parent, -len(gone.ids), -gone.size_bytes)
    changes.add(tx, ChangeKind.DETACHED, did_id=parent.id, file_ids=gone.ids)
    events.record(tx, "did", parent.id, "detached", after={"number": len(gone.ids), "size_bytes": gone.size_bytes})
    return len(gone.ids)


def _count(tx: Tx, parent: Row[Any], files: int, size_bytes: int) -> None:
    """Change a dataset's totals; of a container they stay 0, but the guard is the same."""
    if parent.kind == DidKind.CONTAINER:
        files = size_bytes = 0
    if not dids.change_totals(tx, parent.id, files, size_bytes):
        raise Conflict(f"{_shown((parent.scope, parent.name))} was closed or ended meanwhile", field="did")


def _check_expected(rows: Sequence[Row[Any]], expected: Mapping[int, tuple[int | None, Checksums]]) -> None:
    for index, (size_bytes, checksums) in expected.items():
        row = rows[index]
        if size_bytes is not None and size_bytes != row.size_bytes:
            detail = f"the catalogue says {row.size_bytes} bytes, not {size_bytes}"
            raise Conflict(detail, field=f"children[{index}].size_bytes")
        if checksums.contradicts(Checksums(row.adler32, row.md5, row.sha256)):
            raise Conflict("the catalogue knows another checksum", field=f"children[{index}]")


def _check_children(tx: Tx, parent: Row[Any], children: Sequence[Ref], rows: Sequence[Row[Any]]) -> None:
    """Refuse children of the wrong kind, and a cycle."""
    wanted = {DidKind.FILE} if parent.kind == DidKind.DATASET else {DidKind.DATASET, DidKind.CONTAINER}
    for index, row in enumerate(rows):
        if row.kind not in wanted:
            holds = "files" if parent.kind == DidKind.DATASET else "datasets or containers"
            detail = f"{_shown(children[index])} is a {row.kind}; a {parent.kind} holds {holds}"
            raise InvalidInput(detail, field=f"children[{index}]")
    if parent.kind == DidKind.CONTAINER:
        _refuse_mixture(tx, parent, rows)
        _refuse_cycle(tx, parent, children, rows)


def _refuse_mixture(tx: Tx, parent: Row[Any], rows: Sequence[Row[Any]]) -> None:
    first = rows[0].kind
    for index, row in enumerate(rows):
        if row.kind != first:
            raise InvalidInput("a container holds datasets or containers, not both", field=f"children[{index}]")
    if dids.child_kinds(tx, parent.id) - {first}:
        detail = f"{_shown((parent.scope, parent.name))} holds the other kind: datasets or containers, not both"
        raise Conflict(detail, field="children", hint="put them into a container of their own")


def _refuse_cycle(tx: Tx, parent: Row[Any], children: Sequence[Ref], rows: Sequence[Row[Any]]) -> None:
    above = {row.ancestor_id for row in dids.ancestors(tx, [parent.id])}
    for index, row in enumerate(rows):
        if row.id in above:
            detail = f"{_shown(children[index])} holds {_shown((parent.scope, parent.name))}: this would be a cycle"
            raise Conflict(detail, field=f"children[{index}]")


# ----------------------------------------------------------------------------------------- metadata and ending


def set_metadata(tx: Tx, scope: str, name: str, patch: Mapping[str, Any]) -> dict[str, Any]:
    """The DID's metadata after the patch: its keys replace those of the same name, a null removes one."""
    free.check(patch, "metadata")
    row = _held(tx, scope, name)
    before = row.metadata or {}
    after = {key: value for key, value in {**before, **patch}.items() if value is not None}
    free.check(after, "metadata")
    dids.set_metadata(tx, row.id, after)
    touched = {key: before.get(key) for key in patch}
    events.record(tx, "did", row.id, "metadata set", before=touched, after=dict(patch))
    return after


def set_expiry(tx: Tx, scope: str, name: str, expires_at: datetime | None) -> None:
    """Set when the DID ends, and lets its rules go; None: never. Conflict when that is sooner, with a locked rule."""
    _check_expiry(tx, expires_at, "expires_at")
    row = _held(tx, scope, name)
    is_sooner = expires_at is not None and (row.expires_at is None or expires_at < row.expires_at)
    if is_sooner and dids.has_locked_rule(tx, row.id):
        raise Conflict(f"{_shown((scope, name))} has a locked rule", field="expires_at", hint="unlock the rule first")
    dids.set_expiry(tx, row.id, expires_at)
    before, after = row.expires_at and row.expires_at.isoformat(), expires_at and expires_at.isoformat()
    events.record(tx, "did", row.id, "expiry set", before={"expires_at": before}, after={"expires_at": after})


def _check_expiry(tx: Tx, expires_at: datetime | None, field: str) -> None:
    if expires_at is None:
        return
    if expires_at.tzinfo is None:
        raise InvalidInput("the time has no time zone", field=field, hint="end it with Z or +00:00")
    if expires_at <= tx.now:
        raise InvalidInput("the time is past", field=field, hint="delete the DID to end it now")


def delete_did(tx: Tx, scope: str, name: str) -> None:
    """End the DID: its rules let go, its name is never used again. Conflict while a live collection holds it."""
    row = _held(tx, scope, name)
    holder = dids.live_parent(tx, row.id)
    if holder is not None:
        detail = f"{_shown((scope, name))} is in {_shown((holder.scope, holder.name))}"
        raise Conflict(detail, field="did", hint="detach it there first")
    if dids.has_locked_rule(tx, row.id):
        raise Conflict(f"{_shown((scope, name))} has a locked rule", field="did", hint="unlock the rule first")
    dids.end(tx, row.id)
    changes.add(tx, ChangeKind.DID_ENDED, did_id=row.id)
    events.record(tx, "did", row.id, "deleted", cause="asked for")


def expire_due(tx: Tx, limit: int) -> int:
    """End at most `limit` DIDs whose time has come, and tell the judge; how many. At most four statements."""
    ended = dids.end_due(tx, limit)
    if ended:
        changes.add_dids(tx, ChangeKind.DID_ENDED, ended)
        events.record_many(tx, "did", "expired", [(did_id, None, None) for did_id in ended], cause="its time came")
    return len(ended)
