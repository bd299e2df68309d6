"""What one transaction of the judge reserves, gives back and charges, gathered for the one write at its end.

Usage rows are shared by everybody who does anything at a storage, so they are locked last and for a moment: accounts
first, then storages. Whoever wrote them in the middle would hold them while it waits for locks or rules, and another
who holds those waits for the usage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.engine import Row

from dlm.db import letting_go, usage
from dlm.db.engine import Tx
from dlm.errors import Transient


class Replan(Transient):
    """The space that was planned with is gone; plan again."""


@dataclass(slots=True)
class Ledger:
    """`placed` are the storages at which locks were placed: they must be there still, and have the room."""

    storages: usage.StorageDelta = field(default_factory=usage.StorageDelta)
    charges: usage.Charges = field(default_factory=usage.Charges)
    placed: set[int] = field(default_factory=set)

    def place(self, account_id: int, storage_id: int, files: int, size_bytes: int, promised_bytes: int) -> None:
        """Note new locks of an account at a storage."""
        self.placed.add(storage_id)
        self.storages.add(storage_id, reserved_bytes=promised_bytes)
        self.charges.add(account_id, storage_id, size_bytes, files)

    def release(
        self, tx: Tx, *, keys: Sequence[tuple[int, int, int]] | None = None, rule_ids: Sequence[int] | None = None
    ) -> int:
        """Release locks, with what they reserved and were charged for; how many, without those in use; one statement."""
        number = 0
        for row in letting_go.release(tx, keys, rule_ids):
            number += row.locks
            self.storages.add(row.storage_id, reserved_bytes=-row.promised_bytes)
            self.charges.add(row.account_id, row.storage_id, -row.bytes, -row.files)
        return number

    def close(self, tx: Tx) -> None:
        """Write it all; Replan when what was placed does not fit any more; at most four statements."""
        usage.change_accounts(tx, self.charges)
        if self.placed:
            # All at once: those where nothing was placed are written, too, and may come before the others.
            rows = usage.hold_storages(tx, {*self.placed, *(row[0] for row in self.storages.rows())})
            promised = {storage_id: self.storages.reserved_bytes(storage_id) for storage_id in self.placed}
            require_space([row for row in rows if row.storage_id in self.placed], promised)
        usage.change_storages(tx, self.storages)


def require_space(held: Iterable[Row[Any]], promised: Mapping[int, int]) -> None:
    """Make sure that the promise still fits at these storages, whose usage rows are locked; else Replan.

    Reading free space and promising it are two moments; without this, two judges fill one storage twice.
    """
    for row in held:
        if row.is_retired:
            raise Replan(f"{row.name} was retired meanwhile")
        if row.capacity_bytes is None or promised[row.storage_id] <= 0:
            continue
        if row.capacity_bytes - row.min_free_bytes - row.used_bytes - row.reserved_bytes < promised[row.storage_id]:
            raise Replan(f"{row.name} was filled meanwhile")
