"""Use cases around replicas: register files where they are, list them, say that one is bad, find the best to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from sqlalchemy.engine import Row

from dlm import did as codec
from dlm.core import credentials
from dlm.core import dids as did_cases
from dlm.core.accounts import get_scopes
from dlm.core.authorize import authorize
from dlm.core.dids import Ref
from dlm.core.files import ALGORITHMS, Files
from dlm.core.names import FIRST_PAGE, check_batch, check_text, cursor_id
from dlm.core.storages import get_storage
from dlm.db import arrays, breakers, changes, dids, events, replicas, storages, usage
from dlm.db.engine import Tx
from dlm.errors import CannotPlace, Conflict, InvalidInput, NotFound, Transient
from dlm.types import ChangeKind, Checksums, DidKind, Page, ProtocolRef, ReplicaState

CHECK_INTERVAL_S = 30 * 86400
MAX_BYTES = 2**62 - 1  # in one call, and at one storage: two such sums still are a bigint
MAX_EVENTS = 100  # of single files in one call; beyond it one event with the number must do
_ADVICE = {
    ReplicaState.COPYING: "dlm is copying this file there; wait until it is done, or cancel the rule that wants it",
    ReplicaState.DELETING: "dlm is deleting it; register it again when it is gone",
    ReplicaState.DELETED: "it was deleted, and its path still rests; try again in a few minutes",
}


@dataclass(frozen=True, slots=True)
class Registered:
    """What a registration added to the catalogue. `did_ids` are those of the files, in order."""

    did_ids: list[int]
    new_dids: int
    new_replicas: int
    new_bytes: int
    attached: int


@dataclass(frozen=True, slots=True)
class Source:
    """A replica to read, and how to reach it."""

    storage: str
    protocol: ProtocolRef
    path: str
    state: str
    size_bytes: int
    checksums: Checksums


# --------------------------------------------------------------------------------------------------- registering


def register(
    tx: Tx,
    storage: str,
    files: Files,
    *,
    dataset: Ref | None = None,
    verified: bool = False,
    check_interval_s: float = CHECK_INTERVAL_S,
) -> Registered:
    """Enter files that are at the storage already: DIDs as needed, replicas, and (if named) a place in the dataset.

    All or nothing: Conflict names the first file that the catalogue knows otherwise. What is registered already counts
    as done, so a call may be repeated. `verified` says that the caller has just read the stored bytes and compared
    them; otherwise the auditor does, from now on. At most 18 statements for any number of files.
    CannotPlace when the storage would hold more than its capacity: then its figure or the sizes are wrong.
    """
    if sum(files.sizes) > MAX_BYTES:
        detail = f"these files are {sum(files.sizes):,} bytes together"
        raise InvalidInput(detail, field="files", hint=f"up to {MAX_BYTES:,}")
    if files.paths is not None:  # whoever names a path may claim, and have repaired over, any file below the root
        authorize(tx.actor, "replica.path")
    place = get_storage(tx, storage)
    if not place.can_write:  # nobody could put a file there through dlm: who says that one is there needs more trust
        authorize(tx.actor, "replica.add")
    parent = None if dataset is None else _dataset(tx, dataset)
    scopes = get_scopes(tx, sorted(set(files.scopes)))
    columns = _columns(files, {name: row.id for name, row in scopes.items()})
    _refuse_taken_path(tx, place, files, columns)
    landing = replicas.Landing(
        storage_id=place.id,
        state=ReplicaState.AVAILABLE if verified else ReplicaState.UNVERIFIED,
        verified_at=tx.now if verified else None,
        next_check_at=tx.now + timedelta(seconds=check_interval_s) if verified else tx.now,
        dataset_id=None if parent is None else parent.id,
    )
    new = replicas.insert_new(tx, columns, files.paths, files.metadata, landing, tx.actor.account_id)
    is_all = len(new.ids) == len(files)
    entered = _all_new(files, new, landing) if is_all else _with_known(tx, place, files, columns, landing, new)
    if parent is not None and entered.attached.ids:
        did_cases.note_attached(tx, parent, entered.attached.ids, entered.attached.size_bytes)
    _record(tx, place, entered.added, entered.again)
    added = entered.added
    return Registered(entered.did_ids, len(new.ids), len(added.ids), added.size_bytes, len(entered.attached.ids))


@dataclass(frozen=True, slots=True)
class _Entered:
    """What a registration wrote: the DIDs of all files in order, replicas added or believed again, files attached."""

    did_ids: list[int]
    added: replicas.Added
    again: Sequence[Row[Any]]
    attached: replicas.Added


def _all_new(files: Files, new: replicas.Added, landing: replicas.Landing) -> _Entered:
    """No file was known: nothing is left to compare."""
    keys = list(zip(files.scopes, files.names, strict=True)) if len(set(files.scopes)) > 1 else files.names
    did_ids = [0] * len(files)
    for index, did_id in zip(sorted(range(len(keys)), key=keys.__getitem__), new.ids, strict=True):
        did_ids[index] = did_id
    return _Entered(did_ids, new, (), replicas.NOTHING if landing.dataset_id is None else new)


def _with_known(
    tx: Tx,
    place: Row[Any],
    files: Files,
    columns: replicas.FileColumns,
    landing: replicas.Landing,
    new: replicas.Added,
) -> _Entered:
    """Compare the files that were known with what is said of them now, and enter what of them is missing."""
    did_ids, wrong = replicas.match_files(tx, columns)
    if wrong is not None:
        _refuse_file(tx, files, wrong)
    added = new + replicas.insert(tx, did_ids, columns.sizes, files.paths, landing)
    again = _again(tx, place, files, did_ids, added)
    attached = replicas.NOTHING
    if landing.dataset_id is not None:
        more = dids.attach(tx, landing.dataset_id, did_ids, files.sizes)
        attached = new + replicas.Added(more.ids or [], more.size_bytes)
    return _Entered(did_ids, added, again, attached)


def _dataset(tx: Tx, dataset: Ref) -> Row[Any]:
    row = did_cases.require_open(tx, *dataset, field="dataset")
    if row.kind != DidKind.DATASET:
        raise InvalidInput(f"{codec.shown(':'.join(dataset))} is a container: files go into a dataset", field="dataset")
    return row


def _columns(files: Files, scope_ids: dict[str, int]) -> replicas.FileColumns:
    digests = {name: arrays.texts(files.checksums[name] or ()) for name in ALGORITHMS}  # unnest fills up with NULL
    ids = arrays.integers(map(scope_ids.__getitem__, files.scopes))
    return replicas.FileColumns(ids, arrays.texts(files.names), arrays.integers(files.sizes), **digests)


def _refuse_file(tx: Tx, files: Files, index: int) -> NoReturn:
    """Say in what the catalogue differs about this file."""
    row = did_cases.get(tx, files.scopes[index], files.names[index])
    field, shown = f"files[{index}]", files.shown(index)
    if row.kind != DidKind.FILE:
        raise Conflict(f"{shown} is a {row.kind}", field=field, hint="names are never used twice")
    if row.deleted_at is not None:
        raise Conflict(f"{shown} has ended", field=field, hint="names are never used twice")
    if row.size_bytes != files.sizes[index]:
        detail = f"the catalogue says {shown} has {row.size_bytes} bytes, not {files.sizes[index]}"
        raise Conflict(detail, field=f"{field}.size_bytes", hint="other content needs another name")
    for name in ALGORITHMS:
        known, given = getattr(row, name), files.checksum(index, name)
        if known is not None and given is not None and known != given:
            detail = f"the catalogue says {shown} has {name} {known}, not {given}"
            raise Conflict(detail, field=f"{field}.{name}", hint="other content needs another name")
    raise Conflict(f"{shown} was changed meanwhile", field=field)


def _refuse_taken_path(tx: Tx, place: Row[Any], files: Files, columns: replicas.FileColumns) -> None:
    if files.paths is None:
        return
    taken = replicas.path_owner(tx, place.id, columns, files.paths)
    if taken is not None:
        detail = f"this path at {place.name} is that of {codec.shown(f'{taken.scope}:{taken.name}')}"
        raise Conflict(detail, field=f"files[{taken.ordinal}].path")


def _again(
    tx: Tx, place: Row[Any], files: Files, did_ids: Sequence[int], added: replicas.Added
) -> Sequence[Row[Any]]:
    """The replicas that were known as bad or lost, and are taken for good until they are read; none if all are new."""
    if len(added.ids) == len(did_ids):
        return ()
    standing = replicas.first_in_the_way(tx, place.id, did_ids, files.paths)
    if standing is not None and standing.state in _ADVICE:
        detail = f"{files.shown(standing.ordinal)} is {standing.state} at {place.name}"
        raise Conflict(detail, field=f"files[{standing.ordinal}]", hint=_ADVICE[standing.state])
    if standing is not None:
        at = "its derived path" if standing.path is None else codec.shown(standing.path)
        detail = f"{files.shown(standing.ordinal)} stands at {at} on {place.name} already"
        raise Conflict(detail, field=f"files[{standing.ordinal}].path")
    return replicas.revive(tx, place.id, did_ids)


def _record(tx: Tx, place: Row[Any], added: replicas.Added, back: Sequence[Row[Any]]) -> None:
    """Tell the judge and the record what arrived, and count it; the usage row comes last."""
    arrived = [*added.ids, *(row.did_id for row in back)]
    if not arrived:
        return
    changes.add(tx, ChangeKind.ARRIVED, storage_id=place.id, file_ids=arrived)
    after = {"files": len(added.ids), "size_bytes": added.size_bytes, "files_again": len(back)}
    events.record(tx, "storage", place.id, "registered", after=after)
    found = [row.size_bytes for row in back if row.was_lost]
    delta = usage.StorageDelta()
    delta.add(place.id, used_bytes=added.size_bytes + sum(found), used_files=len(added.ids) + len(found))
    usage.change_storages(tx, delta)
    # Retiring a storage looks for replicas while it holds the usage row: whoever comes second sees the other.
    after_all = storages.fill(tx, place.id)
    if not after_all.is_live:
        raise Conflict(f"storage {place.name} was retired meanwhile", field="storage")
    most = MAX_BYTES if after_all.capacity_bytes is None else after_all.capacity_bytes
    if after_all.used_bytes > most:
        detail = f"{place.name} would hold {after_all.used_bytes:,} bytes, and has a capacity of {most:,}"
        raise CannotPlace(detail, field="storage", hint="correct the sizes, or the storage's capacity")


# --------------------------------------------------------------------------------------------------- listing


def path_of(row: Row[Any]) -> str:
    """The path of a listed replica below its storage's root."""
    return row.path or codec.derived_path(row.scope, row.name)


