"""What the tour prints: a line a step, aligned, with its time when that is worth telling."""

from __future__ import annotations

import sys
from pathlib import Path

WORDS = 20  # the column in which a step's text begins
WIDE = 78  # the column before which its time ends
WORTH_TELLING_S = 0.1


def say(text: str = "") -> None:
    print(text, flush=True)


def took(seconds: float) -> str:
    """'1.2 s', '31 s', '4 min'; nothing for what was too fast to notice."""
    if seconds < WORTH_TELLING_S:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def timed(text: str, seconds: float) -> str:
    """The text with its time at the right."""
    time = took(seconds)
    return f"{text}{time:>{max(WIDE - len(text), len(time) + 3)}}" if time else text


def done(step: str, text: str, seconds: float = 0.0) -> None:
    """One line for a step that is done."""
    say(timed(f" ✓ {step:<{WORDS}} {text}", seconds))


def failed(step: str, text: str, hint: str | None, var: Path) -> None:
    """What failed, the way out, and where more is written down; on standard error."""
    print(f" ✗ {step:<{WORDS}} {text}", file=sys.stderr)
    if hint:
        print(f"   hint: {hint}", file=sys.stderr)
    print(f"   logs: {var}/log/web.log, {var}/log/daemons.log", file=sys.stderr, flush=True)
