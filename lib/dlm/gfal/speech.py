"""How a secret's values reach the library: in files without a name that only the worker has, or by URL."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from dlm.types import ProtocolRef, is_named


@dataclass(frozen=True, slots=True)
class Speech:
    """What a worker is told at its beginning: who it is, and to whom. Never shown."""

    files: Mapping[str, str] = field(default_factory=dict, repr=False)  # texts by the variable that names the file
    bearers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # URL of a server, token
    certificate: tuple[str, str] | None = field(default=None, repr=False)  # and its key: a proxy of it is shown
    authorities: str | None = field(default=None, repr=False)  # PEM of whom XRootD's client trusts
    is_xrootd: bool = False  # XRootD's client is to speak, and not HTTP


def to_root(secret: Mapping[str, str]) -> Speech:
    """For XRootD, whose client takes who it is from the process: one worker, one identity."""
    files = {"BEARER_TOKEN_FILE": secret["token"]} if "token" in secret else {}
    certificate = (secret["certificate"], secret.get("key", "")) if "certificate" in secret else None
    return Speech(files, certificate=certificate, authorities=secret.get("ca"), is_xrootd=True)


def between(source: ProtocolRef, destination: ProtocolRef) -> Speech | None:
    """For a copy between two storages; None where one process cannot be to both who it should be, or must not.

    Over https the source's token is told to the destination, which shows it to the source. That is for who has it
    anyway, and for hosts that the source trusts with it: else anybody's storage would get the tokens of all others.
    """
    here, there = dict(source.secret or {}), dict(destination.secret or {})
    if source.scheme == "root":
        return to_root(here) if here == there else None
    if not here.keys() | there.keys() <= {"token", "ca"}:
        return None  # a password is not passed on
    if here and not (_is_one_secret(source, destination) or _is_trusted(destination, source)):
        return None
    tokens: dict[str, str] = {}
    for ref, secret in ((source, here), (destination, there)):
        server = urlsplit(ref.prefix).netloc
        if tokens.setdefault(server, secret.get("token", "")) != secret.get("token", ""):
            return None
    trusted = {secret.get("ca") or _of_this_host() for secret in (here, there)} if "ca" in here | there else set()
    bearers = tuple((f"davs://{server}", token) for server, token in tokens.items() if token)
    return Speech({"SSL_CERT_FILE": "\n".join(sorted(trusted))} if trusted else {}, bearers)


def _is_one_secret(one: ProtocolRef, other: ProtocolRef) -> bool:
    return one.credentials is not None and one.credentials == other.credentials


def _is_trusted(destination: ProtocolRef, source: ProtocolRef) -> bool:
    """True when the source's option trusted_hosts names the destination's host."""
    return is_named(urlsplit(destination.prefix).hostname or "", source.trusted_hosts())


def _of_this_host() -> str:
    """PEM of whom this host trusts."""
    file = ssl.get_default_verify_paths().cafile
    return Path(file).read_text() if file else ""