def stream(tx: Tx, scope: str, name: str) -> Iterator[Row[Any]]:
    """Every replica of the file, or of every file below the collection, by file and storage; memory stays flat.

    Rows: did_id, scope, name, storage, storage_id, state, size_bytes, checksums, path (see `path_of`), times.
    """
    row = did_cases.get(tx, scope, name)
    if row.kind == DidKind.FILE:
        return replicas.list_of_files(tx, [row.id])
    if row.kind == DidKind.DATASET:
        return replicas.list_of_dataset(tx, row.id)
    return replicas.list_of_datasets(tx, [below.dataset_id for below in dids.datasets_below(tx, [row.id])])


def list_by_dids(tx: Tx, refs: Sequence[Ref], page: Page = FIRST_PAGE) -> tuple[Sequence[Row[Any]], str | None]:
    """(replicas of these files and of all files below these collections, cursor of the next page)."""
    check_batch(len(refs), "dids")
    rows = did_cases.resolve(tx, refs, live=False)
    files = [row.id for row in rows if row.kind == DidKind.FILE]
    collections = [row.id for row in rows if row.kind != DidKind.FILE]
    datasets = [row.dataset_id for row in dids.datasets_below(tx, collections)] if collections else []
    found = replicas.page_of_files(tx, files, datasets, _after_pair(page), page.limit)
    return found, f"{found[-1].did_id}-{found[-1].storage_id}" if len(found) == page.limit else None


