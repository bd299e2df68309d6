r"""Storage expressions: which storages a rule may use. Rucio's algebra, and a little beyond it.

    expr    := term (op term)*           every op has the same precedence; from left to right
    op      := '|' union    '&' intersection    '\' difference
    term    := '(' expr ')' | '*' | NAME | KEY compare VALUE
    compare := '=' | '!=' | '<' | '>' | '<=' | '>='

NAME is the storage of that name, or every storage with the attribute NAME=true. VALUE is a word, in which '*' stands
for any text, or is quoted ('…' or "…", no escapes) and then literal. White space between tokens means nothing.
`key!=value` holds where the key exists and its value differs; a storage without the key is in neither `=` nor `!=`
(write `*\key=value` for all the others). '<' and its kin compare numbers, and phases by rank; anything else never
matches. Texts compare exactly, true and false in any case. Unknown keys and names are valid but match nothing:
`check` tells.

A parsed expression is a postfix program, so nothing here recurses. Sets of storages are bits of an integer.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from functools import lru_cache
from itertools import compress
from typing import NoReturn

from dlm.core.caret import invalid, visible
from dlm.errors import InvalidInput
from dlm.types import Phase, Storage

MAX_CHARACTERS = 4096
MAX_TERMS = 512
MAX_DEPTH = 64
MAX_HINTS = 5  # the search for what was meant costs milliseconds per word


class Op(StrEnum):
    UNION = "|"
    BOTH = "&"
    EXCEPT = "\\"


@dataclass(frozen=True, slots=True)
class Everything:
    """The term '*'."""

    column: int = field(default=1, compare=False)


@dataclass(frozen=True, slots=True)
class Named:
    """A storage's own name, or an attribute that is true."""

    name: str
    column: int = field(default=1, compare=False)


@dataclass(frozen=True, slots=True)
class Compare:
    """A key against a value; in a pattern, '*' in the value stands for any text."""

    key: str
    op: str
    value: str
    is_pattern: bool = False
    column: int = field(default=1, compare=False)
    value_column: int = field(default=1, compare=False)


Term = Everything | Named | Compare


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression. Two are equal when their canonical forms are; columns are those of the text parsed."""

    canonical: str
    postfix: tuple[Term | Op, ...] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Hint:
    """A term that matches nothing in this snapshot: where, why, and what may have been meant."""

    column: int
    text: str
    suggestion: str | None = None


def _boolean(value: bool) -> str:
    return "true" if value else "false"


_BUILT_IN: Mapping[str, Callable[[Storage], str | None]] = {
    "name": lambda s: s.name,
    "site": lambda s: s.site,
    "country": lambda s: s.country,
    "type": lambda s: s.type,
    "phase": lambda s: s.phase,
    "free_bytes": lambda s: "inf" if s.free_bytes is None else str(s.free_bytes),
    "readable": lambda s: _boolean(s.can_read),
    "writable": lambda s: _boolean(s.can_write),
    "deletable": lambda s: _boolean(s.can_delete),
    "available": lambda s: _boolean(s.is_available),
}
_BOOLEANS = frozenset({"readable", "writable", "deletable", "available"})
_ALIASES: Mapping[str, str] = {  # Rucio's column names
    "rse": "name",
    "rse_type": "type",
    "country_name": "country",
    "availability_read": "readable",
    "availability_write": "writable",
    "availability_delete": "deletable",
}
RESERVED_KEYS = frozenset(_BUILT_IN) | frozenset(_ALIASES)

_LITERALS = {"1": "true", "true": "true", "0": "false", "false": "false"}
_RANKS = {str(phase): float(rank) for rank, phase in enumerate(Phase)}
_ORDERS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}
_KEY = re.compile(r"[A-Za-z0-9._-]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?inf")
_SPACE = re.compile(r"[ \t\r\n]*")
_TOKEN = re.compile(
    r"""(?P<mark>[|&\\()])|(?P<compare>!=|<=|>=|[=<>])|(?P<word>[A-Za-z0-9._*-]+)"""
    r"""|(?P<quoted>'[^']*'|"[^"]*")"""
)
_A_TERM = "a storage name, key=value, '*' or '('"
_A_VALUE = "a value: letters, digits, '.', '_', '-', '*', or a text in quotes"
_HINTS = {"and": "write '&' for and", "or": "write '|' for or", "==": "write one '='", "&&": "write one '&'"}
_EXAMPLE = r"an example: tier=1&(country=AU|country=ZA)\perth-disk"


