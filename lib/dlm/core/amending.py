"""Changing rules that stand: how long, how urgent, suspended or not, and how many copies.

More copies are placed by the judge as a new rule's are. Fewer: it first makes sure that those that stay are complete,
then releases the others (core/trimming.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.engine import Row

from dlm.core import expression, matching, rules
from dlm.core.authorize import authorize
from dlm.core.placement import Wish
from dlm.db import changes, events, judging, storages
from dlm.db import rules as rows
from dlm.db.engine import Tx
from dlm.errors import Conflict, InvalidInput, QuotaExceeded
from dlm.types import Grouping, RuleState

CHANGEABLE = ("copies", "starts_at", "delay_s", "expires_at", "lifetime_s", "priority", "comment", "suspended", "locked", "activity")


def update(tx: Tx, uuid: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Change copies, lifetime, priority, comment, activity, the lock against cancelling, or suspend and resume.

    Three or four statements, with `copies` seven more. More copies are refused as at declaration (CannotPlace,
    QuotaExceeded, and Conflict naming the rule that has this wish).
    """
    for key in wanted:
        if key not in CHANGEABLE:
            raise InvalidInput(f"{key} cannot be changed", field=key, hint=f"what can: {', '.join(CHANGEABLE)}")
    row = rules.require(tx, uuid, hold=True)
    authorize(tx.actor, "rule.update", owner=row.account)
    if row.state in (RuleState.LETTING_GO, RuleState.GONE):
        raise Conflict(f"rule {uuid} has ended", field="rule", hint="declare it again")
    values = _new_values(tx, row, wanted)
    if not values:
        return rules.get(tx, uuid)
    if values.get("is_suspended") is False and row.is_suspended:
        values["state"] = RuleState.DECLARED.value
        if row.grouping == Grouping.NONE:
            values["place_after"] = 0  # nobody told it of what joined meanwhile, or of other storages
    rows.change(tx, row.id, values)
    if "priority" in values:
        rows.raise_requests(tx, row.id)
    told = values.keys() - {"surplus_after", "place_after"}  # cursors of the judge's say nothing to people
    before, after = ({name: of[name] for name in values if name in told} for of in (row._asdict(), values))
    events.record(tx, "rule", row.id, "changed", before=_plain(before), after=_plain(after))
    changes.wake(tx, "judge")
    return rules.get(tx, uuid)


def _new_values(tx: Tx, row: Row[Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The columns to set; every value checked."""
    probe = rules.Declaration(
        did="", copies=wanted.get("copies"), storages="", priority=wanted.get("priority", 3), comment=wanted.get("comment"),
        lifetime_s=wanted.get("lifetime_s"), expires_at=wanted.get("expires_at"), activity=wanted.get("activity", "default"),
        starts_at=wanted.get("starts_at"), delay_s=wanted.get("delay_s"),
    )  # fmt: skip
    rules.check_wish(probe, "")
    values: dict[str, Any] = {name: wanted[name] for name in ("priority", "comment", "activity") if name in wanted}
    values |= _new_times(tx, row, wanted)
    if "suspended" in wanted:
        values["is_suspended"] = bool(wanted["suspended"])
    if "locked" in wanted:
        values["is_locked"] = bool(wanted["locked"])
    if "copies" in wanted and wanted["copies"] != row.copies:
        values |= _new_copies(tx, row, wanted["copies"])
    return values


def _new_times(tx: Tx, row: Row[Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that another start, end or lifetime sets. What has begun cannot begin again."""
    rules.check_times(tx, wanted.get("starts_at"), wanted.get("delay_s"), wanted.get("expires_at"))
    values: dict[str, Any] = {}
    start = row.starts_at if rules.waits(tx, row) else None
    if "starts_at" in wanted or "delay_s" in wanted:
        if start is None:
            way = "its end can be changed (--lifetime, --expires); to begin again later, cancel it and declare another"
            raise Conflict(f"rule {row.uuid} has begun", field="starts_at" if "starts_at" in wanted else "delay_s", hint=way)
        start = rules.start_of(tx, wanted.get("starts_at"), wanted.get("delay_s"))
        values |= {"starts_at": start, "reason": rules.waits_for(start)}
    if "expires_at" in wanted:
        values["expires_at"] = wanted["expires_at"]
    if "lifetime_s" in wanted:
        lifetime = wanted["lifetime_s"]
        values["expires_at"] = None if lifetime is None else (start or tx.now) + timedelta(seconds=lifetime)
    if values and start is not None:
        _check_end(tx, start, row, values)
    return values


def _check_end(tx: Tx, start: datetime, row: Row[Any], values: Mapping[str, Any]) -> None:
    """Refuse an end before the start. The end stays when the start moves: whether a span or a moment was meant is not known."""
    try:
        rules.check_times(tx, start, None, values.get("expires_at", row.expires_at))
    except InvalidInput as error:
        if error.field == "expires_at" and "expires_at" not in values:
            error.hint = "its end stays where it was: give its lifetime again, too (--lifetime 30d, or forever)"
        raise


def _new_copies(tx: Tx, row: Row[Any], copies: int | None) -> dict[str, Any]:
    """The columns that another number of copies sets. More have to be placed, so the rule is declared again."""
    standing = rows.find_standing(tx, row.did_id, row.account_id, row.expression_id, copies or 0)
    if standing is not None:
        way = f"dlm-admin rule show {standing.uuid}; one of the two is enough: cancel the other"
        raise Conflict(rules.told_standing(tx, standing.uuid, row)[0], field="copies", hint=way, rule=standing.uuid)
    if row.copies is not None and copies is not None and copies < row.copies:
        return {"copies": copies, "surplus_after": 0}
    _check_more(tx, row, copies)
    values: dict[str, Any] = {"copies": copies}
    if row.copies is None or copies is None:  # all that match may be more than N, or fewer
        values["surplus_after"] = None if copies is None else 0
    if row.grouping == Grouping.NONE:
        values["place_after"] = 0
    if row.state in (RuleState.OK, RuleState.REPLICATING, RuleState.STUCK):
        values["state"] = RuleState.DECLARED.value
        if row.reason:
            values["reason"] = None
    return values


def _check_more(tx: Tx, row: Row[Any], copies: int | None) -> None:
    """Refuse more copies than match, or than the account's limit leaves room for; what of `*` is held already may be kept."""
    held = {lock.storage_id for lock in rows.locked_storages(tx, row.id)}
    if row.copies is None and copies is not None and copies <= len(held):
        return
    snapshot = expression.Snapshot(storages.snapshot(tx))
    parsed = expression.parse(row.storages)
    ids = expression.evaluate(parsed, snapshot)
    matching.check(Wish(0, copies, row.spread), (row.storages, parsed), ids, snapshot)
    left = {storage: size for (_, storage), size in judging.quota_left(tx, [row.account_id]).items()}
    roomy = [id_ for id_ in ids - held if left.get(id_) is None or left[id_] >= max(1, row.size_bytes)]
    wanted = len(ids | held) if copies is None else copies
    if len(held) + len(roomy) < wanted:
        raise QuotaExceeded(
            f"{row.size_bytes:,} bytes for each of {wanted} copies: the account's limit leaves room for {len(held) + len(roomy)}",
            field="copies",
            hint="see: dlm-admin account usage",
        )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
    return facts | {"copies": facts["copies"] or "*"} if "copies" in facts else facts
