"""What each scheme may be told: its options, and the keys that a secret for it may hold. Nothing is imported for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

ANY_OPTIONS = ("timeout_s",)  # every scheme takes them
ANY_KEYS = ("ca",)  # PEM of what certificates are checked with
HEADER_KEYS = ("token", "session_token", "access_key", "secret_key")  # sent in headers: a line break would end those
LINE_KEYS = ("username", "password", "passphrase")
_HEADER = re.compile(r"[!-~]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Declared:
    """`secrets` are the ways to be let in: all keys of one of them are needed. `also` may stand beside any."""

    options: tuple[str, ...] = ()
    secrets: tuple[tuple[str, ...], ...] = ()
    also: tuple[str, ...] = ()

    def option_names(self) -> list[str]:
        return sorted({*self.options, *ANY_OPTIONS})

    def keys(self) -> list[str]:
        """Every key that a secret for the scheme may hold; none for a scheme that needs no secret."""
        if not self.secrets:
            return []
        return sorted({*(key for way in self.secrets for key in way), *self.also, *ANY_KEYS})


_PASSWORD = ("username", "password")
_CERTIFICATE = ("certificate", "key")  # PEM texts
# trusted_hosts: where redirects may take the secret, and storages that are told its token to fetch files themselves
# (names, or endings that begin with a dot, with commas between)
_DAV = Declared(("allow_http", "remembered_digests", "trusted_hosts"), (("token",), _PASSWORD, _CERTIFICATE))
CHOICES = {"addressing": ("path", "virtual"), "allow_http": ("true", "false"), "remembered_digests": ("true", "false")}
DECLARED: dict[str, Declared] = {
    "posix": Declared(),
    "file": Declared(),
    "s3": Declared(("region", "addressing", "allow_http"), (("access_key", "secret_key"),), ("session_token",)),
    "davs": _DAV,
    "dav": _DAV,
    "https": _DAV,
    "sftp": Declared(("host_key",), (_PASSWORD, ("username", "private_key")), ("passphrase",)),
    "root": Declared(("remembered_digests",), (("token",), _CERTIFICATE)),
}


def unsendable(secret: Mapping[str, str]) -> str | None:
    """What is wrong with a value of the secret, not the value: libraries would quote it in what they raise."""
    for key in HEADER_KEYS:
        if key in secret and not _HEADER.fullmatch(secret[key]):
            return f"the value of {key} is not a line of printable ASCII"
    for key in LINE_KEYS:
        if key in secret and _CONTROL.search(secret[key]):
            return f"the value of {key} is not one line"
    return None


def declared(scheme: str) -> Declared | None:
    """What the scheme may be told; None for one of which that is not known: it may be told anything."""
    return DECLARED.get(scheme)
