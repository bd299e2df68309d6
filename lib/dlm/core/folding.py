"""Folding the change queue: each fact touches rows in proportion to itself, never to the dataset it happened in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Row

from dlm.core import expression, judge, placing
from dlm.core.placing import World
from dlm.db import changes, dids, events, filling, judging, letting_go, requests, rules, storages, usage
from dlm.db.engine import Tx
from dlm.types import ChangeKind, DidKind


def fold(tx: Tx, limit: int, undo_window_s: float) -> tuple[int, bool]:
    """Take changes from the queue and carry out what follows from them; (changes, whether more wait)."""
    claimed = changes.claim(tx, limit)
    by_kind: dict[str, list[Row[Any]]] = defaultdict(list)
    for change in claimed:
        by_kind[change.kind].append(change)
    delta, charges = usage.StorageDelta(), usage.Charges()
    if by_kind[ChangeKind.STORAGES]:
        _evaluate_expressions(tx)
    _end_dids(tx, by_kind[ChangeKind.DID_ENDED])
    _fold_membership(tx, by_kind[ChangeKind.ATTACHED], by_kind[ChangeKind.DETACHED], delta, charges, undo_window_s)
    _fold_arrivals(tx, by_kind[ChangeKind.ARRIVED], delta)
    _fold_troubles(tx, by_kind[ChangeKind.PARKED], by_kind[ChangeKind.HARMED], by_kind[ChangeKind.GONE], delta)
    usage.change_accounts(tx, charges)
    usage.change_storages(tx, delta)
    return len(claimed), len(claimed) == limit


# --- collections -----------------------------------------------------------------------------------------------


def _fold_membership(
    tx: Tx,
    attached: Sequence[Row[Any]],
    detached: Sequence[Row[Any]],
    delta: usage.StorageDelta,
    charges: usage.Charges,
    undo_window_s: float,
) -> None:
    if not attached and not detached:
        return
    parents = judging.sizes(tx, sorted({change.did_id for change in (*attached, *detached)}))
    datasets = sorted(id_ for id_, row in parents.items() if row.kind == DidKind.DATASET)
    containers = sorted(id_ for id_, row in parents.items() if row.kind == DidKind.CONTAINER)
    if containers:
        _wake_above(tx, containers, has_left={change.did_id for change in detached})
    if not datasets:
        return
    touched = set()
    for row in judging.resize_locks(tx, datasets):
        charges.add(row.account_id, row.storage_id, row.bytes, row.files)
        touched.add(row.rule_id)
    came = sorted({id_ for change in attached if change.did_id in datasets for id_ in change.file_ids})
    left = [change for change in detached if change.did_id in datasets]
    is_coming = False
    if came:
        _place_single_files(tx, came)
        is_coming = filling.fill(tx, filling.FILES, delta, files=came).files > 0
        if is_coming:
            changes.wake(tx, "conveyor")
    if left:
        _let_files_go(tx, left, delta, undo_window_s)
    if is_coming:
        _set_replicating(tx, touched)
    elif touched:
        rules.wake(tx, sorted(touched))


def _set_replicating(tx: Tx, rule_ids: set[int]) -> None:
    """A rule that was ok waits again; no count is needed to know that."""
    rows = rules.ok_to_replicating(tx, sorted(rule_ids), judge.WATCH_MIN_S)
    events.record_many(tx, "rule", "replicating", [(id_, {"state": "ok"}, {"state": "replicating"}) for id_ in rows], cause="attached")


def _wake_above(tx: Tx, container_ids: Sequence[int], has_left: set[int]) -> None:
    """Have the rules on these containers, and on those above, judged; locks of what is no longer below are released."""
    above = sorted({row.ancestor_id for row in dids.ancestors(tx, container_ids)})
    ids = [row.id for row in rules.on_dids(tx, above)]
    if not ids:
        return
    rules.place_again(tx, ids)
    if has_left & set(container_ids):
        placing.release(tx, keys=judging.strayed_locks(tx, rule_ids=ids))


def _place_single_files(tx: Tx, file_ids: Sequence[int]) -> None:
    """Lock files that joined something under a rule of grouping none; statements per such rule."""
    found = judging.claim_rules_on_files(tx, file_ids)
    if not found:
        return
    world = World.load(tx, sorted({row.account_id for row in found}))
    for row in found:
        if _has_placed(tx, row, judging.files_below(tx, row.did_id, file_ids), world):
            rules.wake(tx, [row.id])
        else:
            rules.place_again(tx, [row.id])


def _has_placed(tx: Tx, row: Row[Any], file_ids: Sequence[int], world: World) -> bool:
    """True when all the files have their locks now. Else the rule is to be placed again, with patience for a lack of room:
    here, a rule that finds none would keep every change behind it in the queue."""
    savepoint = tx.connection.begin_nested()
    try:
        message, _ = placing.place_files(tx, row, file_ids, world)
    except placing.Replan:
        savepoint.rollback()
        return False
    savepoint.commit()
    return message is None


def _let_files_go(tx: Tx, left: Sequence[Row[Any]], delta: usage.StorageDelta, undo_window_s: float) -> None:
    files_of: dict[int, set[int]] = defaultdict(set)
    for change in left:
        files_of[change.did_id].update(change.file_ids)
    strayed = judging.strayed_locks(tx, file_ids=sorted(set().union(*files_of.values())))
    if strayed:
        placing.release(tx, keys=strayed)
    pairs = sorted({(file, lock.storage_id) for lock in judging.locks_on(tx, sorted(files_of)) for file in files_of[lock.did_id]})
    letting_go.let_go(
        tx,
        letting_go.PAIRS,
        delta,
        undo_window_s=undo_window_s,
        dids=[pair[0] for pair in pairs],
        storages=[pair[1] for pair in pairs],
    )


def _end_dids(tx: Tx, ended: Sequence[Row[Any]]) -> None:
    if not ended:
        return
    ids = [row.id for row in rules.on_dids(tx, sorted({change.did_id for change in ended}))]
    rules.let_go(tx, ids, "its DID ended")


# --- replicas --------------------------------------------------------------------------------------------------


def _pairs(found: Sequence[Row[Any]]) -> list[tuple[int, int]]:
    return [(file_id, change.storage_id) for change in found for file_id in change.file_ids]


def _fold_arrivals(tx: Tx, arrived: Sequence[Row[Any]], delta: usage.StorageDelta) -> None:
    if not arrived:
        return
    pairs = _pairs(arrived)
    rule_ids = judging.hint(tx, pairs, ok=1)
    judging.wake_complete(tx, rule_ids)
    # A good copy may be what a bad or lost one elsewhere has waited for.
    hurt = judging.with_harm(tx, sorted({pair[0] for pair in pairs}))
    if hurt:
        filling.fill(tx, filling.FILES, delta, files=hurt)
        changes.wake(tx, "conveyor")


def _fold_troubles(
    tx: Tx, parked: Sequence[Row[Any]], harmed: Sequence[Row[Any]], gone: Sequence[Row[Any]], delta: usage.StorageDelta
) -> None:
    touched: set[int] = set()
    if parked:
        touched.update(judging.hint(tx, _pairs(parked), stuck=1))
    if harmed:
        touched.update(judging.hint(tx, _pairs(harmed), ok=-1))
    again = sorted({file_id for change in (*harmed, *gone) for file_id in change.file_ids})
    if again:
        filled = filling.fill(tx, filling.FILES, delta, files=again)
        if filled.files:
            changes.wake(tx, "conveyor")
    if touched:
        rules.wake(tx, sorted(touched))


# --- storages --------------------------------------------------------------------------------------------------


def _evaluate_expressions(tx: Tx) -> None:
    """Evaluate each distinct expression once; wake the rules whose set changed and those that missed a placement, and
    the requests that waited for a storage."""
    snapshot = expression.Snapshot(storages.snapshot(tx))
    changed = {}
    for row in rules.expressions(tx):
        matches = sorted(expression.evaluate(expression.parse(row.canonical), snapshot))
        if matches != list(row.storage_ids):
            changed[row.id] = matches
    woken = rules.set_matches(tx, changed) if changed else []
    rules.wake(tx, sorted({*woken, *rules.impossible(tx)}))
    if requests.wake_waiting(tx):
        changes.wake(tx, "conveyor")