# ---------------------------------------------------------------- reading


@lru_cache(maxsize=1024)
def parse(text: str, field: str = "storages") -> Expression:
    """The expression that the text says. InvalidInput with the column, what was expected, and a line with a caret."""
    if len(text) > MAX_CHARACTERS:
        expected = f"at most {MAX_CHARACTERS:,} characters, found {len(text):,}"
        raise invalid(text, field, MAX_CHARACTERS, expected, _EXAMPLE)
    postfix = _Reader(text, field).postfix()
    canonical = _canonical(postfix)
    if len(canonical) > MAX_CHARACTERS:  # an alias can be shorter than the key it stands for
        raise invalid(text, field, 0, f"at most {MAX_CHARACTERS:,} characters in the canonical form", _EXAMPLE)
    return Expression(canonical, postfix)


def canonical(expression: Expression) -> str:
    """The one text for this expression: no white space or needless parentheses, aliases resolved, order kept."""
    return expression.canonical


def check_key(key: str, field: str = "attributes") -> None:
    """Refuse what cannot be the key of a storage's attribute, because no expression could ask for it."""
    if not _KEY.fullmatch(key) or len(key) > 64:
        hint = "1 to 64 letters, digits, '.', '_' or '-'"
        raise InvalidInput(f"{visible(key[:80])!r} cannot be the name of an attribute", field=field, hint=hint)
    if key in RESERVED_KEYS:
        detail = f"{key!r} is a built-in key of every storage, it cannot be an attribute"
        raise InvalidInput(detail, field=field, hint="choose another name")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # mark, compare, word, quoted, end
    text: str
    at: int


class _Reader:
    """Turns one text into a postfix program, token by token, so that the leftmost mistake is the one reported."""

    def __init__(self, text: str, field: str) -> None:
        self.text = text
        self.field = field
        self.token = self._read(0)

    def postfix(self) -> tuple[Term | Op, ...]:
        """The whole text as a program. `waiting` holds what is open: operators and parentheses."""
        output: list[Term | Op] = []
        waiting: list[_Token] = []
        terms = depth = 0
        while True:
            while self.token.text == "(" and self.token.kind == "mark":
                depth += 1
                if depth > MAX_DEPTH:
                    self.fail(self.token.at, f"at most {MAX_DEPTH} parentheses inside each other")
                waiting.append(self._take())
            terms += 1
            if terms > MAX_TERMS:
                self.fail(self.token.at, f"at most {MAX_TERMS} terms")
            output.append(self._term())
            self._settle(output, waiting)
            while self.token.text == ")" and self.token.kind == "mark":
                if not depth:
                    self.fail(self.token.at, "an operator ('|', '&', '\\') or the end")
                depth -= 1
                waiting.pop()
                self._take()
                self._settle(output, waiting)
            if self.token.kind == "end":
                break
            waiting.append(self._operator(depth))
        if depth:
            opened = waiting[-1].at
            self.fail(self.token.at, f"')' for the '(' in column {opened + 1}")
        return tuple(output)

    @staticmethod
    def _settle(output: list[Term | Op], waiting: list[_Token]) -> None:
        """Apply the operator that waited for the operand just completed: one precedence, left to right."""
        if waiting and waiting[-1].text != "(":
            output.append(Op(waiting.pop().text))

    def _operator(self, depth: int) -> _Token:
        if self.token.kind != "mark" or self.token.text == "(":
            closing = " or ')'" if depth else " or the end"
            self.fail(self.token.at, f"an operator ('|', '&', '\\'){closing}")
        return self._take()

    def _term(self) -> Term:
        """One term that is not in parentheses."""
        start = self.token
        if start.kind not in ("word", "quoted"):
            self.fail(start.at, _A_TERM)
        if start.kind == "word" and "*" in start.text and start.text != "*":
            self.fail(start.at + start.text.index("*"), "a name without '*'", f"write name={start.text}")
        self._take()
        if start.kind == "quoted":
            return Named(_fold(start.text[1:-1]), start.at + 1)
        if start.text == "*":
            return Everything(start.at + 1)
        if self.token.kind != "compare":
            return Named(_fold(start.text), start.at + 1)
        return self._comparison(start)

    def _comparison(self, key: _Token) -> Compare:
        """The comparison whose key has been read; aliases and literals in their canonical form."""
        compare = self._take()
        value = self.token
        if value.kind not in ("word", "quoted"):
            self.fail(value.at, _A_VALUE)
        name = _ALIASES.get(key.text, key.text)
        is_pattern = value.kind == "word" and "*" in value.text
        text = _fold(value.text[1:-1] if value.kind == "quoted" else re.sub(r"\*+", "*", value.text))
        if name == "phase" or key.text == "rse_type":
            text = text.lower()
        if name in _BOOLEANS and not is_pattern:
            if text not in _LITERALS:
                self.fail(value.at, "true, false, 1 or 0")
            text = _LITERALS[text]
        self._take()
        return Compare(name, compare.text, text, is_pattern, key.at + 1, value.at + 1)

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
        if not match and self.text[at].isprintable():
            self.fail(at, "a name, a value or an operator", "put a value with other characters in quotes")
        if not match or not match[0].isprintable():
            wrong = next(i for i, c in enumerate(self.text[at:]) if not c.isprintable())
            self.fail(at + wrong, "a character that prints")
        return _Token(match.lastgroup or "", match[0], at)

    def fail(self, at: int, expected: str, hint: str | None = None) -> NoReturn:
        """Raise InvalidInput for the index; says what stands there instead."""
        match = _TOKEN.match(self.text, at)
        found = match[0] if match else self.text[at : at + 1]
        what = f"found '{visible(found[:40])}'" if found else "found the end"
        hint = hint or _HINTS.get(found.lower()) or _HINTS.get(self.text[at - 1 : at + 1]) or _EXAMPLE
        raise invalid(self.text, self.field, at, f"{expected}, {what}", hint)


