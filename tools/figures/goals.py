"""What is wanted of each figure, as one list; `tools/bench` says beside each line whether it is met."""

from __future__ import annotations

from figures.measuring import Figure

AT_LEAST, AT_MOST = "≥", "≤"

# The beginning of a figure's name: (what of it, at least or at most, how much). The longest beginning holds.
GOALS: dict[str, tuple[tuple[str, str, float], ...]] = {
    "register": (("ratio", AT_LEAST, 0.4),),
    "register-rest": (("value", AT_LEAST, 20_000),),
    "register-flat": (("ratio", AT_LEAST, 0.77),),
    "judge": (("ratio", AT_LEAST, 0.6), ("value", AT_LEAST, 60_000), ("peak_rss_mb", AT_MOST, 200)),
    "judge-flat": (("ratio", AT_LEAST, 0.77),),
    "judge-none": (("ratio", AT_LEAST, 0.3),),
    "judge-present": (("value", AT_MOST, 2.0),),
    "interactive p99": (("value", AT_MOST, 2000),),
    "evaluate-20-rules": (("value", AT_MOST, 1.0),),
    "evaluate-rules": (("ratio", AT_LEAST, 0.667),),
    "evaluate-dataset": (("ratio", AT_LEAST, 0.667),),
    "tangle-overlaps": (("ratio", AT_LEAST, 0.1),),
    "resync": (("value", AT_MOST, 0.05 * 86_400),),
    "small-rules-rest": (("value", AT_LEAST, 800),),
    "small-rules-rest-p99": (("value", AT_MOST, 60),),
    "small-rules-judged": (("value", AT_LEAST, 1500),),
    "letgo": (("ratio", AT_LEAST, 0.5),),
    "conveyor": (("value", AT_LEAST, 5000),),
    "transfer-large": (("ratio", AT_LEAST, 0.5),),
    "transfer-small": (("value", AT_LEAST, 2000), ("ratio", AT_LEAST, 0.5)),
    "transfer-rclone": (("ratio", AT_LEAST, 1.0),),
    "reaper": (("value", AT_LEAST, 5000), ("ratio", AT_LEAST, 0.6)),
    "latency p50": (("value", AT_MOST, 150),),
    "latency p99": (("value", AT_MOST, 500),),
    "list": (("value", AT_LEAST, 100_000),),
    "list-rest": (("value", AT_LEAST, 40_000),),
    "list-rest-first": (("value", AT_MOST, 100),),
    "expression-cold": (("value", AT_MOST, 5.0),),
    "expression-warm": (("value", AT_MOST, 0.2),),
    "rest-memory": (("value", AT_MOST, 300),),
    "rest-cpu": (("value", AT_MOST, 1.0),),
}


def verdict(figure: Figure) -> str:
    """The figure's goals, each with a tick or a cross; the yardstick's name where no goal is set."""
    names = [name for name in GOALS if figure.figure == name or figure.figure.startswith(f"{name} ")]
    if not names:
        return f"({figure.yardstick})"
    return ", ".join(_told(figure, *goal) for goal in GOALS[max(names, key=len)])


def _told(figure: Figure, what: str, how: str, limit: float) -> str:
    value = getattr(figure, what)
    is_met = value >= limit if how == AT_LEAST else value <= limit
    name = {"value": figure.unit, "peak_rss_mb": "MB"}.get(what, what)
    return f"{'✓' if is_met else '✗'} {name} {how} {limit:g}"
