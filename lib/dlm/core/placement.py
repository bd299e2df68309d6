"""Which storages take the copies of a rule: a pure choice, and the arithmetic when there is none.

`choose` places one unit (a file, a dataset, everything below a DID) as a whole; `sharing.shares` spreads files one by
one (grouping NONE). Both are sticky (what a rule holds it keeps), obey spread, space and quota, and prefer storages
that hold the bytes already. What is left to chance is decided by a hash of (rule, unit, storage): the same view gives
the same plan, and a change of storages moves little.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import NamedTuple, Protocol

from dlm.errors import InvalidInput
from dlm.types import Storage


@dataclass(frozen=True, slots=True)
class Wish:
    """What placement needs of a rule. `copies` None means every matching storage."""

    seed: int
    copies: int | None
    spread: str | None = None  # no two copies share this key's value
    weight: str | None = None  # storages take work in proportion to this attribute


@dataclass(frozen=True, slots=True)
class Unit:
    """What is placed as one."""

    id: int
    size_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Present:
    """What a storage holds of the unit: available, unverified, or coming."""

    storage_id: int
    bytes_present: int
    files_present: int


class Cause(StrEnum):
    """Why a matching storage takes no copy, in the order in which it is asked."""

    NO_SPREAD = "no_spread"
    NO_WEIGHT = "no_weight"
    UNAVAILABLE = "unavailable"
    READ_ONLY = "read_only"
    FULL = "full"
    OVER_QUOTA = "over_quota"
    TAKEN = "taken"


@dataclass(frozen=True, slots=True)
class Rejection:
    """A matching storage that takes no copy, or not all it was asked to; the reason is a sentence with its name."""

    storage_id: int
    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The storages for one unit. `missing` copies have none, and `message` says why; it is empty otherwise."""

    chosen: tuple[int, ...]  # new ones, best first
    kept: tuple[int, ...]  # those the rule held
    unmatched: tuple[int, ...]  # those of them that no longer match
    rejected: tuple[Rejection, ...]
    missing: int
    message: str
    promised: Mapping[int, int]  # bytes still to come, by chosen storage
    charged: Mapping[int, int]  # bytes for the account, by chosen storage: locks are charged in full


@dataclass(frozen=True, slots=True)
class Budget:
    """What may still be promised in this pass. None is unlimited; a storage that is not in `quota_bytes` has no limit.

    Every storage that may be chosen is in `free_bytes`. A budget never changes: `spend` makes the next one.
    """

    free_bytes: Mapping[int, int | None]
    quota_bytes: Mapping[int, int | None] = field(default_factory=dict)

    @classmethod
    def of(cls, storages: Iterable[Storage], quota_bytes: Mapping[int, int | None] | None = None) -> "Budget":
        """The budget at the start of a pass: what the storages of the snapshot have free."""
        return cls({storage.id: storage.free_bytes for storage in storages}, quota_bytes or {})

    def spend(self, plan: "Spending") -> "Budget":
        """The budget after what the plan (a Choice or a Sharing) promised and charged."""
        return Budget(_less(self.free_bytes, plan.promised), _less(self.quota_bytes, plan.charged))


class Spending(Protocol):
    """What a plan takes from a budget: bytes to come, and bytes for the account, by storage."""

    @property
    def promised(self) -> Mapping[int, int]: ...

    @property
    def charged(self) -> Mapping[int, int]: ...


def _less(have: Mapping[int, int | None], spent: Mapping[int, int]) -> dict[int, int | None]:
    """`have` without what was spent of it."""
    left = dict(have)
    for key, size_bytes in spent.items():
        before = left.get(key)
        if before is not None:
            left[key] = before - size_bytes
    return left


# ---------------------------------------------------------------- one unit as a whole


