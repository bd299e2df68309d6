"""Use cases around rules: declare, look at and end them (change: core/amending.py). What a rule needs is the judge's to
find out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from sqlalchemy.engine import Row

from dlm import did as codec
from dlm.core import dids, expression, matching, names, retries
from dlm.core.accounts import id_of
from dlm.core.authorize import authorize
from dlm.core.placement import Wish
from dlm.core.storages import get_storage
from dlm.db import changes, events, judging, rules, storages, tracing
from dlm.db.engine import Tx
from dlm.errors import Conflict, InvalidInput, NotFound, QuotaExceeded, Transient
from dlm.types import Grouping, Page, RuleState

MAX_COPIES = 1000
MAX_COMMENT = 1000
MAX_LIFETIME_S = 1000 * 366 * 86_400
MAX_KEY = 200
OVER = "name a later end; to end a rule now: dlm-admin rule cancel RULE"


@dataclass(frozen=True, slots=True)
class Declaration:
    """A wish, as its user words it. `copies` None is `*`: as many as match."""

    did: str
    copies: int | None
    storages: str
    grouping: str = "dataset"
    spread: str | None = None
    weight: str | None = None
    sources: str | None = None
    starts_at: datetime | None = None
    delay_s: float | None = None
    lifetime_s: float | None = None  # from its start
    expires_at: datetime | None = None
    priority: int = 3
    activity: str = "default"
    account: str | None = None
    comment: str | None = None
    locked: bool = False
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class DeclaredRule:
    id: str  # the public UUID
    did: str
    is_new: bool  # False: the same idempotency key made it before


# --- declaring -------------------------------------------------------------------------------------------------


def declare(
    tx: Tx,
    wishes: Sequence[Declaration],
    calls: Sequence[retries.Call] | None = None,
    request_ids: Sequence[str] | None = None,
) -> list[DeclaredRule]:
    """Write the rules as intent; the judge does the rest. All or none; statements do not grow with their number.

    `calls` tells what was asked, where that is not the wishes themselves; `request_ids` by which requests, if by several.

    Refused here: what is malformed, unknown, matches nothing, asks for more copies than match, repeats a live rule,
    or exceeds a quota by the known size (InvalidInput, NotFound, CannotPlace, Conflict, QuotaExceeded).
    """
    names.check_batch(len(wishes), "rules")
    for index, wish in enumerate(wishes):
        check_wish(wish, _field(wishes, index))
    accounts = {name: id_of(tx, name) for name in sorted({_account(tx, wish) for wish in wishes})}
    for name in accounts:
        authorize(tx.actor, "rule.add", owner=name)
    calls = calls or retries.calls([asdict(wish) | {"account": _account(tx, wish)} for wish in wishes])
    owners = [accounts[_account(tx, wish)] for wish in wishes]
    if (before := _made_before(tx, wishes, owners, calls)) is not None:
        return before  # asked first: what was true when they were made need not be true for the retry
    for index, wish in enumerate(wishes):
        check_times(tx, wish.starts_at, wish.delay_s, wish.expires_at, _field(wishes, index))
    prepared = _prepare(tx, wishes, owners, calls)
    made = rules.add(tx, prepared)
    if None in made:
        if (before := _made_before(tx, wishes, owners, calls)) is not None:
            return before  # another call with the key was faster
        _refuse_standing(tx, wishes, prepared, made)
    answers = [DeclaredRule(row.uuid, wish.did, True) for wish, row in zip(wishes, made, strict=True) if row is not None]
    facts = [(row.id, None, _facts(wish)) for wish, row in zip(wishes, made, strict=True) if row is not None]
    events.record_many(tx, "rule", "declared", facts, request_ids=request_ids)
    changes.wake(tx, "judge")
    return answers


def _field(wishes: Sequence[Declaration], index: int) -> str:
    return f"rules[{index}]." if len(wishes) > 1 else ""


def check_wish(wish: Declaration, at: str) -> None:
    """Refuse what no catalogue is needed to refuse."""
    if wish.copies is not None and not 1 <= wish.copies <= MAX_COPIES:
        raise InvalidInput(f"copies is {wish.copies}", field=f"{at}copies", hint=f"1 to {MAX_COPIES}, or '*' for all that match")
    if wish.grouping not in tuple(Grouping):
        raise InvalidInput(f"{wish.grouping!r} is no grouping", field=f"{at}grouping", hint="all, dataset or none")
    if not 1 <= wish.priority <= 5:
        raise InvalidInput(f"priority is {wish.priority}", field=f"{at}priority", hint="1 (low) to 5 (urgent)")
    _check_moments(wish, at)
    if wish.idempotency_key is not None and not 1 <= len(wish.idempotency_key) <= MAX_KEY:
        raise InvalidInput(f"the key has {len(wish.idempotency_key)} characters", field="Idempotency-Key", hint=f"1 to {MAX_KEY}")
    for key in ("spread", "weight"):
        if (value := getattr(wish, key)) is not None:
            names.check_text(value, f"{at}{key}", required=True)
    names.check_text(wish.comment, f"{at}comment")
    names.check_text(wish.activity, f"{at}activity", required=True)


def _check_moments(wish: Declaration, at: str) -> None:
    """Refuse moments and spans that mean nothing, or too much."""
    if wish.lifetime_s is not None and wish.expires_at is not None:
        raise InvalidInput("both a lifetime and an end are given", field=f"{at}expires_at", hint="give one of them")
    if wish.lifetime_s is not None and wish.lifetime_s <= 0:
        raise InvalidInput(f"a lifetime of {wish.lifetime_s:g} s is over at once", field=f"{at}lifetime_s", hint=OVER)
    if wish.lifetime_s is not None and not wish.lifetime_s <= MAX_LIFETIME_S:
        raise InvalidInput(f"lifetime_s is {wish.lifetime_s}", field=f"{at}lifetime_s", hint="seconds from its start, up to 1000 years")
    if wish.starts_at is not None and wish.delay_s is not None:
        raise InvalidInput("both a start and a delay are given", field=f"{at}delay_s", hint="give one of them")
    if wish.delay_s is not None and not 0 <= wish.delay_s <= MAX_LIFETIME_S:
        raise InvalidInput(f"delay_s is {wish.delay_s:g}", field=f"{at}delay_s", hint="seconds from now, up to 1000 years")
    for key in ("starts_at", "expires_at"):
        if (moment := getattr(wish, key)) is not None and moment.tzinfo is None:
            raise InvalidInput(f"{key} has no time zone", field=f"{at}{key}", hint="e.g. 2027-01-01T00:00:00Z")


def check_times(tx: Tx, starts_at: datetime | None, delay_s: float | None, expires_at: datetime | None, at: str = "") -> None:
    """Refuse a start or an end that is over, an end before the start (the promise would be lost without a word), and a start
    so late that no lifetime can be counted from it."""
    if expires_at is not None and expires_at <= tx.now:
        raise InvalidInput(f"{told(expires_at)} is over: it is {told(tx.now)}", field=f"{at}expires_at", hint=OVER)
    if starts_at is not None and starts_at <= tx.now:
        hint = "to begin at once leave it out; if the rule stands: dlm-admin rule set RULE --starts now"
        raise InvalidInput(f"{told(starts_at)} is over: it is {told(tx.now)}", field=f"{at}starts_at", hint=hint)
    if starts_at is not None and starts_at > tx.now + timedelta(seconds=MAX_LIFETIME_S):
        raise InvalidInput(f"{told(starts_at)} is too far away", field=f"{at}starts_at", hint="up to 1000 years from now")
    start = start_of(tx, starts_at, delay_s)
    if start is not None and expires_at is not None and expires_at <= start:
        detail = f"it would end, at {told(expires_at)}, before it begins, at {told(start)}"
        raise InvalidInput(detail, field=f"{at}expires_at", hint="name a later end, or its lifetime: that counts from the start")


def start_of(tx: Tx, starts_at: datetime | None, delay_s: float | None) -> datetime | None:
    """When a rule begins; None: at once."""
    return tx.now + timedelta(seconds=delay_s) if delay_s else starts_at


def told(at: datetime) -> str:
    """A moment as messages show it: `2027-01-01T00:00:00Z`."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def waits(tx: Tx, row: Row[Any]) -> bool:
    """True while the rule waits for its start: it holds nothing."""
    return bool(row.state == RuleState.DECLARED and row.starts_at is not None and row.starts_at > tx.now)


