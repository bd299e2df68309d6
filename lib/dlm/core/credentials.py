"""From the name of a secret to its values, for who speaks to storages: the one place where they are decrypted.

A secret that cannot be had leaves its storage unavailable, with that reason, and nobody else's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dlm.core.authorize import authorize
from dlm.core.names import meant
from dlm.db import secrets, storages
from dlm.db.engine import Tx
from dlm.errors import Conflict, InvalidInput, NotFound
from dlm.protocols.declared import declared
from dlm.types import ProtocolRef, Secret
from dlm.vault import Ring, Sealed


def refs(tx: Tx, storage_ids: Iterable[int] | None = None) -> dict[int, ProtocolRef]:
    """How to speak to each storage, by its id, the secret opened; without ids of all that are not retired.

    One statement, two when one of them names a secret. Each secret is opened once a call: that takes microseconds, and
    the next pass sees what was set meanwhile. `unusable` says why a secret cannot be had.
    """
    found = storages.protocols(tx, storage_ids)
    names = {ref.credentials for ref in found.values() if ref.credentials is not None}
    if not names:
        return found
    had = secrets.sealed(tx, names)
    try:
        ring = tx.vault.ring()
    except Conflict as error:
        return {storage_id: _unusable(ref, error) for storage_id, ref in found.items()}
    opened = {name: _opened(ring, name, had.get(name)) for name in names}
    return {storage_id: _with(ref, opened) for storage_id, ref in found.items()}


def get(tx: Tx, name: str) -> Secret:
    """The values of one secret. NotFound when there is none of that name, Conflict when it cannot be decrypted."""
    had = secrets.sealed(tx, [name])
    if name not in had:
        raise NotFound(f"there is no secret {name}", field="credentials")
    return tx.vault.ring().open(name, had[name][1])


def _opened(ring: Ring, name: str, had: tuple[int, Sealed] | None) -> tuple[int, Secret] | Conflict:
    if had is None:
        return Conflict(f"there is no secret {name}")
    version, sealed = had
    try:
        return version, ring.open(name, sealed)
    except Conflict as error:
        return error


def _with(ref: ProtocolRef, opened: dict[str, tuple[int, Secret] | Conflict]) -> ProtocolRef:
    if ref.credentials is None:
        return ref
    one = opened[ref.credentials]
    if isinstance(one, Conflict):
        return _unusable(ref, one)
    version, secret = one
    return replace(ref, secret=secret, secret_version=version)


def _unusable(ref: ProtocolRef, error: Conflict) -> ProtocolRef:
    return ref if ref.credentials is None else replace(ref, unusable=error.detail)


# ------------------------------------------------------------------------------------------------------- naming


def require(tx: Tx, scheme: str, name: str, place: str = "") -> None:
    """Return when the actor may have a storage of this scheme speak with that secret, which stays until the commit.

    Denied when it is another's: whoever names a secret for an address of their own is sent it.
    """
    field = f"{place}credentials"
    row = secrets.get(tx, name) if secrets.keep(tx, name) else None
    if row is None:
        authorize(tx.actor, "secret.use", owner=tx.actor.account)
        hint = meant(name, [one.name for one in secrets.list_page(tx, limit=1000)])
        raise InvalidInput(f"there is no secret {name}", field=field, hint=hint or f"dlm-admin secret add {name}")
    authorize(tx.actor, "secret.use", owner=row.owner)
    require_fit(scheme, name, row.keys, field)


def require_fit(scheme: str, name: str, keys: Sequence[str], field: str) -> None:
    """Refuse a secret that lacks what the scheme needs to be let in."""
    known = declared(scheme)
    if known is None or any(set(way) <= set(keys) for way in known.secrets):
        return
    if not known.secrets:
        raise InvalidInput(f"{scheme} needs no credentials", field=field, hint="leave them out")
    ways = ", or ".join(" and ".join(way) for way in known.secrets)
    raise InvalidInput(f"secret {name} has {', '.join(keys)}: {scheme} needs {ways}", field=field)
