"""What a way to speak to a storage may be told: its prefix and its options. Nothing in either is secret."""

from __future__ import annotations

import os.path
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from dlm import did as codec
from dlm.core.names import check_name, meant
from dlm.errors import InvalidInput
from dlm.protocols import schemes
from dlm.protocols.declared import CHOICES, declared
from dlm.protocols.places import LOCAL

MAX_PREFIX_CHARACTERS = 1000
MAX_PREFIX_LEVELS = 32  # each of them is looked at when a storage is added
MAX_OPTIONS = 32
MAX_OPTION_CHARACTERS = 4096
MAX_TIMEOUT_S = 300  # with a second try it ends before those assume it who look after us (reaper.REST_S)
_KEY = re.compile(r"[a-z][a-z0-9_]{0,63}")
_BENT = re.compile(r"^\.{0,2}$|^%2e%2e|[/?#\x00-\x1f\x7f]", re.IGNORECASE)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class NewProtocol:
    """A way to speak to a storage: the prefix is its root; credentials are the name of a secret, never the secret."""

    scheme: str
    prefix: str
    credentials: str | None = None
    priority: int = 0
    options: Mapping[str, str] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """The columns of the protocol's row."""
        return {key: getattr(self, key) for key in ("scheme", "prefix", "credentials", "options", "priority")}


def check_protocols(protocols: Sequence[NewProtocol]) -> None:
    """Refuse what cannot be a storage's protocols."""
    if not protocols:
        raise InvalidInput("a storage needs at least one protocol", field="protocols")
    for index, way in enumerate(protocols):
        place = f"protocols[{index}]"
        if way.scheme not in schemes():
            hint = f"one of {', '.join(schemes())}"
            raise InvalidInput(
                f"there is no protocol for scheme {codec.shown(way.scheme)}", field=f"{place}.scheme", hint=hint
            )
        if way.scheme in [other.scheme for other in protocols[:index]]:
            raise InvalidInput(f"scheme {way.scheme} is here twice", field=f"{place}.scheme")
        if not -100 <= way.priority <= 100:
            raise InvalidInput("a priority is -100 to 100", field=f"{place}.priority")
        check_spoken(way.scheme, way.credentials, way.options, f"{place}.")
        _check_prefix(way, f"{place}.prefix")


def check_spoken(scheme: str, credentials: str | None, options: Mapping[str, str], place: str = "") -> None:
    """Refuse a name that no secret has, and options that the scheme does not take."""
    if credentials is not None:
        check_name(credentials, f"{place}credentials")
    if len(options) > MAX_OPTIONS:
        raise InvalidInput(f"a protocol has at most {MAX_OPTIONS} options", field=f"{place}options")
    for key, value in options.items():
        _check_option(scheme, key, value, f"{place}options.{key[:64]}")


def _check_option(scheme: str, key: str, value: str, field: str) -> None:
    known = declared(scheme)
    if known is not None and key in known.keys():
        hint = "put it into a secret, and name that: dlm-admin secret add NAME"
        raise InvalidInput(f"{key} is no option: options are shown to everybody", field=field, hint=hint)
    if not _KEY.fullmatch(key) or (known is not None and key not in known.option_names()):
        names = [] if known is None else known.option_names()
        hint = meant(key, names) or (f"one of {', '.join(names)}" if names else "small letters, digits and '_'")
        raise InvalidInput(f"{codec.shown(key[:64])} is no option of {scheme}", field=field, hint=hint)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_OPTION_CHARACTERS or _UNPRINTABLE.search(value):
        raise InvalidInput(f"an option is a line of 1 to {MAX_OPTION_CHARACTERS} characters", field=field)
    if key in CHOICES and value not in CHOICES[key]:
        raise InvalidInput(f"{codec.shown(value)} is no {key}", field=field, hint=f"one of {', '.join(CHOICES[key])}")
    if key == "timeout_s" and not (re.fullmatch(r"\d{1,4}(\.\d{1,3})?", value) and 0 < float(value) <= MAX_TIMEOUT_S):
        raise InvalidInput(f"{codec.shown(value)} is no timeout", field=field, hint=f"seconds, at most {MAX_TIMEOUT_S}")


def _check_prefix(way: NewProtocol, field: str) -> None:
    prefix = way.prefix
    if not prefix or len(prefix) > MAX_PREFIX_CHARACTERS or _UNPRINTABLE.search(prefix):
        raise InvalidInput(f"a prefix is printable text of 1 to {MAX_PREFIX_CHARACTERS} characters", field=field)
    if way.scheme not in LOCAL:
        _refuse_secrets(prefix, field)
        _check_url(way, field)
    elif not prefix.startswith("/") or os.path.normpath(prefix) != prefix.rstrip("/") or prefix.startswith("//"):
        hint = "write it from '/', without '.', '..' or '//'"
        raise InvalidInput(f"{codec.shown(prefix)} is no absolute path", field=field, hint=hint)


def _check_url(way: NewProtocol, field: str) -> None:
    """Refuse a URL of no host, and a path that could be written in another way, or is no path once it is decoded.

    Two storages in one place would each take the other's files for its own, or for a second copy; and what comes behind
    a '?' is for the server, like a secret. What was given is not repeated: it may be one.
    """
    try:
        parts = urlsplit(way.prefix)
        _ = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:  # also UnicodeError
        raise InvalidInput("this is no URL of a host", field=field) from None
    path = parts.path[1:] if way.scheme == "root" and parts.path.startswith("//") else parts.path
    levels = path.strip("/").split("/") if path.strip("/") else []
    if "//" in path or any(_BENT.search(unquote(level)) for level in levels):
        hint = "write it without '.', '..' and '//', and without '/', '?', '#' in a name (%2F, %3F, %23)"
        raise InvalidInput("this prefix may mean another place than it says", field=field, hint=hint)
    if len(levels) > MAX_PREFIX_LEVELS:
        raise InvalidInput(f"a prefix has at most {MAX_PREFIX_LEVELS} levels", field=field)


def _refuse_secrets(url: str, field: str) -> None:
    """Refuse a URL with a user, a password or a signature in it; what was given is not repeated."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidInput("this is no URL", field=field) from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        hint = "put them into a secret, and name that in credentials: dlm-admin secret add NAME"
        raise InvalidInput("a prefix has no user, password or signature in it", field=field, hint=hint)