def choose(
    wish: Wish,
    unit: Unit,
    matching: Sequence[Storage],
    present: Mapping[int, Present],
    held: Sequence[Storage],
    budget: Budget,
) -> Choice:
    """The storages for this unit. `held` are those the rule holds it at: they stay, and count, one per spread value.

    Greedy in the order of preference is exact: taking the best storage of each spread value gives as many copies as
    there can be, and of those the ones with the most bytes present. InvalidInput when a weight is not a number.
    """
    kept_ids = {storage.id for storage in held}
    looks = [_look(wish, unit, s, present.get(s.id), budget) for s in matching if s.id not in kept_ids]
    rejected = [look for look in looks if isinstance(look, Rejection)]
    candidates = [look for look in looks if isinstance(look, _Candidate)]
    taken = {domain_of(wish, storage) for storage in held}
    wanted = wanted_copies(wish, matching, taken)
    chosen: list[_Candidate] = []
    for candidate in sorted(candidates, key=lambda c: c.rank):
        if len(taken) >= wanted:
            break
        domain = domain_of(wish, candidate.storage)
        if domain in taken:
            rejected.append(taken_rejection(wish, candidate.storage))
            continue
        taken.add(domain)
        chosen.append(candidate)
    missing = max(0, wanted - len(taken))
    placed = Placed(len(chosen), kept_ids)
    return Choice(
        chosen=tuple(c.storage.id for c in chosen),
        kept=tuple(storage.id for storage in held),
        unmatched=no_longer_matching(held, matching),
        rejected=tuple(rejected),
        missing=missing,
        message=arithmetic(wish, missing, wanted, matching, placed, rejected),
        promised={c.storage.id: c.to_come for c in chosen},
        charged={c.storage.id: unit.size_bytes for c in chosen},
    )


class _Candidate(NamedTuple):
    storage: Storage
    to_come: int
    rank: tuple[bool, int, bool, float, int]


def _look(wish: Wish, unit: Unit, storage: Storage, present: Present | None, budget: Budget) -> _Candidate | Rejection:
    """The storage with its rank, least first, or why it cannot take the unit."""
    has_all = present is not None and present.files_present >= unit.files > 0
    bytes_present = min(present.bytes_present, unit.size_bytes) if present else 0
    weight = weight_of(wish, storage)
    refusal = refusal_of(wish, storage, weight, has_all)
    if refusal:
        return refusal
    to_come = 0 if has_all else unit.size_bytes - bytes_present
    free = budget.free_bytes[storage.id]
    if to_come and free is not None and free < to_come:
        return rejection(wish, storage, Cause.FULL, f"{_size(free)} free, {_size(to_come)} needed")
    left = budget.quota_bytes.get(storage.id)
    if left is not None and left < unit.size_bytes:
        return rejection(wish, storage, Cause.OVER_QUOTA, f"{_size(left)} left, {_size(unit.size_bytes)} needed")
    score = _score(weight or 0.0, wish.seed, unit.id, storage.id)
    return _Candidate(storage, to_come, (not weight, -bytes_present, not storage.is_available, -score, storage.id))


def refusal_of(wish: Wish, storage: Storage, weight: float | None, has_all: bool) -> Rejection | None:
    """Why the storage can take no copy at all, whatever its size. A lock on what is there already needs no write."""
    if wish.spread and _value(storage, wish.spread) is None:
        return rejection(wish, storage, Cause.NO_SPREAD)
    if weight is None:
        return rejection(wish, storage, Cause.NO_WEIGHT)
    if has_all:
        return None
    if not storage.is_available:
        return rejection(wish, storage, Cause.UNAVAILABLE, storage.reason)
    if not storage.can_write:
        return rejection(wish, storage, Cause.READ_ONLY, storage.reason)
    return None


def wanted_copies(wish: Wish, matching: Sequence[Storage], taken: Set[Hashable]) -> int:
    """The number of copies asked: for 'all', one per storage that matches or holds, or one per spread value."""
    if wish.copies is not None:
        return wish.copies
    usable = [storage for storage in matching if not wish.spread or _value(storage, wish.spread) is not None]
    return len({domain_of(wish, storage) for storage in usable} | taken)


def domain_of(wish: Wish, storage: Storage) -> Hashable:
    """What no two copies may share. A held storage that lost its spread key stands for itself."""
    value = _value(storage, wish.spread) if wish.spread else None
    return storage.id if value is None else value


