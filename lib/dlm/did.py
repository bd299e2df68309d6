"""The one codec of data identifiers: text `scope:name`, its rules, and the path derived from it.

A name has exactly one written form (Unicode NFC, nothing invisible, no segment that a file system would interpret),
so that comparing bytes is comparing names. A derived path leads back to its DID, and two DIDs never share one.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from urllib.parse import quote, unquote

from dlm.errors import InvalidInput

MAX_SCOPE_CHARACTERS = 64
MAX_NAME_BYTES = 1000
MAX_PATH_BYTES = 3500
MAX_COMPONENT_BYTES = 200  # what any file system takes, with room for a mover's temporary suffix

_SCOPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SCOPE_HINT = "a scope starts with a letter or digit; up to 63 more letters, digits, '.', '_' or '-' follow"
# Sufficient, not necessary: most names match, and need no further look. Linear, as '/' stands in no class.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+,@-]*(?:/[A-Za-z0-9_][A-Za-z0-9._=+,@-]*)*")
_PLAIN_COMPONENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
# Characters that make one name look like another. The joiners U+200C and U+200D stay: some scripts need them.
_DECEPTIVE = re.compile(r"[\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_BAD_SEGMENT = re.compile(r"(?:(?<=/)|\A)(?:\.{1,2}(?=/|\Z)|(?=/)|\Z)")
_EDGE_SPACE = re.compile(r"\A\s|\s\Z")
_SHOWN_CHARACTERS = 80


def parse(text: str, field: str = "did") -> tuple[str, str]:
    """The (scope, name) of `scope:name`, split at the first ':'; InvalidInput when it is not valid."""
    scope, colon, name = text.partition(":")
    if not colon:
        raise InvalidInput(f"{shown(text)} has no ':'", field=field, hint="write it as scope:name")
    check_scope(scope, field)
    check_name(name, field)
    return scope, name


def check_scope(scope: str, field: str = "scope") -> None:
    """Refuse what is no scope, with the position of the first wrong character."""
    if _SCOPE.fullmatch(scope):
        return
    if not scope:
        raise InvalidInput("the scope is empty", field=field, hint=_SCOPE_HINT)
    if len(scope) > MAX_SCOPE_CHARACTERS:
        detail = f"the scope {shown(scope)} has {len(scope):,} characters, at most {MAX_SCOPE_CHARACTERS} are allowed"
        raise InvalidInput(detail, field=field, hint=_SCOPE_HINT)
    match = _SCOPE.match(scope)
    _refuse("scope", "this character is not allowed", scope, match.end() if match else 0, field, _SCOPE_HINT)


def check_name(name: str, field: str = "name") -> None:
    """Refuse what is no DID name, with the position and the way out."""
    if len(name) <= MAX_NAME_BYTES and _PLAIN_NAME.fullmatch(name):
        return
    _check_text("name", name, MAX_NAME_BYTES, field)
    if not name.isascii():
        _check_unicode(name, field)
    if match := _EDGE_SPACE.search(name):
        _refuse("name", "white space at an end", name, match.start(), field, "remove it")
    _check_segments("name", name, field)


def check_names(names: Sequence[str], field: str = "names") -> None:
    """Refuse the list for its first invalid name; below a microsecond for a plain name, a few for others."""
    if all(map(_PLAIN_NAME.fullmatch, names)) and max(map(len, names), default=0) <= MAX_NAME_BYTES:
        return
    for index, name in enumerate(names):
        check_name(name, f"{field}[{index}]")


def check_path(path: str, field: str = "path") -> None:
    """Refuse what is no path relative to a storage's prefix. It names what exists already, so it need not be NFC."""
    if len(path) <= MAX_PATH_BYTES and _PLAIN_NAME.fullmatch(path):
        return
    _check_text("path", path, MAX_PATH_BYTES, field)
    _check_segments("path", path, field)


def check_paths(paths: Sequence[str], field: str = "paths") -> None:
    """Refuse the list for its first invalid path; as fast as `check_names`."""
    if all(map(_PLAIN_NAME.fullmatch, paths)) and max(map(len, paths), default=0) <= MAX_PATH_BYTES:
        return
    for index, path in enumerate(paths):
        check_path(path, f"{field}[{index}]")


def derived_path(scope: str, name: str) -> str:
    """The path of a DID below a storage's prefix: `scope/h2/h2/encoded`; the same for ever, and no other DID's."""
    check_name(name)
    return _derive(scope, name, _start(scope))


def derived_paths(scope: str, names: Sequence[str]) -> list[str]:
    """The derived path of each name, in order. InvalidInput when the scope or a name is not valid."""
    start = _start(scope)
    check_names(names)
    return [_derive(scope, name, start) for name in names]


@lru_cache(maxsize=256)
def _start(scope: str) -> "hashlib._Hash":
    """What has digested `scope:`; whoever goes on takes a copy. InvalidInput when it is no scope."""
    check_scope(scope)
    return hashlib.md5(f"{scope}:".encode("ascii"), usedforsecurity=False)


