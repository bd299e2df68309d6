"""Long array parameters as PostgreSQL's own literals.

psycopg adapts a list element by element (0.7 µs each); one joined text costs a third of that, and bulk registration
sends ten columns of ten thousand. The literal is a bound parameter like any other: cast it, `%(names)s::text[]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_TO_ESCAPE = re.compile(r'["\\]')


def integers(values: Iterable[int | None]) -> str:
    """The literal of an integer array; None becomes NULL."""
    return "{" + ",".join(map(str, values)).replace("None", "NULL") + "}"


def numbers(values: Iterable[float]) -> str:
    """The literal of an array of floating-point numbers."""
    return "{" + ",".join(map(repr, values)) + "}"


def booleans(values: Iterable[bool]) -> str:
    """The literal of a boolean array."""
    return "{" + ",".join(map(str, values)) + "}"


def texts(values: Sequence[str | None]) -> str:
    """The literal of a text array; None becomes NULL."""
    if not values:
        return "{}"
    if None in values:
        return "{" + ",".join("NULL" if value is None else _quoted(value) for value in values) + "}"
    plain = '","'.join(values)  # type: ignore[arg-type]
    if plain.count('"') == 2 * (len(values) - 1) and "\\" not in plain:
        return '{"' + plain + '"}'
    return "{" + ",".join(map(_quoted, values)) + "}"  # type: ignore[arg-type]


def _quoted(value: str) -> str:
    return '"' + _TO_ESCAPE.sub(r"\\\g<0>", value) + '"'
