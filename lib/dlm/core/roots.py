"""Taking a storage's root. No transaction is open while it is touched: its server may take a minute to answer.

    storage.add    an intent: the row with its uuid, which nobody sees yet
    (effects)      whose root is it, does it lie in another's; then it gets the marker, or its seal is read
    storage.add    the storage is there, and the judge is told

A crash or a failure between leaves the intent, and perhaps the marker with its uuid. Adding a storage of that name again
takes both up, whatever else about it is different.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from sqlalchemy.engine import Row

from dlm import did as codec
from dlm import effects
from dlm.core import credentials, storages
from dlm.core.storages import Adding, NewStorage, Root
from dlm.db import storages as rows
from dlm.db.engine import Tx
from dlm.errors import Conflict, InvalidInput, StorageError, Transient, Unsupported
from dlm.protocols import StorageProtocol, open_protocol
from dlm.protocols.places import lies_in
from dlm.types import ErrorClass, ProtocolRef

TAKING_S = 60.0  # for one answer of a server whose root is taken
ROOTS_LOCK = 0x646C6D05  # advisory: of two storages that come at once, the second looks at the root of the first
Begin = Callable[[str], AbstractContextManager[Tx]]  # one transaction of that name, by whoever asks
_BESIDE = "give each storage a root beside the others"


def add_storage(begin: Begin, new: NewStorage) -> Row[Any]:
    """The new storage, its root taken: two transactions, the root touched between them.

    Taking the root writes dlm's marker into it (made if it is not there); where writing is off nothing is written,
    and the root is known by its seal instead. InvalidInput when the root cannot be taken.
    """
    with begin("storage.add") as tx:
        adding = storages.begin_adding(tx, new)
        others = storages.roots(tx)
    effects.point("storage.root:before")
    seal = _taken(adding, others)
    effects.point("storage.root:after")
    with begin("storage.add") as tx:
        tx.lock_session(ROOTS_LOCK)
        came = [other for other in storages.roots(tx) if other not in others]
        _refuse_nested(adding.ref, adding.new.can_change, came)
        if seal is not None:
            _refuse_known(came, seal)
        return storages.finish_adding(tx, adding, seal)


def update_storage(begin: Begin, name: str, facts: Mapping[str, Any], reason: str | None = None) -> Row[Any]:
    """`storages.update_storage`, and before it what must hold of a root that dlm is to change from now on.

    Turning writing on for a storage that was added without it puts dlm's marker into the root.
    """
    wished = [switch for switch in ("can_write", "can_delete") if facts.get(switch)]
    if wished:
        with begin("storage.set") as tx:
            row = storages.get_storage(tx, name)
            ref = credentials.refs(tx, [row.id])[row.id]
            others = storages.roots(tx)
        turned = [switch for switch in wished if not getattr(row, switch)]
        if turned:
            _refuse_nested(ref, True, others)
        if "can_write" in turned and ref.storage_uuid != str(row.uuid):
            with open_protocol(_hurried(ref)) as protocol:
                protocol.require_marker(ref.storage_uuid)
                protocol.claim(str(row.uuid))
            with begin("storage.set") as tx:
                rows.set_marker(tx, row.id, None)
    with begin("storage.set") as tx:
        return storages.update_storage(tx, name, facts, reason)


# ------------------------------------------------------------------------------------------------------ the root


def _taken(adding: Adding, others: Iterable[Root]) -> str | None:
    """Make the root recognisable: by a marker in it, or, where nothing may be written, by its seal; that seal."""
    if adding.ref.unusable is not None:
        raise Conflict(adding.ref.unusable, field="credentials")
    with open_protocol(_hurried(adding.ref)) as protocol:
        _refuse_shared(protocol, adding, others)
        _refuse_nested(adding.ref, adding.new.can_change, others)
        try:
            _refuse_marked_above(protocol)
            if not adding.new.can_write:
                return protocol.seal()
            protocol.claim(adding.uuid, create_root=True)
        except StorageError as error:
            _retry_later(error)
            hint = error.hint or "the root must be there, and writable unless writing is switched off"
            raise InvalidInput(error.detail, field="prefix", hint=hint) from error
    return None


def _hurried(ref: ProtocolRef) -> ProtocolRef:
    """The reference, with no more patience than a web request has: each answer of its server may take an hour."""
    patience_s = float(ref.options.get("timeout_s", TAKING_S))
    return replace(ref, options={**ref.options, "timeout_s": f"{min(patience_s, TAKING_S):.3f}"})


def _retry_later(error: StorageError) -> None:
    """Transient for a server that gave no answer: nothing of the root is known then."""
    if error.error_class == ErrorClass.TIMEOUT:
        raise Transient(error.detail, field="prefix", hint="try again when its server answers faster") from error


def _refuse_shared(protocol: StorageProtocol, adding: Adding, others: Iterable[Root]) -> None:
    """Refuse the root of another storage, whichever way that one is known.

    Its files would be there twice to the catalogue and once in truth: 1. a rule wants one copy, at the second storage;
    2. the copy at the first is surplus, with the second as its witness; 3. the reaper deletes the only file.
    """
    try:
        known = (protocol.identify(), protocol.seal())
    except StorageError as error:
        _retry_later(error)
        return  # not there: whoever takes it says so
    except Unsupported:
        return  # not to be told apart: the same
    if known[0] != adding.uuid:
        _refuse_known(others, *known)


def _refuse_known(others: Iterable[Root], *known: str | None) -> None:
    owner = next((other.ref.storage_name for other in others if other.ref.storage_uuid in known), None)
    if owner is not None:
        raise InvalidInput(
            f"this root belongs to storage {owner} already", field="prefix", hint="give each storage a root of its own"
        )


def _refuse_nested(ref: ProtocolRef, can_change: bool, others: Iterable[Root]) -> None:
    """Refuse a root in another storage's root, or around one, where the outer one may write or delete.

    Each would see the other's files as its own. Around a root, one that is only read is harmless.
    """
    for other in others:
        if other.ref.storage_id == ref.storage_id:
            continue
        inside = other.can_change and lies_in(ref, other.ref)
        around = can_change and lies_in(other.ref, ref)
        if inside or around:
            how = "lies in" if inside else "contains"
            whose = f"the root of storage {other.ref.storage_name}, {codec.shown(other.ref.prefix)}"
            raise InvalidInput(f"{codec.shown(ref.prefix)} {how} {whose}", field="prefix", hint=_BESIDE)


def _refuse_marked_above(protocol: StorageProtocol) -> None:
    """Refuse a root in one that carries a marker, whoever's it is, and however its server is called there."""
    marked = protocol.marked_above()
    if marked is not None:
        prefix = codec.shown(protocol.ref.prefix)
        detail = f"{prefix} lies in {codec.shown(marked)}, which carries the marker of a storage"
        hint = f"{_BESIDE}; if that one is retired for good, remove its .dlm-storage"
        raise InvalidInput(detail, field="prefix", hint=hint)
