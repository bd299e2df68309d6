"""Use cases around storages: add, switch, describe, retire. What touches their roots is in core.roots.

Whoever changes a storage writes an event with before and after, and tells the judge: expressions may match others now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Row

from dlm import did as codec
from dlm.core import credentials
from dlm.core.expression import check_key
from dlm.core.names import FIRST_PAGE, check_name, check_text, meant
from dlm.core.protocols import NewProtocol, check_protocols, check_spoken
from dlm.db import changes, events, sites, storages
from dlm.db.engine import Tx
from dlm.errors import Conflict, InvalidInput, NotFound
from dlm.types import ChangeKind, Page, Phase, ProtocolRef, Reap

MAX_BYTES = 2**63 - 1
MAX_ATTRIBUTES = 128
MAX_UNDO_WINDOW_S = 365 * 86400
SWITCHES = ("can_read", "can_write", "can_delete")
CHANGEABLE = ("type", "phase", "capacity_bytes", "min_free_bytes", *SWITCHES, "reap", "undo_window_s")


@dataclass(frozen=True, slots=True)
class NewStorage:
    """A storage to add. A switch that is off needs the reason why."""

    name: str
    site: str
    protocols: Sequence[NewProtocol]
    type: str = "disk"
    phase: str = Phase.GAS
    capacity_bytes: int | None = None
    min_free_bytes: int = 0
    can_read: bool = True
    can_write: bool = True
    can_delete: bool = True
    reason: str | None = None
    reap: str = Reap.EAGER
    undo_window_s: int | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def can_change(self) -> bool:
        return self.can_write or self.can_delete

    def values(self) -> dict[str, Any]:
        """The columns of the storage's row, but for its site."""
        row = {key: getattr(self, key) for key in ("name", *CHANGEABLE, "attributes")}
        return row | {"switch_reason": self.reason}


@dataclass(frozen=True, slots=True)
class Adding:
    """A storage on its way: what finishing it needs. Who begins it again takes it from whoever was at it."""

    new: NewStorage
    storage_id: int
    uuid: str
    begun_at: datetime
    ref: ProtocolRef


@dataclass(frozen=True, slots=True)
class Root:
    """The root of a storage, and whether dlm may write or delete there."""

    ref: ProtocolRef
    can_change: bool


def begin_adding(tx: Tx, new: NewStorage) -> Adding:
    """An intent: the storage's row, which nobody sees before it is finished; one of this name is taken up again."""
    check_name(new.name)
    _check_values(new.values())
    check_protocols(new.protocols)
    site = _held_site(tx, new.site)
    made = storages.begin(tx, site.id, new.values())
    if made is None:
        hint = "names are never used twice, also not after a storage is retired"
        raise Conflict(f"storage {new.name} exists already", field="name", hint=hint)
    for way in new.protocols:
        storages.insert_protocol(tx, made.id, way.values())
    _require_secrets(tx, new)
    ref = replace(credentials.refs(tx, [made.id])[made.id], storage_uuid=str(made.uuid))
    return Adding(new, made.id, str(made.uuid), tx.now, ref)


def finish_adding(tx: Tx, adding: Adding, seal: str | None) -> Row[Any]:
    """The storage, seen by everybody from now on, its root known by the seal if it has no marker."""
    new = adding.new
    _held_site(tx, new.site)
    _require_secrets(tx, new)
    if not storages.finish(tx, adding.storage_id, adding.begun_at):
        raise Conflict(f"storage {new.name} was added by another request meanwhile", field="name")
    storages.set_marker(tx, adding.storage_id, seal)
    events.record(tx, "storage", adding.storage_id, "added", after={**new.values(), "site": new.site})
    changes.add(tx, ChangeKind.STORAGES, storage_id=adding.storage_id)
    return get_storage(tx, new.name)


def roots(tx: Tx) -> list[Root]:
    """The roots of all storages that are not retired; two statements, three when one names a secret."""
    can_change = {storage.id: storage.can_write or storage.can_delete for storage in storages.snapshot(tx)}
    return [Root(ref, can_change[ref.storage_id]) for ref in storages.protocols(tx).values()]


