"""`why`: the chain of stored facts that led to the present state of a thing, and what happens next, and when.

Every answer has the same shape: `chain`, a list of steps (`step`, `at`, `text`, and the facts behind it), oldest cause
first, and `next` (`at`, `text`). `step` is one of wanted, decided, tried, checked, waits, deleted, protected, held.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Row

from dlm.core import conveyor, dids, names, rules, storages
from dlm.db import events, requests, tracing
from dlm.db.engine import Tx
from dlm.types import DidKind, Grouping, ReplicaState, RequestState, RuleState

MOST = 20  # attempts and proofs shown
MOST_ENDED = 3  # rules shown that are gone
Step = dict[str, Any]


def _step(step: str, at: datetime | None, text: str, **facts: Any) -> Step:
    return {"step": step, "at": at, "text": text, **facts}


def _next(at: datetime | None, text: str) -> dict[str, Any]:
    return {"at": at, "text": text}


# --- a DID -----------------------------------------------------------------------------------------------------


def did(tx: Tx, scope: str, name: str, storage: str | None = None) -> dict[str, Any]:
    """Why a DID is where it is; for a file with every replica, or the one at `storage`."""
    row = dids.get(tx, scope, name)
    place = storages.get_storage(tx, storage) if storage is not None else None
    above = tracing.rules_above(tx, row.id)
    holders = [h for h in tracing.holders(tx, row.id) if place is None or h.storage_id == place.id]
    placed = tracing.placements(tx, [rule.id for rule in above])
    chain = [_no_longer_wanted(rule) for rule in reversed(tracing.rules_ended(tx, row.id, MOST_ENDED))]
    chain += [_wanted(rule) for rule in above]
    chain += [step for rule in above if rule.id in placed for step in _decided(rule, placed[rule.id])]
    answer: dict[str, Any] = {"did": f"{scope}:{name}", "kind": row.kind, "deleted_at": row.deleted_at, "chain": chain}
    if row.kind != DidKind.FILE:
        return answer | {"next": _next_of_rules(above), "replicas": []}
    every = tracing.replicas(tx, row.id)
    shown = [r for r in every if place is None or r.storage_id == place.id]
    place_id = place.id if place is not None else None
    attempts = tracing.attempts(tx, row.id, place_id, MOST)
    chain += [_tried(attempt) for attempt in reversed(attempts)]
    proofs = tracing.proofs(tx, row.id, place_id, MOST)
    chain += _harmed(row.id, tracing.harms(tx, row.id, [r.storage_id for r in shown], row.created_at), attempts, proofs, shown)
    chain += [step for proof in reversed(proofs) for step in _deleted(proof, every)]
    replicas = [_replica(r, every, [h for h in holders if h.storage_id == r.storage_id]) for r in shown]
    soonest = _soonest(replica["next"] for replica in replicas)
    return answer | {"replicas": replicas, "next": soonest or _next_of_rules(above)}


def _wanted(rule: Row[Any]) -> Step:
    spread = f", spread {rule.spread}" if rule.spread else ""
    text = f"rule {rule.rule} ({rule.account}) asks {rule.copies or '*'} × {rule.storages}{spread}; it is {rule.state}"
    return _step("wanted", rule.created_at, text + (f": {rule.reason}" if rule.reason else ""), rule=rule.rule, state=rule.state)


def _no_longer_wanted(rule: Row[Any]) -> Step:
    spread = f", spread {rule.spread}" if rule.spread else ""
    text = f"rule {rule.rule} ({rule.account}) asked {rule.copies or '*'} × {rule.storages}{spread}; it ended {rule.state_since:%Y-%m-%d %H:%M:%SZ}"
    return _step("wanted", rule.created_at, text + (f": {rule.reason}" if rule.reason else ""), rule=rule.rule, state=rule.state)


def _decided(rule: Row[Any], event: Row[Any]) -> list[Step]:
    facts = event.after or {}
    if "chosen" not in facts:
        return [_step("decided", event.at, f"rule {rule.rule}: files were shared out over {len(facts.get('locks', {}))} storages", **facts)]
    rejected = "; ".join(f"{name}: {reason}" for name, reason in sorted(facts.get("rejected", {}).items())[:10])
    text = f"rule {rule.rule}: chosen {' '.join(facts['chosen'])}" + (f"; not {rejected}" if rejected else "")
    return [_step("decided", event.at, text, rule=rule.rule, **facts)]


def _tried(attempt: Row[Any]) -> Step:
    way = f"{attempt.source or ('upload' if attempt.outcome == 'done' else '?')} → {attempt.storage}"
    text = f"{way}  {attempt.outcome}" if attempt.error is None else f"{way}  {attempt.outcome}: {attempt.error}"
    return _step("tried", attempt.ended_at, text, number=attempt.number, error_class=attempt.error_class)


def _harmed(did_id: int, events: Sequence[Row[Any]], attempts: Sequence[Row[Any]], proofs: Sequence[Row[Any]], replicas: Sequence[Row[Any]]) -> list[Step]:
    """What was found wrong with the file. An event about many names some of them: the others are known by what followed."""
    steps = []
    for event in events:
        facts = event.after or {}
        if event.action == "declared bad":
            steps.append(_step("checked", event.at, f"declared bad at {event.storage} by {event.actor}: {event.detail}"))
        elif event.is_named or _followed(event, attempts, proofs, replicas):
            about, _, detail = (event.detail or "").partition(": ")
            harm = f"{facts.get('lost', 0):,} lost and {facts.get('bad', 0):,} bad found at {event.storage} by {event.actor}, this file among them"
            steps.append(_step("checked", event.at, f"{harm}: {detail}" if about == f"file {did_id}" else harm))
    return steps


def _followed(event: Row[Any], attempts: Sequence[Row[Any]], proofs: Sequence[Row[Any]], replicas: Sequence[Row[Any]]) -> bool:
    """True when the file was there before the event, and is bad or lost or was copied there again since, not let go between."""
    if any(r.storage == event.storage and r.created_at < event.at and r.state in (ReplicaState.BAD, ReplicaState.LOST) for r in replicas):
        return True
    times = [attempt.ended_at for attempt in attempts if attempt.storage == event.storage]
    before, since = [at for at in times if at < event.at], [at for at in times if at >= event.at]
    if not before or not since:
        return False
    return not any(proof.storage == event.storage and max(before) <= proof.made_at <= event.at for proof in proofs)


def _deleted(proof: Row[Any], every: Sequence[Row[Any]]) -> list[Step]:
    if proof.wanted:
        evidence = f"{proof.wanted} copies wanted, verified at {' '.join(proof.witnesses)}"
    else:
        evidence = "no rule wanted the file"
    steps = [_step("deleted", proof.made_at, f"marked for deletion at {proof.storage} ({proof.cause}): {evidence}", witnesses=proof.witnesses)]
    kept = any(r.storage == proof.storage and r.state != ReplicaState.DELETED and r.created_at <= proof.made_at for r in every)
    if proof.reaped_at is not None and not kept:
        steps.append(_step("deleted", proof.reaped_at, f"deleted at {proof.storage}"))
    return steps


def _replica(row: Row[Any], every: Sequence[Row[Any]], holders: Sequence[Row[Any]]) -> dict[str, Any]:
    """One replica: its state, what protects it, and what happens to it next."""
    live = [h for h in holders if not h.is_released]
    others = [r.storage for r in every if r.storage_id != row.storage_id and r.state == ReplicaState.AVAILABLE]
    chain = [_step("protected", h.since, f"by rule {h.rule} ({h.account})" + (" through a dataset" if h.by_collection else "")) for h in live]
    if row.verified_at:
        chain.append(_step("checked", row.verified_at, "the stored bytes were read and are the file"))
    if row.finding:
        chain.append(_step("checked", row.found_at, f"in doubt ({row.finding}): {row.finding_detail or 'no detail'}"))
    if row.request_id is not None:
        chain.append(_waits(row))
    return {
        "storage": row.storage,
        "state": row.state,
        "since": row.created_at,
        "verified_at": row.verified_at,
        "tombstone_at": row.tombstone_at,
        "request": None if row.request_id is None else conveyor.request_uuid(row.request_id),
        "verified_elsewhere": others,
        "chain": chain,
        "next": next_of_replica(row, is_held=bool(live), has_good_copy=bool(others) or _has_unverified(row, every)),
    }


def _has_unverified(row: Row[Any], every: Sequence[Row[Any]]) -> bool:
    return any(r.state == ReplicaState.UNVERIFIED for r in every if r.storage_id != row.storage_id)


def _waits(row: Row[Any]) -> Step:
    purpose = "a repair" if row.is_repair else "a copy"
    error = f"; last: {row.error}" if row.error else ""
    text = f"{purpose} is {row.request_state}, {row.attempts} {'attempt' if row.attempts == 1 else 'attempts'}{error}"
    return _step("waits", row.next_attempt_at, text, error_class=row.error_class, request=conveyor.request_uuid(row.request_id))


def next_of_replica(row: Row[Any], *, is_held: bool, has_good_copy: bool) -> dict[str, Any]:
    """What happens next to a replica, and when. Total over its states."""
    if row.request_id is not None:
        return _next_of_request(row.request_state, row.next_attempt_at, row.request_until, row.is_cancelled)
    match ReplicaState(row.state):
        case ReplicaState.COPYING:
            return _next(None, "its request is missing: run dlm-admin verify")
        case ReplicaState.DELETING:
            return _next(row.claimed_until, "a reaper is deleting it; if that reaper died, another takes over then")
        case ReplicaState.DELETED:
            return _next(row.quiet_until, "it is gone; its path may be used again then")
        case ReplicaState.BAD | ReplicaState.LOST if is_held:
            return _next(None, "the judge repairs it from a good copy" if has_good_copy else f"{row.state}; it waits for a good copy to turn up")
        case _ if row.tombstone_at is not None:
            return _next_of_tombstone(row, is_held)
        case ReplicaState.BAD | ReplicaState.LOST:
            return _next(None, f"{row.state}, and no rule holds it here: it stays for a person to look at")
        case ReplicaState.UNVERIFIED:
            return _next(row.next_check_at, "its bytes are read and compared for the first time")
        case _:
            return _next(row.next_check_at, "it is verified again; nothing else is due")


def _next_of_tombstone(row: Row[Any], is_held: bool) -> dict[str, Any]:
    """Why a replica that is let go is still there."""
    if is_held:
        return _next(row.tombstone_at, "a rule holds it again: the reaper clears its tombstone")
    if not row.can_delete:
        return _next(None, f"let go, but deleting is switched off at {row.storage} ({row.switch_reason})")
    if not row.is_available:
        return _next(None, f"let go, but {row.storage} is unavailable ({row.unavailable_reason})")
    if row.held_by is not None:
        return _next(None, f"let go, but deletions are held: {row.held_by}")
    if row.reap == "when_full":
        return _next(row.tombstone_at, f"it is deleted after that, when {row.storage} needs the space")
    return _next(row.tombstone_at, "the undo window ends and it is deleted, unless a rule takes it back")


def _next_of_request(state: str, due: datetime, until: datetime | None, is_cancelled: bool) -> dict[str, Any]:
    if is_cancelled:
        return _next(due, "the request is cancelled; the conveyor ends it")
    if state == RequestState.ACTIVE:
        return _next(until, "it is being copied; if that mover died, another takes over then")
    if state == RequestState.PARKED:
        return _next(due, "it is tried again then, or at once by: dlm-admin request retry")
    return _next(due, "it is copied")


def _soonest(candidates: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    dated = [c for c in candidates if c["at"] is not None]
    return min(dated, key=lambda c: c["at"]) if dated else None


def _next_of_rules(above: Sequence[Row[Any]]) -> dict[str, Any]:
    due = [rule for rule in above if rule.next_judge_at is not None]
    if not above:
        return _next(None, "no rule wants it: nothing happens to it")
    if not due:
        return _next(None, "the judge looks at its rules when something changes")
    first = min(due, key=lambda rule: rule.next_judge_at)
    return _next(first.next_judge_at, f"the judge looks at rule {first.rule}")


# --- a rule ----------------------------------------------------------------------------------------------------

_BEGINS = "it begins: the judge places it; until then it holds nothing"
_NEXT_OF_RULE = {
    RuleState.DECLARED: "the judge places it",
    RuleState.WAITING_APPROVAL: "it waits for an approver",
    RuleState.SUSPENDED: "nothing, until it is resumed: dlm-admin rule set ID --resume",
    RuleState.IMPOSSIBLE: "the judge tries again to place it; at once when a storage changes",
    RuleState.STUCK: "the judge counts again; parked requests are tried again by themselves",
    RuleState.REPLICATING: "the judge counts again; at once when the last file arrives",
    RuleState.OK: "it is counted again",
    RuleState.LETTING_GO: "what only this rule held gets its tombstone",
    RuleState.GONE: "nothing: it has ended",
}


_MOVES = {
    "moving": "to be moved to {storages}: it stays until rule {to} is ok",
    "moved": "rule {to} is ok and takes its place",
    "took over": "it is ok, and rule {from} lets go in its favour",
}
_STATES = frozenset(state.value for state in RuleState)


def rule(tx: Tx, uuid: str) -> dict[str, Any]:
    """Why a rule is in its state: what was decided where and why, what is missing, what is next."""
    row = rules.require(tx, uuid)
    shown = rules.get(tx, uuid)
    asked = f"{row.account} asks {row.copies or '*'} × {row.storages}{_ways(row)} for {shown['did']}"
    chain = [_step("wanted", row.created_at, asked)]
    happened = reversed(events.list_for(tx, "rule", row.id, MOST))
    chain += [_happened(event) for event in happened if event.action != "declared"]
    waiting = tracing.rule_requests(tx, row.id, MOST)
    chain += [
        _step("waits", s.next_attempt_at, f"{s.files:,} {_files(s.files)} {s.state} for {s.storage}" + (f": {s.error}" if s.error else ""), storage=s.storage)
        for s in waiting
    ]
    return {
        "rule": row.uuid,
        "did": shown["did"],
        "state": row.state,
        "reason": row.reason or _held_up(waiting),
        "progress": shown["progress"],
        "chain": chain,
        "next": _next(row.next_judge_at, _BEGINS if rules.waits(tx, row) else _NEXT_OF_RULE[RuleState(row.state)]),
    }


def _ways(row: Row[Any]) -> str:
    """What a rule asks beside how many copies and where."""
    ways = [f", {key} {value}" for key in ("spread", "weight") if (value := getattr(row, key))]
    ways += [f", grouping {row.grouping}"] if row.grouping != Grouping.DATASET else []
    return "".join([*ways, f", copied only from {row.sources}" if row.sources else ""])


def _files(number: int) -> str:
    return "file" if number == 1 else "files"


def _held_up(waiting: Sequence[Row[Any]]) -> str | None:
    """What holds up most files of a rule that is not stuck yet; None when nothing failed."""
    failed = [group for group in waiting if group.error_class is not None and group.state != RequestState.ACTIVE]
    if not failed:
        return None
    most = max(failed, key=lambda group: group.files)
    verb = "waits" if most.files == 1 else "wait"
    return f"{most.files:,} {_files(most.files)} {verb}: {most.storage}: {most.error or most.error_class.replace('_', ' ')}"


def _happened(event: Row[Any]) -> Step:
    facts = event.after or {}
    if event.action == "placed" and "chosen" in facts:
        rejected = "; ".join(f"{name}: {reason}" for name, reason in sorted(facts.get("rejected", {}).items())[:10])
        return _step("decided", event.at, f"chosen {' '.join(facts['chosen'])}" + (f"; not {rejected}" if rejected else ""), **facts)
    if event.action == "surplus":
        released = ", ".join(f"{name} ({reason})" for name, reason in sorted(facts["released"].items())[:10])
        kept = f"; kept {' '.join(facts['kept'][:10])}" if facts.get("kept") else ""
        return _step("decided", event.at, f"surplus released: {released}{kept}", **facts)
    if event.action in _MOVES:
        return _step("decided", event.at, _MOVES[event.action].format(**facts), **facts)
    if event.action == "placed":
        return _step("decided", event.at, f"{facts.get('files')} files were shared out", **facts)
    if event.action == "changed":
        return _step("decided", event.at, f"changed by {event.actor}: {_changes(event.before or {}, facts)}")
    reason = f": {facts['reason']}" if facts.get("reason") else ""
    return _step("held" if event.action in _STATES else "decided", event.at, f"{event.action} by {event.actor}{reason}")


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """'copies 2 → 3, priority 3 → 5': what a person changed, without the state that follows from it."""
    told = [name for name in after if name not in ("state", "reason")] or list(after)
    return ", ".join(f"{name.removeprefix('is_')} {_plain(before.get(name))} → {_plain(after[name])}" for name in told)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


# --- a request, a storage --------------------------------------------------------------------------------------


def request(tx: Tx, uuid: str) -> dict[str, Any]:
    """Why a request is in its state."""
    row = requests.get(tx, conveyor.request_id_from_uuid(uuid))
    found = tracing.replicas(tx, row.did_id, row.storage_id)
    holders = [h for h in tracing.holders(tx, row.did_id) if h.storage_id == row.storage_id and not h.is_released]
    chain = [_wanted(h) for h in holders]
    chain += [_tried(attempt) for attempt in reversed(tracing.attempts(tx, row.did_id, row.storage_id, MOST))]
    chain += [_waits(r) for r in found if r.request_id is not None]
    following = next_of_replica(found[0], is_held=bool(holders), has_good_copy=True) if found else _next(None, "its replica is missing")
    return {
        "request": uuid,
        "did": f"{row.scope}:{row.name}",
        "storage": found[0].storage if found else None,
        "state": row.state,
        "attempts": row.attempts,
        "error_class": row.error_class,
        "error": row.error,
        "chain": chain,
        "next": following,
    }


def storage(tx: Tx, name: str) -> dict[str, Any]:
    """Why a storage takes, keeps or loses what it does: switches, marker, queue, breakers, what is due."""
    names.check_name(name, "storage")
    row = storages.get_storage(tx, name)
    load = tracing.storage_load(tx, row.id)
    chain = []
    if not row.is_available:
        chain.append(_step("held", row.looked_at, f"unavailable: {row.unavailable_reason}"))
    off = [switch for switch in ("read", "write", "delete") if not getattr(row, f"can_{switch}")]
    if off:
        chain.append(_step("held", None, f"switched off: {', '.join(off)} ({row.switch_reason})", switches=off))
    for breaker in load.breakers or []:
        chain.append(_step("held", datetime.fromisoformat(breaker["since"]), f"breaker against {breaker['act']} opened by {breaker['by']}: {breaker['reason']}"))
    for group in load.waits or []:
        chain.append(_step("waits", datetime.fromisoformat(group["at"]), copies_wait(group["files"], group["error_class"], group["error"])))
    if load.findings:
        chain.append(_step("checked", None, f"{load.findings:,} {_files(load.findings)} in doubt"))
    return {
        "storage": name,
        "site": row.site,
        "is_available": row.is_available,
        "replicas": load.replicas or {},
        "requests": load.requests or {},
        "tombstoned": load.tombstoned,
        "chain": chain,
        "next": _next_of_storage(row, load),
    }


def copies_wait(number: int, error_class: str, example: str | None = None) -> str:
    """'112 copies wait: permission (open …: Permission denied)'."""
    text = f"{number:,} {'copy waits' if number == 1 else 'copies wait'}: {error_class.replace('_', ' ')}"
    return f"{text} ({example})" if example else text


def _next_of_storage(row: Row[Any], load: Row[Any]) -> dict[str, Any]:
    is_held = not row.can_delete or not row.is_available or any(breaker["act"] == "delete" for breaker in load.breakers or [])
    due = [_next(load.next_attempt_at, "the next copy to it is due")]
    due += [] if is_held else [_next(load.next_tombstone_at, "the next deletion is due")]
    nothing = "nothing is deleted while that is held" if is_held and load.tombstoned else "nothing is due"
    return _soonest(due) or _next(None, nothing)
