"""What a conveyor decides: which requests to take, from where each copy comes, and what follows a failure. Pure.

The same view gives the same actions: ties break by a hash, and jitter is one as well, so a plan can be explained later.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b

from dlm.errors import InvalidInput
from dlm.types import ErrorClass, ReplicaState, Storage

PRIORITIES = (5, 4, 3, 2, 1)  # the most urgent first; a request's lane is (destination, priority)
JITTER = 0.2  # delays vary by this share either way, so that what failed together does not return together
CHECK_SPREAD = 0.1


class Step(StrEnum):
    """What a class of error asks for."""

    NEXT_SOURCE = "next_source"  # at once if another source has not failed yet, else after a backoff
    HARM = "harm"  # the same, and the auditor looks at the source before it is blamed
    BACKOFF = "backoff"
    WAIT = "wait"  # nobody's fault that an attempt could mend: never counts, never parks
    PARK = "park"  # trying again soon changes nothing


STEPS: Mapping[ErrorClass, Step] = {
    ErrorClass.NO_SOURCE: Step.PARK,
    ErrorClass.SOURCE_UNAVAILABLE: Step.WAIT,
    ErrorClass.SOURCE_MISSING: Step.HARM,
    ErrorClass.SOURCE_CORRUPT: Step.HARM,
    ErrorClass.SOURCE_CHANGED: Step.NEXT_SOURCE,
    ErrorClass.CHECKSUM_MISMATCH: Step.NEXT_SOURCE,  # the mover re-read the source and it was good: path or destination
    ErrorClass.DESTINATION_EXISTS: Step.PARK,  # other content stands there, and nothing of ours may replace it
    ErrorClass.DESTINATION_UNAVAILABLE: Step.WAIT,
    ErrorClass.NO_SPACE: Step.BACKOFF,
    ErrorClass.PERMISSION: Step.WAIT,  # credentials expire and are renewed; the transfer goes on by itself then
    ErrorClass.TIMEOUT: Step.NEXT_SOURCE,
    ErrorClass.IO: Step.NEXT_SOURCE,
    ErrorClass.INTERRUPTED: Step.BACKOFF,
    ErrorClass.UNAVAILABLE: Step.WAIT,
    ErrorClass.INVALID_PATH: Step.PARK,
}

# What a source that failed so is suspected to be.
SUSPICIONS: Mapping[ErrorClass, ReplicaState] = {
    ErrorClass.SOURCE_MISSING: ReplicaState.LOST,
    ErrorClass.SOURCE_CORRUPT: ReplicaState.BAD,
}
_USABLE = (ReplicaState.AVAILABLE, ReplicaState.UNVERIFIED)


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how soon to try again."""

    max_attempts: int = 6
    backoff_base_s: float = 10.0
    backoff_max_s: float = 3600.0
    parked_retry_s: float = 21600.0
    wait_base_s: float = 30.0  # for what is unavailable: grows with the request's age
    wait_max_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica of the file at another storage, and how often this request failed from it."""

    storage_id: int
    state: ReplicaState
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Wish:
    """A claimed request as the planner sees it.

    `source_ids` is the union of what its locks' source expressions match; None when one of them has no expression.
    """

    request_id: int
    did_id: int
    storage_id: int
    age_s: float
    is_held: bool  # a lock holds the file, or a dataset with it, at the destination
    source_ids: frozenset[int] | None
    replicas: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Transfer:
    request_id: int
    source_id: int
    has_other: bool  # another source has not failed for this request yet


@dataclass(frozen=True, slots=True)
class Wait:
    request_id: int
    delay_s: float
    error_class: ErrorClass
    reason: str


@dataclass(frozen=True, slots=True)
class Park:
    request_id: int
    error_class: ErrorClass
    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    request_id: int
    reason: str


Action = Transfer | Wait | Park | Cancel


@dataclass(frozen=True, slots=True)
class Next:
    """What follows a failed attempt: the request is due again in `delay_s`, parked until then or not."""

    is_parked: bool
    delay_s: float
    is_counted: bool = True


@dataclass(frozen=True, slots=True)
class Lane:
    """Due requests of one priority at one destination (`waiting`, counted up to a bound), and the room there."""

    storage_id: int
    priority: int
    waiting: int
    room: int  # of the whole storage


def decide(wishes: Iterable[Wish], storages: Mapping[int, Storage], patience: Patience) -> list[Action]:
    """One action for each wish, in order."""
    return [_decide_one(wish, storages, patience) for wish in wishes]


def _decide_one(wish: Wish, storages: Mapping[int, Storage], patience: Patience) -> Action:
    if not wish.is_held:
        return Cancel(wish.request_id, "no lock holds it any more")
    destination = storages.get(wish.storage_id)
    if destination is None or not destination.is_available or not destination.can_write:
        reason = f"the destination {_hindered(destination, 'write')}"
        return Wait(wish.request_id, _wait_s(wish, patience), ErrorClass.DESTINATION_UNAVAILABLE, reason)
    wanted = [replica for replica in wish.replicas if replica.state in _USABLE and _is_allowed(wish, replica)]
    usable = [replica for replica in wanted if _is_readable(storages.get(replica.storage_id))]
    if usable:
        best = min(usable, key=lambda replica: rank(wish, replica, destination, storages[replica.storage_id]))
        has_other = any(other.failures == 0 and other is not best for other in usable)
        return Transfer(wish.request_id, best.storage_id, has_other)
    reason = _no_source(wish, storages)
    if wanted:
        return Wait(wish.request_id, _wait_s(wish, patience), ErrorClass.SOURCE_UNAVAILABLE, reason)
    if _is_coming(wish):
        return Wait(wish.request_id, _wait_s(wish, patience), ErrorClass.NO_SOURCE, reason)
    return Park(wish.request_id, ErrorClass.NO_SOURCE, reason)


def rank(wish: Wish, replica: Candidate, destination: Storage, source: Storage) -> tuple[int, bool, int, int]:
    """The sort key of a source, best first: failed least, verified, near, and then by a hash that spreads the load.

    Failures stand first: a verified source that failed must not keep an unverified one from being tried.
    """
    is_unverified = replica.state is not ReplicaState.AVAILABLE
    return replica.failures, is_unverified, _distance(destination, source), _hash(wish.request_id, source.id)


def best_sources(wish: Wish, storages: Mapping[int, Storage]) -> list[int]:
    """The best storages that the file may come from, which nothing but the hash tells apart; none without a source."""
    destination = storages[wish.storage_id]
    ranks = {
        replica.storage_id: rank(wish, replica, destination, storages[replica.storage_id])[:-1]
        for replica in wish.replicas
        if replica.state in _USABLE and _is_allowed(wish, replica) and _is_readable(storages.get(replica.storage_id))
    }
    return [id_ for id_, value in ranks.items() if value == min(ranks.values())]


def _distance(destination: Storage, source: Storage) -> int:
    if destination.site == source.site:
        return 0
    return 1 if destination.country is not None and destination.country == source.country else 2


def _is_allowed(wish: Wish, replica: Candidate) -> bool:
    return wish.source_ids is None or replica.storage_id in wish.source_ids


def _is_readable(storage: Storage | None) -> bool:
    return storage is not None and storage.is_available and storage.can_read


def _is_coming(wish: Wish) -> bool:
    """True when an allowed source is being made from a copy that exists. Two wishes never wait for each other only."""
    is_anywhere = any(replica.state in _USABLE for replica in wish.replicas)
    return is_anywhere and any(r.state is ReplicaState.COPYING and _is_allowed(wish, r) for r in wish.replicas)


def _hindered(storage: Storage | None, switch: str) -> str:
    """Why a storage cannot be used, as the end of a sentence that begins with what it is."""
    if storage is None:
        return "storage was deleted"
    because = f" ({storage.reason})" if storage.reason else ""
    if not storage.is_available:
        return f"{storage.name} is unavailable{because}"
    return f"{storage.name} has {switch} switched off{because}"


def _no_source(wish: Wish, storages: Mapping[int, Storage]) -> str:
    """The arithmetic of having no source: every other replica, and why it is none."""
    if not wish.replicas:
        return "no source: no other replica exists"
    counts: dict[str, int] = defaultdict(int)
    for replica in wish.replicas:
        counts[_objection(wish, replica, storages)] += 1
    total = len(wish.replicas)
    exist = "1 replica exists" if total == 1 else f"{total} replicas exist"
    return f"no source: {exist}, " + ", ".join(f"{number} {text}" for text, number in sorted(counts.items()))


def _objection(wish: Wish, replica: Candidate, storages: Mapping[int, Storage]) -> str:
    storage = storages.get(replica.storage_id)
    name = storage.name if storage is not None else f"storage {replica.storage_id}"
    if replica.state not in _USABLE:
        return f"{replica.state} on {name}"
    if not _is_allowed(wish, replica):
        return f"on {name} which no source expression matches"
    return f"on {_hindered(storage, 'read')}".replace(name, f"{name} which", 1)


def after_failure(error_class: ErrorClass, wish: Wish, attempts: int, has_other: bool, patience: Patience) -> Next:
    """What follows a failure; `attempts` includes the failed one. Total over ErrorClass."""
    step = STEPS[error_class]
    if step is Step.WAIT:
        return Next(False, _wait_s(wish, patience), is_counted=False)
    if step is Step.PARK or attempts >= patience.max_attempts:
        return Next(True, patience.parked_retry_s)
    if step in (Step.NEXT_SOURCE, Step.HARM) and has_other:
        return Next(False, 0.0)
    return Next(False, backoff_s(attempts, wish.request_id, patience))


def backoff_s(attempts: int, salt: int, patience: Patience) -> float:
    """The wait after the given number of attempts: doubles with each, to a most."""
    doubled = patience.backoff_base_s * 2.0 ** min(max(attempts, 1) - 1, 30)
    return min(doubled, patience.backoff_max_s) * _jitter(salt, attempts)


def _wait_s(wish: Wish, patience: Patience) -> float:
    """The wait for what is unavailable: half the request's age within bounds, thus growing, with nothing to count."""
    grown = min(max(wish.age_s / 2, patience.wait_base_s), patience.wait_max_s)
    return grown * _jitter(wish.request_id, int(wish.age_s))