def waits_for(starts_at: datetime | None) -> str | None:
    """The reason of a rule that waits for its start."""
    return None if starts_at is None else f"begins at {told(starts_at)}"


def _made_before(
    tx: Tx, wishes: Sequence[Declaration], owners: Sequence[int], calls: Sequence[retries.Call]
) -> list[DeclaredRule] | None:
    """What the first call with these keys made; None when there was none."""
    found = retries.made_before(tx, owners, calls)
    if found is None:
        return None
    return [DeclaredRule(uuid, wish.did, False) for wish, uuid in zip(wishes, found, strict=True)]


def _prepare(tx: Tx, wishes: Sequence[Declaration], owners: Sequence[int], calls: Sequence[retries.Call]) -> list[rules.NewRule]:
    """Resolve every name of the wishes, in bulk."""
    refs = [codec.parse(wish.did, f"{_field(wishes, index)}did") for index, wish in enumerate(wishes)]
    found = [dids.get_live(tx, *refs[0])] if len(refs) == 1 else dids.resolve(tx, refs, "rules[{}].did")
    snapshot = expression.Snapshot(storages.snapshot(tx))
    matches: dict[str, Sequence[int]] = {}
    quota = judging.quota_left(tx, sorted(set(owners)))
    canon = []
    for index, (wish, row) in enumerate(zip(wishes, found, strict=True)):
        at = _field(wishes, index)
        parsed = expression.parse(wish.storages, f"{at}storages")
        ids = expression.evaluate(parsed, snapshot)
        matching.check(Wish(0, wish.copies, wish.spread, wish.weight), (wish.storages, parsed), ids, snapshot, at)
        check_quota(wish, row, ids, {k[1]: v for k, v in quota.items() if k[0] == owners[index]}, at)
        source = None
        if wish.sources is not None:
            parsed_source = expression.parse(wish.sources, f"{at}sources")
            source = expression.canonical(parsed_source)
            matches[source] = sorted(expression.evaluate(parsed_source, snapshot))
            matching.check_any((wish.sources, parsed_source), matches[source], snapshot, f"{at}sources")
        canon.append((expression.canonical(parsed), source))
        matches[canon[-1][0]] = sorted(ids)
    expression_ids = rules.ensure_expressions(tx, matches)
    return [
        _row(tx, wish, row.id, owners[index], calls[index], (expression_ids[main], expression_ids[source] if source else None))
        for index, (wish, row, (main, source)) in enumerate(zip(wishes, found, canon, strict=True))
    ]


