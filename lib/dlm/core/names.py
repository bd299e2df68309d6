"""The one rule for names of accounts, sites and storages: they stand in expressions, tokens and URLs unquoted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from dlm.errors import InvalidInput, TooLarge
from dlm.types import Page

MAX_NAME_CHARACTERS = 64
MAX_TEXT_CHARACTERS = 500
MAX_BATCH = 10_000  # items in one call
FIRST_PAGE = Page()

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def meant(word: str, known: Iterable[str]) -> str | None:
    """The question whether a known word was meant that is close to the given one; None when none is."""
    by_lower = {candidate.lower(): candidate for candidate in sorted(known)}
    close = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"Did you mean {by_lower[close[0]]!r}?" if close else None


def check_name(name: str, field: str = "name") -> None:
    """Refuse what is no name of an account, a site or a storage."""
    if len(name) <= MAX_NAME_CHARACTERS and _NAME.fullmatch(name):
        return
    hint = f"a letter or digit, then letters, digits, '_' or '-'; at most {MAX_NAME_CHARACTERS}"
    raise InvalidInput(f"{name[:MAX_NAME_CHARACTERS]!r} is not a valid name", field=field, hint=hint)


def check_text(text: str | None, field: str, *, required: bool = False) -> None:
    """Refuse free text that is too long, does not print, or is missing where it is required."""
    if text is None or not text.strip():
        if required:
            hint = "say why, in a few words: --reason TEXT" if field == "reason" else "leave it out, or write a word"
            raise InvalidInput(f"{field} is missing", field=field, hint=hint)
        return
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InvalidInput(
            f"{field} has {len(text):,} characters, at most {MAX_TEXT_CHARACTERS} are allowed", field=field
        )
    if _UNPRINTABLE.search(text):
        raise InvalidInput(f"{field} holds a control character", field=field, hint="write it in one line of plain text")


def check_batch(number: int, field: str) -> None:
    """Refuse an empty call, and one with more items than one transaction should carry."""
    if number == 0:
        raise InvalidInput(f"{field} is empty", field=field)
    if number > MAX_BATCH:
        raise TooLarge(
            f"{number:,} items in one call, at most {MAX_BATCH:,} are allowed", field=field, hint="split the call"
        )


def check_uuid(text: str, noun: str) -> None:
    """Refuse what is no UUID, before the database does it less kindly."""
    if _UUID.fullmatch(text) is None:
        raise InvalidInput(
            f"{text[:MAX_NAME_CHARACTERS]!r} is no id of a {noun}",
            field=noun,
            hint="an id looks like 01234567-89ab-cdef-0123-456789abcdef",
        )


def cursor_id(after: str | None) -> int | None:
    """The row id in an opaque cursor; None for the first page."""
    if after is None:
        return None
    if not (after.isascii() and after.isdecimal() and len(after) < 19):
        raise InvalidInput("this is no cursor", field="after", hint="give back `next` of the page before, as it is")
    return int(after)
