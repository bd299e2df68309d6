"""What one pass of the judge sees of the storages, and what it may still promise there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Row

from dlm.core import expression, judge
from dlm.core.placement import Budget, Wish
from dlm.db import judging, storages
from dlm.db.engine import Tx
from dlm.types import Storage


@dataclass(slots=True)
class World:
    """One snapshot of the storages, and the budget that decisions of this pass spend."""

    storages: dict[int, Storage]
    snapshot: expression.Snapshot
    free_bytes: Mapping[int, int | None]
    quota: dict[int, dict[int, int | None]]  # by account, by storage

    @classmethod
    def load(cls, tx: Tx, account_ids: Sequence[int]) -> "World":
        """Two statements."""
        found = storages.snapshot(tx)
        quota: dict[int, dict[int, int | None]] = defaultdict(dict)
        for (account_id, storage_id), left in judging.quota_left(tx, account_ids).items():
            quota[account_id][storage_id] = left
        return cls({s.id: s for s in found}, expression.Snapshot(found), Budget.of(found).free_bytes, quota)

    def matching(self, canonical: str) -> tuple[Storage, ...]:
        ids = expression.evaluate(expression.parse(canonical), self.snapshot)
        return tuple(self.storages[id_] for id_ in sorted(ids))

    def budget(self, account_id: int) -> Budget:
        return Budget(self.free_bytes, self.quota[account_id])

    def spent(self, account_id: int, budget: Budget) -> None:
        self.free_bytes = budget.free_bytes
        self.quota[account_id] = dict(budget.quota_bytes)


def wish_of(row: Row[Any]) -> Wish:
    """What placement needs of a rule's row."""
    return Wish(judge.seed(row.account_id, row.did_id, row.canonical, row.copies), row.copies, row.spread, row.weight)
