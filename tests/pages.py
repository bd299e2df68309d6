"""The pages of docs/ as tests read them: sections, tables, code blocks, pointers into the code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
DOCS = CHECKOUT / "docs"

_FENCE = re.compile(r"^ *```(\w*)\s*$")
_SKIP = re.compile(r"^<!-- not run: (?P<reason>.{10,}) -->$")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, its lines, where it begins, and why no test runs it (None: one does)."""

    language: str
    lines: tuple[str, ...]
    line_number: int
    not_run: str | None


def sections(page: Path) -> dict[str, str]:
    """The text below each second-level heading."""
    parts = re.split(r"^## (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def first_column(text: str) -> list[str]:
    """What stands in backquotes in the first column of the section's tables."""
    return re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order; `<!-- not run: reason -->` above marks one that no test runs."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    start, language = None, ""
    for number, line in enumerate(lines):
        match = _FENCE.match(line)
        if match is None:
            continue
        if start is None:
            start, language = number, match[1]
            continue
        above = next((text for text in reversed(lines[:start]) if text.strip()), "")
        skip = _SKIP.match(above.strip())
        found.append(Block(language, tuple(lines[start + 1 : number]), start + 2, skip["reason"] if skip else None))
        start = None
    assert start is None, f"{page}: the fence of line {start} does not end"
    return found


def commands(block: Block) -> list[str]:
    """The commands of a `sh` block (every line) or a `console` block (after `$ `); continued lines are joined."""
    text = "\n".join(block.lines).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    if block.language == "console":
        return [line[2:].strip() for line in lines if line.startswith("$ ")]
    return [line for line in lines if line and not line.startswith("#")]


def all_pages() -> list[Path]:
    """Every page a person reads: those at the top, and docs/."""
    return sorted([*CHECKOUT.glob("*.md"), *DOCS.rglob("*.md")])
