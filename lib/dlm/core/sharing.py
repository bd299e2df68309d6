"""Spreading the files of a unit over combinations of storages (grouping NONE): a pure choice, by classes of files.

Nothing here looks at a single file. A class of a million files that are alike becomes a few shares, "so many files to
these storages", and SQL says which files. The rules are those of `placement`: sticky, spread, space, quota, weights,
bytes already present first, the same plan for the same view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from dlm.core.placement import (
    Budget,
    Cause,
    Placed,
    Rejection,
    Wish,
    arithmetic,
    chance,
    domain_of,
    no_longer_matching,
    refusal_of,
    rejection,
    taken_rejection,
    wanted_copies,
    weight_of,
)
from dlm.types import Storage


@dataclass(frozen=True, slots=True)
class FileClass:
    """Files that are alike: on the same storages, held by the rule at the same storages."""

    id: int  # distinct within a call and drawn from the files, e.g. their least DID id: it seeds the choice
    files: int
    size_bytes: int
    holders: frozenset[int]  # storages where all of them are, or are coming
    held: frozenset[int] = frozenset()  # storages where the rule holds them


@dataclass(frozen=True, slots=True)
class Share:
    """`files` files of a class go to all of these storages. Which files is for SQL to say, in the order of shares."""

    class_id: int
    storage_ids: tuple[int, ...]
    files: int
    size_bytes: int  # by the mean size of the class


@dataclass(frozen=True, slots=True)
class Sharing:
    """The shares of all classes; at most one more per class than there are storages. `missing` counts copies of
    single files. A file may be in no share, or in one with fewer storages than wanted; then it is short of copies."""

    shares: tuple[Share, ...]
    unmatched: tuple[int, ...]
    rejected: tuple[Rejection, ...]
    missing: int
    message: str
    promised: Mapping[int, int]
    charged: Mapping[int, int]


def shares(
    wish: Wish, classes: Sequence[FileClass], matching: Sequence[Storage], held: Sequence[Storage], budget: Budget
) -> Sharing:
    """The shares for the files of these classes; `held` are the storages named in the classes' `held`.

    Space and quota are counted by the mean size of a class, so SQL that assigns files bounds them by their own size.
    Files are placed evenly: when there is not room for all copies, each file gets one before any gets two.
    """
    parts: list[_Part] = []
    for files in classes:
        parts.append(_part(wish, files, matching, [s for s in held if s.id in files.held], budget))
        budget = budget.spend(parts[-1])
    promised = _total(part.promised for part in parts)
    charged = _total(part.charged for part in parts)
    missing = sum(part.missing for part in parts)
    wanted = sum(part.wanted for part in parts)
    rejected = tuple({(r.storage_id, r.cause): r for part in parts for r in part.rejected}.values())
    placed = Placed(len(charged), {storage.id for storage in held})
    return Sharing(
        shares=tuple(share for part in parts for share in part.shares),
        unmatched=no_longer_matching(held, matching),
        rejected=rejected,
        missing=missing,
        message=arithmetic(wish, missing, wanted, matching, placed, rejected),
        promised=promised,
        charged=charged,
    )


class _Part(NamedTuple):
    """What became of one class."""

    shares: list[Share]
    rejected: list[Rejection]
    wanted: int
    missing: int
    promised: dict[int, int]
    charged: dict[int, int]


def _part(
    wish: Wish, files: FileClass, matching: Sequence[Storage], holding: Sequence[Storage], budget: Budget
) -> _Part:
    """The shares of one class, whose files the rule holds at `holding`."""
    taken = {domain_of(wish, storage) for storage in holding}
    asked = wanted_copies(wish, matching, taken)
    need = max(0, asked - len(taken)) * files.files
    lots, rejected = _lots(wish, files, matching, taken, budget) if need else ([], [])
    amounts = _amounts(lots, need, files.files, (wish.seed, files.id))
    for lot, amount in zip(lots, amounts, strict=True):
        if amount == lot.room < files.files:
            detail = f"room for {lot.room:,} of {files.files:,} files"
            rejected.append(rejection(wish, lot.storage, lot.limit, detail))
    laid = _lay_out(files, lots, amounts)
    charged = _total({storage_id: share.size_bytes} for share in laid for storage_id in share.storage_ids)
    promised = {storage_id: 0 if storage_id in files.holders else n for storage_id, n in charged.items()}
    return _Part(laid, rejected, asked * files.files, need - sum(amounts), promised, charged)


def _total(parts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """The sums by storage."""
    total: dict[int, int] = {}
    for part in parts:
        for storage_id, size_bytes in part.items():
            total[storage_id] = total.get(storage_id, 0) + size_bytes
    return total


class _Lot(NamedTuple):
    """A storage that can take up to `room` files of a class. Lots of an earlier stage are filled first."""

    storage: Storage
    domain: Hashable
    stage: int  # 0 files are there, 1 there but unavailable, 2 by weight, 3 weight 0
    weight: float
    room: int
    limit: Cause  # what bounds the room, if it is less than all files


def _lots(
    wish: Wish, files: FileClass, matching: Sequence[Storage], taken: set[Hashable], budget: Budget
) -> tuple[list[_Lot], list[Rejection]]:
    """The storages that can take files of the class, those of one domain side by side; and why the others cannot."""
    lots: list[_Lot] = []
    refused: list[Rejection] = []
    for storage in matching:
        if storage.id in files.held:
            continue
        has_all = storage.id in files.holders
        weight = weight_of(wish, storage)
        refusal = refusal_of(wish, storage, weight, has_all)
        if refusal is None and domain_of(wish, storage) in taken:
            refusal = taken_rejection(wish, storage)
        if refusal:
            refused.append(refusal)
            continue
        stage = 3 if not weight else 2 if not has_all else 1 if not storage.is_available else 0
        room, limit = _room(files, storage, has_all, budget)
        lots.append(_Lot(storage, domain_of(wish, storage), stage, weight or 1.0, room, limit))
    lots.sort(key=lambda lot: (chance(wish.seed, lot.domain), str(lot.domain), lot.storage.id))
    return lots, refused


def _room(files: FileClass, storage: Storage, has_all: bool, budget: Budget) -> tuple[int, Cause]:
    """How many files of the class fit by their mean size, and which limit says so."""
    free = None if has_all else budget.free_bytes[storage.id]
    by_space = _count_within(free, files)
    by_quota = _count_within(budget.quota_bytes.get(storage.id), files)
    return min(by_space, by_quota), Cause.FULL if by_space <= by_quota else Cause.OVER_QUOTA


def _count_within(size_bytes: int | None, files: FileClass) -> int:
    """How many files of mean size fit into so many bytes; None is unlimited."""
    if size_bytes is None or files.size_bytes == 0:
        return files.files
    return min(files.files, max(0, size_bytes) * files.files // files.size_bytes)


def _amounts(lots: Sequence[_Lot], need: int, files: int, seed: tuple[int, ...]) -> list[int]:
    """How many files each lot takes: `need` in all, or as many as fit with at most `files` in one domain.

    Space per storage and per domain are nested limits, so filling stage after stage still reaches the maximum.
    """
    amounts = [0] * len(lots)
    rooms = {lot.domain: files for lot in lots}
    for stage in sorted({lot.stage for lot in lots}):
        members = [i for i, lot in enumerate(lots) if lot.stage == stage]
        ideal = _proportional([lots[i] for i in members], rooms, need)
        whole = _whole(ideal, chance(*seed, stage))
        # The second round hands out what limits (or the last bit of a float) took from the first.
        for wanted in (whole, [files] * len(members)):
            for i, n in zip(members, wanted, strict=True):
                n = max(0, min(n, lots[i].room - amounts[i], rooms[lots[i].domain], need))
                amounts[i] += n
                rooms[lots[i].domain] -= n
                need -= n
    return amounts


def _proportional(lots: Sequence[_Lot], rooms: Mapping[Hashable, int], need: int) -> list[float]:
    """The ideal amounts: in proportion to weight up to each lot's room, and at most the domain's room in each."""
    heaviest = max(lot.weight for lot in lots)
    pairs = [(lot.room, max(lot.weight / heaviest, 1e-9)) for lot in lots]
    domains: dict[Hashable, list[int]] = {}
    for i, lot in enumerate(lots):
        domains.setdefault(lot.domain, []).append(i)
    limits = [(rooms[domain], at, [pairs[i] for i in at]) for domain, at in domains.items()]

    def filled(level: float) -> float:
        return sum(min(limit, _filled(inside, level)) for limit, _, inside in limits)

    level = _level(filled, need, pairs)
    ideal = [min(room, level * weight) for room, weight in pairs]
    for limit, at, inside in limits:
        if _filled(inside, level) > limit:
            bound = _level(partial(_filled, inside), limit, inside)
            for i in at:
                ideal[i] = min(pairs[i][0], bound * pairs[i][1])
    return ideal


def _filled(pairs: Sequence[tuple[int, float]], level: float) -> float:
    """How much (room, weight) pairs take when each is filled to the level."""
    return sum(min(room, level * weight) for room, weight in pairs)


def _level(filled: Callable[[float], float], need: int, pairs: Sequence[tuple[int, float]]) -> float:
    """The level to which all must be filled for `need` in all; the highest useful one when that is not enough."""
    low, high = 0.0, max(room / weight for room, weight in pairs)
    if filled(high) <= need:
        return high
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if filled(middle) < need else (low, middle)
    return high


def _whole(ideal: Sequence[float], offset: float) -> list[int]:
    """The amounts in whole files: each rounded up or down, and so is each run of neighbours (systematic sampling).

    A hash gives the offset, so over many small classes every storage gets its proportion.
    """
    result = []
    before, running = 0, offset
    for amount in ideal:
        running += amount
        result.append(math.floor(running) - before)
        before = math.floor(running)
    return result


def _lay_out(files: FileClass, lots: Sequence[_Lot], amounts: Sequence[int]) -> list[Share]:
    """The combinations of storages, by wrapping all amounts around a ring of `files` places (McNaughton's rule).

    A domain is one arc of at most a full turn, so no place is in it twice: no file gets two copies in one domain.
    Every end of an arc begins a new share, so there is at most one more share than there are storages.
    """
    starts: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    at = 0
    for lot, amount in zip(lots, amounts, strict=True):
        until = at + amount
        for begin, end in ((at, min(until, files.files)), (0, until - files.files)):
            if begin < end:
                starts.setdefault(begin, []).append(lot.storage.id)
                ends.setdefault(end, []).append(lot.storage.id)
        at = until % files.files if files.files else 0
    result: list[Share] = []
    active: set[int] = set()
    cuts = sorted(starts.keys() | ends.keys())
    for begin, end in zip(cuts, cuts[1:], strict=False):
        active = (active - set(ends.get(begin, ()))) | set(starts.get(begin, ()))
        if active:
            size_bytes = files.size_bytes * end // files.files - files.size_bytes * begin // files.files
            result.append(Share(files.id, tuple(sorted(active)), end - begin, size_bytes))
    return result
