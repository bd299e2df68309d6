"""What tools/bench says of figures: goals, tables, the picture, and what it refuses before it starts anything."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

CHECKOUT = Path(__file__).parents[2]
sys.path.insert(0, str(CHECKOUT / "tools"))

from figures import drawing, report, runner  # noqa: E402  tools/ is no package of dlm
from figures.goals import GOALS, goals_of, verdict  # noqa: E402
from figures.measuring import Figure, Race, Sample, World, _figure, derived, in_unit  # noqa: E402

JUDGE = Figure("judge", 100_000.0, "copies/s", 2_000_000, "bare SQL", 140_000.0, 0.714, 65.0, 60, 3)
NAMES = {
    *("judge", "judge-none", "judge-present", "interactive", "evaluate", "tangle", "resync", "small-rules", "letgo"),
    *("conveyor", "transfer", "reaper", "latency", "list", "expression", "rest", "register", "judges"),
}


def test_every_figure_with_a_goal_is_among_the_figures() -> None:
    for name in GOALS:
        assert any(name == figure or name.startswith((f"{figure}-", f"{figure} ")) for figure in runner.FIGURES), name
    assert set(runner.FIGURES) >= NAMES


def test_each_goal_has_its_mark() -> None:
    assert verdict(JUDGE) == "✓ ratio ≥ 0.6, ✓ copies/s ≥ 60000, ✓ MB ≤ 200"
    assert verdict(replace(JUDGE, ratio=0.5)) == "✗ ratio ≥ 0.6, ✓ copies/s ≥ 60000, ✓ MB ≤ 200"
    assert report.missed([JUDGE, replace(JUDGE, ratio=0.5)]) == ["judge (2,000,000)"]


def test_a_goal_for_large_figures_is_not_set_for_small_ones() -> None:
    assert verdict(replace(JUDGE, n=2000)) == "✓ MB ≤ 200"


def test_the_longest_name_holds() -> None:
    rest = replace(JUDGE, figure="small-rules-rest p99", unit="ms", value=61.0)
    assert verdict(rest) == "✗ ms ≤ 60"
    assert verdict(replace(rest, figure="small-rules-rest p50")) == ""


def test_statements_are_counted_per_unit_of_work() -> None:
    conveyor = Figure("conveyor", 6000.0, "requests/s", 100_000, "bare SQL", 9000.0, 0.6, 80.0, 12_000)
    assert verdict(conveyor) == "✓ requests/s ≥ 5000, ✗ stmts each ≤ 0.1"


def test_a_rate_a_time_and_a_time_per_file() -> None:
    assert (in_unit("files/s", 2.0, 1000), in_unit("ms", 0.5, 1000), in_unit("µs/file", 2.0, 1000)) == (500, 500, 2000)
    assert in_unit("MB", 81.5, 1000) == 81.5


def test_a_figure_is_the_median_and_says_of_how_many_runs() -> None:
    race = Race("list", "files/s", World("w", lambda place: None), lambda place: None, "bare", units={"first": "ms"})
    own = [Sample({"": seconds, "first": seconds / 10}, seconds, 50 + seconds, 12) for seconds in (1.0, 4.0, 2.0)]
    theirs = [Sample({"": 1.0}, 1.0, 50, 1)] * 3
    whole = _figure(race, "", 100, own, theirs)
    assert (whole.value, whole.yardstick_value, whole.ratio, whole.runs, whole.peak_rss_mb) == (50, 100, 0.5, 3, 54)
    first = _figure(race, "first", 100, own, theirs)
    assert (first.figure, first.value, first.unit, first.yardstick) == ("list first", 200, "ms", "none")


def test_derived_figures_are_above_one_when_ahead() -> None:
    assert derived("flat", replace(JUDGE, value=50.0), JUDGE, "").ratio == 0.001
    slow = replace(JUDGE, unit="s", value=4.0)
    assert derived("rules", slow, replace(slow, value=2.0), "one").ratio == 0.5


def test_the_table_shows_the_newest_of_each_figure_and_what_each_cost(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    run = {"run": "2026-11-20", "machine": "x86_64, 2 cores", "postgresql": "18.6", "load": "0.1", "files": 100_000}
    for record in (
        run,
        report.as_record(replace(JUDGE, value=1.0)),
        report.as_record(JUDGE),
        {"took_s": {"judge": 61.2}},
    ):
        report.append(path, record)
    assert report.markdown(path).splitlines() == [
        "2026-11-20, x86_64, 2 cores, PostgreSQL 18.6, load 0.1 at the start.",
        "",
        "| figure | n | dlm | yardstick | ratio | goal |",
        "|---|--:|--:|--:|--:|---|",
        "| `judge` | 2,000,000 | 100,000 copies/s | 140,000, bare SQL | 0.71 |"
        " ✓ ratio ≥ 0.6, ✓ copies/s ≥ 60000, ✓ MB ≤ 200 |",
        "",
        "Seconds that each took, worlds, yardsticks and checks included: judge 61; together 61.",
    ]


def test_a_line_for_machines_says_whether_the_goals_are_met() -> None:
    assert report.as_record(JUDGE)["is_met"] is True
    assert report.as_record(replace(JUDGE, ratio=0.1))["is_met"] is False
    assert report.as_record(replace(JUDGE, figure="verify"))["is_met"] is None
    assert goals_of(replace(JUDGE, figure="judgement")) == []


def test_the_picture_is_svg_with_a_line_and_a_label_for_each_series(tmp_path: Path) -> None:
    curve = [
        Figure(f"curve {name}", value * size**0.1, "µs/file", size, "none", 0.0, 0.0, 60.0, 10)
        for name, value in (("judge", 20.0), ("register", 15.0))
        for size in (1000, 10_000, 100_000)
    ]
    drawing.write(tmp_path / "x.svg", [*curve, JUDGE])
    root = ElementTree.parse(tmp_path / "x.svg").getroot()
    lines = root.findall("{*}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [3, 3]
    labels = [text.text or "" for text in root.findall("{*}text")]
    assert any(label.startswith("judge ") for label in labels) and any(
        label.startswith("register ") for label in labels
    )
    assert {"1 k", "10 k", "100 k"} <= set(labels)
    assert "prefers-color-scheme: dark" in (tmp_path / "x.svg").read_text()


def test_without_a_curve_nothing_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="curve"):
        drawing.write(tmp_path / "x.svg", [JUDGE])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["jugde"], "no figure jugde; there are judge, "),
        (["--files", "5"], "--files: from 1,000"),
        (["--files", "many"], "invalid int value: 'many'"),
        (["--repeat", "0"], "--repeat: at least 1"),
        (["--dir", "/nowhere"], "--dir: /nowhere is no directory"),
        (["--json", "/nowhere/x"], "--json: there is no directory /nowhere"),
        (["--table", "/nowhere"], "--table: there is no file /nowhere"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        runner.main(words)
    assert error.value.code == 2 and said in capsys.readouterr().err