def _jitter(*salt: int) -> float:
    return 1 - JITTER + 2 * JITTER * _fraction(*salt)


def next_check_s(cycle_s: float, did_id: int, storage_id: int) -> float:
    """When a replica verified now is due again: the cycle ±10 %, so that what arrived together spreads."""
    return cycle_s * (1 - CHECK_SPREAD + 2 * CHECK_SPREAD * _fraction(did_id, storage_id))


def _hash(*numbers: int) -> int:
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest())


def _fraction(*numbers: int) -> float:
    return _hash(*numbers) / 2**64


def shares(lanes: Sequence[Lane], batch: int) -> list[tuple[int, int, int]]:
    """How many requests to take of each lane as (storage_id, priority, take), at most `batch` in all.

    Destinations share the batch equally, what one does not need goes to the others, and none gets more than its
    room; within a destination the urgent lanes come first. So a long queue at one never starves another.
    """
    by_storage: dict[int, list[Lane]] = defaultdict(list)
    for lane in sorted(lanes, key=lambda lane: -lane.priority):
        by_storage[lane.storage_id].append(lane)
    needs = {storage: min(rows[0].room, sum(lane.waiting for lane in rows)) for storage, rows in by_storage.items()}
    takes = []
    for storage, left in _water_filled(needs, batch).items():
        for lane in by_storage[storage]:
            take = min(lane.waiting, left)
            left -= take
            if take:
                takes.append((storage, lane.priority, take))
    return takes


