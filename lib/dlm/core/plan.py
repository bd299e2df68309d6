"""`plan`: what a rule would do, before it is made.

The rule is declared and placed by the code that declares and places every rule, inside a savepoint that is rolled back.
No usage row is written on the way, so no transfer, judge or other rule waits for it; what it says is what would happen
now. Only whoever declares the same wish meanwhile, or is the first to use the same new expression, waits: for the
rehearsal, which MAX_FILES keeps to seconds, and no longer than the database's lock timeout (10 s; then 503, try again).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy.engine import Row

from dlm.core import conveyor, dids, judge, placing, rules
from dlm.core.placement import Rejection
from dlm.core.rules import Declaration
from dlm.core.view import World
from dlm.db import judging
from dlm.db.engine import Tx
from dlm.errors import InvalidInput
from dlm.types import Grouping, ReplicaState, Storage

CHUNK_LOCKS = 50_000
MAX_FILES = 100_000  # of grouping none: each is placed by itself, and each is a row that is rolled back
MAX_REJECTED = 100


@dataclass(slots=True)
class Rehearsal:
    """What placing the rule came to."""

    missing: int = 0
    message: str | None = None
    rejected: dict[int, str] = field(default_factory=dict)

    def note(self, missing: int, message: str | None, rejected: Iterable[Rejection]) -> None:
        self.missing += missing
        self.message = self.message or (message if missing else None)
        for rejection in rejected:
            self.rejected.setdefault(rejection.storage_id, rejection.reason)


def plan(tx: Tx, wish: Declaration) -> dict[str, Any]:
    """Transfers, bytes by source and link, space after, what is there already, what is impossible and why; JSON-ready.

    Refuses what `declare` refuses, with the same errors, and grouping none for more than MAX_FILES files.
    """
    wish = replace(wish, idempotency_key=None)  # what was made with the key is not what would be made now
    savepoint = tx.connection.begin_nested()
    try:
        rule = rules.require(tx, rules.declare(tx, [wish])[0].id)
        row = judging.rule_to_judge(tx, rule.id)
        world = World.load(tx, [row.account_id])
        rehearsal = _rehearse(tx, row, world)
        outlook = judging.outlook(tx, row.id)
    finally:
        savepoint.rollback()
    return _shown(tx, rule, rehearsal, outlook, world)


def _rehearse(tx: Tx, row: Row[Any], world: World) -> Rehearsal:
    rehearsal = Rehearsal()
    if row.grouping == Grouping.NONE:
        _rehearse_files(tx, row, world, rehearsal)
        return rehearsal
    for view in placing.load(tx, [row], world):
        decision, _ = judge.decide(view, world.budget(view.account_id))
        judging.add_locks(tx, decision.placements)
        rehearsal.note(decision.missing, decision.message, [r for _, choice in decision.choices for r in choice.rejected])
    return rehearsal


def _rehearse_files(tx: Tx, row: Row[Any], world: World, rehearsal: Rehearsal) -> None:
    roots, after, seen = placing.units_of(tx, [row])[row.id], 0, 0
    at_once = placing.files_at_once(row, world, CHUNK_LOCKS)
    while file_ids := judging.files_to_place(tx, roots, after, at_once):
        seen += len(file_ids)
        if seen > MAX_FILES:
            detail = f"with grouping none, up to {MAX_FILES:,} files can be planned, and there are more"
            hint = "plan a part of it (one dataset), or grouping dataset; declaring has no such limit"
            raise InvalidInput(detail, field="grouping", hint=hint)
        portions = placing.share_out(tx, row, file_ids, world)
        if portions.shares:
            judging.add_file_locks(tx, row.id, file_ids, portions.storage_ids, portions.shares, as_parcel=False)
        rehearsal.note(portions.sharing.missing, portions.sharing.message, portions.sharing.rejected)
        after = file_ids[-1]


# --- showing ---------------------------------------------------------------------------------------------------


def _shown(tx: Tx, rule: Row[Any], rehearsal: Rehearsal, outlook: Sequence[Row[Any]], world: World) -> dict[str, Any]:
    allowed = None if rule.sources is None else frozenset(storage.id for storage in world.matching(rule.sources))
    below = dids.totals_below(tx, [(rule.did_id, rule.kind)])
    files, size_bytes = below.get(rule.did_id, (rule.files, rule.size_bytes))
    destinations = [_destination(storage_id, rows, world, allowed) for storage_id, rows in _by_storage(outlook).items()]
    return {
        "at": tx.now,
        "did": f"{rule.scope}:{rule.name}",
        "kind": rule.kind,
        "files": files,
        "size_bytes": size_bytes,
        "copies": rule.copies or "*",
        "storages": rule.storages,
        "grouping": rule.grouping,
        "spread": rule.spread,
        "account": rule.account,
        "starts_at": rule.starts_at,
        "matching": [storage.name for storage in world.matching(rule.storages)],
        "destinations": destinations,
        "transfers": {
            "files": sum(d["to_copy"]["files"] for d in destinations),
            "bytes": sum(d["to_copy"]["bytes"] for d in destinations),
        },
        "links": _links(destinations),
        "not_chosen": [
            {"storage": world.storages[id_].name, "reason": reason}
            for id_, reason in sorted(rehearsal.rejected.items())[:MAX_REJECTED]
        ],
        "impossible": {"copies": rehearsal.missing, "reason": rehearsal.message} if rehearsal.missing or rehearsal.message else None,
    }


def _by_storage(outlook: Sequence[Row[Any]]) -> dict[int, list[Row[Any]]]:
    groups: dict[int, list[Row[Any]]] = defaultdict(list)
    for row in outlook:
        groups[row.storage_id].append(row)
    return groups


def _destination(
    storage_id: int, rows: Sequence[Row[Any]], world: World, allowed: frozenset[int] | None
) -> dict[str, Any]:
    storage = world.storages[storage_id]
    there = [row for row in rows if row.is_there]
    to_copy = [row for row in rows if not row.is_there]
    size = sum(row.bytes for row in to_copy)
    return {
        "storage": storage.name,
        "site": storage.site,
        "already_there": {"files": sum(row.files for row in there), "bytes": sum(row.bytes for row in there)},
        "to_copy": {"files": sum(row.files for row in to_copy), "bytes": size},
        "from": _sources(storage, to_copy, world.storages, allowed),
        "free_bytes_after": None if storage.free_bytes is None else storage.free_bytes - size,
    }


def _sources(
    destination: Storage, rows: Sequence[Row[Any]], storages: Mapping[int, Storage], allowed: frozenset[int] | None
) -> list[dict[str, Any]]:
    """Where the files would come from if they moved now; several names: any of them, they rank alike."""
    found: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        candidates = tuple(conveyor.Candidate(id_, ReplicaState(state)) for id_, state in row.holders)
        wish = conveyor.Wish(0, 0, destination.id, 0, True, allowed, candidates)
        names = tuple(sorted(storages[id_].name for id_ in conveyor.best_sources(wish, storages)))
        found[names][0] += row.files
        found[names][1] += row.bytes
    return [{"storages": list(names), "files": files, "bytes": size} for names, (files, size) in sorted(found.items())]


def _links(destinations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"from": source["storages"], "to": destination["storage"], "files": source["files"], "bytes": source["bytes"]}
        for destination in destinations
        for source in destination["from"]
    ]
