"""Folding the change queue: each fact touches rows in proportion to itself, never to the dataset it happened in.

One judge folds at a time. Rows are locked in one order, so that nobody waits for another that waits for him: locks and
rules; requests that end; replicas that are made; replicas that stand; usage. Each kind in the order of its keys.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Row

from dlm.core import expression, judge, placing
from dlm.core.ledger import Ledger, Replan
from dlm.core.view import World
from dlm.db import changes, dids, events, filling, judging, letting_go, requests, rules, storages
from dlm.db.engine import Tx
from dlm.types import ChangeKind, DidKind

Pairs = list[tuple[int, int]]  # (file, storage)
MOST_FILES = 100_000  # that changes taken together may tell of


class Facts:
    """The changes of one fold, sorted by what follows from them."""

    def __init__(self, tx: Tx, claimed: Sequence[Row[Any]]) -> None:
        by_kind: dict[str, list[Row[Any]]] = defaultdict(list)
        for change in claimed:
            by_kind[change.kind].append(change)
        attached, detached = by_kind[ChangeKind.ATTACHED], by_kind[ChangeKind.DETACHED]
        parents = judging.sizes(tx, sorted({change.did_id for change in (*attached, *detached)}))
        self.datasets = [id_ for id_, row in parents.items() if row.kind == DidKind.DATASET]
        self.containers = [id_ for id_, row in parents.items() if row.kind == DidKind.CONTAINER]
        self.came = sorted({id_ for change in attached if change.did_id in self.datasets for id_ in change.file_ids})
        self.left = [change for change in detached if change.did_id in self.datasets]
        self.lessened = [change for change in detached if change.did_id in self.containers]
        self.ended = sorted({change.did_id for change in by_kind[ChangeKind.DID_ENDED]})
        self.arrived = _pairs(by_kind[ChangeKind.ARRIVED])
        self.parked = _pairs(by_kind[ChangeKind.PARKED])
        self.harmed = _pairs(by_kind[ChangeKind.HARMED])
        self.gone = _pairs(by_kind[ChangeKind.GONE])
        self.has_storages = bool(by_kind[ChangeKind.STORAGES])


def _pairs(found: Sequence[Row[Any]]) -> Pairs:
    return [(file_id, change.storage_id) for change in found for file_id in change.file_ids]


def _files(*pairs: Pairs) -> set[int]:
    return {file_id for some in pairs for file_id, _ in some}


def fold(tx: Tx, limit: int, undo_window_s: float) -> tuple[int, bool]:
    """Take changes from the queue and carry out what follows from them; (changes, whether more wait)."""
    claimed = changes.claim(tx, limit, MOST_FILES)
    if not claimed:
        return 0, False
    facts, ledger = Facts(tx, claimed), Ledger()
    resized = _resize(tx, facts, ledger)
    complete, troubled = _hint(tx, facts)
    others = _other_rules(tx, facts)
    rules.hold(tx, {*resized, *complete, *troubled, *others.above, *others.ended, *others.matching, *others.none})
    _wake(tx, facts, others, complete, troubled, ledger)
    _carry_out(tx, facts, resized, others.none, ledger, undo_window_s)
    if facts.has_storages and requests.wake_waiting(tx):
        changes.wake(tx, "conveyor")
    return len(claimed), len(claimed) == limit or sum(len(row.file_ids or ()) for row in claimed) >= MOST_FILES


def _carry_out(
    tx: Tx, facts: Facts, resized: set[int], single: Sequence[int], ledger: Ledger, undo_window_s: float
) -> None:
    """Place single files, let go, fill, and close the ledger.

    All of it in a savepoint: a rule that finds no room for its files is to be placed again, with patience; here it would
    keep every change behind it in the queue.
    """
    found = judging.rules_to_judge(tx, single) if single else []
    savepoint = tx.connection.begin_nested()
    trial = deepcopy(ledger)
    try:
        short = _place_single_files(tx, found, facts.came, trial)
        _let_go_and_fill(tx, facts, resized, trial, undo_window_s)
        trial.close(tx)
    except Replan:
        savepoint.rollback()
        short = [row.id for row in found]
        _let_go_and_fill(tx, facts, resized, ledger, undo_window_s)
        ledger.close(tx)
    else:
        savepoint.commit()
    if short:
        rules.place_again(tx, short)
    if done := sorted({row.id for row in found} - set(short)):
        rules.wake(tx, done)


# --- locks -----------------------------------------------------------------------------------------------------


def _resize(tx: Tx, facts: Facts, ledger: Ledger) -> set[int]:
    """Bring the locks on datasets that changed to their size; the rules of those that were not."""
    if not facts.datasets:
        return set()
    found = judging.resize_locks_on(tx, facts.datasets)
    for row in found:
        ledger.charges.add(row.account_id, row.storage_id, row.bytes, row.files)
    return {row.rule_id for row in found}


def _hint(tx: Tx, facts: Facts) -> tuple[list[int], set[int]]:
    """Move the display counters of locks; the rules that may be complete now, and those in trouble."""
    complete = judging.hint(tx, facts.arrived, ok=1) if facts.arrived else []
    troubled: set[int] = set()
    if facts.parked:
        troubled.update(judging.hint(tx, facts.parked, stuck=1))
    if facts.harmed:
        troubled.update(judging.hint(tx, facts.harmed, ok=-1))
    return list(complete), troubled


# --- rules -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class OtherRules:
    """Rules that changes concern other than through their locks, by id."""

    above: Sequence[int] = ()  # on containers that gained or lost something, or above them
    ended: Sequence[int] = ()  # on DIDs that ended
    matching: Sequence[int] = ()  # whose expression matches other storages now, or which miss a placement
    all_matching: Sequence[int] = ()  # of those the ones that want a copy on every storage that matches
    none: Sequence[int] = ()  # of grouping none, on collections that gained files


def _other_rules(tx: Tx, facts: Facts) -> OtherRules:
    found = OtherRules()
    if facts.containers:
        above = sorted({row.ancestor_id for row in dids.ancestors(tx, facts.containers)})
        found.above = [row.id for row in rules.on_dids(tx, above)]
    if facts.ended:
        found.ended = [row.id for row in rules.on_dids(tx, facts.ended)]
    if facts.has_storages:
        concerned = _evaluate_expressions(tx)
        found.matching = sorted({*(row.id for row in concerned), *rules.impossible(tx)})
        found.all_matching = [row.id for row in concerned if row.copies is None]
    if facts.came:
        found.none = judging.none_rules_above(tx, facts.came)
    return found


def _evaluate_expressions(tx: Tx) -> Sequence[Row[Any]]:
    """Evaluate each distinct expression once; the rules whose set changed."""
    snapshot = expression.Snapshot(storages.snapshot(tx))
    changed = {}
    for row in rules.expressions(tx):
        matches = sorted(expression.evaluate(expression.parse(row.canonical), snapshot))
        if matches != list(row.storage_ids):
            changed[row.id] = matches
    return rules.set_matches(tx, changed) if changed else []


def _wake(
    tx: Tx, facts: Facts, others: OtherRules, complete: Sequence[int], troubled: Iterable[int], ledger: Ledger
) -> None:
    """Have rules judged, begin the end of others, and release what is no longer below a container. All are held."""
    if anew := sorted({*others.above, *others.all_matching}):
        rules.place_again(tx, anew)
    if others.above and facts.lessened:
        _release_strayed(tx, judging.strayed_locks(tx, rule_ids=others.above), facts.lessened, ledger)
    if others.ended:
        rules.let_go(tx, others.ended, "its DID ended")
    if complete:
        judging.wake_complete(tx, complete)
    if again := sorted({*troubled, *others.matching}):
        rules.wake(tx, again)


def _release_strayed(
    tx: Tx, strayed: Sequence[tuple[int, int, int]], because: Sequence[Row[Any]], ledger: Ledger
) -> None:
    """Release the locks; when some of them are in use, the changes stand again, and a later fold comes back for them."""
    if strayed and ledger.release(tx, keys=strayed) < len(strayed):
        for change in because:
            changes.add(tx, ChangeKind.DETACHED, did_id=change.did_id, file_ids=change.file_ids)


def _set_replicating(tx: Tx, rule_ids: set[int]) -> None:
    """A rule that was ok waits again; no count is needed to know that."""
    if not rule_ids:
        return
    rows = rules.ok_to_replicating(tx, sorted(rule_ids), judge.WATCH_MIN_S)
    events.record_many(tx, "rule", "replicating", [(id_, {"state": "ok"}, {"state": "replicating"}) for id_ in rows], cause="attached")


# --- replicas --------------------------------------------------------------------------------------------------


def _let_go_and_fill(tx: Tx, facts: Facts, resized: set[int], ledger: Ledger, undo_window_s: float) -> None:
    """Let go of what left datasets, and of what came back from deletion to nobody; make the replicas that locks want of
    the files concerned.

    What stands and is written by any of the steps is locked by one statement before. Otherwise: 1. a reaper has deleted
    (file 1, storage 1) and (file 2, storage 1), and locks the first to write that down; 2. we let go of the second; 3. we
    make the first anew, and wait for the reaper; 4. it waits for the second.
    """
    pairs, files = _left(tx, facts, ledger), sorted(_to_fill(tx, facts))
    columns = {"dids": [pair[0] for pair in pairs], "storages": [pair[1] for pair in pairs]}
    request_ids = letting_go.hold_requests(tx, letting_go.PAIRS, **columns) if pairs else []
    made = filling.make(tx, filling.FILES, ledger.storages, files=files) if files else filling.Made({}, 0)
    if pairs or facts.gone:
        filling.hold_standing(tx, [*pairs, *facts.gone], files)
    filled = filling.mend(tx, filling.FILES, ledger.storages, made, files=files)
    if pairs:
        letting_go.let_go_held(tx, letting_go.PAIRS, request_ids, ledger.storages, undo_window_s=undo_window_s, **columns)
    if facts.gone:
        letting_go.bury(tx, facts.gone, undo_window_s=undo_window_s)
    if filled.files:
        changes.wake(tx, "conveyor")
        _set_replicating(tx, resized)
    elif resized:
        rules.wake(tx, sorted(resized))


def _left(tx: Tx, facts: Facts, ledger: Ledger) -> Pairs:
    """The (file, storage) that left what held them; the locks of grouping none on such files are released."""
    if not facts.left:
        return []
    files_of: dict[int, set[int]] = defaultdict(set)
    for change in facts.left:
        files_of[change.did_id].update(change.file_ids)
    strayed = judging.strayed_locks(tx, file_ids=sorted(set().union(*files_of.values())))
    _release_strayed(tx, strayed, facts.left, ledger)
    # Locks that are being let go just now hold files of the dataset, too, that may have left before their turn.
    locks = judging.locks_on(tx, sorted(files_of))
    return sorted({(file, lock.storage_id) for lock in locks for file in files_of[lock.did_id]})


def _to_fill(tx: Tx, facts: Facts) -> set[int]:
    """The files of which replicas may be missing now."""
    files = _files(facts.harmed, facts.gone).union(facts.came)
    if facts.arrived:
        # A good copy may be what a bad or lost one elsewhere has waited for.
        files.update(judging.with_harm(tx, sorted(_files(facts.arrived))))
    return files


# --- grouping none ---------------------------------------------------------------------------------------------


def _place_single_files(tx: Tx, found: Sequence[Row[Any]], file_ids: Sequence[int], ledger: Ledger) -> list[int]:
    """Lock files that joined something under these rules of grouping none; the rules that miss a copy of some; statements
    per rule. The locks are filled by the judge's next step."""
    if not found:
        return []
    world = World.load(tx, sorted({row.account_id for row in found}))
    short = []
    for row in found:
        done = placing.place_files(tx, row, judging.files_below(tx, row.did_id, file_ids), world, ledger)
        if done.message or done.is_overtaken:
            short.append(row.id)
    return short
