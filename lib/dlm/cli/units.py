"""How people write and read numbers here: durations, sizes, copies, DIDs, moments."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from dlm import did as codec
from dlm.errors import InvalidInput

SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
FACTORS = {unit.lower(): 1000**power for power, unit in enumerate(DECIMAL)} | {
    f"{letter}ib": 1024**power for power, letter in enumerate("kmgtpe", 1)
}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?\s*(?:min|[smhdw])\s*)+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(min|[smhdw])")
Value = TypeVar("Value")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")


def seconds(text: str) -> float:
    """The seconds that '365d', '12h', '1h30m' or '45' mean."""
    plain = text.strip().lower()
    if plain.replace(".", "", 1).isdigit() and plain.isascii():
        return float(plain)
    if not _DURATION.fullmatch(plain):
        raise InvalidInput(f"{codec.shown(text)} is no duration", hint="e.g. 365d, 12h, 30m, 45s, 1h30m")
    return sum(float(number) * SECONDS[unit] for number, unit in _DURATION_PART.findall(plain))


def size_bytes(text: str) -> int:
    """The bytes that '5GB' (1000³), '5GiB' (1024³) or '5000' mean."""
    match = _SIZE.fullmatch(text.strip())
    unit = match[2].lower() if match else ""
    if not match or (unit or "b") not in FACTORS:
        raise InvalidInput(f"{codec.shown(text)} is no size", hint="e.g. 5GB, 1.5TiB, 500000")
    return round(float(match[1]) * FACTORS[unit]) if unit not in ("", "b") else round(float(match[1]))


def moment(text: str) -> datetime:
    """The moment that an ISO 8601 text means; UTC when it names no offset."""
    try:
        read = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInput(f"{codec.shown(text)} is no moment", hint="e.g. 2027-01-01T00:00:00Z") from error
    return read if read.tzinfo else read.replace(tzinfo=UTC)


# ------------------------------------------------------------------------------------------------ for people


def shown_size(number: int | float | None) -> str:
    """'31.2 TB': decimal units, three digits or so."""
    if number is None:
        return "-"
    value, power = float(number), 0
    while abs(value) >= 999.5 and power < len(DECIMAL) - 1:
        value, power = value / 1000, power + 1
    digits = 0 if power == 0 or abs(value) >= 99.95 else 1
    return f"{value:.{digits}f} {DECIMAL[power]}"


def shown_seconds(number: float | None) -> str:
    """'5 s', '38 min', '5 h 10 min', '3 d 4 h'."""
    if number is None:
        return "-"
    whole = round(number)
    if isinstance(number, float) and abs(number) < 10:
        return f"{number:.1f} s"
    if whole < 120:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours and days < 14 else f"{days} d"


def shown_moment(text: str | None) -> str:
    """'2026-11-03 10:44:08Z' of the ISO text that the API sends."""
    return "-" if text is None else datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def shown_ago(text: str) -> str:
    """'14:02 (38 min)': the moment, and how long ago it is; with its date when it is not today's."""
    at, now = datetime.fromisoformat(text).astimezone(UTC), datetime.now(UTC)
    clock = at.strftime("%H:%M" if at.date() == now.date() else "%Y-%m-%d %H:%M")
    return f"{clock}Z ({shown_seconds(max(0, round((now - at).total_seconds())))})"


def counted(number: int, noun: str) -> str:
    """'1 file', '3,412 files'."""
    if number == 1:
        return f"1 {noun}"
    plural = f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"
    return f"{number:,} {plural}"


# --------------------------------------------------------------------------------------------- as parameters


def _read(read: Callable[[str], Value], text: str, param: click.Parameter | None) -> Value:
    """What `read` makes of the text; its error names the option."""
    try:
        return read(text)
    except InvalidInput as error:
        if param is None:
            raise
        raise InvalidInput(f"{param.opts[-1]}: {error.detail}", field=param.name, hint=error.hint) from error


class Duration(click.ParamType):
    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        return value if isinstance(value, int | float) else _read(seconds, value, param)


class Size(click.ParamType):
    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else _read(size_bytes, value, param)


class Moment(click.ParamType):
    name = "MOMENT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return _read(moment, value, param).isoformat()


class Or(click.ParamType):
    """What another type reads, or one word, which stays as it is."""

    def __init__(self, type_: click.ParamType, word: str) -> None:
        self.type_, self.word, self.name = type_, word, f"{type_.name}|{word}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == self.word else self.type_.convert(value, param, ctx)


class Copies(click.ParamType):
    """A number, or '*' for every storage that matches. Whether it can be kept is the server's to say."""

    name = "N|*"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "*" or isinstance(value, int):
            return value
        try:
            return int(value)
        except ValueError as error:
            raise InvalidInput(
                f"{codec.shown(value)} is no number of copies", field="copies", hint="a number, or '*'"
            ) from error


class Did(click.ParamType):
    """scope:name, checked before anything is sent."""

    name = "DID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        codec.parse(value)
        return str(value)


class KeyValue(click.ParamType):
    """key=value, as a pair."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise InvalidInput(f"{codec.shown(value)} is no key=value", hint="e.g. tier=1")
        return key, text


class Switch(click.ParamType):
    name = "on|off"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        words = {"on": True, "off": False}
        if isinstance(value, bool):
            return value
        if value.lower() not in words:
            raise InvalidInput(f"{codec.shown(value)} is neither on nor off", hint="on or off")
        return words[value.lower()]


DURATION, SIZE, MOMENT, COPIES, DID, KEY_VALUE, SWITCH = (
    Duration(),
    Size(),
    Moment(),
    Copies(),
    Did(),
    KeyValue(),
    Switch(),
)
