"""Request bodies as strict JSON: what two readers could understand differently, or what no row can hold, is refused.

Refused are duplicate keys, NaN and Infinity, whole numbers beyond 64 bits, nesting deeper than MAX_DEPTH, NUL, lone
surrogates, and bytes that are not UTF-8. The size is limited by the app before any of it is read.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from flask import Request
from werkzeug.exceptions import UnsupportedMediaType

from dlm.errors import InvalidInput

MAX_DEPTH = 32
NDJSON = "application/x-ndjson"
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")
_MAX_DIGITS = 19


def read_json(request: Request) -> Any:
    """The body, whatever its Content-Type says (curl -d says it is a form); InvalidInput when it is not strict JSON."""
    return parse(_bytes(request))


def read_object(request: Request) -> dict[str, Any]:
    """The body, which must be a JSON object."""
    value = read_json(request)
    if not isinstance(value, dict):
        raise InvalidInput("the body is not a JSON object", field="body")
    return value


def read_lines(request: Request) -> list[Any]:
    """The values of a body with one JSON value a line; empty lines are skipped."""
    lines = [line for line in _bytes(request).splitlines() if line.strip()]
    try:
        return list(parse(b"[" + b",\n".join(lines) + b"]"))
    except InvalidInput:
        return [_line(number, line) for number, line in enumerate(lines, 1)]


def parse(data: bytes) -> Any:
    """The value that `data` spells as strict JSON."""
    if not data.strip():
        raise InvalidInput("the body is empty", field="body", hint="send a JSON object")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_whole,
            parse_float=_real,
        )
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the body is not UTF-8 at byte {error.start + 1}", field="body") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InvalidInput(f"the body is not JSON: {error.msg} at {place}", field="body") from error
    except RecursionError as error:
        raise _too_deep() from error
    _check_depth(value)
    if b"\\u" in data:  # only an escape can bring them in: the decoder and the parser refuse the raw ones
        _check_text(value)
    return value


def _bytes(request: Request) -> bytes:
    if request.content_encoding:
        raise UnsupportedMediaType("bodies are sent uncompressed")
    return request.get_data(cache=False)


def _line(number: int, line: bytes) -> Any:
    try:
        return parse(line)
    except InvalidInput as error:
        raise InvalidInput(f"line {number}: {error.detail}", field="body", hint=error.hint) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidInput(f"the key {twice!r} stands twice in one object", field=twice)
    return made


def _constant(text: str) -> NoReturn:
    raise InvalidInput(f"{text} is no JSON number", field="body")


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > _MAX_DIGITS or not -(2**63) <= (value := int(text)) < 2**63:
        raise InvalidInput(
            f"a number of {len(text)} digits is beyond 64 bits", field="body", hint="-2^63 to 2^63-1 are allowed"
        )
    return value


def _real(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise InvalidInput(f"a number of {len(text)} digits is too large", field="body")
    return value


def _check_depth(value: Any) -> None:
    """Refuse deep nesting, level by level, so that nothing here recurses."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            if node.__class__ is dict or node.__class__ is list
            for child in (node.values() if node.__class__ is dict else node)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> InvalidInput:
    return InvalidInput(f"the body is nested deeper than {MAX_DEPTH} levels", field="body")


def _check_text(value: Any) -> None:
    """Refuse text, keys included, that no row can hold. The depth is checked already."""
    if isinstance(value, str):
        if match := _UNSTORABLE.search(value):
            raise InvalidInput(
                f"the body contains U+{ord(match[0]):04X}, which is no character of a text", field="body"
            )
    elif isinstance(value, dict):
        for key, child in value.items():
            _check_text(key)
            _check_text(child)
    elif isinstance(value, list):
        for child in value:
            _check_text(child)
