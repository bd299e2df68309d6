"""The picture of cost against size, drawn by hand as SVG: log-log, readable in light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from figures.measuring import Figure

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "cost-against-size.svg"
PREFIX = "curve "
WIDTH, HEIGHT = 790, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 180, 56, 56
LABEL_PX = 17  # between two labels at the right
COLOURS = (
    ("#0b6bcb", "#6cb6ff"),
    ("#b3401a", "#ff9d76"),
    ("#1a7f37", "#6fdd8b"),
    ("#8250df", "#d2a8ff"),
    ("#8a6100", "#e3b341"),
)
STYLE = """
  .paper { fill: #ffffff } .ink { fill: #1f2328 } .soft { fill: #59636e } .grid { stroke: #d1d9e0; stroke-width: 1 }
  text { font: 13px system-ui, sans-serif } .title { font-size: 15px; font-weight: 600 }
  .line { fill: none; stroke-width: 2.2 }
"""
DARK = ".paper { fill: #0d1117 } .ink { fill: #f0f6fc } .soft { fill: #9198a1 } .grid { stroke: #3d444d }"

Series = Mapping[str, Sequence[tuple[float, float]]]


def write(path: Path, figures: Sequence[Figure]) -> None:
    """Draw the figures of `curve` that are among these; ValueError when there are none."""
    series: dict[str, list[tuple[float, float]]] = {}
    for figure in figures:
        if figure.figure.startswith(PREFIX) and figure.value > 0:
            series.setdefault(figure.figure.removeprefix(PREFIX), []).append((figure.n, figure.value))
    if not series:
        raise ValueError("no figures of `curve` to draw")
    path.write_text(svg({name: sorted(points) for name, points in series.items()}), encoding="utf-8")


def svg(series: Series) -> str:
    """The picture of µs per file against files, one line each."""
    axes = Axes(series)
    parts = [*_frame(axes), *_lines(axes, series)]
    light, dark = [_colours(shade) for shade in zip(*COLOURS, strict=True)]
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    told = "Time per file against the number of files: " + ", ".join(series)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="{escape(told)}">\n'
        f"<style>{STYLE}{light}\n@media (prefers-color-scheme: dark) {{ {DARK}\n{dark} }}</style>\n"
        + "\n".join([*parts, "</svg>\n"])
    )


def _colours(shade: Sequence[str]) -> str:
    return "\n".join(f".c{i} {{ stroke: {colour} }} .f{i} {{ fill: {colour} }}" for i, colour in enumerate(shade))


class Axes:
    """Where a point stands: whole decades in both directions."""

    def __init__(self, series: Series) -> None:
        points = [point for line in series.values() for point in line]
        self.x = _decades([x for x, _ in points])
        self.y = _decades([y for _, y in points])

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - self.x[0]) / (self.x[1] - self.x[0])
        up = (math.log10(y) - self.y[0]) / (self.y[1] - self.y[0])
        width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return round(LEFT + across * width, 1), round(HEIGHT - BOTTOM - up * height, 1)


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _frame(axes: Axes) -> Iterator[str]:
    yield f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>'
    yield f'<text class="ink title" x="{LEFT}" y="28">Time per file, against the number of files</text>'
    left, bottom = axes.at(10 ** axes.x[0], 10 ** axes.y[0])
    right, top = axes.at(10 ** axes.x[1], 10 ** axes.y[1])
    for power in range(axes.x[0], axes.x[1] + 1):
        x, _ = axes.at(10**power, 10 ** axes.y[0])
        yield f'<line class="grid" x1="{x}" y1="{top}" x2="{x}" y2="{bottom}"/>'
        yield f'<text class="soft" x="{x}" y="{bottom + 20}" text-anchor="middle">{_short(10**power)}</text>'
    for power in range(axes.y[0], axes.y[1] + 1):
        _, y = axes.at(10 ** axes.x[0], 10**power)
        yield f'<line class="grid" x1="{left}" y1="{y}" x2="{right}" y2="{y}"/>'
        yield f'<text class="soft" x="{left - 8}" y="{y + 4}" text-anchor="end">{10.0**power:g} µs</text>'
    middle = (left + right) / 2
    yield f'<text class="soft" x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">files in the dataset</text>'


def _short(number: int) -> str:
    for limit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= limit:
            return f"{number // limit} {letter}"
    return str(number)


def _lines(axes: Axes, series: Series) -> Iterator[str]:
    ends = []
    for index, (name, points) in enumerate(series.items()):
        colour = index % len(COLOURS)
        places = [axes.at(x, y) for x, y in points]
        path = " ".join(f"{x},{y}" for x, y in places)
        yield f'<polyline class="line c{colour}" points="{path}"/>'
        for (x, y), (size, value) in zip(places, points, strict=True):
            told = escape(f"{name}: {value:,.1f} µs a file at {size:,.0f} files")
            yield f'<circle class="f{colour}" cx="{x}" cy="{y}" r="4"><title>{told}</title></circle>'
        ends.append((places[-1][1], colour, f"{name} {points[-1][1]:.3g} µs"))
    below = -math.inf
    for y, colour, text in sorted(ends):
        below = max(y + 4, below + LABEL_PX)
        yield f'<text class="f{colour}" x="{WIDTH - RIGHT + 10}" y="{round(below, 1)}">{escape(text)}</text>'
