"""What a wish asks of the storages there are: refused are expressions, spreads and weights that cannot be meant."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from dlm.core import expression, names
from dlm.core.placement import Wish, weight_of
from dlm.errors import CannotPlace, InvalidInput
from dlm.types import Storage

DOMAINS = ("site", "country", "type", "phase", "name")  # what copies can differ in, besides attributes
Asked = tuple[str, expression.Expression]  # as it was written, and parsed
_WORD = re.compile(r"[A-Za-z0-9_.-]+")


def check(wish: Wish, asked: Asked, ids: Collection[int], snapshot: expression.Snapshot, at: str = "") -> None:
    """Refuse an expression that matches nothing, or fewer storages than copies are asked; and a spread or weight that no
    storage has, or that is no number on one."""
    check_any(asked, ids, snapshot, f"{at}storages")
    matching = [storage for storage in snapshot.storages if storage.id in ids]
    domains = matching if wish.spread is None else {_value(storage, wish.spread) for storage in matching} - {None}
    if wish.spread is not None and not domains:
        raise _nowhere(wish.spread, matching, f"{at}spread")
    _check_weight(wish, matching, f"{at}weight")
    if wish.copies is not None and wish.copies > len(domains):
        known = " ".join(storage.name for storage in matching[:10])
        noun = "storage matches" if len(domains) == 1 else "storages match"
        what = noun if wish.spread is None else f"different values of {wish.spread} among those that match"
        raise CannotPlace(
            f"{wish.copies} copies asked, {len(domains)} {what} ({known})",
            field=f"{at}copies",
            hint="ask for fewer copies, or widen the expression",
        )


def check_any(asked: Asked, ids: Collection[int], snapshot: expression.Snapshot, field: str) -> None:
    """Refuse an expression that matches no storage, with what was probably meant."""
    if ids:
        return
    text, parsed = asked
    hints = expression.check(parsed, snapshot)
    why = "; ".join(hint.text for hint in hints) or "no storage has all that is asked"
    way = _corrected(text, hints, snapshot) or "see: dlm-admin storage list"
    raise CannotPlace(f"no storage matches: {why}", field=field, hint=way)


def _check_weight(wish: Wish, matching: Sequence[Storage], field: str) -> None:
    if wish.weight is None:
        return
    try:
        weights = [weight_of(wish, storage) for storage in matching]
    except InvalidInput as error:
        error.field = field
        raise
    if all(weight is None for weight in weights):
        raise _nowhere(wish.weight, matching, field)


def _nowhere(key: str, matching: Sequence[Storage], field: str) -> CannotPlace:
    """The error for a key that no storage that matches has."""
    keys = {key for storage in matching for key in storage.attributes} | set(DOMAINS)
    hint = names.meant(key, keys) or f"they have {', '.join(sorted(keys))}"
    if "=" in key:
        hint = f"the name of an attribute is wanted, without a value; {hint[0].lower()}{hint[1:]}"
    return CannotPlace(f"no storage that matches has {key!r}", field=field, hint=hint)


def _corrected(text: str, hints: Sequence[expression.Hint], snapshot: expression.Snapshot) -> str | None:
    """What the expression would match with the words that were probably meant; None when that is not known."""
    for hint in reversed(hints):  # from the right, so that the columns before it stay
        word = _WORD.match(text, hint.column - 1)
        if hint.suggestion is None or word is None:
            return None
        text = text[: word.start()] + hint.suggestion + text[word.end() :]
    try:
        number = len(expression.evaluate(expression.parse(text), snapshot))
    except InvalidInput:
        return None
    return f"{text} matches {number}" if hints and number else None


def _value(storage: Storage, key: str) -> str | None:
    return getattr(storage, key) if key in DOMAINS else storage.attributes.get(key)