def from_derived_path(path: str) -> tuple[str, str]:
    """The (scope, name) whose derived path this is; InvalidInput for every other path, however similar."""
    scope, _, rest = path.partition("/")
    encoded = rest[6:].replace("+/", "")
    name = unquote(encoded, errors="surrogateescape")
    if _SCOPE.fullmatch(scope) and _is_name(name) and derived_path(scope, name) == path:
        return scope, name
    raise InvalidInput(
        f"{shown(path)} is not a path that dlm derives from a DID",
        field="path",
        hint="name the file's DID and give its path explicitly",
    )


def shown(text: str, around: int = 0) -> str:
    """The text in quotes for a message: what does not print is escaped, and at most 80 characters of it are kept."""
    start = max(0, min(around - _SHOWN_CHARACTERS // 2, len(text) - _SHOWN_CHARACTERS))
    part = text[start : start + _SHOWN_CHARACTERS]
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in part)
    return "'" + "…" * (start > 0) + escaped + "…" * (start + len(part) < len(text)) + "'"


def _is_name(name: str) -> bool:
    """True when check_name has no objection."""
    try:
        check_name(name)
    except InvalidInput:
        return False
    return True


def _check_text(noun: str, text: str, max_bytes: int, field: str) -> None:
    """Refuse the empty, the oversized, and what cannot be stored or printed as text."""
    if not text:
        raise InvalidInput(f"the {noun} is empty", field=field, hint=f"give a {noun} of 1 to {max_bytes:,} bytes")
    if match := _SURROGATE.search(text):
        _refuse(noun, "a lone surrogate, which is no character", text, match.start(), field, "encode it as UTF-8")
    size_bytes = len(text.encode())
    if size_bytes > max_bytes:
        detail = f"the {noun} {shown(text)} has {size_bytes:,} bytes, at most {max_bytes:,} are allowed"
        raise InvalidInput(detail, field=field, hint="shorten it")
    if match := _CONTROL.search(text):
        _refuse(noun, "a control character", text, match.start(), field, "remove it")


def _check_unicode(name: str, field: str) -> None:
    """Refuse a name that is not in NFC, or that can be mistaken for another."""
    if not unicodedata.is_normalized("NFC", name):
        normal = unicodedata.normalize("NFC", name)
        at = next((i for i, (a, b) in enumerate(zip(name, normal, strict=False)) if a != b), len(normal))
        _refuse("name", "not in Unicode NFC", name, at, field, "normalise the name to NFC")
    if match := _DECEPTIVE.search(name):
        _refuse("name", f"the invisible character U+{ord(match[0]):04X}", name, match.start(), field, "remove it")


def _check_segments(noun: str, text: str, field: str) -> None:
    """Refuse an empty segment (a '/' at an end, or '//'), '.' and '..'."""
    match = _BAD_SEGMENT.search(text)
    if not match:
        return
    what = f"the segment '{match[0]}'" if match[0] else "an empty segment"
    hint = "no '/' at the start or the end, no '//', no segment '.' or '..'"
    _refuse(noun, what, text, match.start(), field, hint)


def _refuse(noun: str, what: str, text: str, at: int, field: str, hint: str) -> None:
    """Raise InvalidInput for the character at index `at`; people count from 1."""
    detail = f"the {noun} {shown(text, at)} is not valid at character {at + 1}: {what}"
    raise InvalidInput(detail, field=field, hint=hint, position=at + 1)


def _derive(scope: str, name: str, start: "hashlib._Hash") -> str:
    """The derived path of a checked name; `start` has digested `scope:` already."""
    digest = start.copy()
    digest.update(name.encode())
    h = digest.hexdigest()
    plain = len(name) <= MAX_COMPONENT_BYTES and _PLAIN_COMPONENT.fullmatch(name)
    encoded = name if plain else "/".join(_components(_encode(name)))
    return f"{scope}/{h[:2]}/{h[2:4]}/{encoded}"


def _encode(name: str) -> str:
    """The name with every byte outside [A-Za-z0-9._-] as %XX."""
    return quote(name, safe="").replace("~", "%7E")


def _components(encoded: str) -> Iterator[str]:
    """The encoded name in components of at most 200 bytes; each but the last ends with '+', none starts with '.'."""
    rest = encoded
    while True:
        if rest.startswith("."):  # else a cut could leave '..', or a hidden file, as a component
            rest = "%2E" + rest[1:]
        if len(rest) <= MAX_COMPONENT_BYTES:
            yield rest
            return
        cut = rest.rfind("%", MAX_COMPONENT_BYTES - 3, MAX_COMPONENT_BYTES - 1)
        if cut < 0:
            cut = MAX_COMPONENT_BYTES - 1
        yield rest[:cut] + "+"
        rest = rest[cut:]
