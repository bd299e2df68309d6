"""The one rule for names of accounts, sites and storages: they stand in expressions, tokens and URLs unquoted."""

from __future__ import annotations

import re

from dlm.errors import InvalidInput, TooLarge

MAX_NAME_CHARACTERS = 64
MAX_TEXT_CHARACTERS = 500
MAX_BATCH = 10_000  # items in one call

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


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
            raise InvalidInput(f"{field} is missing", field=field, hint="say why, in a few words")
        return
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InvalidInput(f"{field} has {len(text):,} characters, at most {MAX_TEXT_CHARACTERS} are allowed", field=field)
    if _UNPRINTABLE.search(text):
        raise InvalidInput(f"{field} holds a control character", field=field, hint="write it in one line of plain text")


def check_batch(number: int, field: str) -> None:
    """Refuse an empty call, and one with more items than one transaction should carry."""
    if number == 0:
        raise InvalidInput(f"{field} is empty", field=field)
    if number > MAX_BATCH:
        raise TooLarge(f"{number:,} items in one call, at most {MAX_BATCH:,} are allowed", field=field, hint="split the call")
