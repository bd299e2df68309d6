"""How a secret's values reach the library: in files without a name that only the worker has, or by URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from dlm.types import ProtocolRef

_IDENTITY = {"token": "BEARER_TOKEN_FILE", "certificate": "X509_USER_CERT", "key": "X509_USER_KEY"}


@dataclass(frozen=True, slots=True)
class Speech:
    """What a worker is told at its beginning: who it is, and to whom. Never shown."""

    files: Mapping[str, str] = field(default_factory=dict, repr=False)  # texts by the variable that names the file
    bearers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # URL of a server, token
    authorities: str | None = field(default=None, repr=False)  # PEM of whom XRootD's client trusts


def to_root(secret: Mapping[str, str]) -> Speech:
    """For XRootD, whose client takes who it is from the process: one worker, one identity."""
    files = {variable: secret[key] for key, variable in _IDENTITY.items() if key in secret}
    return Speech(files, authorities=secret.get("ca"))


def between(source: ProtocolRef, destination: ProtocolRef) -> Speech | None:
    """For a copy between two storages; None where one process cannot be to both who it should be."""
    here, there = dict(source.secret or {}), dict(destination.secret or {})
    if source.scheme == "root":
        return to_root(here) if here == there else None
    if not here.keys() | there.keys() <= {"token", "ca"}:
        return None  # a password is not passed on to the other server
    tokens: dict[str, str] = {}
    for ref, secret in ((source, here), (destination, there)):
        server = urlsplit(ref.prefix).netloc
        if tokens.setdefault(server, secret.get("token", "")) != secret.get("token", ""):
            return None
    trusted = "\n".join({secret["ca"] for secret in (here, there) if "ca" in secret})
    bearers = tuple((f"davs://{server}", token) for server, token in tokens.items() if token)
    return Speech({"SSL_CERT_FILE": trusted} if trusted else {}, bearers)