def list_by_storage(
    tx: Tx, storage: str, state: ReplicaState | None = None, page: Page = FIRST_PAGE
) -> tuple[Sequence[Row[Any]], str | None]:
    """(replicas at the storage, cursor of the next page)."""
    found = replicas.page_of_storage(tx, get_storage(tx, storage).id, state, cursor_id(page.after) or 0, page.limit)
    return found, str(found[-1].did_id) if len(found) == page.limit else None


def _after_pair(page: Page) -> tuple[int, int]:
    """The (did_id, storage_id) after which a page starts."""
    did_id, dash, storage_id = (page.after or "0-0").partition("-")
    if not dash:
        raise InvalidInput("this is no cursor", field="after", hint="give back `next` of the page before, as it is")
    return cursor_id(did_id) or 0, cursor_id(storage_id) or 0


def best_replicas(tx: Tx, scope: str, name: str) -> list[Source]:
    """The replicas of a file that can be read now, the best first.

    Transient when there are good ones, but only where nothing can be read at the moment; NotFound when there are none.
    """
    row = did_cases.get(tx, scope, name)
    if row.kind != DidKind.FILE:
        raise InvalidInput(f"{codec.shown(f'{scope}:{name}')} is a {row.kind}: fetch its files", field="did")
    found = replicas.readable(tx, row.id)
    if not found:
        _refuse_reading(tx, row)
    ways = credentials.refs(tx, [replica.storage_id for replica in found])
    checksums = Checksums(row.adler32, row.md5, row.sha256)
    return [
        Source(item.storage, ways[item.storage_id], path_of(item), item.state, item.size_bytes, checksums)
        for item in found
    ]


