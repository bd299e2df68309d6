"""Metadata is bounded JSON, whatever is tried."""

from __future__ import annotations

from typing import Any

import pytest

from dlm.core import metadata
from dlm.errors import InvalidInput


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def test_ordinary_metadata_passes() -> None:
    metadata.check({"run": 7, "tags": ["a", {"b": None}], "text": "a literal \\u0000 is text"}, "metadata")


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"": 1},
        {"k" * 200: 1},
        {7: 1},
        {"a": float("nan")},
        {"a": object()},
        {"a": "\ud800"},
        {"a": "nul\x00"},
        {"a": "\\\x00"},
        {"a": 10**5000},
        {"a": "x" * 70_000},
        nested(100_000),
    ],
)
def test_what_is_no_bounded_json_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        metadata.check(value, "metadata")
    assert caught.value.field == "metadata"


def test_depth_is_limited_to_eight_levels() -> None:
    metadata.check(nested(7), "metadata")
    with pytest.raises(InvalidInput, match="deeper than 8"):
        metadata.check(nested(8), "metadata")
