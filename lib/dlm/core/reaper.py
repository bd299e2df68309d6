"""Which replicas may go, decided from one snapshot; a deletion is a value that only `prove` can make.

A *witness* for a deletion is another copy of the file that stays: verified (`available`), with no open finding against
it, on a storage whose marker was seen at the last look, and either held by a lock or without a tombstone. A copy that
has a tombstone and no lock is never one, due or not: two such copies would each witness the other's deletion, first
A's by B, and a pass later B's by nobody. Whether the witness's storage allows deletions makes no difference.

What a file is *wanted* is the largest number of copies that a rule asks for it or for a collection above it, as long as
the rule is not letting go: suspended, waiting and impossible rules want, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass
from enum import StrEnum

from dlm.errors import UnsafeDrop
from dlm.types import ReplicaState

REAPABLE = (ReplicaState.AVAILABLE, ReplicaState.UNVERIFIED, ReplicaState.BAD, ReplicaState.LOST)


class Cause(StrEnum):
    UNWANTED = "unwanted"  # no live rule wants the file at all
    SURPLUS = "surplus"  # the wanted number of verified copies stays elsewhere


class KeepAction(StrEnum):
    CLEAR = "clear"  # the tombstone is stale: null means kept, and the last let-go writes it anew
    LATER = "later"  # ask again after a while
    LEAVE = "leave"  # another worker's, or nothing to decide


@dataclass(frozen=True, slots=True)
class Copy:
    """One replica of a file, as one snapshot shows it together with what protects it."""

    did_id: int
    storage_id: int
    state: ReplicaState
    fence: int
    has_tombstone: bool
    is_locked: bool  # by a lock on the file or on a dataset that contains it, at this storage
    has_request: bool
    is_doubted: bool  # an audit found something, not declared yet
    is_reachable: bool  # the storage's marker was seen at the last look

    @property
    def stays(self) -> bool:
        """True when the copy counts as a witness."""
        good = self.state is ReplicaState.AVAILABLE and self.is_reachable and not self.is_doubted
        return good and (self.is_locked or not self.has_tombstone)


@dataclass(frozen=True, slots=True)
class File:
    """A file of which some copies are proposed for deletion: `candidates` are the storage ids."""

    did_id: int
    wanted: int
    copies: tuple[Copy, ...]
    candidates: frozenset[int]


_SEAL = object()


@dataclass(frozen=True, slots=True)
class DropProof:
    """The evidence on which one replica is deleted. Built by `prove` only; anything else is UnsafeDrop."""

    did_id: int
    storage_id: int
    wanted: int
    witnesses: tuple[int, ...]  # storage ids
    cause: Cause
    fence: int  # that the deletion acts under: one more than the row had when it was looked at
    seal: InitVar[object] = None

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise UnsafeDrop("a proof is made by prove() alone")


@dataclass(frozen=True, slots=True)
class Drop:
    proof: DropProof


@dataclass(frozen=True, slots=True)
class Keep:
    did_id: int
    storage_id: int
    reason: str
    action: KeepAction


def decide(files: Iterable[File]) -> list[Drop | Keep]:
    """One verdict per candidate: files as given, candidates of a file by storage id."""
    verdicts: list[Drop | Keep] = []
    for file in files:
        verdicts += [_verdict(file, copy) for copy in file.copies if copy.storage_id in file.candidates]
    return verdicts


def prove(file: File, copy: Copy) -> DropProof:
    """The proof that this copy may go; UnsafeDrop, with the arithmetic, when it may not."""
    if copy.did_id != file.did_id or copy not in file.copies:
        raise UnsafeDrop(f"replica {copy.did_id} at {copy.storage_id} is no copy of file {file.did_id}")
    if copy.is_locked or copy.has_request:
        raise UnsafeDrop(f"replica {copy.did_id} at {copy.storage_id} is {'locked' if copy.is_locked else 'asked for'}")
    witnesses = witnesses_for(file, copy)
    if len(witnesses) < file.wanted:
        raise UnsafeDrop(
            f"replica {copy.did_id} at {copy.storage_id}: {file.wanted} copies are wanted, "
            f"{len(witnesses)} verified ones stay"
        )
    cause = Cause.SURPLUS if file.wanted else Cause.UNWANTED
    return DropProof(file.did_id, copy.storage_id, file.wanted, witnesses, cause, copy.fence + 1, seal=_SEAL)


def witnesses_for(file: File, copy: Copy) -> tuple[int, ...]:
    """The storages of the verified copies that stay when this one goes, by id."""
    others: Sequence[Copy] = [other for other in file.copies if other.storage_id != copy.storage_id]
    return tuple(sorted(other.storage_id for other in others if other.stays))


def _verdict(file: File, copy: Copy) -> Drop | Keep:
    if copy.is_locked:
        return _keep(copy, "a lock holds it", KeepAction.CLEAR)
    if copy.has_request:
        return _keep(copy, "a request is to make it", KeepAction.LATER)
    if copy.state not in REAPABLE and copy.state is not ReplicaState.DELETING:
        return _keep(copy, f"it is {copy.state}", KeepAction.LEAVE)
    have = len(witnesses_for(file, copy))
    if have < file.wanted:
        return _keep(copy, f"{file.wanted} copies are wanted, {have} verified ones stay elsewhere", KeepAction.LATER)
    return Drop(prove(file, copy))


def _keep(copy: Copy, reason: str, action: KeepAction) -> Keep:
    return Keep(copy.did_id, copy.storage_id, reason, action)