def _refuse_reading(tx: Tx, file: Row[Any]) -> NoReturn:
    """Say why no replica of the file can be read: its storages are away or take no readers, or there is none."""
    told = f"no replica of {codec.shown(f'{file.scope}:{file.name}')} can be read now"
    good = (ReplicaState.AVAILABLE, ReplicaState.UNVERIFIED)
    away = [item.storage for item in replicas.list_of_files(tx, [file.id]) if item.state in good]
    if away:
        raise Transient(f"{told}: it is at {', '.join(away[:10])}, not readable at the moment", field="did")
    raise NotFound(told, field="did")


# --------------------------------------------------------------------------------------------------- found wrong


def declare_bad(tx: Tx, items: Sequence[tuple[str, str, str]], reason: str) -> int:
    """Declare replicas (scope, name, storage) as bad; how many were not known as bad or lost before.

    NotFound or Conflict for the first that is not there, or is being copied or deleted; then nothing is declared.
    The judge decides what follows: another copy, or nothing where no rule wants the file.
    """
    check_batch(len(items), "replicas")
    check_text(reason, "reason", required=True)
    rows = did_cases.resolve(tx, [(scope, name) for scope, name, _ in items], "replicas", live=False)
    places = {name: get_storage(tx, name).id for name in sorted({storage for _, _, storage in items})}
    named = [(row.id, places[storage]) for row, (_, _, storage) in zip(rows, items, strict=True)]
    states = {(row.did_id, row.storage_id): row.state for row in replicas.hold_files(tx, [did for did, _ in named])}
    _refuse_undeclarable(items, named, states)
    good = (ReplicaState.AVAILABLE, ReplicaState.UNVERIFIED)
    harmed = sorted({key for key in named if states[key] in good})
    if harmed:
        replicas.mark_bad(tx, harmed)
        breakers.add_harm(tx, "loss", Counter(storage_id for _, storage_id in harmed))
        changes.add_by_storage(tx, ChangeKind.HARMED, harmed)
        _record_bad(tx, harmed, reason)
    return len(harmed)


def _refuse_undeclarable(
    items: Sequence[tuple[str, str, str]], named: Sequence[tuple[int, int]], states: dict[tuple[int, int], str]
) -> None:
    for index, key in enumerate(named):
        scope, name, storage = items[index]
        state, shown = states.get(key), codec.shown(f"{scope}:{name}")
        if state is None or state == ReplicaState.DELETED:
            raise NotFound(f"{shown} has no replica at {storage}", field=f"replicas[{index}]")
        if state in (ReplicaState.COPYING, ReplicaState.DELETING):
            raise Conflict(
                f"{shown} is {state} at {storage}", field=f"replicas[{index}]", hint="wait until that has ended"
            )


def _record_bad(tx: Tx, harmed: Sequence[tuple[int, int]], reason: str) -> None:
    per_storage = Counter(storage_id for _, storage_id in harmed)
    summary = [
        (storage_id, None, {"files": number, "reason": reason}) for storage_id, number in sorted(per_storage.items())
    ]
    events.record_many(tx, "storage", "replicas declared bad", summary)
    if len(harmed) <= MAX_EVENTS:
        single = [(did_id, None, {"storage_id": storage_id, "reason": reason}) for did_id, storage_id in harmed]
        events.record_many(tx, "did", "declared bad", single)
