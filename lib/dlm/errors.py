"""The error tree, sorted by what the caller does next. The docstring is the default message."""

from __future__ import annotations

from typing import Any


class DlmError(Exception):
    """dlm could not do this."""

    def __init__(self, detail: str = "", *, field: str | None = None, hint: str | None = None, **facts: Any) -> None:
        self.detail = detail or (type(self).__doc__ or "").strip().splitlines()[0]
        self.field = field  # the input to change, as the caller named it
        self.hint = hint  # the way out, one sentence
        self.facts = facts  # machine-readable extras, e.g. the id of the rule that exists already
        super().__init__(self.detail)


class InvalidInput(DlmError):
    """The input is not valid."""


class TooLarge(InvalidInput):
    """The input exceeds a limit."""


class Unauthenticated(DlmError):
    """A valid token is required."""


class Denied(DlmError):
    """The policy does not allow this."""


class NotFound(DlmError):
    """There is no such object."""


class Conflict(DlmError):
    """The state of the object does not allow this."""


class CannotPlace(DlmError):
    """No storage can take what is asked."""


class QuotaExceeded(CannotPlace):
    """The account's limit does not allow this."""


class Transient(DlmError):
    """Not possible at the moment; try again later."""

    def __init__(self, detail: str = "", *, retry_after_s: int = 5, **kwargs: Any) -> None:
        super().__init__(detail, **kwargs)
        self.retry_after_s = retry_after_s


class Unsupported(DlmError):
    """This needs an optional package that is not installed."""


class UnsafeDrop(Exception):
    """A deletion without a valid proof was about to happen. This is a bug and is never caught."""


class StorageError(DlmError):
    """A storage or a mover reported a failure; `error_class` (types.ErrorClass) says what to do next."""

    def __init__(self, error_class: str, detail: str = "", **kwargs: Any) -> None:
        super().__init__(detail or error_class, **kwargs)
        self.error_class = error_class
