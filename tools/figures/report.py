"""What comes out: a line per figure for people, JSON lines for machines, and the markdown table of the reference."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from figures.goals import goals_of, verdict
from figures.measuring import Figure

HEADER = (
    f"{'figure':<38}{'dlm':>11}{'yardstick':>11}  {'unit':<11}{'ratio':>6}{'n':>11}{'MB':>5}{'stmts':>8}{'runs':>5}"
    "  goal (yardstick)"
)


def line(figure: Figure) -> str:
    """A figure for people."""
    f = figure
    bare, ratio, beside = "–", "–", ""
    if f.yardstick_value:
        bare, ratio, beside = _number(f.yardstick_value), f"{f.ratio:.2f}", f"({f.yardstick})"
    return (
        f"{f.figure:<38}{_number(f.value):>11}{bare:>11}  {f.unit:<11}{ratio:>6}{f.n:>11,}{f.peak_rss_mb:>5.0f}"
        f"{f.statements:>8,}{f.runs:>5}  {' '.join(filter(None, (verdict(f), beside)))}"
    ).rstrip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


def seconds_table(took_s: Mapping[str, float]) -> str:
    """What each figure cost, worlds and yardsticks included, and all of them."""
    lines = [f"{name:<38}{seconds:>11,.0f} s" for name, seconds in took_s.items()]
    return "\n".join(["", *lines, f"{'together':<38}{sum(took_s.values()):>11,.0f} s"])


def append(path: Path | None, record: Mapping[str, Any]) -> None:
    """Write one JSON line, where a file is wanted."""
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def as_record(figure: Figure) -> dict[str, Any]:
    """A figure for machines, with its goals and whether all are met (null: none is set)."""
    goals = goals_of(figure)
    met = all(goal.is_met(figure) for goal in goals) if goals else None
    return {**asdict(figure), "goals": [goal.told(figure) for goal in goals], "is_met": met}


def read(path: Path) -> tuple[dict[str, Any], list[Figure], dict[str, float]]:
    """(the last run's facts, the newest of each figure and size in the order of their first, seconds by figure)."""
    run: dict[str, Any] = {}
    took_s: dict[str, float] = {}
    newest: dict[tuple[str, int], Figure] = {}
    names = {field.name for field in fields(Figure)}
    for text in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(text)
        if "run" in record:
            run = record
        elif "took_s" in record:
            took_s |= record["took_s"]
        else:
            figure = Figure(**{name: value for name, value in record.items() if name in names})
            newest[figure.figure, figure.n] = figure
    return run, list(newest.values()), took_s


def markdown(path: Path) -> str:
    """The table of all figures in a file of JSON lines, with the machine above and the seconds below."""
    run, figures, took_s = read(path)
    head = "{run}, {machine}, PostgreSQL {postgresql}, load {load} at the start.\n\n".format(**run) if run else ""
    table = "| figure | n | dlm | yardstick | ratio | goal |\n|---|--:|--:|--:|--:|---|\n"
    return head + table + "\n".join(map(_row, figures)) + "\n" + _seconds(took_s)


def _row(figure: Figure) -> str:
    f = figure
    yardstick = f"{_number(f.yardstick_value)}, {f.yardstick}" if f.yardstick_value else ""
    ratio = f"{f.ratio:.2f}" if f.yardstick_value else ""
    once = " (once)" if f.runs == 1 else ""
    return f"| `{f.figure}` | {f.n:,} | {_number(f.value)} {f.unit}{once} | {yardstick} | {ratio} | {verdict(f)} |"


def _seconds(took_s: Mapping[str, float]) -> str:
    if not took_s:
        return ""
    each = " · ".join(f"{name} {seconds:,.0f}" for name, seconds in took_s.items())
    whole = sum(took_s.values())
    return f"\nSeconds that each took, worlds, yardsticks and checks included: {each}; together {whole:,.0f}.\n"


def missed(figures: Iterable[Figure]) -> list[str]:
    """The names of figures with a goal that is not met."""
    return [f"{f.figure} ({f.n:,})" for f in figures if not all(goal.is_met(f) for goal in goals_of(f))]
