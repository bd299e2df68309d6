"""Which locks go when a rule asks for fewer copies than it holds: a pure choice.

Copy first, drop in a later pass: nothing is given up before every lock that stays is complete, each of its files counted
as verified (I2). What goes is what is worth least: first at storages that no longer match, then at unavailable ones, then
where the fewest files are verified; among equals a hash of (rule, unit, storage) decides, so that the same view gives the
same choice. What stays obeys the rule's spread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from dlm.core.placement import Wish, chance, domain_of
from dlm.types import Storage


@dataclass(frozen=True, slots=True)
class Held:
    """A rule's hold on one unit at a storage, as just counted."""

    storage: Storage
    files: int
    files_ok: int  # verified there
    is_filled: bool

    @property
    def is_complete(self) -> bool:
        return self.is_filled and self.files_ok >= self.files


@dataclass(frozen=True, slots=True)
class Surplus:
    """What of a unit stays, and what may go, with why it is this one. Storage ids."""

    kept: tuple[int, ...]
    going: Mapping[int, str] = field(default_factory=dict)
    awaited: tuple[int, ...] = ()  # of those that stay, the ones that are not complete: until they are, nothing goes
    is_short: bool = False  # fewer copies than asked, by spread value: nothing goes before those are placed

    @property
    def is_due(self) -> bool:
        return bool(self.going) and not self.awaited

    @property
    def is_waiting(self) -> bool:
        return self.is_short or bool(self.going and self.awaited)


def choose(wish: Wish, unit_id: int, held: Sequence[Held], matching: Set[int]) -> Surplus:
    """The storages that stay, best first, one per spread value, and those beyond the number asked."""
    ranked = sorted(held, key=lambda each: _rank(wish, unit_id, each, matching))
    kept: dict[object, Held] = {}
    for each in ranked:
        if wish.copies is None or len(kept) < wish.copies:
            kept.setdefault(domain_of(wish, each.storage), each)
    if wish.copies is None or len(kept) < wish.copies:
        return Surplus(tuple(each.storage.id for each in ranked), is_short=wish.copies is not None)
    stays = {each.storage.id for each in kept.values()}
    return Surplus(
        kept=tuple(each.storage.id for each in kept.values()),
        going={each.storage.id: _why(wish, each, matching, kept) for each in ranked if each.storage.id not in stays},
        awaited=tuple(each.storage.id for each in kept.values() if not each.is_complete),
    )


def _rank(wish: Wish, unit_id: int, held: Held, matching: Set[int]) -> tuple[int, int, float, int]:
    """What stays first."""
    storage = held.storage
    return _tier(storage, matching), -held.files_ok, chance(wish.seed, unit_id, storage.id), storage.id


def _tier(storage: Storage, matching: Set[int]) -> int:
    """0 for what matches and is there, 3 for what does neither."""
    return 2 * (storage.id not in matching) + (not storage.is_available)


def _why(wish: Wish, held: Held, matching: Set[int], kept: Mapping[object, Held]) -> str:
    """Why this one goes, in a few words."""
    other = kept.get(domain_of(wish, held.storage))
    if held.storage.id not in matching:
        return "no longer matches"
    if not held.storage.is_available:
        return "unavailable"
    if other is not None:
        return f"same {wish.spread} as {other.storage.name}"
    if not held.is_complete:
        return f"{held.files_ok:,} of {held.files:,} files verified there"
    return "chance among equals"


class Tier(NamedTuple):
    """How single files rank a storage: what SQL needs to choose for each file as `choose` does for a unit."""

    storage_id: int
    tier: int
    domain: str


def tiers(wish: Wish, storages: Iterable[Storage], matching: Set[int]) -> list[Tier]:
    """The storages as files of grouping none rank them, by id."""
    found = [Tier(each.id, _tier(each, matching), repr(domain_of(wish, each))) for each in storages]
    return sorted(found)
