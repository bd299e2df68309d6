"""How a program of dlm ends: the exit status of an error, and the lines that tell it.

0 done · 1 failed or not allowed · 2 the input must be changed · 75 not possible now, the same call may work later
(EX_TEMPFAIL of sysexits.h, which queue runners and schedulers know).
"""

from __future__ import annotations

import json

from dlm.errors import CannotPlace, DlmError, InvalidInput, Transient

OK, FAILED, WRONG_INPUT, TRY_LATER = 0, 1, 2, 75


def status_of(error: DlmError) -> int:
    """The exit status that tells a caller what to do about the error."""
    if isinstance(error, Transient):
        return TRY_LATER
    return WRONG_INPUT if isinstance(error, InvalidInput | CannotPlace) else FAILED


def told(error: DlmError) -> str:
    """One line with what is wrong, and one with the way out where there is one."""
    line = "error: " + " ".join(error.detail.split())
    return f"{line}\n hint: {error.hint}" if error.hint else line


def told_as_json(error: DlmError) -> str:
    """The same as one JSON object on one line."""
    facts = {"error": error.detail, "field": error.field, "hint": error.hint, "exit_status": status_of(error), **error.facts}
    return json.dumps({name: value for name, value in facts.items() if value is not None}, default=str, ensure_ascii=False)
