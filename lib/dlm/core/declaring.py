"""Use case: rules that several calls ask for at the same time are declared together, and each call is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlm.core import rules as cases
from dlm.db import rules
from dlm.db.engine import Tx

NOTHING_YET = dict.fromkeys(("locks", "locks_to_fill", "files", "bytes", "files_ok", "files_stuck"), 0)


@dataclass(frozen=True, slots=True)
class Asked:
    """One call's wish."""

    wish: cases.Declaration
    request_id: str


def declare_each(tx: Tx, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """Declare a rule for each call, all by one account, and show it as `rules.get` does; all or none.

    For wishes without an idempotency key: with one, a retry would have to come in the same company.
    """
    made = cases.declare(tx, [call.wish for call in asked], request_ids=[call.request_id for call in asked])
    rows = rules.get_by_uuids(tx, [rule.id for rule in made])
    shown = cases.shown_many(tx, [rows[rule.id] for rule in made])
    return [each | {"progress": dict(NOTHING_YET)} for each in shown]
