"""Where a root lies, as told by how it is written: to tell roots of one server from each other. Nothing is touched."""

from __future__ import annotations

import os.path
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dlm.types import ProtocolRef

LOCAL = ("posix", "file")  # schemes whose prefix is a path on this host
_SERVERS = {  # by scheme: what is spoken, and the port when none is written
    "davs": ("http", 443), "https": ("http", 443), "dav": ("http", 80), "sftp": ("ssh", 22), "root": ("root", 1094),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RemoteRoot:
    """A server, and the parts of the path on it (of S3 the bucket first)."""

    spoken: str
    host: str
    port: int
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.spoken}://{self.host}:{self.port}/{'/'.join(self.parts)}"


def remote_root(ref: ProtocolRef) -> RemoteRoot | None:
    """Where the root lies; None for one on this host, and for what is no URL of a server."""
    if ref.scheme in LOCAL:
        return None
    try:
        url = urlsplit(ref.prefix)
        host, port = (url.hostname or "").rstrip("."), url.port
    except ValueError:
        return None
    if ref.scheme == "s3":
        spoken, usual = "s3", 80 if url.scheme == "http" else 443
    else:
        spoken, usual = _SERVERS.get(ref.scheme, (ref.scheme, 0))
    parts = tuple(part for part in unquote(url.path, errors="surrogateescape").split("/") if part)
    return RemoteRoot(spoken, host, port or usual, parts) if host else None


def lies_in(inner: ProtocolRef, outer: ProtocolRef) -> bool:
    """True when the inner root is below the outer one: on this host links followed, on a server as it is written."""
    if inner.scheme in LOCAL and outer.scheme in LOCAL:
        return Path(os.path.realpath(outer.prefix)) in Path(os.path.realpath(inner.prefix)).parents
    here, there = remote_root(inner), remote_root(outer)
    if here is None or there is None:
        return False
    is_same_server = (here.spoken, here.host, here.port) == (there.spoken, there.host, there.port)
    return is_same_server and len(here.parts) > len(there.parts) and here.parts[: len(there.parts)] == there.parts


def above(ref: ProtocolRef) -> list[str]:
    """The prefixes of what lies above a remote root, the nearest first; of S3 down to the bucket."""
    url = urlsplit(ref.prefix)
    parts = [part for part in url.path.split("/") if part]
    shortest, slash = 1 if ref.scheme == "s3" else 0, "//" if url.path.startswith("//") else "/"  # as XRootD is written
    return [
        url._replace(path=slash + "/".join(parts[:end])).geturl() for end in range(len(parts) - 1, shortest - 1, -1)
    ]
