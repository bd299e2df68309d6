"""Fields of request bodies that take nothing for something else: no text for a number, no 1 for true."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from marshmallow import ValidationError, fields, validate

MAX_BIGINT = 2**63 - 1
MAX_TEXT = 4096


class Whole(fields.Integer):
    """A JSON whole number from `least` to `most`; true is none, and neither is "5"."""

    def __init__(self, least: int = 0, most: int = MAX_BIGINT, **kwargs: Any) -> None:
        super().__init__(strict=True, validate=validate.Range(least, most), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValidationError("a whole number is expected")
        return value


class Number(fields.Float):
    """A JSON number from `least` to `most`."""

    def __init__(self, least: float, most: float, **kwargs: Any) -> None:
        super().__init__(validate=validate.Range(least, most), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValidationError("a number is expected")
        return float(value)


class Flag(fields.Boolean):
    """JSON true or false."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, bool):
            raise ValidationError("true or false is expected")
        return value


class Words(fields.String):
    """A text of `least` to `most` characters; what it must mean is checked by the core."""

    def __init__(self, most: int = MAX_TEXT, least: int = 1, **kwargs: Any) -> None:
        super().__init__(validate=validate.Length(least, most), **kwargs)


class One(fields.String):
    """One word of a fixed list."""

    def __init__(self, words: Any, **kwargs: Any) -> None:
        super().__init__(validate=validate.OneOf([str(word) for word in words]), **kwargs)


class Moment(fields.AwareDateTime):
    """An ISO 8601 moment; without an offset it is UTC."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(format="iso", default_timezone=UTC, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        moment = super()._deserialize(value, attr, data, **kwargs)
        if not datetime(1970, 1, 2, tzinfo=UTC) <= moment <= datetime(9999, 12, 30, tzinfo=UTC):
            raise ValidationError("a moment from 1970 to 9999 is expected")
        return moment


class Document(fields.Dict):
    """A JSON object of any content."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(keys=fields.String(validate=validate.Length(1, 256)), **kwargs)