def _account(tx: Tx, wish: Declaration) -> str:
    return wish.account or tx.actor.account


def _row(tx: Tx, wish: Declaration, did_id: int, account_id: int, call: retries.Call, ids: tuple[int, int | None]) -> rules.NewRule:
    starts_at, expires_at = start_of(tx, wish.starts_at, wish.delay_s), wish.expires_at
    if wish.lifetime_s is not None:
        expires_at = (starts_at or tx.now) + timedelta(seconds=wish.lifetime_s)
    return rules.NewRule(
        did_id=did_id,
        account_id=account_id,
        copies=wish.copies,
        expression_id=ids[0],
        source_expression_id=ids[1],
        grouping=wish.grouping,
        spread=wish.spread,
        weight=wish.weight,
        priority=wish.priority,
        activity=wish.activity,
        comment=wish.comment,
        is_locked=wish.locked,
        starts_at=starts_at,
        reason=waits_for(starts_at),
        expires_at=expires_at,
        idempotency_key=call.key,
        wish_digest=call.digest,
    )


def check_quota(wish: Declaration, did: Row[Any], ids: frozenset[int], left: Mapping[int, int], at: str) -> None:
    roomy = [id_ for id_ in ids if left.get(id_) is None or left[id_] >= did.size_bytes > -1 and left[id_] > 0]
    wanted = len(ids) if wish.copies is None else wish.copies
    if len(roomy) < wanted:
        raise QuotaExceeded(
            f"{did.size_bytes:,} bytes for each of {wanted} copies: the account's limit leaves room on {len(roomy)} of {len(ids)} storages",
            field=f"{at}account",
            hint="see: dlm-admin account usage",
        )


def _refuse_standing(
    tx: Tx, wishes: Sequence[Declaration], new: Sequence[rules.NewRule], made: Sequence[Row[Any] | None]
) -> NoReturn:
    """Conflict naming the rule that the first of the rules not made repeats."""
    index = made.index(None)
    at = _field(wishes, index)
    if new[index].wish in [rule.wish for rule in new[:index]]:
        raise Conflict("the same rule stands twice in this call", field=f"{at}did")
    standing = rules.find_standing(tx, *new[index].wish)
    if standing is None:
        raise Transient("another call declared or ended this rule meanwhile", hint="declare it again")
    detail, differs = told_standing(tx, standing.uuid, new[index])
    way = f"change it: dlm-admin rule set {standing.uuid} --lifetime …" if differs else f"look at it: dlm-admin rule show {standing.uuid}"
    if differs and not differs[-1].startswith("ends"):  # only its end can be changed
        way = f"dlm-admin rule show {standing.uuid}; to have it otherwise, cancel it and declare this one"
    raise Conflict(detail, field=f"{at}did", hint=way, rule=standing.uuid)


