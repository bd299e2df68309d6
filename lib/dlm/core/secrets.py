"""Use cases around secrets: what storages are spoken to with. Values come in here, and never go out again.

Events, lists and errors tell names, what the values are called, and when they were set; never a value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Row

from dlm import did as codec
from dlm.core.credentials import require_fit
from dlm.core.names import FIRST_PAGE, check_name, meant
from dlm.db import events, secrets, storages
from dlm.db.engine import Tx
from dlm.errors import Conflict, InvalidInput, NotFound
from dlm.protocols.declared import unsendable
from dlm.types import Page
from dlm.vault import NO_KEY_HINT

KEYS_LOCK = 0x646C6D04  # advisory: who seals, and who changes the keys, one after the other
MAX_KEYS = 16
MAX_VALUE_CHARACTERS = 65_536
BATCH = 200  # secrets encrypted anew in one transaction
KEY = re.compile(r"[a-z][a-z0-9_]{0,31}")  # what a value may be called


def add_secret(tx: Tx, name: str, values: Mapping[str, str]) -> Row[Any]:
    """The new secret, owned by who acts."""
    check_name(name)
    _check(values)
    tx.lock_session(KEYS_LOCK)
    sealed = tx.vault.ring().seal(name, values)
    made = secrets.insert(tx, name, sorted(values), sealed)
    if made is None:
        hint = f"dlm-admin secret set {name} gives it other values"
        raise Conflict(f"secret {name} exists already", field="name", hint=hint)
    events.record(tx, "secret", made, "added", after=_told(name, values, sealed.key_id))
    return get_secret(tx, name)


def get_secret(tx: Tx, name: str) -> Row[Any]:
    """What may be told of the secret: name, owner, keys, key_id, created_at, set_at, rotated_at, storages."""
    row = secrets.get(tx, name)
    if row is None:
        raise _not_found(tx, name)
    return row


def list_secrets(tx: Tx, page: Page = FIRST_PAGE) -> tuple[Sequence[Row[Any]], str | None]:
    """(secrets by name, cursor of the next page)."""
    rows = secrets.list_page(tx, page.after or "", page.limit)
    return rows, rows[-1].name if len(rows) == page.limit else None


def set_secret(tx: Tx, name: str, values: Mapping[str, str]) -> Row[Any]:
    """The secret with these values, and no others. They must let every storage in that names it."""
    _check(values)
    tx.lock_session(KEYS_LOCK)
    row = _held(tx, name)
    users = secrets.users(tx, name)
    for user in users:
        require_fit(user.scheme, name, sorted(values), "values")
    sealed = tx.vault.ring().seal(name, values)
    secrets.update(tx, row.id, sorted(values), sealed)
    storages.look_again(tx, [user.storage for user in users])  # what waited for it goes on soon
    before = {"keys": row.keys, "key_id": row.key_id}
    events.record(tx, "secret", row.id, "set", before=before, after=_told(name, values, sealed.key_id))
    return get_secret(tx, name)


def remove_secret(tx: Tx, name: str) -> None:
    """Remove a secret that no storage names; its values are gone with it."""
    row = _held(tx, name)
    users = [user.storage for user in secrets.users(tx, name)]  # after the lock: none can come any more
    if users:
        hint = "give them another first: dlm-admin storage protocol set NAME --credentials SECRET"
        raise Conflict(f"secret {name} is named by {', '.join(dict.fromkeys(users))}", field="secret", hint=hint)
    secrets.delete(tx, row.id)
    events.record(tx, "secret", row.id, "removed", before={"name": name, "keys": row.keys})


def _held(tx: Tx, name: str) -> Row[Any]:
    if not secrets.hold(tx, name):
        raise _not_found(tx, name)
    return get_secret(tx, name)


def _not_found(tx: Tx, name: str) -> NotFound:
    hint = meant(name, [row.name for row in secrets.list_page(tx, limit=1000)]) or "see: dlm-admin secret list"
    return NotFound(f"there is no secret {codec.shown(name)}", field="secret", hint=hint)


def _told(name: str, values: Mapping[str, str], key_id: str) -> dict[str, Any]:
    return {"name": name, "keys": sorted(values), "key_id": key_id}


def _check(values: Mapping[str, str]) -> None:
    """Refuse what is no secret. Neither values nor wrong keys are repeated: people mix the two up."""
    if not 0 < len(values) <= MAX_KEYS:
        raise InvalidInput(f"a secret has 1 to {MAX_KEYS} values", field="values")
    for key, value in values.items():
        if not KEY.fullmatch(key):
            hint = "e.g. access_key, secret_key, token, username, password, private_key"
            raise InvalidInput("a value is called by small letters, digits and '_'", field="values", hint=hint)
        if not isinstance(value, str) or not 0 < len(value) <= MAX_VALUE_CHARACTERS or "\x00" in value:
            detail = f"the value of {key} is no text of 1 to {MAX_VALUE_CHARACTERS} characters"
            raise InvalidInput(detail, field=f"values.{key}")
        if fault := unsendable({key: value}):
            raise InvalidInput(fault, field=f"values.{key}")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise InvalidInput(f"the value of {key} is no Unicode text", field=f"values.{key}")


# ------------------------------------------------------------------------------------------------------ rotating


def keys(tx: Tx) -> tuple[list[str], dict[str, int], list[str]]:
    """(ids of the keys here, the one that encrypts first; how many secrets are under which; ids that are not here)."""
    known, counted = tx.vault.key_ids(), secrets.count_by_key(tx)
    return known, counted, sorted(counted.keys() - set(known))


@dataclass(frozen=True, slots=True)
class Rotated:
    """What one batch did: the last id it came to (None: there was nothing left), and what could not be opened."""

    last_id: int | None
    secrets: int = 0
    unreadable: tuple[str, ...] = ()


def begin_rotation(tx: Tx) -> str:
    """The id of the key under which everything is to be encrypted: a new one, put first into the file.

    None is made while secrets are still under the older ones: then a rotation was interrupted, and goes on. Nor is one
    where the keys stand in the environment: whoever sets it puts the new one first. Conflict when secrets are
    under a key that is not here: they would be left behind.
    """
    tx.lock_session(KEYS_LOCK)
    known, counted, missing = keys(tx)
    if not known and not tx.vault.is_writable:
        raise Conflict("there is no key, and no file to put one into", field="secrets_key_file", hint=NO_KEY_HINT)
    if missing:
        detail = f"secrets are encrypted under {', '.join(missing)}, which is not in {tx.vault.where}"
        raise Conflict(detail, field="secrets_key", hint="put that key there, or set or remove those secrets first")
    if known and (counted.keys() - {known[0]} or not tx.vault.is_writable):
        return known[0]
    return tx.vault.add_key()


def rotate_batch(tx: Tx, after: int = 0) -> Rotated:
    """Encrypt the next secrets under the first key, those with an id beyond `after`; three statements.

    A process that is killed between batches leaves every secret under a key that is in the file: the next run goes on.
    """
    ring = tx.vault.ring()
    first, *old = ring.keys
    rows = secrets.hold_old(tx, old, after, BATCH)
    if not rows:
        return Rotated(None)
    fresh, unreadable = {}, []
    for row in rows:
        try:
            values = ring.open(row.name, secrets.Sealed(row.key_id, bytes(row.ciphertext)))
        except Conflict:
            unreadable.append(row.name)
            continue
        fresh[row.id] = ring.seal(row.name, values)
    secrets.reseal(tx, fresh)
    events.record(tx, "secret", 0, "encrypted anew", after={"key_id": first, "secrets": len(fresh)})
    return Rotated(rows[-1].id, len(fresh), tuple(unreadable))


def drop_keys(tx: Tx) -> list[str]:
    """The ids of the keys that were taken out of the file: all but the first. Conflict while secrets need them."""
    tx.lock_session(KEYS_LOCK)
    known, counted, _ = keys(tx)
    if counted.keys() - set(known[:1]):
        raise Conflict("secrets are still encrypted under older keys", hint="dlm-admin secret rotate")
    if not tx.vault.is_writable:
        raise Conflict(f"the keys stand in {tx.vault.where}", hint="take the older ones out there")
    return tx.vault.drop_keys()


def ensure_key(tx: Tx) -> str | None:
    """The id of the key that encrypts; one is made where there is none, and no secret that needs another.

    None when that cannot be: secrets are there, and their key must come from where it is kept.
    """
    tx.lock_session(KEYS_LOCK)
    known = tx.vault.key_ids()
    if known:
        return known[0]
    if secrets.count_by_key(tx) or not tx.vault.is_writable:
        return None
    return tx.vault.add_key()
