"""What commands print: tables and facts for people, JSON lines for machines.

Colour goes to a terminal only: click takes it away elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import click

Item = Mapping[str, Any]
MEASURED = 500  # rows that decide how wide the columns are; the rest streams
GAP = "  "

COLOURS = {
    "ok": "green",
    "available": "green",
    "done": "green",
    "fine": "green",
    "warn": "yellow",
    "replicating": "yellow",
    "copying": "yellow",
    "unverified": "yellow",
    "queued": "yellow",
    "active": "yellow",
    "running": "yellow",
    "stuck": "red",
    "impossible": "red",
    "parked": "red",
    "bad": "red",
    "lost": "red",
    "fail": "red",
    "stopped": "red",
    "unavailable": "red",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its head, and how an item's cell reads (a key, or a function of the item)."""

    head: str
    cell: str | Callable[[Item], str]
    is_right: bool = False

    def text(self, item: Item) -> str:
        value = item.get(self.cell) if isinstance(self.cell, str) else self.cell(item)
        return plain(value)


def plain(value: Any) -> str:
    """A value as people read it; text of others goes to a terminal, so what does not print is escaped."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return " ".join(plain(item) for item in value)
    if isinstance(value, Mapping):
        return " ".join(f"{key}={plain(item)}" for key, item in value.items())
    return safe(str(value))


def safe(text: str) -> str:
    """The text without anything that would steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def coloured(text: str, word: str | None = None) -> str:
    """The text in the colour of the state it names (or of `word`)."""
    colour = COLOURS.get((word or text).strip())
    return click.style(text, fg=colour) if colour else text


class Output:
    """Prints for people, or for machines where --json was given."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def line(self, text: str = "") -> None:
        """One line for people; nothing for machines."""
        if not self.as_json:
            click.echo(text)

    def object(self, item: Any) -> None:
        """One JSON object on one line, for machines; nothing for people."""
        if self.as_json:
            click.echo(json.dumps(item, ensure_ascii=False))

    def said(self, text: str, item: Any) -> None:
        """The line for people, or the object for machines."""
        self.line(text)
        self.object(item)

    def facts(self, item: Item, labels: Iterable[tuple[str, Any]]) -> None:
        """The item for machines; label and value in two aligned columns for people, those that are None left out."""
        self.object(item)
        pairs = [(label, value) for label, value in labels if value is not None]
        width = max((len(label) for label, _ in pairs), default=0)
        for label, value in pairs:
            self.line(f"{label:<{width}}  {coloured(plain(value))}")

    def table(self, items: Iterable[Item], columns: Sequence[Column], empty: str = "") -> None:
        """The items as a table or as JSON lines. `empty` is what people read when there are none."""
        if self.as_json:
            for item in items:
                self.object(item)
            return
        is_empty = True
        for text in _lines(iter(items), columns):
            click.echo(text)
            is_empty = False
        if is_empty and empty:
            click.echo(empty)


def _lines(items: Iterator[Item], columns: Sequence[Column]) -> Iterator[str]:
    """The head and a line for each item, aligned by the first of them; nothing when there are no items."""
    first = [[column.text(item) for column in columns] for item in islice(items, MEASURED)]
    if not first:
        return
    heads = [column.head for column in columns]
    widths = [max(len(row[index]) for row in [heads, *first]) for index in range(len(columns))]
    yield click.style(_line(heads, widths, columns), dim=True)
    for row in chain(first, ([column.text(item) for column in columns] for item in items)):
        yield _line(row, widths, columns)


def _line(cells: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    aligned = [
        coloured(f"{cell:>{width}}" if column.is_right else f"{cell:<{width}}", cell)
        for cell, width, column in zip(cells, widths, columns, strict=True)
    ]
    return GAP.join(aligned).rstrip()
