"""Placing rules: load a view of the rules that are due, let the planner decide, check the space once more, write the locks.

`plan` uses the same `load` and `decide`, so that what it foretells is what will happen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy.engine import Row

from dlm.core import judge, trimming
from dlm.core.judge import Copies, Decision, RuleView, UnitView
from dlm.core.ledger import Ledger, Replan
from dlm.core.placement import Present
from dlm.core.sharing import FileClass, Sharing, shares
from dlm.core.view import World, wish_of
from dlm.db import counting, dids, events, filling, judging, parcels, rules
from dlm.db.engine import Tx
from dlm.errors import InvalidInput
from dlm.types import DidKind, Grouping, RuleState, Storage

END_LOOK_AGAIN_S, BUSY_LOOK_AGAIN_S = 30, 1
PIECES = 100  # a batch that finds no room is tried again in pieces of this share, then file by file


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one pass may do, and what counts."""

    batch_rules: int = 1000
    chunk_files: int = 50_000
    resync_interval_s: float = 86_400
    trust_unverified: bool = False

    @property
    def good_states(self) -> list[str]:
        return ["available", "unverified"] if self.trust_unverified else ["available"]


@dataclass(slots=True)
class Judged:
    """What a pass over due rules did."""

    rules: int = 0
    locks: int = 0
    is_full: bool = False
    states: dict[str, int] = field(default_factory=dict)


def judge_due(tx: Tx, limits: Limits) -> Judged:
    """Place and grade the rules that are due; a fixed number of statements for any number of small rules.

    A rule whose files must all be looked at, and are more than a chunk, is judged alone, and so is each rule of grouping
    NONE that has files to place.
    """
    claimed = judging.claim_rules(tx, limits.batch_rules)
    if not claimed:
        return Judged()
    batch = _affordable(claimed, limits.chunk_files, _files_to_look_at())
    result = Judged(rules=len(batch), is_full=len(batch) < len(claimed) or len(claimed) == limits.batch_rules)
    ledger = Ledger()
    end(tx, [row for row in batch if row.state == RuleState.LETTING_GO], ledger)
    live = [row for row in batch if row.state != RuleState.LETTING_GO]
    if over := [row.id for row in live if row.is_over]:  # declared while its DID ended: whoever folded that did not see it
        rules.let_go(tx, over, "its DID ended")
    suspended = [row for row in live if row.is_suspended and not row.is_over]
    rest = [row for row in live if not row.is_suspended and not row.is_over]
    resting = [(row.id, RuleState.SUSPENDED, None if row.state == RuleState.DECLARED else row.reason, None) for row in suspended]
    written = rules.set_states(tx, resting) if suspended else []
    if rest:
        world = World.load(tx, sorted({row.account_id for row in rest}))
        placed = _place(tx, rest, world, limits, ledger)
        again = trimming.trim(tx, [row for row in rest if row.surplus_after is not None], world, ledger, limits.chunk_files)
        counts = _count(tx, [row for row in rest if not placed.is_at_work(row.id)], limits)
        graded = [row for row in rest if row.id not in counts.later]
        written = [*written, *_grade(tx, graded, counts.copies, placed, again, limits)]
        result.locks = sum(placed.locks.values())
        result.rules -= len(counts.later)
        result.is_full = result.is_full or bool(counts.later)
    for row in written:
        result.states[row.state] = result.states.get(row.state, 0) + 1
    _record_states(tx, written)
    ledger.close(tx)
    return result


