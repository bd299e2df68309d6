"""Protocols: the interface to a storage, and the table from scheme to adapter."""

from __future__ import annotations

from collections.abc import Callable

from dlm.errors import StorageError, Unsupported
from dlm.protocols.interface import Chunks, Entry, Space, Stat, StorageProtocol, Written
from dlm.types import ErrorClass, ProtocolRef

__all__ = ["Chunks", "Entry", "Space", "Stat", "StorageProtocol", "Written", "open_protocol", "schemes"]


def open_protocol(ref: ProtocolRef) -> StorageProtocol:
    """The adapter for the reference's scheme; errors.Unsupported if there is none.

    StorageError `unavailable` when the secret that the reference names cannot be had: nothing of the storage is blamed.
    """
    if ref.unusable is not None:
        raise StorageError(ErrorClass.UNAVAILABLE, ref.unusable)
    make = _ADAPTERS.get(ref.scheme)
    if make is None:
        hint = f"known: {', '.join(schemes())}"
        raise Unsupported(f"no protocol for scheme {ref.scheme!r}", field="scheme", hint=hint)
    return make(ref)


def schemes() -> list[str]:
    """The schemes that have an adapter."""
    return sorted(_ADAPTERS)


# Each adapter is imported when first used: an optional one may need a package that is not installed.
def _posix(ref: ProtocolRef) -> StorageProtocol:
    from dlm.protocols.posix import PosixProtocol

    return PosixProtocol(ref)


_ADAPTERS: dict[str, Callable[[ProtocolRef], StorageProtocol]] = {"posix": _posix, "file": _posix}