def _fold(text: str) -> str:
    """The text, with true and false in lower case."""
    return text.lower() if text.lower() in ("true", "false") else text


# ---------------------------------------------------------------- writing


def _canonical(postfix: Sequence[Term | Op]) -> str:
    """The text of a program. Each part carries the operators at its own level, to know which parentheses matter."""
    stack: list[tuple[str, frozenset[Op]]] = []
    for item in postfix:
        if not isinstance(item, Op):
            stack.append((_term_text(item), frozenset()))
            continue
        right, inner = stack.pop()
        left, outer = stack.pop()
        is_associative = item is not Op.EXCEPT and inner <= {item}
        if inner and not is_associative:
            right, inner = f"({right})", frozenset()
        stack.append((f"{left}{item}{right}", outer | inner | {item}))
    return stack[0][0]


def _term_text(term: Term) -> str:
    """The canonical text of a term."""
    if isinstance(term, Everything):
        return "*"
    if isinstance(term, Named):
        return _quoted(term.name)
    return f"{term.key}{term.op}{term.value if term.is_pattern else _quoted(term.value)}"


def _quoted(text: str) -> str:
    """The literal text, in quotes only if it needs them; no value can hold both kinds."""
    if _KEY.fullmatch(text):
        return text
    return f'"{text}"' if "'" in text else f"'{text}'"


# ---------------------------------------------------------------- evaluating


class Snapshot:
    """Storages as they are at one moment, indexed by key as expressions ask. Evaluate many expressions against one."""

    def __init__(self, storages: Sequence[Storage]) -> None:
        self.storages = tuple(storages)
        self.ids = tuple(storage.id for storage in self.storages)
        self.everything = (1 << len(self.storages)) - 1
        self._indexes: dict[str, dict[str, int]] = {}

    def index(self, key: str) -> dict[str, int]:
        """Each value of the key, with the storages that have it as bits."""
        if key in self._indexes:
            return self._indexes[key]
        read = _BUILT_IN.get(key, lambda storage: storage.attributes.get(key))
        index: dict[str, int] = {}
        for position, storage in enumerate(self.storages):
            value = read(storage)
            if value is not None:
                value = _fold(value)
                index[value] = index.get(value, 0) | 1 << position
        if index:  # a key that nobody has costs nothing to look for again, and could be any text
            self._indexes[key] = index
        return index

    def select(self, bits: int) -> frozenset[int]:
        """The storage ids of the bits."""
        return frozenset(compress(self.ids, map(int, reversed(f"{bits:b}"))))


