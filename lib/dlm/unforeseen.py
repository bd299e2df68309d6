"""The net below the storages: what nobody foresaw there is the failure of one file, and not the end of a daemon.

Adapters translate what they know, and what odd answers make libraries raise (`ODD`). A server can still do what nobody
has thought of; that must not end the process which moves the files of all others, again after each start.
"""

from __future__ import annotations

import logging
from types import TracebackType

from dlm.errors import DlmError, StorageError, UnsafeDrop
from dlm.rooted import shown
from dlm.types import ErrorClass

log = logging.getLogger("dlm.unforeseen")

# Next to its own errors, any library: from numbers, texts and structures that it did not expect in an answer.
ODD = (OSError, ValueError, TypeError, ArithmeticError, LookupError, EOFError)


class netting:  # noqa: N801  reads as a statement
    """Turns an exception inside the block that is none of dlm's into a StorageError, and logs it with its traceback."""

    __slots__ = ("doing",)

    def __init__(self, doing: str) -> None:
        self.doing = shown(doing)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, DlmError | UnsafeDrop):
            log.error("cannot %s: nobody foresaw this", self.doing, exc_info=error)
            detail = f"cannot {self.doing}: {type(error).__name__}: {shown(str(error))}"
            raise StorageError(ErrorClass.IO, detail) from error
