"""Decide what a rule needs: pure. In goes a view of the rule and the world, out come placements, a state and the reasons.

Order of urgency, copy first: a pass only ever adds locks here; letting go is a decision of its own, later (architecture 7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import blake2b

from dlm.core.placement import Budget, Choice, Present, Unit, Wish, choose
from dlm.types import Grouping, RuleState, Storage

LOOK_AGAIN_S = 60  # impossible and stuck rules: what stands in the way may have gone
WATCH_MIN_S, WATCH_MAX_S, WATCH_FILES_PER_S = 30, 3600, 1000  # replicating: a full count costs about 1 s per 10^6 files


@dataclass(frozen=True, slots=True)
class UnitView:
    """One file or dataset that is placed as a whole, and what is known of it."""

    did_id: int
    files: int
    size_bytes: int
    held: tuple[Storage, ...]  # where the rule holds it already
    present: Mapping[int, Present]


@dataclass(frozen=True, slots=True)
class RuleView:
    id: int
    account_id: int
    grouping: Grouping
    wish: Wish
    matching: tuple[Storage, ...]
    units: tuple[UnitView, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """A lock to be written: the rule holds the unit at the storage, and these bytes have yet to come."""

    rule_id: int
    account_id: int
    did_id: int
    storage_id: int
    files: int
    size_bytes: int
    promised_bytes: int


@dataclass(frozen=True, slots=True)
class Decision:
    rule_id: int
    placements: tuple[Placement, ...] = ()
    missing: int = 0  # copies without a placement, summed over units
    message: str | None = None  # the arithmetic of the first unit that misses one
    choices: tuple[tuple[int, Choice], ...] = ()  # (unit's did id, choice), for `plan` and `why`


@dataclass(frozen=True, slots=True)
class Copies:
    """What a full count found under a rule."""

    files: int = 0
    ok: int = 0
    harmed: int = 0
    parked: int = 0
    unverified: int = 0
    is_filled: bool = True
    parked_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Grade:
    """A rule's state, why, and in how many seconds to look again."""

    state: RuleState
    reason: str | None
    look_again_s: float


def decide(rule: RuleView, budget: Budget) -> tuple[Decision, Budget]:
    """Where the rule's units go, and the budget after that. Same view, same decision."""
    if rule.grouping is Grouping.ALL:
        return _decide_together(rule, budget)
    return _decide_each(rule, budget)


def _decide_each(rule: RuleView, budget: Budget) -> tuple[Decision, Budget]:
    placements: list[Placement] = []
    choices: list[tuple[int, Choice]] = []
    for unit in rule.units:
        choice = choose(rule.wish, Unit(unit.did_id, unit.size_bytes, unit.files), rule.matching, unit.present, unit.held, budget)
        budget = budget.spend(choice)
        choices.append((unit.did_id, choice))
        placements += [_placement(rule, unit, storage_id) for storage_id in choice.chosen]
    return _decision(rule, placements, choices), budget


def _decide_together(rule: RuleView, budget: Budget) -> tuple[Decision, Budget]:
    """One choice for everything below the DID; units that joined later follow it to the storages chosen before.

    A storage that has no room for one of those misses a copy of it, however long ago it was chosen. (The account's limit
    has no say: what is attached is never refused for it.)
    """
    held = {storage.id: storage for unit in rule.units for storage in unit.held}
    whole = Unit(rule.wish.seed, sum(unit.size_bytes for unit in rule.units), sum(unit.files for unit in rule.units))
    choice = choose(rule.wish, whole, rule.matching, _summed(rule.units), [held[id_] for id_ in sorted(held)], budget)
    budget = budget.spend(choice)
    later = [unit for unit in rule.units if len(unit.held) < len(held)]
    to_follow = [_placement(rule, unit, id_) for id_ in sorted(held) for unit in later if held[id_] not in unit.held]
    fitting, too_large, budget = _within_space(to_follow, budget)
    placements = [_placement(rule, unit, id_) for unit in rule.units for id_ in choice.chosen]
    decision = _decision(rule, placements + fitting, [(rule.id, choice)])
    if not too_large:
        return decision, budget
    full = ", ".join(sorted({held[placement.storage_id].name for placement in too_large}))
    copies = "1 copy has" if len(too_large) == 1 else f"{len(too_large):,} copies have"
    message = f"{copies} no room where the rule's others are, as grouping all wants it: {full} full"
    return replace(decision, missing=decision.missing + len(too_large), message=decision.message or message), budget


