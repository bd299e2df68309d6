"""Numbers as people write and read them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dlm.cli import output, progress, units
from dlm.cli.output import Column
from dlm.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("365d", 31_536_000),
        ("12h", 43_200),
        ("30m", 1800),
        ("45s", 45),
        ("1h30m", 5400),
        ("2w", 1_209_600),
        ("90", 90),
        ("1.5h", 5400),
    ],
)
def test_a_duration_is_read(text: str, expected: float) -> None:
    assert units.seconds(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5GB", 5 * 10**9), ("5GiB", 5 * 1024**3), ("500", 500), ("1.5 TB", 1_500_000_000_000), ("2kib", 2048), ("0", 0)],
)
def test_a_size_is_read(text: str, expected: int) -> None:
    assert units.size_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "5 parsecs", "-1d", "d", "1y", "½h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no duration"):
        units.seconds(text)


@pytest.mark.parametrize("text", ["", "5XB", "-1", "1e9", "5 G B", "many"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no size"):
        units.size_bytes(text)


def test_a_moment_without_an_offset_is_utc() -> None:
    assert units.moment("2027-01-01") == datetime(2027, 1, 1, tzinfo=UTC)
    with pytest.raises(InvalidInput):
        units.moment("tomorrow")


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_950, "1.0 MB"),
        (31_200_000_000_000, "31.2 TB"),
        (212e6, "212 MB"),
        (None, "-"),
    ],
)
def test_a_size_is_shown(number: float | None, expected: str) -> None:
    assert units.shown_size(number) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0.31, "0.3 s"),
        (5, "5 s"),
        (90, "90 s"),
        (2280, "38 min"),
        (18_600, "5 h 10 min"),
        (2 * 86_400, "2 d"),
        (273_600, "3 d 4 h"),
    ],
)
def test_a_duration_is_shown(number: float, expected: str) -> None:
    assert units.shown_seconds(number) == expected


def test_things_are_counted() -> None:
    assert [units.counted(number, "file") for number in (0, 1, 3412)] == ["0 files", "1 file", "3,412 files"]
    assert units.counted(2, "copy") == "2 copies"


def test_columns_are_aligned_and_what_steers_a_terminal_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    columns = (Column("NAME", "name"), Column("FILES", "files", is_right=True))
    items = [{"name": "a\x1b[31m", "files": 3}, {"name": "b", "files": 12_000}]
    output.Output(as_json=False).table(items, columns)
    assert capsys.readouterr().out.splitlines() == ["NAME        FILES", "a\\x1b[31m       3", "b          12,000"]


def test_progress_tells_how_much_how_fast_and_how_long() -> None:
    look = progress.Look("copying", 2661, 3412, done_bytes=4_000_000_000, total_bytes=5_060_000_000)
    assert progress.measured(look, 212e6) == "2,661/3,412 files · 4.0 GB/5.1 GB · 212 MB/s · 5 s left"
    assert progress.measured(progress.Look("checking", 10, 0), None) == "10 files"


def test_a_rate_is_that_of_the_last_seconds() -> None:
    rate = progress.Rate()
    assert rate.note(0.0, 0) is None
    assert rate.note(10.0, 100) == 10
    assert rate.note(30.0, 100) == 0