def _held_site(tx: Tx, name: str) -> Row[Any]:
    site = sites.hold(tx, name)
    if site is None:
        raise NotFound(f"there is no site {codec.shown(name)}", field="site", hint="dlm-admin site add NAME makes it")
    return site


def _require_secrets(tx: Tx, new: NewStorage) -> None:
    for index, way in enumerate(new.protocols):
        if way.credentials is not None:
            credentials.require(tx, way.scheme, way.credentials, f"protocols[{index}].")


def get_storage(tx: Tx, name: str, field: str = "storage") -> Row[Any]:
    """The storage (id, uuid, name, site, country, type, phase, switches, attributes, …)."""
    row = storages.get(tx, name)
    if row is None:
        raise _not_found(tx, name, field)
    return row


def list_storages(tx: Tx, page: Page = FIRST_PAGE) -> tuple[Sequence[Row[Any]], str | None]:
    """(storages by name, cursor of the next page)."""
    rows = storages.list_page(tx, page.after or "", page.limit)
    return rows, rows[-1].name if len(rows) == page.limit else None


def list_protocols(tx: Tx, name: str) -> Sequence[Row[Any]]:
    """(scheme, prefix, credentials, options, priority, marker) of the storage's protocols, the preferred one first."""
    return storages.list_protocols(tx, get_storage(tx, name).id)


def update_storage(tx: Tx, name: str, facts: Mapping[str, Any], reason: str | None = None) -> Row[Any]:
    """The storage with these facts (any of CHANGEABLE); what is not named stays.

    Turning a switch off needs the reason; it is kept until all are on again. No root is touched: what turning writing
    on needs of it comes before (core.roots).
    """
    row = _held(tx, name)
    for unknown in facts.keys() - set(CHANGEABLE):
        raise InvalidInput(
            f"{unknown!r} of a storage cannot be changed", field=unknown, hint=f"one of {', '.join(CHANGEABLE)}"
        )
    before = _values(row)
    after = {**before, **facts}
    after["switch_reason"] = _switch_reason(before, after, reason)
    _check_values(after)
    if after["can_write"] and storages.protocols(tx, [row.id])[row.id].storage_uuid != str(row.uuid):
        raise Conflict(f"the root of storage {name} has no marker yet", field="can_write", hint="try again")
    return _write(tx, row, "updated", before, after)


def set_attributes(tx: Tx, name: str, patch: Mapping[str, str | None]) -> Row[Any]:
    """The storage with these attributes; a null takes one away, others stay."""
    row = _held(tx, name)
    before = _values(row)
    attributes = {key: value for key, value in {**row.attributes, **patch}.items() if value is not None}
    after = {**before, "attributes": attributes}
    _check_attributes(attributes)
    return _write(tx, row, "attributes set", before, after)


def update_protocol(tx: Tx, name: str, scheme: str, facts: Mapping[str, Any]) -> Row[Any]:
    """The storage, one of its protocols spoken with these `credentials`, or these `options` (null takes one away).

    What is not named stays.
    """
    row = _held(tx, name)
    way = next((way for way in storages.list_protocols(tx, row.id) if way.scheme == scheme), None)
    if way is None:
        raise NotFound(f"storage {name} has no protocol {codec.shown(scheme)}", field="scheme")
    before = {"credentials": way.credentials, "options": way.options}
    patched = {**way.options, **facts.get("options", {})}
    options = {key: value for key, value in patched.items() if value is not None}
    after = {"credentials": facts.get("credentials", way.credentials), "options": options}
    check_spoken(scheme, after["credentials"], options)
    if after != before:
        if after["credentials"] is not None:
            credentials.require(tx, scheme, after["credentials"])
        storages.update_protocol(tx, row.id, scheme, after["credentials"], options)
        storages.look_again(tx, [name])
        told = {"scheme": scheme}
        events.record(tx, "storage", row.id, "protocol set", before={**told, **before}, after={**told, **after})
    return get_storage(tx, name)