def _within_space(
    placements: Sequence[Placement], budget: Budget
) -> tuple[list[Placement], list[Placement], Budget]:
    """The placements that the storages have room for, in order, those they have none for, and the budget after them."""
    free, quota = dict(budget.free_bytes), dict(budget.quota_bytes)
    fitting, too_large = [], []
    for placement in placements:
        left, limit = free[placement.storage_id], quota.get(placement.storage_id)
        if left is not None and placement.promised_bytes > max(0, left):
            too_large.append(placement)
            continue
        fitting.append(placement)
        if left is not None:
            free[placement.storage_id] = left - placement.promised_bytes
        if limit is not None:
            quota[placement.storage_id] = limit - placement.size_bytes
    return fitting, too_large, Budget(free, quota)


def _placement(rule: RuleView, unit: UnitView, storage_id: int) -> Placement:
    present = unit.present.get(storage_id)
    to_come = max(0, unit.size_bytes - (present.bytes_present if present else 0))
    return Placement(rule.id, rule.account_id, unit.did_id, storage_id, unit.files, unit.size_bytes, to_come)


def _summed(units: Sequence[UnitView]) -> dict[int, Present]:
    total: dict[int, Present] = {}
    for unit in units:
        for storage_id, here in unit.present.items():
            so_far = total.get(storage_id, Present(storage_id, 0, 0))
            total[storage_id] = Present(
                storage_id, so_far.bytes_present + here.bytes_present, so_far.files_present + here.files_present
            )
    return total


def _decision(rule: RuleView, placements: list[Placement], choices: list[tuple[int, Choice]]) -> Decision:
    short = [choice for _, choice in choices if choice.missing]
    message = short[0].message if short else None
    if message and len(choices) > 1:
        message = f"{len(short)} of {len(choices)} datasets: {message}"
    return Decision(rule.id, tuple(placements), sum(choice.missing for choice in short), message, tuple(choices))


def grade(copies: Copies, message: str | None) -> Grade:
    """The first state that holds of impossible, stuck, ok, replicating (architecture 7)."""
    if message is not None:
        return Grade(RuleState.IMPOSSIBLE, message, LOOK_AGAIN_S)
    if copies.parked or copies.harmed:
        return Grade(RuleState.STUCK, _stuck_reason(copies), LOOK_AGAIN_S)
    if copies.is_filled and copies.ok == copies.files:
        return Grade(RuleState.OK, None, 0)
    reason = f"{copies.unverified} files wait for their first verification" if copies.unverified else None
    return Grade(RuleState.REPLICATING, reason, watch_s(copies.files))


def watch_s(files: int) -> float:
    """In how many seconds a replicating rule is counted again, whatever the change queue says."""
    return min(WATCH_MAX_S, max(WATCH_MIN_S, files / WATCH_FILES_PER_S))


def _stuck_reason(copies: Copies) -> str:
    parts = []
    if copies.parked:
        parts.append(f"{copies.parked} of {copies.files} replicas cannot be made ({copies.parked_reason or 'see request list'})")
    if copies.harmed:
        parts.append(f"{copies.harmed} of {copies.files} replicas are bad or lost: no good copy is left, or what stands there is not dlm's to write over")
    return "; ".join(parts)


def seed(account_id: int, did_id: int, canonical: str, copies: int | None) -> int:
    """What ties break by: the wish itself rather than its row's id, so that `plan` foretells what `add` will do."""
    wish = f"{account_id}/{did_id}/{copies}/{canonical}".encode()
    return int.from_bytes(blake2b(wish, digest_size=8).digest()) >> 1


def resync_delay(rule_id: int, interval_s: float) -> timedelta:
    """When an `ok` rule is counted again: the interval, spread so that not all rules come at once."""
    spread = (rule_id * 0x9E3779B97F4A7C15 & 0xFFFFFFFF) / 0xFFFFFFFF
    return timedelta(seconds=interval_s * (0.75 + spread / 2))
