"""Bytes reserved, used and charged. The invariant (I5), for every storage and account:

reserved_bytes = sum of size over replicas `copying` + sum of promised_bytes over locks and parcels
used_bytes     = sum of size over replicas `available`, `unverified`, `bad` or `deleting` (used_files: their number)
charged_bytes  = sum of size over the account's locks that are not released (charged_files: of their files)

Usage rows are shared, so they are written last in a transaction, once per batch, in key order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy.engine import Row

from dlm.db.engine import Tx


class StorageDelta:
    """A batch's change to storage_usage, gathered by storage before the one write."""

    def __init__(self) -> None:
        self._rows: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])

    def add(self, storage_id: int, *, reserved_bytes: int = 0, used_bytes: int = 0, used_files: int = 0) -> None:
        row = self._rows[storage_id]
        row[0] += reserved_bytes
        row[1] += used_bytes
        row[2] += used_files

    def rows(self) -> list[tuple[int, int, int, int]]:
        return [(storage, v[0], v[1], v[2]) for storage, v in sorted(self._rows.items()) if any(v)]

    def reserved_bytes(self, storage_id: int) -> int:
        """What the batch reserves at the storage, less what it gives back."""
        return self._rows[storage_id][0] if storage_id in self._rows else 0


class Charges:
    """A batch's change to what accounts are charged, gathered by (account, storage) before the one write."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])

    def add(self, account_id: int, storage_id: int, size_bytes: int, files: int) -> None:
        row = self._rows[account_id, storage_id]
        row[0] += size_bytes
        row[1] += files

    def rows(self) -> list[tuple[int, int, int, int]]:
        return [(key[0], key[1], v[0], v[1]) for key, v in sorted(self._rows.items()) if any(v)]


def change_storages(tx: Tx, delta: StorageDelta) -> None:
    """Add the deltas to storage_usage; rows locked in storage order; at most one statement."""
    rows = delta.rows()
    if not rows:
        return
    tx.run(
        """WITH delta AS (SELECT * FROM unnest(%(ids)s::int[], %(reserved)s::bigint[], %(used)s::bigint[], %(files)s::bigint[])
                                   AS d (storage_id, reserved, used, files)),
                held AS (SELECT u.storage_id FROM storage_usage u JOIN delta USING (storage_id) ORDER BY 1 FOR UPDATE OF u)
           UPDATE storage_usage u
              SET reserved_bytes = u.reserved_bytes + d.reserved,
                  used_bytes = u.used_bytes + d.used,
                  used_files = u.used_files + d.files
             FROM delta d JOIN held USING (storage_id) WHERE u.storage_id = d.storage_id""",
        ids=[row[0] for row in rows],
        reserved=[row[1] for row in rows],
        used=[row[2] for row in rows],
        files=[row[3] for row in rows],
    )


def change_accounts(tx: Tx, charges: Charges) -> None:
    """Add to what accounts are charged, in key order; at most one statement."""
    rows = charges.rows()
    if not rows:
        return
    tx.run(
        """INSERT INTO account_usage AS u (account_id, storage_id, charged_bytes, charged_files)
           SELECT * FROM unnest(%(accounts)s::int[], %(storages)s::int[], %(bytes)s::bigint[], %(files)s::bigint[])
            ORDER BY 1, 2
           ON CONFLICT (account_id, storage_id) DO UPDATE
              SET charged_bytes = u.charged_bytes + excluded.charged_bytes,
                  charged_files = u.charged_files + excluded.charged_files""",
        accounts=[row[0] for row in rows],
        storages=[row[1] for row in rows],
        bytes=[row[2] for row in rows],
        files=[row[3] for row in rows],
    )


def hold_storages(tx: Tx, storage_ids: Iterable[int]) -> Sequence[Row[Any]]:
    """Lock the usage rows of these storages in key order and return them with capacity; two statements.

    The second one sees what committed while the first one waited: a storage that was retired under the same lock, say.
    """
    ids = sorted(set(storage_ids))
    tx.run("SELECT FROM storage_usage WHERE storage_id = ANY (%(ids)s::int[]) ORDER BY storage_id FOR UPDATE", ids=ids)
    return tx.rows(
        """SELECT u.storage_id, s.name, u.reserved_bytes, u.used_bytes, s.capacity_bytes, s.min_free_bytes,
                  s.deleted_at IS NOT NULL AS is_retired
             FROM storage_usage u JOIN storage s ON s.id = u.storage_id
            WHERE u.storage_id = ANY (%(ids)s::int[]) ORDER BY u.storage_id""",
        ids=ids,
    )


def storages(tx: Tx) -> Sequence[Row[Any]]:
    """Usage of every storage that is not deleted, by name; one statement."""
    return tx.rows(
        """SELECT s.id, s.name, s.capacity_bytes, s.min_free_bytes, u.reserved_bytes, u.used_bytes, u.used_files
             FROM storage s JOIN storage_usage u ON u.storage_id = s.id
            WHERE s.deleted_at IS NULL ORDER BY s.name"""
    )


def accounts(tx: Tx, account_id: int | None = None) -> Sequence[Row[Any]]:
    """What accounts are charged and may be charged, per storage; one statement."""
    return tx.rows(
        """SELECT u.account_id, a.name AS account, u.storage_id, s.name AS storage, u.charged_bytes, u.charged_files, u.limit_bytes
             FROM account_usage u JOIN account a ON a.id = u.account_id JOIN storage s ON s.id = u.storage_id
            WHERE %(account_id)s::int IS NULL OR u.account_id = %(account_id)s
            ORDER BY a.name, s.name""",
        account_id=account_id,
    )