def _water_filled(needs: Mapping[int, int], total: int) -> dict[int, int]:
    """`total` divided among the needs: nobody above their need, the rest equal to within one."""
    filled = {}
    left = total
    for done, (key, need) in enumerate(sorted(needs.items(), key=lambda item: (item[1], item[0]))):
        filled[key] = max(0, min(need, -(-left // (len(needs) - done))))
        left -= filled[key]
    return filled


# A request has no column for its public UUID: the key is inside. RFC 9562 UUIDv8, where the layout is ours:
# custom_a (48 bits) = "dlmreq" in ASCII, version 8, custom_b (12 bits) = 1 for this layout, the variant,
# custom_c (62 bits) = the id.
_CUSTOM_A = int.from_bytes(b"dlmreq")
_HIGH = _CUSTOM_A << 80 | 8 << 76 | 1 << 64 | 0b10 << 62
_ID_BITS = (1 << 62) - 1


def request_uuid(request_id: int) -> str:
    """The public UUID of a request; ids go from 1 to 2^62 - 1."""
    if not 0 < request_id <= _ID_BITS:
        raise InvalidInput(f"{request_id} is no request id", field="request")
    return str(uuid.UUID(int=_HIGH | request_id))


def request_id_from_uuid(text: str) -> int:
    """The id inside a request's public UUID; InvalidInput for everything else."""
    try:
        number = uuid.UUID(text).int
    except ValueError:
        number = 0
    request_id = number & _ID_BITS
    if number & ~_ID_BITS != _HIGH or not request_id:
        hint = "dlm-admin request list shows them"
        raise InvalidInput(f"{text[:80]!r} is no request's id", field="request", hint=hint)
    return request_id
