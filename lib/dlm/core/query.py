"""Filters: which DIDs are asked for, by what is said about them. Rucio's language, and a little beyond it.

    filter    := all (';' all)*                    any of them
    all       := condition (',' condition)*        every one of them
    condition := KEY                               the DID has this key
               | KEY compare VALUE
               | VALUE order KEY order VALUE       1 < run <= 2
    compare   := '=' | '!=' | order
    order     := '<' | '<=' | '>' | '>='

A word that is a number compares with numbers only, true and false with booleans; any other compares exactly with
texts, before and after by the order of code points, as dates in ISO form have it. '*' stands for any text, with = and
!= only. What stands in quotes ('…' or "…", no escapes) is a literal text, and goes together with words beside it:
`"a b"*`. White space between tokens means nothing. `key!=value` holds where the key exists and differs.

dlm's own keys are name, kind, size_bytes, files (Rucio's length) and created_at, also as `created_after=TIME` and
`created_before=TIME`, with that moment; a time without a zone is UTC. In quotes a key is always one of the metadata.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import NoReturn

from dlm.core.caret import invalid, visible
from dlm.types import Condition, DidKind, Query

MAX_CHARACTERS = 4096
MAX_CONDITIONS = 64
MAX_DIGITS = 400  # before or after the point: every double has fewer

_ALIASES: Mapping[str, str] = {"length": "files"}
_SINCE: Mapping[str, str] = {"created_after": ">=", "created_before": "<="}
_BUILT_IN = frozenset({"name", "kind", "size_bytes", "files", "created_at"})
_TURNED: Mapping[str, str] = {"=": "=", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SPACE = re.compile(r"[ \t\r\n]*")
_TOKEN = re.compile(
    r"""(?P<mark>[,;])|(?P<compare>!=|<=|>=|[=<>])|(?P<text>(?:'[^']*'|"[^"]*"|[^\s,;=<>!'"()&|\\])+)"""
)
_PART = re.compile(r"""'[^']*'|"[^"]*"|[^'"]+""")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_HINTS = {"&": "write ',' for and", "|": "write ';' for or", "!": "write != for is not"}
_EXAMPLE = "an example: type=raw*, 100<run<=200; kind=dataset, created_after=2026-01-01"


def parse(text: str, field: str = "filter") -> Query:
    """The query that the text says. InvalidInput with the column, what was expected, and a line with a caret."""
    if len(text) > MAX_CHARACTERS:
        expected = f"at most {MAX_CHARACTERS:,} characters, found {len(text):,}"
        raise invalid(text, field, MAX_CHARACTERS, expected, _EXAMPLE)
    return _Reader(text, field).query()


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # mark, compare, text, end
    text: str
    at: int

    @property
    def is_word(self) -> bool:
        """True when nothing in it is in quotes."""
        return self.kind == "text" and "'" not in self.text and '"' not in self.text

    @property
    def is_literal(self) -> bool:
        """True for a number or a time, which can be no key."""
        return self.is_word and (_NUMBER.fullmatch(self.text) is not None or _moment(self.text) is not None)

    def pieces(self) -> tuple[str, ...]:
        """The literal texts between its wildcards; one if it has none."""
        pieces = [""]
        for part in _PART.findall(self.text):
            first, *others = [part[1:-1]] if part[0] in "'\"" else part.split("*")
            pieces[-1] += first
            pieces += others
        return pieces[0], *filter(None, pieces[1:-1]), *pieces[1:][-1:]


