"""What an adapter for a kind of storage offers.

Every method raises errors.StorageError and nothing else for what goes wrong at the storage. Nothing is called
missing by a storage that is not there: `stat`, `read`, `delete` and `list` raise UNAVAILABLE unless the marker
with the storage's id stands in its root (an adapter for which that is a round trip may remember it for seconds).
Paths are relative to the root, with '/' between the parts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from dlm.errors import StorageError, Unsupported
from dlm.types import Checksums, ProtocolRef


@dataclass(frozen=True, slots=True)
class Stat:
    """A file as the storage describes it; `written_by` is the attempt that wrote it, where the storage remembers."""

    size_bytes: int
    modified_at: datetime
    written_by: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A file met while listing."""

    path: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Written:
    """What a write left at the storage; `was_adopted` when the same content stood there before."""

    size_bytes: int
    checksums: Checksums
    was_adopted: bool = False


@dataclass(frozen=True, slots=True)
class Space:
    """What the storage says of its own capacity."""

    used_bytes: int
    free_bytes: int
    total_bytes: int


class Chunks:
    """The bytes of an open file, block by block. Closes itself at the end, on `close`, and as a context manager."""

    def __init__(self, blocks: Iterator[bytes], close: Callable[[], None]) -> None:
        self._blocks = blocks
        self._close: Callable[[], None] | None = close

    def __iter__(self) -> Chunks:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._blocks)
        except BaseException:  # StopIteration, an error, a signal: whatever ends the reading closes the file
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file; more than once does no harm."""
        close, self._close = self._close, None
        if close is not None:
            close()

    def __enter__(self) -> Chunks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def nothing() -> None:
    """What is done between two blocks, when nothing is to be."""


ReadBack = Callable[..., Checksums]  # (algorithms, between): these digests of what is stored


class StorageProtocol(ABC):
    """Speaks to one storage. Cheap to make, may be used by several threads.

    Connections, where there are any, are made when first needed, and kept until `close` or the end of the object.
    """

    def __init__(self, ref: ProtocolRef) -> None:
        self.ref = ref

    def close(self) -> None:  # noqa: B027  most have nothing to close
        """Let go of connections that are not in use; more than once does no harm."""

    def hang_up(self) -> None:
        """`close`, and end what other threads still wait for, where that can be: their calls fail. No call follows."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def stat(self, path: str) -> Stat | None:
        """The file's size and time, None where no file is."""

    @abstractmethod
    def read(self, path: str, offset: int = 0, length: int | None = None) -> Chunks:
        """The bytes from `offset`, at most `length`. The file is open on return: SOURCE_MISSING comes here."""

    @abstractmethod
    def write(
        self,
        path: str,
        chunks: Iterable[bytes],
        *,
        attempt: str,
        replace: bool = False,
        algorithms: Collection[str] = ("adler32",),
        size_bytes: int | None = None,
        prove: Callable[[ReadBack], None] | None = None,
    ) -> Written:
        """Store the chunks durably, then name them `path` atomically.

        Content that stands there already: the same is adopted, other content is DESTINATION_EXISTS, unless
        `replace`. Until the end the bytes have a temporary name that carries the attempt; on failure it is removed.
        `size_bytes`, where it is known before, is announced to a storage that wants to be told.

        `prove` is called once the bytes are stored, and gets the way to digest them there; what it raises ends the
        write before anything has the name. A storage without temporary names (S3) has named them by then: it removes
        them again, if that raised CHECKSUM_MISMATCH, and does so at a second look. So that is only to be raised while
        there is time to remove something. Adopted content was compared.
        """

    @abstractmethod
    def delete(self, path: str) -> bool:
        """Delete one file durably; False if it was not there.

        Directories left empty go too, where the storage can remove a directory only if it is empty.
        """

    @abstractmethod
    def delete_many(
        self, paths: Iterable[str], is_over: Callable[[], bool] = lambda: False
    ) -> dict[str, bool | StorageError]:
        """Delete in bulk; per path what `delete` would have returned or raised.

        `is_over` is asked before each deletion; once it is true no further one begins, and what is left has no answer.
        A storage may hang in the first of them for hours, and by then the others may be somebody else's.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All files below the directory `prefix`, streamed, in no order; dlm's own files left out."""

    @abstractmethod
    def checksum(
        self, path: str, algorithms: Collection[str] = ("adler32",), between: Callable[[], None] = nothing
    ) -> Checksums:
        """Digests of the stored bytes: the storage's own where it computes them from the bytes, else a full read.

        `between` is called between two blocks of that; what it raises ends it.
        """

    @abstractmethod
    def space(self) -> Space:
        """Capacity as the storage itself sees it; errors.Unsupported where it does not say."""

    @abstractmethod
    def identify(self) -> str | None:
        """The storage id in the root's marker, None without a marker; UNAVAILABLE without a root."""

    def seal(self) -> str:
        """What tells this root from others without a marker in it, for a storage that dlm never writes to."""
        hint = "switch writing on, so that dlm can put its marker there"
        raise Unsupported(f"{self.ref.scheme} knows a root only by its marker", field="protocols", hint=hint)

    @abstractmethod
    def marked_above(self) -> str | None:
        """The nearest place above the root that carries dlm's marker, as far as it may be looked at; None without one.

        StorageError TIMEOUT once a minute has passed, or the server gives no answer.
        """

    @abstractmethod
    def claim(self, storage_uuid: str, create_root: bool = False) -> None:
        """Write the marker into the root. Refuses a root that is another storage's, not there, or not writable."""

    @abstractmethod
    def require_marker(self, storage_uuid: str) -> None:
        """StorageError UNAVAILABLE unless the root is there and carries the marker with that id."""

    @abstractmethod
    def remove_temporaries(self, *attempts: str) -> int:
        """How many temporaries of these attempts were there and are removed now."""