def told_standing(tx: Tx, uuid: str, new: rules.NewRule | Row[Any]) -> tuple[str, list[str]]:
    """That a rule asks for this already, in words, and what it has otherwise than the one asked for; one statement."""
    differs = _differences(rules.get(tx, uuid), new)
    return f"rule {uuid} asks for this already" + (f", differently: {', '.join(differs)}" if differs else ""), differs


def _differences(standing: Row[Any] | None, new: rules.NewRule | Row[Any]) -> list[str]:
    """What the standing rule has otherwise than the one asked for, its end last."""
    if standing is None:
        return []
    pairs = [(key, getattr(standing, key), getattr(new, key)) for key in ("spread", "grouping", "weight")]
    differs = [f"{key} {had or 'none'}, not {asked or 'none'}" for key, had, asked in pairs if had != asked]
    if standing.starts_at != new.starts_at:
        differs.append(f"begins {_moment(standing.starts_at, 'at once')}, not {_moment(new.starts_at, 'at once')}")
    if standing.expires_at != new.expires_at:
        differs.append(f"ends {_moment(standing.expires_at, 'never')}, not {_moment(new.expires_at, 'never')}")
    return differs


def _moment(at: datetime | None, without: str) -> str:
    return without if at is None else told(at)


def _facts(wish: Declaration) -> dict[str, Any]:
    return {
        "did": wish.did,
        "copies": wish.copies or "*",
        "storages": wish.storages,
        "grouping": wish.grouping,
        "spread": wish.spread,
        "sources": wish.sources,
        "priority": wish.priority,
    }


# --- looking ---------------------------------------------------------------------------------------------------


def require(tx: Tx, uuid: str, *, hold: bool = False) -> Row[Any]:
    """The rule's row; NotFound when there is none of this id."""
    names.check_uuid(uuid, "rule")
    row = rules.get(tx, uuid, hold=hold)
    if row is None:
        raise NotFound(f"there is no rule {uuid}", field="rule", hint="see: dlm-admin rule list")
    return row


def get(tx: Tx, uuid: str) -> dict[str, Any]:
    """One rule with its progress, JSON-ready; two statements, three of a container."""
    row = require(tx, uuid)
    seen = rules.progress(tx, row.id)
    return shown_many(tx, [row])[0] | {
        "progress": {
            "locks": seen.locks,
            "locks_to_fill": seen.locks_to_fill,
            "files": seen.files,
            "bytes": seen.bytes,
            "files_ok": seen.files_ok,
            "files_stuck": seen.files_stuck,
        }
    }


def shown_many(tx: Tx, rows: Sequence[Row[Any]]) -> list[dict[str, Any]]:
    """Rules' rows as people and machines see them; one statement where a rule is on a container, else none."""
    below = dids.totals_below(tx, [(row.did_id, row.kind) for row in rows])
    return [_shown(row, *below.get(row.did_id, (row.files, row.size_bytes))) for row in rows]


def _shown(row: Row[Any], files: int, size_bytes: int) -> dict[str, Any]:
    return {
        "id": row.uuid,
        "did": f"{row.scope}:{row.name}",
        "kind": row.kind,
        "files": files,
        "size_bytes": size_bytes,
        "account": row.account,
        "copies": row.copies or "*",
        "storages": row.storages,
        "sources": row.sources,
        "grouping": row.grouping,
        "spread": row.spread,
        "weight": row.weight,
        "state": row.state,
        "reason": row.reason,
        "priority": row.priority,
        "activity": row.activity,
        "comment": row.comment,
        "locked": row.is_locked,
        "suspended": row.is_suspended,
        "created_at": row.created_at,
        "state_since": row.state_since,
        "starts_at": row.starts_at,
        "expires_at": row.expires_at,
        "next_judge_at": row.next_judge_at,
        "moves_to": row.moves_to,
        "moves_from": row.moves_from,
    }


