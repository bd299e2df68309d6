"""Long work, watched: a bar on a terminal, a line a minute elsewhere. Ctrl-C stops watching, never the work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from dlm.cli.client import Client
from dlm.cli.session import Session
from dlm.cli.units import shown_seconds, shown_size
from dlm.errors import Transient

INTERVAL_S = 0.5
LINE_EVERY_S = 60.0
RATE_OVER_S = 15.0
SILENT_S = 20.0  # a daemon that idles is seen every ten seconds
ASK_EVERY_S = 10.0


@dataclass(slots=True)
class Look:
    """How far something is; `total` 0 is not known yet. `word` is the state, `is_over` ends the watching."""

    word: str
    done: int
    total: int
    noun: str = "files"
    done_bytes: int | None = None
    total_bytes: int | None = None
    is_estimate: bool = False  # the bytes are in proportion to the files
    is_over: bool = False
    text: str = ""  # what people read at the end
    facts: Any = None  # the object for machines


@dataclass(slots=True)
class Rate:
    """How fast it goes, over the last seconds."""

    seen: list[tuple[float, int]] = field(default_factory=list)

    def note(self, now: float, amount: int) -> float | None:
        """The rate per second after this observation; None until there are two that differ in time."""
        self.seen.append((now, amount))
        while len(self.seen) > 2 and now - self.seen[1][0] > RATE_OVER_S:
            self.seen.pop(0)
        (then, before) = self.seen[0]
        return (amount - before) / (now - then) if now > then else None


class Display(Protocol):
    def show(self, look: Look, note: str) -> None:
        """Tell how far it is."""


def measured(look: Look, per_second: float | None) -> str:
    """'2,661/3,412 files · 4.0/5.1 GB · 212 MB/s · 5 s left'; the rate counts bytes where they are known."""
    parts = []
    if look.noun != "bytes":
        parts.append(f"{look.done:,}/{look.total:,} {look.noun}" if look.total else f"{look.done:,} {look.noun}")
    if look.total_bytes is not None and look.done_bytes is not None:
        about = "≈ " if look.is_estimate else ""
        parts.append(f"{about}{shown_size(look.done_bytes)}/{shown_size(look.total_bytes)}")
    if per_second is not None and per_second > 0:
        in_bytes = look.total_bytes is not None and look.done_bytes is not None
        left = (look.total_bytes or 0) - (look.done_bytes or 0) if in_bytes else look.total - look.done
        parts.append(f"{shown_size(per_second)}/s" if in_bytes else f"{per_second:,.0f} {look.noun}/s")
        if left > 0:
            parts.append(f"{shown_seconds(round(left / per_second))} left")
    return " · ".join(parts)


class _Share(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{int(task.percentage):3d} %" if task.total else "    ")


class Bar:
    """One line that is drawn over, on standard error of a terminal."""

    def __init__(self) -> None:
        columns = (TextColumn(" {task.description:<12}"), BarColumn(28), _Share(), TextColumn("{task.fields[note]}"))
        self.progress = Progress(*columns, console=Console(stderr=True, highlight=False), transient=True)
        self.task: TaskID = self.progress.add_task("", total=None, note="")

    def show(self, look: Look, note: str) -> None:
        total = look.total or None
        self.progress.update(self.task, description=look.word, completed=look.done, total=total, note=note)


class Lines:
    """One line a minute."""

    def __init__(self, timer: Callable[[], float] = time.monotonic) -> None:
        self.timer = timer
        self.next_at = timer() + LINE_EVERY_S

    def show(self, look: Look, note: str) -> None:
        if self.timer() >= self.next_at and not look.is_over:
            self.next_at = self.timer() + LINE_EVERY_S
            click.echo(f" {look.word:<12} {note}", err=True)


@contextmanager
def display(quiet: bool = False) -> Iterator[Display]:
    """What suits standard error: a bar on a terminal, else lines; with `quiet` lines, too (for machines)."""
    if quiet or not sys.stderr.isatty():
        yield Lines()
        return
    bar = Bar()
    with bar.progress:
        yield bar


class Workers:
    """Those without whom nothing moves: says once, on standard error, when one of them was not seen for a while."""

    def __init__(self, client: Client, names: Sequence[str]) -> None:
        self.client = client
        self.names = names
        self.next_at = 0.0
        self.is_said = False

    def note(self, now: float) -> None:
        """Ask whether they were seen, now and then."""
        if self.is_said or now < self.next_at:
            return
        self.next_at = now + ASK_EVERY_S
        seen = {item["name"]: item["seen_s_ago"] for item in reversed(self.client.get("/daemons")["items"])}
        silent = [name for name in self.names if seen.get(name, SILENT_S + 1) > SILENT_S]
        if silent:
            self.is_said = True
            click.echo(f" {', '.join(_silence(name, seen.get(name)) for name in silent)} → dlm-admin up", err=True)


def _silence(name: str, seen_s_ago: float | None) -> str:
    return f"{name} never seen" if seen_s_ago is None else f"{name} not seen for {shown_seconds(round(seen_s_ago))}"


def watch(
    session: Session, look: Callable[[], Look], timeout_s: float | None = None, workers: Sequence[str] = ()
) -> Look:
    """Look again and again until it is over; the last look, which was also printed. With --json every change is a line.

    Says when one of the `workers` is silent. Ctrl-C says that the work goes on, and ends with status 0; so does the
    timeout, with Transient.
    """
    limit = None if timeout_s is None else time.monotonic() + timeout_s
    needed = Workers(session.client, workers)
    rate, seen = Rate(), None
    try:
        with display(session.as_json) as shown:
            while True:
                last = look()
                amount = last.done if last.done_bytes is None else last.done_bytes
                note = measured(last, rate.note(time.monotonic(), amount))
                if not session.as_json:
                    shown.show(last, note)
                elif last.facts != seen:
                    seen = last.facts
                    session.out.object(last.facts)
                if last.is_over:
                    break
                needed.note(time.monotonic())
                if limit is not None and time.monotonic() >= limit:
                    waited = shown_seconds(timeout_s)
                    raise Transient(
                        f"still {last.word} after {waited}: {note}", hint="the work goes on; watch it again"
                    )
                time.sleep(INTERVAL_S)
    except KeyboardInterrupt:
        session.out.line("not watching any more; the work goes on")
        raise click.exceptions.Exit(0) from None
    session.out.line(last.text)
    return last
