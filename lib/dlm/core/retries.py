"""Retries under an idempotency key: a call that was made before is answered again, another one is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dlm.db import rules
from dlm.db.engine import Tx
from dlm.errors import Conflict

KEY = "idempotency_key"


@dataclass(frozen=True, slots=True)
class Call:
    """What tells a retry of one wish: its key, and the digest of all that its call asks."""

    key: str | None
    digest: bytes | None


def calls(wishes: Sequence[Mapping[str, Any]]) -> list[Call]:
    """The key and digest of each wish of a call; None without a key.

    Of the words as given: a lifetime or an expression would come to something else by the time of the retry.
    """
    asked = [{name: value for name, value in wish.items() if name != KEY and value is not None} for wish in wishes]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=_moment).encode()).digest()
    keys = [wish[KEY] for wish in wishes]
    if len(keys) > 1:  # told apart by their place in the call
        keys = [key and f"{key}#{index}" for index, key in enumerate(keys)]
    return [Call(key, digest if key else None) for key in keys]


def made_before(tx: Tx, account_ids: Sequence[int], calls: Sequence[Call]) -> list[str] | None:
    """The ids of the rules that the first call with these keys made; None when there was none; at most one statement.

    Conflict when it asked for anything else, or for more or fewer rules.
    """
    if not any(call.key for call in calls):
        return None
    found = rules.with_keys(tx, account_ids, [call.key for call in calls])
    other = next((row for row, call in zip(found, calls, strict=True) if row and row.wish_digest != call.digest), None)
    if other is not None:
        raise Conflict("this key was used for another rule", field="Idempotency-Key", rule=other.uuid)
    made = [row.uuid for row in found if row]
    return made if len(made) == len(calls) else None


def _moment(value: datetime) -> str:
    return value.astimezone(UTC).isoformat()
