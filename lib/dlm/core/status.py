"""One look that says whether promises are kept, and what waits."""

from __future__ import annotations

from typing import Any

from dlm.db import breakers, daemons, status
from dlm.db.engine import Tx
from dlm.types import RuleState

ALIVE_S = 60.0


def overview(tx: Tx) -> dict[str, Any]:
    """Promises by state, queues, storages that need a look, open breakers, daemons; seven statements."""
    rules = status.rules_by_state(tx)
    waiting = status.queues(tx)
    oldest_s = (tx.now - waiting.due_at).total_seconds() if waiting.due_at else None
    return {
        "at": tx.now,
        "promises": {
            "total": sum(rules.values()),
            **{str(state): rules[state] for state in RuleState if state in rules},
        },
        "queues": {
            "judge": {"changes": waiting.changes, "rules_due": waiting.rules},
            "conveyor": {
                "queued": waiting.queued,
                "active": waiting.active,
                "parked": waiting.parked,
                "oldest_due_s": oldest_s,
            },
            "reaper": {"tombstones": waiting.dying},
            "auditor": {"checks_due": waiting.checks},
        },
        "storages": {
            "total": status.count_storages(tx),
            "look_at": [row._asdict() for row in status.storages_with_news(tx)],
            "held_up": [row._asdict() for row in status.copies_held_up(tx)],
        },
        "breakers": [
            {"id": b.id, "storage": b.storage, "act": b.act, "reason": b.reason} for b in breakers.list_all(tx)
        ],
        "daemons": _daemons(tx),
    }


def _daemons(tx: Tx) -> dict[str, dict[str, Any]]:
    """By daemon name: processes that are alive, and how long ago the last one was seen."""
    seen: dict[str, dict[str, Any]] = {}
    for row in daemons.list_all(tx):
        ago_s = (tx.now - row.seen_at).total_seconds()
        entry = seen.setdefault(row.name, {"alive": 0, "seen_s_ago": ago_s})
        entry["alive"] += ago_s < ALIVE_S
        entry["seen_s_ago"] = min(entry["seen_s_ago"], ago_s)
    return seen
