"""What is wrong with a text that a person wrote, and where: the column, and a line with a caret below it."""

from __future__ import annotations

from dlm.errors import InvalidInput


def invalid(text: str, field: str, at: int, expected: str, hint: str) -> InvalidInput:
    """The error for the index `at`, with the line around it and a caret below."""
    start = max(0, at - 60)
    line = visible(text[start : at + 20])
    caret = f"{line}\n{' ' * (at - start)}^"
    detail = f"column {at + 1}: expected {expected}"
    return InvalidInput(detail, field=field, hint=hint, column=at + 1, expected=expected, caret=caret)


def visible(text: str) -> str:
    """The text with one replacement character for each that does not print, so that columns stay where they are."""
    return "".join(c if c.isprintable() else " " if c in "\t\r\n" else "\ufffd" for c in text)
