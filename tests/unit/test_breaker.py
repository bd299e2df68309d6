"""The breaker's arithmetic."""

from __future__ import annotations

import pytest

from dlm.core.breaker import Limits, allowed, budget, trips

LIMITS = Limits(loss_share=0.1, delete_share=0.5, delete_files=1000, floor_files=10, window_s=3600)


@pytest.mark.parametrize(
    ("act", "files", "most"),
    [
        ("loss", 40, 10),  # the floor
        ("loss", 1000, 100),  # the share
        ("loss", 1_000_000, 100_000),  # losses have no absolute limit
        ("delete", 0, 10),
        ("delete", 100, 50),
        ("delete", 1_000_000, 1000),  # the limit in files, whatever the share
    ],
)
def test_what_a_window_allows(act: str, files: int, most: int) -> None:
    assert allowed(act, files, LIMITS) == most


def test_forty_of_three_thousand_lost_files_do_not_open_it() -> None:
    assert trips("loss", 0, 40, 3412, LIMITS) is None


def test_the_reason_has_the_arithmetic() -> None:
    reason = trips("loss", 0, 400, 3412, LIMITS)
    assert reason == "400 of 3,412 files bad or lost within 3,600 s (11.7 %); 341 are allowed (10 % of the storage)"


@pytest.mark.parametrize(("before", "batch"), [(0, 60), (20, 40), (34, 26)])
def test_the_reason_tells_what_was_deleted_and_what_is_held(before: int, batch: int) -> None:
    told = "34 of 68 files deleted within 3,600 s, all that are allowed (50 % of the storage); 26 or more others are held"
    assert trips("delete", before, batch, 68 - before, LIMITS) == told


def test_the_reason_names_the_floor_and_the_limit() -> None:
    assert "all that are allowed (the floor in files); 1 or more others" in str(trips("delete", 0, 11, 12, LIMITS))
    assert "all that are allowed (the limit in files); 1 or more others" in str(trips("delete", 0, 1001, 10**6, LIMITS))


def test_the_share_is_of_the_storage_as_the_window_found_it() -> None:
    """Deleting makes the storage smaller, and must not thereby make the allowance smaller while it is used."""
    assert budget("delete", 0, 100, LIMITS) == 50
    assert budget("delete", 30, 70, LIMITS) == 20
    assert budget("delete", 50, 50, LIMITS) == 0
    assert trips("delete", 50, 1, 50, LIMITS) is not None


def test_a_share_of_one_and_a_high_limit_switch_it_off() -> None:
    limits = Limits(1.0, 1.0, 10**9, 0, 3600)
    assert trips("delete", 0, 500, 500, limits) is None
    assert trips("loss", 0, 500, 500, limits) is None
