"""What a look at a file means."""

from __future__ import annotations

import dataclasses

import pytest

from dlm.core.audit import Answer, Verdict, found_wrong, judge_bytes, judge_size, needs_read
from dlm.db.audits import Item
from dlm.types import Checksums

ITEM = Item(1, 2, "available", 10, "demo", "f", None, "0badcafe", None, None, 0, None, 0)


def in_state(state: str) -> Item:
    return dataclasses.replace(ITEM, state=state)


@pytest.mark.parametrize(
    ("size", "verdict", "detail"),
    [
        (None, Verdict.LOST, "no file is there"),
        (0, Verdict.BAD, "0 bytes instead of 10"),
        (11, Verdict.BAD, "11 bytes instead of 10"),
        (10, Verdict.PRESENT, ""),
    ],
)
def test_what_the_size_alone_says(size: int | None, verdict: Verdict, detail: str) -> None:
    answer = judge_size(ITEM, size)
    assert (answer.verdict, answer.detail) == (verdict, detail)


def test_the_right_digest_is_good_and_another_tells_both() -> None:
    assert judge_bytes(ITEM, Checksums(adler32="0badcafe")).verdict is Verdict.GOOD
    wrong = judge_bytes(ITEM, Checksums(adler32="1f00d1e5"))
    assert (wrong.verdict, wrong.detail) == (Verdict.BAD, "adler32 1f00d1e5 instead of 0badcafe")


def test_without_a_known_digest_the_first_read_counts() -> None:
    unknown = dataclasses.replace(ITEM, adler32=None)
    assert judge_bytes(unknown, Checksums(adler32="1f00d1e5")).verdict is Verdict.GOOD


@pytest.mark.parametrize(
    ("state", "reads"), [("available", False), ("unverified", False), ("bad", True), ("lost", True)]
)
def test_a_copy_heals_only_by_a_full_read(state: str, reads: bool) -> None:
    assert needs_read(in_state(state), with_checksum=False) is reads
    assert needs_read(in_state(state), with_checksum=True)


def test_what_is_known_to_be_wrong_is_no_news() -> None:
    lost, bad = Verdict.LOST, Verdict.BAD
    news = [Answer(ITEM, lost), Answer(ITEM, bad), Answer(in_state("bad"), lost), Answer(in_state("lost"), bad)]
    old = [Answer(in_state("bad"), bad), Answer(in_state("lost"), lost), Answer(ITEM, Verdict.UNKNOWN)]
    assert found_wrong([*news, *old]) == news
