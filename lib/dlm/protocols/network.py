"""What a network makes of an error, the URL of a root, and the certificates that speak for it."""

from __future__ import annotations

import contextlib
import errno
import http.client
import ipaddress
import os
import ssl
from collections.abc import Iterator, Mapping
from types import TracebackType
from urllib.parse import SplitResult, urlsplit

from dlm.errors import StorageError
from dlm.rooted import shown
from dlm.types import ErrorClass, ProtocolRef
from dlm.unforeseen import ODD

# By HTTP status, whatever speaks HTTP. What is not here: 5xx and 4xx alike are IO, to be tried again.
STATUS_CLASSES = {
    401: ErrorClass.PERMISSION,
    403: ErrorClass.PERMISSION,
    404: ErrorClass.SOURCE_MISSING,
    405: ErrorClass.PERMISSION,  # how read-only servers refuse a method
    407: ErrorClass.PERMISSION,
    408: ErrorClass.TIMEOUT,
    410: ErrorClass.SOURCE_MISSING,
    412: ErrorClass.DESTINATION_EXISTS,
    413: ErrorClass.NO_SPACE,
    414: ErrorClass.INVALID_PATH,
    429: ErrorClass.UNAVAILABLE,
    502: ErrorClass.UNAVAILABLE,
    503: ErrorClass.UNAVAILABLE,
    504: ErrorClass.TIMEOUT,
    507: ErrorClass.NO_SPACE,
}
# Where we write, nothing of ours is "missing".
STATUS_CLASSES_WRITING = STATUS_CLASSES | {404: ErrorClass.IO, 410: ErrorClass.IO}

_UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EADDRNOTAVAIL)
NOT_TRUSTED = "put the certificate of its authority into the secret's ca, or into the host's store"


class translating:  # noqa: N801  reads as a statement
    """Turns what sockets, TLS, http.client and odd answers raise inside the block into a StorageError."""

    __slots__ = ("doing", "path")

    def __init__(self, doing: str, path: str) -> None:
        self.doing, self.path = doing, path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, (*ODD, http.client.HTTPException)):
            raise from_network_error(error, self.doing, self.path) from error


def from_network_error(error: Exception, doing: str, path: str) -> StorageError:
    """The StorageError for what a socket, TLS or http.client raised."""
    error_class, hint = _judged(error)
    reason = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return StorageError(error_class, f"cannot {doing} {shown(path)}: {shown(reason)}", hint=hint)


def _judged(error: Exception) -> tuple[ErrorClass, str | None]:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ErrorClass.UNAVAILABLE, NOT_TRUSTED
    if isinstance(error, ssl.SSLError) and "ALERT" in str(error.reason):
        return ErrorClass.PERMISSION, "the server does not accept our certificate"
    if isinstance(error, TimeoutError):
        return ErrorClass.TIMEOUT, None
    is_refused = isinstance(error, ConnectionRefusedError) or getattr(error, "errno", None) in _UNREACHABLE
    if is_refused or type(error).__name__ == "gaierror":
        return ErrorClass.UNAVAILABLE, None
    return ErrorClass.IO, None


def root_url(ref: ProtocolRef, plain: bool) -> SplitResult:
    """The parts of the prefix. UNAVAILABLE when it is no URL of a host, or would send secrets in the open.

    `plain` says that the scheme is not encrypted: that is for this host only, unless the option allow_http is set.
    """
    try:
        parts = urlsplit(ref.prefix)
        host = parts.hostname
        _ = parts.port, (host or "").encode("idna")  # what is no name of a host fails later, and elsewhere
    except ValueError:
        host = None
    if not host:
        raise StorageError(ErrorClass.UNAVAILABLE, f"{shown(ref.prefix)} is no URL of a host", field="prefix")
    if plain and not is_loopback(host) and ref.options.get("allow_http") != "true":
        hint = "use https, or set the option allow_http=true and let everybody on the way read secrets and data"
        raise StorageError(ErrorClass.UNAVAILABLE, f"{shown(ref.prefix)} is not encrypted", field="prefix", hint=hint)
    return parts


def is_loopback(host: str) -> bool:
    """True for names and addresses of this host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_near(address: str) -> bool:
    """True for addresses of this host and its link: what answers there often asks nobody who they are."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    found = getattr(found, "ipv4_mapped", None) or found
    return found.is_loopback or found.is_link_local or found.is_unspecified


def tls_context(secret: Mapping[str, str]) -> ssl.SSLContext:
    """A context that trusts the secret's `ca` (else the host's store) and shows its `certificate`, if it has one."""
    try:
        context = ssl.create_default_context(cadata=secret.get("ca"))
        if "certificate" in secret:
            with readable(secret["certificate"]) as certificate, readable(secret["key"]) as key:
                context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError, KeyError) as error:
        # The error's text may quote what it could not read; its type does not.
        detail = f"the secret's ca, certificate or key cannot be used ({type(error).__name__})"
        raise StorageError(ErrorClass.PERMISSION, detail, hint="PEM texts; the key without a passphrase") from None
    return context


@contextlib.contextmanager
def readable(text: str) -> Iterator[str]:
    """The name of a file in memory with that text, for libraries that take secrets from files only."""
    fd = os.memfd_create("dlm", os.MFD_CLOEXEC)
    try:
        os.write(fd, text.encode())
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
