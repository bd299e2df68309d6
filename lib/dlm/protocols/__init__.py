"""Protocols: the interface to a storage, and the table from scheme to adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from dlm.errors import StorageError, Unsupported
from dlm.protocols.declared import unsendable
from dlm.protocols.interface import Chunks, Entry, Space, Stat, StorageProtocol, Written
from dlm.types import ErrorClass, ProtocolRef

__all__ = ["Chunks", "Entry", "Space", "Stat", "StorageProtocol", "Written", "open_protocol", "schemes"]


def open_protocol(ref: ProtocolRef) -> StorageProtocol:
    """The adapter for the reference's scheme; errors.Unsupported if there is none.

    StorageError `unavailable` when the secret that the reference names cannot be had: nothing of the storage is blamed;
    `permission` when it could not even be sent.
    """
    if ref.unusable is not None:
        raise StorageError(ErrorClass.UNAVAILABLE, ref.unusable)
    if fault := unsendable(ref.secret or {}):
        raise StorageError(ErrorClass.PERMISSION, fault, hint="set the secret anew: dlm-admin secret set NAME")
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


def _webdav(ref: ProtocolRef) -> StorageProtocol:
    from dlm.protocols.webdav import WebDavProtocol

    return WebDavProtocol(ref)


def _s3(ref: ProtocolRef) -> StorageProtocol:
    with _needing("s3", "botocore"):
        from dlm.protocols.s3 import S3Protocol
    return S3Protocol(ref)


def _sftp(ref: ProtocolRef) -> StorageProtocol:
    with _needing("sftp", "asyncssh"):
        from dlm.protocols.sftp import SftpProtocol
    return SftpProtocol(ref)


def _root(ref: ProtocolRef) -> StorageProtocol:
    from dlm.protocols.root import RootProtocol

    return RootProtocol(ref)


@contextlib.contextmanager
def _needing(extra: str, package: str) -> Iterator[None]:
    """Unsupported, with what to install, when the package is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        hint = f"pip install 'dlm[{extra}]'"
        raise Unsupported(f"the {extra} protocol needs the package {package}", field="scheme", hint=hint) from error


_ADAPTERS: dict[str, Callable[[ProtocolRef], StorageProtocol]] = {
    "posix": _posix,
    "file": _posix,
    "s3": _s3,
    "davs": _webdav,
    "https": _webdav,
    "dav": _webdav,
    "sftp": _sftp,
    "root": _root,
}
