"""Every `dlm-admin` and `dlm-daemon` command that a page shows can be typed: its verbs, options and arguments exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from dlm.cli.main import cli as admin
from dlm.core import expression
from dlm.daemons.main import cli as daemon
from pages import CHECKOUT, all_pages, blocks, commands

PROGRAMS = {"dlm-admin": admin, "dlm-daemon": daemon}
INLINE = re.compile(r"`((?:dlm-admin|dlm-daemon) [^`]+)`")
UUID = "01234567-89ab-cdef-0123-456789abcdef"
# What stands for something the reader has to fill in.
PLACEHOLDERS = {"RULE": UUID, "REQUEST": "17", "BREAKER": "3", "DID": "demo:pictures", "DIR": "/tmp", "…": ""}


def shown_commands() -> list[tuple[str, str]]:
    """(page, command) for each that is shown, in blocks and in running text."""
    found = []
    for page in all_pages():
        name = str(page.relative_to(CHECKOUT))
        lines = [
            command for block in blocks(page) if block.language in ("console", "sh") for command in commands(block)
        ]
        lines += INLINE.findall(page.read_text(encoding="utf-8"))
        for line in lines:
            found += [(name, part) for part in parts_of(line) if part.split()[0] in PROGRAMS]
    return sorted(set(found))


def parts_of(line: str) -> list[str]:
    """The single commands of a line: those in $(…), and those around |, &&, ; and &."""
    inner = re.findall(r"\$\(([^()]*)\)", line)
    outer = re.sub(r"\$\([^()]*\)", UUID, line)
    pieces = [piece for text in (outer, *inner) for piece in re.split(r"\s*(?:\|\||&&|;|\s\|\s|&\s*$|  ·  )\s*", text)]
    pieces = [re.sub(r"^(?:\w+=|\w+=\$\()", "", piece.strip()) for piece in pieces]
    return [piece for piece in pieces if piece and not piece.startswith("#")]


def resolve(words: list[str]) -> tuple[click.Command, list[str], click.Context]:
    """The command that the words name, what is left for it to parse, and its context."""
    command: click.Command = PROGRAMS[words[0]]
    context = click.Context(command, info_name=words[0])
    left = words[1:]
    while isinstance(command, click.Group) and not {"--help", "--version"} & set(left[:1]):
        parser_left = left
        if left and left[0].startswith("-"):
            _, parser_left, _ = command.make_parser(context).parse_args(list(left))
        name, found, left = command.resolve_command(context, parser_left)
        assert found is not None, f"{' '.join(words)}: no {name}"
        command, context = found, click.Context(found, info_name=name, parent=context)
    return command, left, context


@pytest.mark.parametrize(("page", "line"), shown_commands(), ids=lambda text: text[:60])
def test_a_command_that_is_shown_can_be_typed(page: str, line: str) -> None:
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line.split(" > ")[0], comments=True)]
    command, left, context = resolve([word for word in words if word])
    options, arguments, _ = command.make_parser(context).parse_args(list(left))
    if {"--help", "-h"} & set(left):
        return
    known = {param.name: param for param in command.params}
    for name, value in options.items():
        if known[name].required and isinstance(known[name], click.Argument):
            assert value, f"{page}: {line} lacks {name}"


@pytest.mark.parametrize(("page", "line"), shown_commands(), ids=lambda text: text[:60])
def test_an_expression_that_is_shown_is_valid(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    for option, value in zip(words, words[1:], strict=False):
        if option in ("--on", "--sources") and value != "…":
            expression.parse(value)


def test_pages_are_found() -> None:
    assert Path(CHECKOUT / "README.md") in all_pages()
    assert len(shown_commands()) > 30
