"""What may be said about a DID in its metadata: a JSON object of bounded size and depth."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from dlm.errors import InvalidInput, TooLarge

MAX_BYTES = 64 * 1024
MAX_DEPTH = 8
MAX_KEY_CHARACTERS = 128
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # PostgreSQL cannot store it in a JSONB


def check(metadata: Mapping[str, Any], field: str) -> None:
    """Refuse what is no JSON object, or more than a row should carry. Nothing recurses before the depth is known."""
    if not isinstance(metadata, Mapping):
        raise InvalidInput("metadata is an object of keys and values", field=field)
    for key in metadata:
        if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY_CHARACTERS:
            raise InvalidInput(f"a key is a text of 1 to {MAX_KEY_CHARACTERS} characters", field=field)
    _check_depth(metadata, field)
    try:
        text = json.dumps(dict(metadata), allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:  # NaN, no JSON type, a lone surrogate, an absurdly long number
        raise InvalidInput("metadata is not valid JSON", field=field) from error
    if len(text) > MAX_BYTES:
        raise TooLarge(f"metadata has {len(text):,} bytes, at most {MAX_BYTES:,} are allowed", field=field)
    if _NUL.search(text):
        raise InvalidInput("metadata holds a NUL character", field=field)


def _check_depth(value: Any, field: str) -> None:
    """Refuse deep nesting, level by level."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for node in level for item in _inside(node)]
        if not level:
            return
    raise InvalidInput(f"metadata is nested deeper than {MAX_DEPTH} levels", field=field)


def _inside(node: Any) -> list[Any]:
    if isinstance(node, Mapping):
        return list(node.values())
    return list(node) if isinstance(node, list) else []
