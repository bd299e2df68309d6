"""What a transfertool takes, gives and promises.

A tool never raises for one item and never forgets one: each Copy comes out as exactly one Outcome.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable

from dlm.types import Checksums, ProtocolRef


@dataclass(frozen=True, slots=True)
class Copy:
    """One file to copy. The catalogue's size and checksums are what must arrive, as far as they are known."""

    request_id: int
    attempt: str  # stands in the temporary's name, so letters, digits and ._:- only
    source: ProtocolRef
    source_path: str
    destination: ProtocolRef
    destination_path: str
    size_bytes: int | None = None
    checksums: Checksums = Checksums()
    replace: bool = False  # take the place of other content at the destination


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a Copy ended. If ok, size and checksums are those of the bytes stored at the destination, read back."""

    request_id: int
    ok: bool
    size_bytes: int | None = None
    checksums: Checksums = Checksums()
    was_adopted: bool = False  # the right content stood at the destination already; nothing was moved
    bytes_moved: int = 0
    duration_s: float = 0.0
    error_class: str | None = None  # types.ErrorClass
    error: str | None = None
    side: str | None = None  # whose failure it was: 'source', 'destination', None if neither


class Described(Protocol):
    """A file as a storage describes it."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def modified_at(self) -> datetime: ...

    @property
    def written_by(self) -> str | None: ...


ReadBack = Callable[..., Checksums]  # (algorithms, between): these digests of what is stored


class Stored(Protocol):
    """What a write says of itself."""

    @property
    def was_adopted(self) -> bool: ...


class Reading(Protocol):
    """The bytes of an open file."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


class Storage(Protocol):
    """What a tool that moves bytes through this host needs of a storage: a part of what a protocol's adapter offers.

    Stated here, because tools and protocols do not know each other; core hands the adapters in.
    """

    def stat(self, path: str) -> Described | None: ...

    def read(self, path: str) -> Reading: ...

    def write(
        self, path: str, chunks: Iterable[bytes], *, attempt: str, replace: bool, algorithms: Collection[str],
        size_bytes: int | None, prove: Callable[[ReadBack], None],
    ) -> Stored: ...  # fmt: skip

    def checksum(self, path: str, algorithms: Collection[str], between: Callable[[], None] = ...) -> Checksums: ...

    def delete(self, path: str) -> bool: ...

    def hang_up(self) -> None: ...


@runtime_checkable
class ThirdParty(Storage, Protocol):
    """A storage that can be told to fetch a file from another, or to be fetched from."""

    def url(self, path: str) -> str: ...

    def receive(
        self, path: str, fill: Callable[[str], None], *, attempt: str, replace: bool, prove: Callable[[ReadBack], None]
    ) -> bool: ...


Opener = Callable[[ProtocolRef], Storage]


class Transfertool(ABC):
    @abstractmethod
    def copy_many(self, copies: Sequence[Copy], deadline: float, stop: Callable[[], bool]) -> Iterator[Outcome]:
        """One Outcome per Copy, as they finish.

        Nothing is started, and no file gets its final name, later than a margin before `deadline`
        (time.monotonic) or after `stop()` became true: such items come out as INTERRUPTED. `stop` is called
        from the tool's threads. Who closes the iterator early stops the rest.
        """
