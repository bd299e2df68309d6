"""What the pages point at is there: functions in files, files, other pages and their headings."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pages import CHECKOUT, all_pages

POINTER = re.compile(r"`([\w/.-]+\.py):([\w.]+)`")
FILE = re.compile(r"`((?:lib|tools|tests|docs|etc|bin)/[\w./-]+)`")
WRITTEN_BY_PEOPLE = ("etc/dlm.cfg",)  # a checkout has only its example
LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")


def names_in(path: Path) -> set[str]:
    """The functions, classes, methods and values that a module defines, methods as `Class.method`."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def anchors_of(page: Path) -> set[str]:
    """The anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_every_pointer_leads_to_code(page: Path) -> None:
    wrong = [
        f"{file}:{name}"
        for file, name in POINTER.findall(page.read_text(encoding="utf-8"))
        if not (CHECKOUT / file).is_file() or name not in names_in(CHECKOUT / file)
    ]
    assert wrong == []


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = FILE.findall(page.read_text(encoding="utf-8"))
    assert [name for name in named if not (CHECKOUT / name).exists() and name not in WRITTEN_BY_PEOPLE] == []


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), link
        assert not anchor or anchor in anchors_of(there), link
