"""The nouns of dlm: states, and the small frozen records that planners and SQL exchange.

Every state is a whole word, stands here once, and has one meaning (docs/states.md tells each in full).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum


class DidKind(StrEnum):
    FILE = "file"
    DATASET = "dataset"
    CONTAINER = "container"


class Phase(StrEnum):
    """Resilience of one copy, given by its storage; PLASMA < GAS < LIQUID < SOLID."""

    PLASMA = "plasma"
    GAS = "gas"
    LIQUID = "liquid"
    SOLID = "solid"


class ReplicaState(StrEnum):
    COPYING = "copying"  # an intent: bytes are reserved, a request exists
    AVAILABLE = "available"  # verified at least once, has a next verification time
    UNVERIFIED = "unverified"  # registered by a producer, not read by dlm yet
    BAD = "bad"  # the stored bytes are not the file
    LOST = "lost"  # the storage was there and the file was not
    DELETING = "deleting"  # a reaper holds it under a lease, with a proof
    DELETED = "deleted"  # gone; the path rests until `quiet_until`


class RequestState(StrEnum):
    QUEUED = "queued"
    ACTIVE = "active"  # held under a lease by a conveyor
    PARKED = "parked"  # given up for now, with a reason; waits for a person or the slow retry


class RuleState(StrEnum):
    DECLARED = "declared"
    WAITING_APPROVAL = "waiting_approval"
    SUSPENDED = "suspended"
    IMPOSSIBLE = "impossible"  # a wanted copy has no placement
    STUCK = "stuck"  # placed, but a request is parked
    REPLICATING = "replicating"
    OK = "ok"
    LETTING_GO = "letting_go"
    GONE = "gone"


class Grouping(StrEnum):
    ALL = "all"  # one choice of storages for everything below the DID
    DATASET = "dataset"  # one choice per dataset
    NONE = "none"  # a choice per file


class ChangeKind(StrEnum):
    """Why the judge must look again; the object is given by did, storage and the file ids."""

    ATTACHED = "attached"  # file_ids (or collections) joined the collection did_id
    DETACHED = "detached"
    ARRIVED = "arrived"  # replicas of file_ids at storage_id became available
    PARKED = "parked"  # their requests were given up
    HARMED = "harmed"  # they were found bad or lost
    GONE = "gone"  # their deletion ended: carried out, or reverted
    STORAGES = "storages"  # storages or their attributes changed: evaluate expressions again
    DID_ENDED = "did_ended"  # did_id expired or was deleted: its rules let go


class Reap(StrEnum):
    EAGER = "eager"  # delete when the tombstone is due
    WHEN_FULL = "when_full"  # keep as a cache until space is needed


class ErrorClass(StrEnum):
    """What went wrong with a transfer or deletion, as far as the next step depends on it."""

    NO_SOURCE = "no_source"
    SOURCE_UNAVAILABLE = "source_unavailable"
    SOURCE_MISSING = "source_missing"
    SOURCE_CORRUPT = "source_corrupt"
    SOURCE_CHANGED = "source_changed"
    CHECKSUM_MISMATCH = "checksum_mismatch"
    DESTINATION_EXISTS = "destination_exists"
    DESTINATION_UNAVAILABLE = "destination_unavailable"
    NO_SPACE = "no_space"
    PERMISSION = "permission"
    TIMEOUT = "timeout"
    IO = "io"
    INTERRUPTED = "interrupted"  # the worker died; the next owner asks the world first
    UNAVAILABLE = "unavailable"  # the storage's root or marker is not there: no file of it is blamed
    INVALID_PATH = "invalid_path"  # this storage cannot take that name, or it leads out of the root


@dataclass(frozen=True, slots=True)
class Checksums:
    """Lower-case hexadecimal digests of a file's bytes; adler32 has 8 digits, md5 32, sha256 64."""

    adler32: str | None = None
    md5: str | None = None
    sha256: str | None = None

    def known(self) -> dict[str, str]:
        """The digests that are known, by algorithm."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}

    def contradicts(self, other: "Checksums") -> bool:
        """True when some algorithm is known to both and differs."""
        mine, theirs = self.known(), other.known()
        return any(theirs[name] != value for name, value in mine.items() if name in theirs)

    def agrees(self, other: "Checksums") -> bool:
        """True when at least one algorithm is known to both, and none differs."""
        return bool(self.known().keys() & other.known().keys()) and not self.contradicts(other)


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage as planners see it, from one snapshot. `free_bytes` already excludes the minimum free
    and everything reserved; None means that the capacity is not limited."""

    id: int
    name: str
    site: str
    country: str | None
    type: str
    phase: str
    free_bytes: int | None
    can_read: bool
    can_write: bool
    can_delete: bool
    is_available: bool
    attributes: dict[str, str]
    reason: str | None = None  # why a switch is off, or why it is unavailable


class Secret(Mapping[str, str]):
    """The values of a secret by key. What shows it, or is shown with it, has `***` instead of them."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: str) -> str:
        if key not in self._values:
            raise KeyError(key)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return "***"


@dataclass(frozen=True, slots=True)
class ProtocolRef:
    """How to speak to a storage: the scheme names the adapter, the prefix its root.

    Two refs are equal only when their secrets are of the same version: what is kept open by one is not used on after
    its secret was set anew. The values themselves are never compared, hashed or shown.
    """

    storage_id: int
    storage_name: str
    storage_uuid: str
    scheme: str
    prefix: str
    credentials: str | None = None  # the name of the secret
    options: Mapping[str, str] = field(default_factory=dict, hash=False)
    secret: Mapping[str, str] | None = field(default=None, repr=False, compare=False)  # a Secret, once it was opened
    secret_version: int = 0
    unusable: str | None = None  # why its secret cannot be had: opening the protocol says so

    def trusted_hosts(self) -> tuple[str, ...]:
        """Where the secret may go besides the storage's own host, by the option of that name; see `is_named`."""
        names = self.options.get("trusted_hosts", "").split(",")
        return tuple(name.strip().lower() for name in names if name.strip())


def is_named(host: str, names: Iterable[str]) -> bool:
    """True when one of the names is the host's, or begins with a dot and is the ending of the host's."""
    return any(host.endswith(name) if name.startswith(".") else host == name for name in names)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who acts. Daemons act as `dlm:<daemon>` with role `daemon`."""

    account_id: int | None
    account: str
    roles: frozenset[str]
    request_id: str = ""
    expires_at: datetime | None = None  # when the token that said so ends


@dataclass(frozen=True, slots=True)
class Page:
    """A keyset page asked for: at most `limit` rows after the opaque cursor."""

    limit: int = 100
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing asked of a DID: of its metadata, or (`is_built_in`) of what dlm itself knows about it.

    Without an operator the key must be there. A tuple holds the texts between wildcards, for = and != only.
    """

    key: str
    op: str = ""
    value: str | Decimal | datetime | tuple[str, ...] = ""
    is_built_in: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """DIDs asked for: all conditions of one alternative must hold."""

    alternatives: tuple[tuple[Condition, ...], ...]


@dataclass(frozen=True, slots=True)
class Stamp:
    """A moment and its cause, as `why` shows it."""

    at: datetime
    text: str