def list_rules(
    tx: Tx, *, did: str | None = None, account: str | None = None, state: str | None = None, storage: str | None = None, page: Page = names.FIRST_PAGE
) -> tuple[list[dict[str, Any]], str | None]:
    """Rules, newest first, and the cursor of the next page; those that are gone only when asked for by state."""
    if state is not None and state not in tuple(RuleState):
        raise InvalidInput(f"{state!r} is no state of a rule", field="state", hint=", ".join(RuleState))
    did_id = dids.get(tx, *codec.parse(did)).id if did else None
    storage_id = get_storage(tx, storage).id if storage else None
    before = names.cursor_id(page.after)
    found = rules.list_page(
        tx, did_id=did_id, account=account, state=state, storage_id=storage_id, before_id=before, limit=page.limit + 1
    )
    more = str(found[page.limit - 1].id) if len(found) > page.limit else None
    return shown_many(tx, found[: page.limit]), more


def locks(tx: Tx, uuid: str, page: Page = names.FIRST_PAGE) -> tuple[list[dict[str, Any]], str | None]:
    """What the rule holds where, and the cursor of the next page."""
    row = require(tx, uuid)
    found = rules.locks_page(tx, row.id, _lock_cursor(page.after), page.limit + 1)
    more = f"{found[page.limit - 1].did_id}-{found[page.limit - 1].storage_id}" if len(found) > page.limit else None
    items = [
        {
            "did": f"{lock.scope}:{lock.name}",
            "kind": lock.kind,
            "storage": lock.storage,
            "files": lock.files,
            "size_bytes": lock.size_bytes,
            "files_ok": lock.files_ok,
            "files_stuck": lock.files_stuck,
            "filled": lock.is_filled,
            "created_at": lock.created_at,
        }
        for lock in found[: page.limit]
    ]
    return items, more


def _lock_cursor(after: str | None) -> tuple[int, int]:
    if after is None:
        return 0, 0
    did_id, _, storage_id = after.partition("-")
    if not (did_id.isdecimal() and storage_id.isdecimal() and len(after) < 40):
        raise InvalidInput("this is no cursor of locks", field="after", hint="give back `next` of the page before, as it is")
    return int(did_id), int(storage_id)


def history(tx: Tx, uuid: str, page: Page = names.FIRST_PAGE) -> tuple[list[dict[str, Any]], str | None]:
    """What happened to the rule, newest first."""
    row = require(tx, uuid)
    found = events.list_for(tx, "rule", row.id, page.limit + 1, names.cursor_id(page.after))
    more = str(found[page.limit - 1].id) if len(found) > page.limit else None
    items = [
        {"at": e.at, "action": e.action, "actor": e.actor, "cause": e.cause, "before": e.before, "after": e.after}
        for e in found[: page.limit]
    ]
    return items, more


# --- changing and ending ---------------------------------------------------------------------------------------


def cancel(tx: Tx, uuid: str) -> None:
    """Begin the end of the rule; what it alone held waits in the undo window, then goes. Conflict when it is locked."""
    row = require(tx, uuid, hold=True)
    authorize(tx.actor, "rule.cancel", owner=row.account)
    if row.is_locked:
        raise Conflict(f"rule {uuid} is locked", field="rule", hint=f"unlock it first: dlm-admin rule set {uuid} --unlock")
    ended = rules.let_go(tx, [row.id], f"cancelled by {tx.actor.account}")
    events.record_many(tx, "rule", "cancelled", [(e.id, {"state": e.was}, {"state": "letting_go"}) for e in ended])
    changes.wake(tx, "judge")


def undo_until(tx: Tx, uuid: str, undo_window_s: float) -> datetime | None:
    """Until when at least everything stays that an ended rule held, so that it can be taken back; None: it held nothing.

    `undo_window_s` is that of storages without one of their own. The window begins a little later, when the judge comes.
    """
    window_s = tracing.undo_window(tx, require(tx, uuid).id, undo_window_s)
    return None if window_s is None else tx.now + timedelta(seconds=window_s)


def end_due(tx: Tx, limit: int) -> tuple[int, bool]:
    """Begin the end of rules whose time is over, and of DIDs; (how many, whether more wait)."""
    due = rules.expired(tx, limit)
    ended = rules.let_go(tx, due, "its lifetime is over") if due else []
    events.record_many(tx, "rule", "expired", [(e.id, {"state": e.was}, {"state": "letting_go"}) for e in ended], cause="lifetime")
    over = dids.expire_due(tx, limit)
    return len(ended) + over, len(due) == limit or over == limit