def judge_next(tx: Tx, limits: Limits) -> Judged:
    """Judge the rule that is due longest alone, in ever smaller pieces, when a batch found no room time and again.

    Two judges that race for the last space lose once or twice. Who loses every time was planned with a guess (the mean
    size of a class of files, say) and would lose for ever, and every other rule of its batch with it. Less is guessed
    about fewer files, nothing about one. A rule for which even that finds no room is impossible for the time being.
    """
    claimed = judging.claim_rules(tx, 1)
    if not claimed:
        return Judged()
    lost: Replan | None = None
    for files in (max(1, limits.chunk_files // PIECES), 1):
        savepoint = tx.connection.begin_nested()
        try:
            judged = judge_due(tx, replace(limits, batch_rules=1, chunk_files=files))
        except Replan as error:
            savepoint.rollback()
            lost = error
            continue
        savepoint.commit()
        return judged
    assert lost is not None
    later = tx.now + timedelta(seconds=judge.LOOK_AGAIN_S)
    written = rules.set_states(tx, [(row.id, RuleState.IMPOSSIBLE, lost.detail, later) for row in claimed])
    _record_states(tx, written)
    return Judged(rules=1, is_full=True, states={row.state: 1 for row in written})


def _affordable(due: Sequence[Row[Any]], chunk_files: int, files_of: Callable[[Row[Any]], int]) -> Sequence[Row[Any]]:
    """The first rules whose files together are about a chunk; at least one."""
    total = 0
    for index, row in enumerate(due):
        files = files_of(row)
        total += files
        if files and total > chunk_files and index:
            return due[:index]
    return due


def _files_to_look_at() -> Callable[[Row[Any]], int]:
    """How many files judging a rule reads, for one rule after the other.

    Of rules that have their locks and are told by what is out of order, those on one dataset are told together.
    """
    told: set[int] = set()

    def files_of(row: Row[Any]) -> int:
        is_placed = row.state in (RuleState.REPLICATING, RuleState.STUCK) and row.copies is not None and row.surplus_after is None
        if not (is_placed and row.kind == DidKind.DATASET and _is_told_by_exceptions(row)):
            return int(row.files)
        files = 0 if row.did_id in told else int(row.files)
        told.add(row.did_id)
        return files

    return files_of


@dataclass(slots=True)
class Placed:
    """What placing came to, by rule."""

    locks: dict[int, int]  # new ones
    messages: dict[int, str] = field(default_factory=dict)  # why a copy is impossible
    unfinished: set[int] = field(default_factory=set)  # more of their files wait for their placement

    def is_at_work(self, rule_id: int) -> bool:
        """True when copies of the rule have just been placed, or are yet to be: there is nothing to count."""
        return bool(self.locks.get(rule_id)) or rule_id in self.unfinished


def _place(tx: Tx, due: Sequence[Row[Any]], world: World, limits: Limits, ledger: Ledger) -> Placed:
    """Write the locks that the rules miss."""
    views = load(tx, [row for row in due if row.grouping != Grouping.NONE], world)
    messages: dict[int, str] = {}
    decisions = []
    for view in views:
        decision = _decide(view, world)
        decisions.append(decision)
        if decision.message:
            messages[decision.rule_id] = decision.message
    placed = Placed(_apply(tx, decisions, {row.id: row for row in due}, world, ledger), messages)
    for row in due:
        if row.grouping == Grouping.NONE and row.place_after is not None:
            _place_next_files(tx, row, world, limits.chunk_files, ledger, placed)
    return placed


def _decide(view: RuleView, world: World) -> Decision:
    """The planner's decision, spent from the world's budget. A rule that cannot be decided (its weight attribute is no
    number somewhere) is impossible; it must not fail the batch it came with."""
    try:
        decision, budget = judge.decide(view, world.budget(view.account_id))
    except InvalidInput as error:
        return Decision(view.id, message=error.detail)
    world.spent(view.account_id, budget)
    return decision


def load(tx: Tx, due: Sequence[Row[Any]], world: World) -> list[RuleView]:
    """The rules as the planner sees them: units, what holds them, what stands where; four statements for any number."""
    if not due:
        return []
    units = units_of(tx, due)
    held: dict[tuple[int, int], list[Storage]] = defaultdict(list)
    for lock in judging.locks_of(tx, [row.id for row in due]):
        if lock.storage_id in world.storages:
            held[lock.rule_id, lock.did_id].append(world.storages[lock.storage_id])
    facts = judging.sizes(tx, sorted({did for below in units.values() for did in below}))
    matching = {row.id: world.matching(row.canonical) for row in due}
    needy = {did for row in due for did in units[row.id] if len(held[row.id, did]) < (row.copies or len(matching[row.id]) or 1)}
    present: dict[int, dict[int, Present]] = defaultdict(dict)
    for here in judging.coverage(tx, sorted(needy)):
        present[here.did_id][here.storage_id] = Present(here.storage_id, here.bytes, here.files)
    return [
        RuleView(
            id=row.id,
            account_id=row.account_id,
            grouping=Grouping(row.grouping),
            wish=wish_of(row),
            matching=matching[row.id],
            units=tuple(
                UnitView(did, facts[did].files, facts[did].size_bytes, tuple(held[row.id, did]), present[did])
                for did in units[row.id]
            ),
        )
        for row in due
    ]


def units_of(tx: Tx, due: Sequence[Row[Any]]) -> dict[int, list[int]]:
    """What each rule places as a whole: its file, or the datasets below its DID; at most one statement."""
    units: dict[int, list[int]] = {row.id: [row.did_id] for row in due if row.kind != DidKind.CONTAINER}
    containers = [row for row in due if row.kind == DidKind.CONTAINER]
    below: dict[int, list[int]] = defaultdict(list)
    if containers:
        for pair in dids.datasets_below(tx, {row.did_id for row in containers}):
            below[pair.root_id].append(pair.dataset_id)
    return units | {row.id: below[row.did_id] for row in containers}


def _apply(
    tx: Tx, decisions: Sequence[Decision], due: Mapping[int, Row[Any]], world: World, ledger: Ledger
) -> dict[int, int]:
    """Write the locks, and in the ledger what they reserve and charge; number of new locks by rule; two statements."""
    placements = [placement for decision in decisions for placement in decision.placements]
    counts: dict[int, int] = defaultdict(int)
    if not placements:
        return counts
    for lock in judging.add_locks(tx, placements):
        counts[lock.rule_id] += 1
        ledger.place(due[lock.rule_id].account_id, lock.storage_id, lock.files, lock.size_bytes, lock.promised_bytes)
    events.record_many(
        tx, "rule", "placed", [(d.rule_id, None, explain(d, world)) for d in decisions if d.placements], cause="judge"
    )
    return counts


def explain(decision: Decision, world: World) -> dict[str, Any]:
    """The decision as facts for `why`: storages chosen, and why others were not; at most one unit in full."""
    _, choice = decision.choices[0]
    names = {id_: storage.name for id_, storage in world.storages.items()}
    return {
        "chosen": sorted({names[p.storage_id] for p in decision.placements}),
        "kept": sorted(names[id_] for id_ in choice.kept if id_ in names),
        "rejected": {names[r.storage_id]: r.reason for r in choice.rejected[:50]},
        "locks": len(decision.placements),
        "missing": decision.missing,
        "message": decision.message,
    }


# --- grouping none ---------------------------------------------------------------------------------------------


def _place_next_files(
    tx: Tx, row: Row[Any], world: World, limit: int, ledger: Ledger, placed: Placed
) -> None:
    """Lock the rule's next chunk of files, and move its cursor; not yet, where some of them are to be planned once more."""
    roots, at_once = units_of(tx, [row])[row.id], files_at_once(row, world, limit)
    found = judging.files_to_place(tx, roots, row.place_after, at_once + 1)
    file_ids = found[:at_once]
    done = place_files(tx, row, file_ids, world, ledger, as_parcel=True)
    placed.locks[row.id], message = done.locks, done.message
    if row.state == RuleState.IMPOSSIBLE and row.place_after:
        message = message or row.reason  # an earlier chunk's
    if message:
        placed.messages[row.id] = message
    cursor = file_ids[-1] if len(found) > at_once else None
    if done.is_overtaken:
        cursor = row.place_after
    if cursor is not None:
        placed.unfinished.add(row.id)
    rules.change(tx, row.id, {"place_after": cursor})


def files_at_once(row: Row[Any], world: World, limit: int) -> int:
    """How many files of the rule are placed in one transaction: `limit` is the number of locks."""
    return max(1, limit // max(1, row.copies or len(world.matching(row.canonical))))


@dataclass(frozen=True, slots=True)
class Portions:
    """How files of one rule are shared out: which, over which storages, and the shares as db takes them."""

    file_ids: Sequence[int]
    storage_ids: list[int]
    sharing: Sharing
    shares: list[tuple[list[int], list[int], list[int], int]]  # holders, held, chosen, files


class PlacedFiles(NamedTuple):
    """What placing single files came to.

    Overtaken: 1. we plan for each class of files; 2. a replica of one file begins or ends, so that it is of another class;
    3. we lock what the plan says of classes, and that file is left out. It is to be planned once more.
    """

    locks: int = 0  # new ones
    message: str | None = None  # why copies are impossible
    is_overtaken: bool = False


def place_files(
    tx: Tx, row: Row[Any], file_ids: Sequence[int], world: World, ledger: Ledger, *, as_parcel: bool = False
) -> PlacedFiles:
    """Lock these files, each at storages of its own, by classes; four statements.

    `as_parcel`: the files are a run of all that the rule is for, so one row says for all of them what is to be filled.
    """
    if not file_ids:
        return PlacedFiles()
    try:
        portions = share_out(tx, row, file_ids, world)
    except InvalidInput as error:  # a weight that is no number: the rule is impossible, its batch is not
        return PlacedFiles(message=error.detail)
    count = _apply_portions(tx, row, portions, ledger, as_parcel)
    planned = sum(len(chosen) * files for _, _, chosen, files in portions.shares)
    return PlacedFiles(count, portions.sharing.message if portions.sharing.missing else None, is_overtaken=count < planned)


def share_out(tx: Tx, row: Row[Any], file_ids: Sequence[int], world: World) -> Portions:
    """Decide by classes where files go, and spend the world's budget; one statement."""
    matching = world.matching(row.canonical)
    ids = [storage.id for storage in matching]
    found = {c.least_id: c for c in judging.file_classes(tx, row.id, file_ids, ids)}
    classes = [FileClass(c.least_id, c.files, c.bytes, frozenset(c.holders), frozenset(c.held)) for c in found.values()]
    held = [world.storages[id_] for id_ in sorted({id_ for c in found.values() for id_ in c.held}) if id_ in world.storages]
    sharing = shares(wish_of(row), classes, matching, held, world.budget(row.account_id))
    world.spent(row.account_id, world.budget(row.account_id).spend(sharing))
    taken = [(found[s.class_id].holders, found[s.class_id].held, list(s.storage_ids), s.files) for s in sharing.shares]
    return Portions(file_ids, ids, sharing, taken)


def _apply_portions(tx: Tx, row: Row[Any], portions: Portions, ledger: Ledger, as_parcel: bool) -> int:
    """Write the files' locks. The planner counted with the mean size of a class; what they really need is known now."""
    if not portions.shares:
        return 0
    made = judging.add_file_locks(
        tx, row.id, portions.file_ids, portions.storage_ids, portions.shares, as_parcel=as_parcel
    )
    for lock in made:
        ledger.place(row.account_id, lock.storage_id, lock.files, lock.bytes, lock.promised)
    count = sum(lock.files for lock in made)
    if as_parcel and count:
        promised = {lock.storage_id: lock.promised for lock in made}
        there = any(not set(holders).isdisjoint(chosen) for holders, _, chosen, _ in portions.shares)
        parcels.add(tx, row.id, portions.file_ids[0], portions.file_ids[-1], count, promised, has_copies=there)
    after = {
        "files": len(portions.file_ids),
        "locks": {str(lock.storage_id): lock.files for lock in made},
        "missing": portions.sharing.missing,
    }
    events.record(tx, "rule", row.id, "placed", cause="judge", after=after)
    return count


# --- grading ---------------------------------------------------------------------------------------------------


_COMING = Copies(files=1, is_filled=False)
LARGE_FILES = 1000  # up to here counting every file costs less than to think


@dataclass(frozen=True, slots=True)
class Counts:
    """What stands under rules, by rule."""

    copies: dict[int, Copies]
    later: set[int]  # rules whose files are to be counted one by one, and are too many for this pass


def _grade(
    tx: Tx, due: Sequence[Row[Any]], counted: Mapping[int, Copies], placed: Placed, again: Mapping[int, float], limits: Limits
) -> Sequence[Row[Any]]:
    """Write every rule's state; the rows whose state changed; one statement. `counted`: those that placed nothing now.

    `again`: in how many seconds to look at the latest.
    """
    states = []
    for row in due:
        grade = judge.grade(counted.get(row.id, _COMING), placed.messages.get(row.id))
        if row.id in placed.unfinished:
            delay = timedelta(0)
        elif grade.state is RuleState.OK:
            delay = judge.resync_delay(row.id, limits.resync_interval_s)
        else:
            delay = timedelta(seconds=max(grade.look_again_s, judge.watch_s(row.files)))
        if row.id in again:
            delay = min(delay, timedelta(seconds=again[row.id]))
        states.append((row.id, grade.state, grade.reason, tx.now + delay))
    return rules.set_states(tx, states)


def _is_told_by_exceptions(row: Row[Any]) -> bool:
    """A large rule that is not ok yet is told by what is out of order, if that is sure; one that is ok is counted file by
    file: that is the resync, which finds what all else missed."""
    return row.files > LARGE_FILES and row.state != RuleState.OK and row.grouping != Grouping.NONE


def _count(tx: Tx, due: Sequence[Row[Any]], limits: Limits) -> Counts:
    """What stands under the rules; at most four statements."""
    by_rule: dict[int, list[Row[Any]]] = defaultdict(list)
    large = [row.id for row in due if _is_told_by_exceptions(row)]
    unsure = {row.id for row in due} - set(large)
    for row in counting.count_by_exceptions(tx, large, limits.good_states) if large else ():
        by_rule[row.rule_id].append(row)
        if not row.is_sure:
            unsure.add(row.rule_id)
    for rule_id in unsure:
        by_rule.pop(rule_id, None)
    one_by_one = [row for row in due if row.id in unsure]
    now = {row.id for row in _affordable(one_by_one, limits.chunk_files, lambda row: int(row.files))}
    gaps = set()
    for row in judging.count_copies(tx, sorted(now), limits.good_states) if now else ():
        by_rule[row.rule_id].append(row)
        if row.is_filled and row.absent:
            gaps.add(row.rule_id)
    if gaps:
        filling.fill_again(tx, sorted(gaps))
    parked = [rule_id for rule_id, found in by_rule.items() if any(row.parked for row in found)]
    reasons = judging.parked_reasons(tx, parked) if parked else {}
    found = {row.id: _summed(by_rule[row.id], reasons.get(row.id)) for row in due if row.id not in unsure - now}
    return Counts(found, unsure - now)


def _summed(rows: Sequence[Row[Any]], parked_reason: str | None) -> Copies:
    """One rule's copies over its storages; nothing is held where there are no rows."""
    return Copies(
        files=sum(row.files for row in rows),
        ok=sum(row.ok for row in rows),
        harmed=sum(row.harmed for row in rows),
        parked=sum(row.parked for row in rows),
        unverified=sum(row.unverified for row in rows),
        is_filled=all(row.is_filled for row in rows),
        parked_reason=parked_reason,
    )


def _record_states(tx: Tx, changed: Sequence[Row[Any]]) -> None:
    by_state: dict[str, list[Any]] = defaultdict(list)
    for row in changed:
        by_state[row.state].append((row.id, {"state": row.was}, {"state": row.state, "reason": row.reason}))
    for state, rows_ in by_state.items():
        events.record_many(tx, "rule", state, rows_, cause="judge")


# --- ending ----------------------------------------------------------------------------------------------------


def end(tx: Tx, ending: Sequence[Row[Any]], ledger: Ledger) -> None:
    """Release the locks of rules that are let go, and close those that hold nothing any more; at most four statements."""
    if not ending:
        return
    ledger.release(tx, rule_ids=[row.id for row in ending])
    still = rules.with_locks(tx, [row.id for row in ending])
    states = []
    for row in ending:
        # A lock that was not to be had is being filled: that takes a moment, what is let go takes longer.
        delay = timedelta(seconds=END_LOOK_AGAIN_S if still.get(row.id) else BUSY_LOOK_AGAIN_S)
        is_gone = row.id not in still
        states.append((row.id, RuleState.GONE if is_gone else RuleState.LETTING_GO, row.reason, None if is_gone else tx.now + delay))
    rules.set_states(tx, states)
    gone = [(row.id, {"state": "letting_go"}, {"state": "gone"}) for row in ending if row.id not in still]
    events.record_many(tx, "rule", "gone", gone, cause="judge")