def retire_storage(tx: Tx, name: str) -> None:
    """Delete a storage that holds nothing; its files and its marker are left as they are."""
    row = _held(tx, name)
    storages.hold_usage(tx, row.id)  # replicas are counted last, under this lock: none can come after the look
    if storages.holds_anything(tx, row.id):
        hint = "switch writing off and let its rules go; dlm-admin replica list shows what is there"
        raise Conflict(f"storage {name} still holds replicas or locks", field="storage", hint=hint)
    storages.delete(tx, row.id)
    events.record(tx, "storage", row.id, "retired", before=_values(row))
    changes.add(tx, ChangeKind.STORAGES, storage_id=row.id)


def _held(tx: Tx, name: str) -> Row[Any]:
    row = storages.hold(tx, name)
    if row is None:
        raise _not_found(tx, name, "storage")
    return row


def _not_found(tx: Tx, name: str, field: str) -> NotFound:
    known = [storage.name for storage in storages.snapshot(tx)]
    hint = meant(name, known) or "see: dlm-admin storage list"
    return NotFound(f"there is no storage {codec.shown(name)}", field=field, hint=hint)


def _values(row: Row[Any]) -> dict[str, Any]:
    return {key: getattr(row, key) for key in (*CHANGEABLE, "switch_reason", "attributes")}


def _write(tx: Tx, row: Row[Any], action: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Row[Any]:
    changed = [key for key in before if before[key] != after[key]]
    if changed:
        storages.update(tx, row.id, after)
        was, now = {key: before[key] for key in changed}, {key: after[key] for key in changed}
        events.record(tx, "storage", row.id, action, before=was, after=now)
        changes.add(tx, ChangeKind.STORAGES, storage_id=row.id)
    return get_storage(tx, row.name)


def _switch_reason(before: Mapping[str, Any], after: Mapping[str, Any], reason: str | None) -> str | None:
    if all(after[switch] for switch in SWITCHES):
        return None
    for switch in SWITCHES:
        if before[switch] and not after[switch]:
            check_text(reason, "reason", required=True)
    return reason or before["switch_reason"]


# ------------------------------------------------------------------------------------------------------- checking


def _check_values(values: Mapping[str, Any]) -> None:
    check_name(values["type"], "type")
    _check_choice(values["phase"], Phase, "phase")
    _check_choice(values["reap"], Reap, "reap")
    if values["capacity_bytes"] is not None:
        _check_range(values["capacity_bytes"], MAX_BYTES, "capacity_bytes")
    _check_range(values["min_free_bytes"], MAX_BYTES, "min_free_bytes")
    if values["undo_window_s"] is not None:
        _check_range(values["undo_window_s"], MAX_UNDO_WINDOW_S, "undo_window_s")
    is_off = not all(values[switch] for switch in SWITCHES)
    check_text(values["switch_reason"], "reason", required=is_off)
    _check_attributes(values["attributes"])


def _check_choice(value: str, choices: type[Phase] | type[Reap], field: str) -> None:
    if value not in list(choices):
        raise InvalidInput(f"{value!r} is no {field}", field=field, hint=f"one of {', '.join(choices)}")


def _check_range(value: int, most: int, field: str) -> None:
    if not 0 <= value <= most:
        raise InvalidInput(f"{field} is 0 to {most}, not {value}", field=field)


def _check_attributes(attributes: Mapping[str, str]) -> None:
    if len(attributes) > MAX_ATTRIBUTES:
        raise InvalidInput(f"a storage has at most {MAX_ATTRIBUTES} attributes", field="attributes")
    for key, value in attributes.items():
        field = f"attributes.{key[:64]}"
        check_key(key, field)
        if not isinstance(value, str):
            raise InvalidInput(
                "the value of an attribute is text", field=field, hint='write numbers in quotes, as in "1"'
            )
        check_text(value, field, required=True)


def root_of(tx: Tx, name: str) -> ProtocolRef:
    """How to speak to the storage, by its preferred protocol."""
    row = get_storage(tx, name)
    return credentials.refs(tx, [row.id])[row.id]