def evaluate(expression: Expression, storages: Snapshot | Sequence[Storage]) -> frozenset[int]:
    """The ids of the storages that match."""
    snapshot = storages if isinstance(storages, Snapshot) else Snapshot(storages)
    stack: list[int] = []
    for item in expression.postfix:
        if not isinstance(item, Op):
            stack.append(_bits(item, snapshot))
            continue
        right = stack.pop()
        if item is Op.UNION:
            stack[-1] |= right
        elif item is Op.BOTH:
            stack[-1] &= right
        else:
            stack[-1] &= ~right
    return snapshot.select(stack[0])


def _bits(term: Term, snapshot: Snapshot) -> int:
    """The storages that match one term."""
    if isinstance(term, Everything):
        return snapshot.everything
    if isinstance(term, Named):
        named = snapshot.index("name").get(term.name, 0)
        return named | snapshot.index(_ALIASES.get(term.name, term.name)).get("true", 0)
    index = snapshot.index(term.key)
    if term.op in _ORDERS:
        return _ordered(term, index)
    if term.is_pattern:
        parts = term.value.split("*")
        equal = _union(bits for value, bits in index.items() if _fits(parts, value))
    else:
        equal = index.get(term.value, 0)
    return equal if term.op == "=" else _union(index.values()) & ~equal


def _ordered(term: Compare, index: Mapping[str, int]) -> int:
    """The storages whose value stands in the asked order to the bound."""
    measure = _RANKS.get if term.key == "phase" else _number
    bound = measure(term.value)
    if bound is None:
        return 0
    holds = _ORDERS[term.op]
    return _union(bits for value, bits in index.items() if (n := measure(value)) is not None and holds(n, bound))


def _union(parts: Iterable[int]) -> int:
    bits = 0
    for part in parts:
        bits |= part
    return bits


def _number(text: str) -> float | None:
    """The number that the text is, or None."""
    return float(text) if _NUMBER.fullmatch(text) else None


def _fits(parts: Sequence[str], text: str) -> bool:
    """True when the text is the parts with anything between them. The leftmost place for each is enough: linear."""
    first, last = parts[0], parts[-1]
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return False
    at, end = len(first), len(text) - len(last)
    for part in parts[1:-1]:
        at = text.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


# ---------------------------------------------------------------- explaining


def check(expression: Expression, storages: Snapshot | Sequence[Storage]) -> list[Hint]:
    """Hints for the terms that match nothing, leftmost first, at most five. Columns are those of the text parsed."""
    snapshot = storages if isinstance(storages, Snapshot) else Snapshot(storages)
    keys = {key for storage in snapshot.storages for key in storage.attributes} | set(_BUILT_IN)
    hints: list[Hint] = []
    for term in expression.postfix:
        if isinstance(term, (Op, Everything)) or _bits(term, snapshot):
            continue
        hints.append(_hint(term, snapshot, keys))
        if len(hints) == MAX_HINTS:
            break
    return hints


def _hint(term: Named | Compare, snapshot: Snapshot, keys: set[str]) -> Hint:
    """Why this term matches nothing."""
    if isinstance(term, Named):
        if term.name in keys or term.name in _ALIASES:
            return _because(f"no storage has {term.name}=true", term.column)
        known = keys | set(snapshot.index("name"))
        return _because(f"'{term.name}' is no storage and no attribute", term.column, term.name, known)
    if term.key not in keys:
        return _because(f"'{term.key}' is no attribute", term.column, term.key, keys)
    if term.op in _ORDERS and term.key == "phase" and term.value not in _RANKS:
        return _because(f"'{term.value}' is no phase", term.value_column, term.value, set(_RANKS))
    if term.op in _ORDERS and term.key != "phase" and _number(term.value) is None:
        return _because(f"'{term.value}' is not a number", term.value_column)
    if term.op == "=" and not term.is_pattern:
        known = set(snapshot.index(term.key))
        return _because(f"no storage has {_term_text(term)}", term.value_column, term.value, known)
    return _because(f"no storage has {_term_text(term)}", term.column)


def _because(text: str, column: int, word: str = "", known: set[str] | None = None) -> Hint:
    """The hint, with the known word closest to the given one if one is close."""
    by_lower = {candidate.lower(): candidate for candidate in sorted(known or ())}
    close = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6) if word else []
    where = f"{text} (column {column})"
    if not close:
        return Hint(column, where)
    suggestion = by_lower[close[0]]
    return Hint(column, f"{where}. Did you mean '{suggestion}'?", suggestion)
