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
    """One line with what is wrong, and the way out: a question ends that line, a sentence is one of its own."""
    line = "error: " + " ".join(error.detail.split())
    if not error.hint:
        return line
    return f"{line}. {error.hint}" if error.hint.startswith("Did you mean") else f"{line}\n hint: {error.hint}"


def told_as_json(error: DlmError) -> str:
    """The same as one JSON object on one line."""
    told = {"error": error.detail, "field": error.field, "hint": error.hint, "exit_status": status_of(error)}
    facts = {name: value for name, value in {**error.facts, **told}.items() if value is not None}
    return json.dumps(facts, default=str, ensure_ascii=False)
