"""docs/states.md tells every state that exists, and no other."""

from __future__ import annotations

import inspect
import re
from enum import StrEnum

import pytest

from dlm import types
from dlm.db.models import deleting
from pages import DOCS, first_column, sections

PAGE = sections(DOCS / "states.md")
ENUMS = [
    enum for _, enum in inspect.getmembers(types, inspect.isclass) if issubclass(enum, StrEnum) and enum is not StrEnum
]


def section(word: str) -> str:
    return next((text for title, text in PAGE.items() if word in title), "")


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.__name__)
def test_every_state_has_its_line(enum: type[StrEnum]) -> None:
    assert sorted(first_column(section(f"`{enum.__name__}`"))) == sorted(enum)


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.__name__)
def test_every_line_says_something(enum: type[StrEnum]) -> None:
    for line in section(f"`{enum.__name__}`").splitlines():
        if line.startswith("| `"):
            assert all(cell.strip() for cell in line.strip("|").split(" | ")), line


def test_the_states_of_a_check_are_those_the_schema_allows() -> None:
    (constraint,) = deleting.audit.c.state.constraints
    allowed = re.findall(r"'(\w+)'", str(constraint.sqltext))
    assert sorted(first_column(section("Check of a storage"))) == sorted(allowed)