class _Reader:
    """Turns one text into a query, token by token, so that the leftmost mistake is the one reported."""

    def __init__(self, text: str, field: str) -> None:
        self.text = text
        self.field = field
        self.conditions = 0
        self.token = self._read(0)

    def query(self) -> Query:
        """The whole text; what is said twice counts once."""
        alternatives: list[tuple[Condition, ...]] = []
        current: dict[Condition, None] = {}
        while True:
            current.update(dict.fromkeys(self._condition()))
            mark = self._take()
            if mark.text == ",":
                continue
            alternatives.append(tuple(current))
            current = {}
            if mark.kind == "end":
                return Query(tuple(dict.fromkeys(alternatives)))

    def _condition(self) -> list[Condition]:
        """The condition that starts here, up to its mark or the end; two for a chain."""
        start = self.token
        operands, compares = [self._operand("a key")], []
        while self.token.kind == "compare" and len(operands) < 3:
            compares.append(self._take())
            operands.append(self._operand("a value"))
        if self.token.kind == "compare" or self.token.kind == "text":
            self.fail(self.token.at, "',' or ';' or the end", "put a text with spaces in quotes")
        self.conditions += max(1, len(compares))
        if self.conditions > MAX_CONDITIONS:
            self.fail(start.at, f"at most {MAX_CONDITIONS} conditions")
        if not compares:
            return [self._is_there(start)]
        if len(compares) == 2:
            return self._chain(operands, compares)
        left, right = operands
        if left.is_literal:
            return [self._compared(right, _TURNED[compares[0].text], left, compares[0])]
        return [self._compared(left, compares[0].text, right, compares[0])]

    def _chain(self, operands: list[_Token], compares: list[_Token]) -> list[Condition]:
        """Both conditions of VALUE order KEY order VALUE."""
        low, key, high = operands
        for compare in compares:
            if compare.text in ("=", "!="):
                self.fail(compare.at, "one of < <= > >=: a chain has no other")
        first, second = compares
        return [self._compared(key, _TURNED[first.text], low, first), self._compared(key, second.text, high, second)]

    def _is_there(self, token: _Token) -> Condition:
        """The condition that a key stands for by itself."""
        key, is_built_in = self._key(token)
        if key in _SINCE and is_built_in:
            self.fail(token.at + len(token.text), "'=' and a time")
        return Condition(key, is_built_in=is_built_in)

    def _key(self, token: _Token) -> tuple[str, bool]:
        """(the key, whether it is one of dlm's own)."""
        pieces = token.pieces()
        if len(pieces) > 1 or token.is_literal or not pieces[0]:
            self.fail(token.at, "a key", "a key that holds '*', or is a number or a time, stands in quotes")
        key = _ALIASES.get(pieces[0], pieces[0]) if token.is_word else pieces[0]
        return key, token.is_word and (key in _BUILT_IN or key in _SINCE)

    def _compared(self, token: _Token, op: str, value: _Token, compare: _Token) -> Condition:
        """The condition that the key's value stands in that order to the one given."""
        key, is_built_in = self._key(token)
        if is_built_in and key in _SINCE:
            if op != "=":
                self.fail(compare.at, "'='", f"write {key}=TIME, or compare created_at")
            return Condition("created_at", _SINCE[key], self._time(value), True)
        pieces = value.pieces()
        if len(pieces) > 1:
            return self._pattern(key, op, value, is_built_in)
        if is_built_in and key in ("name", "kind") and op not in ("=", "!="):
            self.fail(compare.at, "'=' or '!='")
        if not is_built_in:
            return Condition(key, op, self._free(value))
        if key == "name":
            return Condition(key, op, pieces[0], True)
        if key == "kind":
            return Condition(key, op, self._kind(value), True)
        return Condition(key, op, self._time(value) if key == "created_at" else self._number(value), True)

    def _pattern(self, key: str, op: str, value: _Token, is_built_in: bool) -> Condition:
        """The condition with wildcards; a wildcard alone asks whether the key is there."""
        pieces = value.pieces()
        star = value.at + value.text.index("*")
        if op not in ("=", "!="):
            self.fail(star, "a value without '*'", "'*' goes with = and != only; in quotes it stands for itself")
        if is_built_in and key != "name":
            self.fail(star, f"a {key.removesuffix('_at')} without '*'")
        if pieces != ("", ""):
            return Condition(key, op, pieces, is_built_in)
        if op == "!=":
            self.fail(star, "a value that something can differ from")
        return Condition(key, is_built_in=is_built_in)

    def _free(self, token: _Token) -> str | Decimal:
        """What metadata is compared with."""
        text = token.pieces()[0]
        if not token.is_word:
            return text
        if _NUMBER.fullmatch(text):
            return self._number(token)
        return text.lower() if text.lower() in ("true", "false") else text

    def _number(self, token: _Token) -> Decimal:
        number = _decimal(token.text) if token.is_word else None
        if number is None:
            self.fail(token.at, f"a number of at most {MAX_DIGITS} digits")
        return number

    def _kind(self, token: _Token) -> str:
        text = token.pieces()[0]
        if text not in set(DidKind):
            self.fail(token.at, "file, dataset or container")
        return text

    def _time(self, token: _Token) -> datetime:
        moment = _moment(token.pieces()[0]) if len(token.pieces()) == 1 else None
        if moment is None:
            self.fail(token.at, "a time", "e.g. 2026-01-31 or 2026-01-31T12:00:00Z")
        return moment

    def _operand(self, expected: str) -> _Token:
        if self.token.kind != "text":
            self.fail(self.token.at, expected)
        return self._take()

    def _take(self) -> _Token:
        """The current token, after moving on to the next."""
        taken = self.token
        self.token = self._read(taken.at + len(taken.text))
        return taken

    def _read(self, at: int) -> _Token:
        """The token at or after the index."""
        space = _SPACE.match(self.text, at)
        at = space.end() if space else at
        if at >= len(self.text):
            return _Token("end", "", len(self.text))
        match = _TOKEN.match(self.text, at)
        if not match and self.text[at] in "'\"":
            self.fail(len(self.text), f"a closing {self.text[at]} for the one in column {at + 1}")
        if not match:
            hint = _HINTS.get(self.text[at], "put a text with other characters in quotes")
            self.fail(at, "a key, a value or an operator", hint)
        wrong = _UNPRINTABLE.search(match[0])
        if wrong:
            self.fail(at + wrong.start(), "a character that prints")
        return _Token(match.lastgroup or "", match[0], at)

    def fail(self, at: int, expected: str, hint: str = _EXAMPLE) -> NoReturn:
        """Raise InvalidInput for the index; says what stands there instead."""
        match = _TOKEN.match(self.text, at)
        found = match[0] if match else self.text[at : at + 1]
        what = f"found '{visible(found[:40])}'" if found else "found the end"
        raise invalid(self.text, self.field, at, f"{expected}, {what}", hint)


def _moment(text: str) -> datetime | None:
    """The moment that the text is in ISO form, or None."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _decimal(text: str) -> Decimal | None:
    """The number that the text is, or None; also for one beyond all that metadata can be compared with."""
    if not _NUMBER.fullmatch(text) or len(text) > MAX_DIGITS:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:  # the exponent has itself too many digits
        return None
    return number if abs(number.adjusted()) <= MAX_DIGITS else None
