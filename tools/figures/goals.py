"""What is wanted of each figure, as one list; `tools/bench` says beside each line whether it is met."""

from __future__ import annotations

from dataclasses import dataclass

from figures.measuring import Figure

AT_LEAST, AT_MOST = "≥", "≤"


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit to something of a figure, set for figures of at least `least_n` units of work."""

    what: str  # an attribute of Figure
    how: str
    limit: float
    least_n: int = 0

    def is_met(self, figure: Figure) -> bool:
        value = getattr(figure, self.what)
        return bool(value >= self.limit if self.how == AT_LEAST else value <= self.limit)

    def told(self, figure: Figure) -> str:
        name = {"value": figure.unit, "peak_rss_mb": "MB", "statements_each": "stmts each"}.get(self.what, self.what)
        return f"{name} {self.how} {self.limit:g}"


# The beginning of a figure's name, and its goals. The longest beginning holds.
GOALS: dict[str, tuple[Goal, ...]] = {
    "register": (Goal("ratio", AT_LEAST, 0.4, 100_000),),
    "register-rest": (Goal("value", AT_LEAST, 20_000, 100_000),),
    "register-flat": (Goal("ratio", AT_LEAST, 0.77, 1_000_000),),
    "judge": (
        Goal("ratio", AT_LEAST, 0.6, 200_000),
        Goal("value", AT_LEAST, 60_000, 200_000),
        Goal("peak_rss_mb", AT_MOST, 200),
    ),
    "judge-flat": (Goal("ratio", AT_LEAST, 0.77, 2_000_000),),
    "judge-none": (Goal("ratio", AT_LEAST, 0.3, 200_000),),
    "judge-present": (Goal("value", AT_MOST, 2.0),),
    "judges-speedup": (Goal("ratio", AT_LEAST, 0.8, 200_000),),
    "interactive p99": (Goal("value", AT_MOST, 2000),),
    "evaluate-20-rules": (Goal("value", AT_MOST, 1.0),),
    "evaluate-rules": (Goal("ratio", AT_LEAST, 0.667),),
    "evaluate-dataset": (Goal("ratio", AT_LEAST, 0.667),),
    "tangle-overlaps": (Goal("ratio", AT_LEAST, 0.1, 10_000),),
    "resync": (Goal("value", AT_MOST, 0.05 * 86_400),),
    "small-rules-rest": (Goal("value", AT_LEAST, 800, 1000),),
    "small-rules-rest p50": (),
    "small-rules-rest p99": (Goal("value", AT_MOST, 60, 1000),),
    "small-rules-judged": (Goal("value", AT_LEAST, 1500, 10_000), Goal("statements_each", AT_MOST, 1)),
    "letgo": (Goal("ratio", AT_LEAST, 0.5, 200_000),),
    "conveyor": (Goal("value", AT_LEAST, 5000, 10_000), Goal("statements_each", AT_MOST, 0.1)),
    "transfer-large": (Goal("ratio", AT_LEAST, 0.5, 1000),),
    "transfer-small": (Goal("value", AT_LEAST, 2000, 10_000), Goal("ratio", AT_LEAST, 0.5, 10_000)),
    "transfer-rclone": (Goal("ratio", AT_LEAST, 1.0, 1000),),
    "reaper": (Goal("value", AT_LEAST, 5000, 10_000), Goal("ratio", AT_LEAST, 0.6, 10_000)),
    "latency p50": (Goal("value", AT_MOST, 150),),
    "latency p99": (Goal("value", AT_MOST, 500),),
    "list": (Goal("value", AT_LEAST, 100_000, 100_000),),
    "list-rest": (Goal("value", AT_LEAST, 40_000, 100_000),),
    "list-rest first": (Goal("value", AT_MOST, 100),),
    "list-rest memory": (Goal("ratio", AT_LEAST, 0.9),),
    "expression-cold": (Goal("value", AT_MOST, 5.0),),
    "expression-warm": (Goal("value", AT_MOST, 0.2),),
    "rest memory": (Goal("value", AT_MOST, 300),),
    "rest cpu": (Goal("value", AT_MOST, 1.0),),
}


def goals_of(figure: Figure) -> list[Goal]:
    """The goals that are set for a figure of this name and size."""
    names = [name for name in GOALS if figure.figure == name or figure.figure.startswith(f"{name} ")]
    return [goal for goal in GOALS[max(names, key=len)] if figure.n >= goal.least_n] if names else []


def verdict(figure: Figure) -> str:
    """The figure's goals, each with a tick or a cross; nothing where none is set."""
    return ", ".join(f"{'✓' if goal.is_met(figure) else '✗'} {goal.told(figure)}" for goal in goals_of(figure))