def _value(storage: Storage, key: str) -> str | None:
    """The storage's value for a key, built-in or attribute."""
    if key in ("name", "site", "country", "type", "phase"):
        value: str | None = getattr(storage, key)
        return value
    return storage.attributes.get(key)


def weight_of(wish: Wish, storage: Storage) -> float | None:
    """The storage's weight, None when it has none; InvalidInput when it is not a number from 0 up."""
    if not wish.weight:
        return 1.0
    text = _value(storage, wish.weight)
    if text is None:
        return None
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if 0 <= weight < math.inf:
        return weight
    raise InvalidInput(
        f"{wish.weight}={text!r} of storage {storage.name} is no weight",
        field="weight",
        hint="a weight is an attribute whose value is a number, 0 or more, on every storage that has it",
    )


def _score(weight: float, *key: int) -> float:
    """Weighted rendezvous hashing: the highest score wins, in proportion to the weights over many keys."""
    return -weight / math.log(chance(*key))


def chance(*key: Hashable) -> float:
    """A number above 0 and below 1 that is the key's for ever."""
    digest = blake2b(repr(key).encode(), digest_size=6).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**48


# ---------------------------------------------------------------- words


class Placed(NamedTuple):
    """For the arithmetic: how many storages were chosen, and which the rule held."""

    chosen: int
    held: set[int]


def _phrase(wish: Wish, cause: Cause) -> str:
    """The cause as it reads after a number or a name."""
    return {
        Cause.NO_SPREAD: f"without {wish.spread}",
        Cause.NO_WEIGHT: f"without {wish.weight}",
        Cause.UNAVAILABLE: "unavailable",
        Cause.READ_ONLY: "read-only",
        Cause.FULL: "full",
        Cause.OVER_QUOTA: "over quota",
        Cause.TAKEN: f"with a {wish.spread} already used",
    }[cause]


def rejection(wish: Wish, storage: Storage, cause: Cause, detail: str | None = None) -> Rejection:
    """The rejection, with its sentence: `york-t1 is read-only (disk replacement)`."""
    more = f" ({detail})" if detail else ""
    return Rejection(storage.id, cause, f"{storage.name} is {_phrase(wish, cause)}{more}")


def taken_rejection(wish: Wish, storage: Storage) -> Rejection:
    """The rejection of a storage whose spread value another copy has."""
    return rejection(wish, storage, Cause.TAKEN, f"{wish.spread}={_value(storage, wish.spread or '')}")


def no_longer_matching(held: Sequence[Storage], matching: Sequence[Storage]) -> tuple[int, ...]:
    """The held storages that no longer match."""
    ids = {storage.id for storage in matching}
    return tuple(storage.id for storage in held if storage.id not in ids)


def arithmetic(
    wish: Wish, missing: int, wanted: int, matching: Sequence[Storage], placed: Placed, rejected: Iterable[Rejection]
) -> str:
    """The arithmetic of what is missing: `2 of 3 copies have no storage: 5 match, 1 full, 1 already holds it`."""
    if not missing:
        return ""
    matched = {storage.id for storage in matching}
    still, gone = len(placed.held & matched), len(placed.held - matched)
    parts = [f"{len(matching):,} match" if matching else "no storage matches"]
    causes = Counter(each.cause for each in rejected)
    parts += [f"{causes[cause]:,} {_phrase(wish, cause)}" for cause in Cause if cause in causes]
    if still:
        parts.append(f"{still:,} already {'holds' if still == 1 else 'hold'} it")
    if placed.chosen:
        parts.append(f"{placed.chosen:,} can take it")
    if gone:
        parts.append(f"{gone:,} more {'holds' if gone == 1 else 'hold'} it without matching")
    have = "has" if missing == 1 else "have"
    copies = "copy" if wanted == 1 else "copies"
    return f"{missing:,} of {wanted:,} {copies} {have} no storage: {', '.join(parts)}"


def _size(size_bytes: int) -> str:
    """The size for people: `3.1 TB`."""
    value = float(max(0, size_bytes))
    if value < 1000:
        return f"{value:.0f} B"
    power = min(int(math.log10(value) / 3), 6)
    return f"{value / 1000**power:.1f} {'kMGTPE'[power - 1]}B"
