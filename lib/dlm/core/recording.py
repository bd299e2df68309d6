"""Use case: what a batch of attempts came to goes into the catalogue, in a fixed number of statements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy.engine import Row

from dlm.core.conveyor import next_check_s
from dlm.db import attempts, audits, changes, events
from dlm.db.attempts import Result, Standing, Verdict
from dlm.db.engine import Tx
from dlm.db.usage import StorageDelta, change_storages
from dlm.types import ChangeKind, ErrorClass, ReplicaState

Held = Mapping[int, Row[Any]]
MISMATCH_DELAY_S = 60.0


def record_results(tx: Tx, results: Sequence[Result], cycle_s: float) -> Counter[str]:
    """Record results where the fence still stands; how many of each verdict did, and `late` for those where it fell."""
    held = attempts.hold(tx, results)
    ours = [result for result in results if result.request_id in held]
    attempts.hold_replicas(tx, [_place(held[result.request_id]) for result in ours])
    ours = _compared(tx, ours, held)
    by_verdict: dict[Verdict, list[Result]] = {verdict: [] for verdict in Verdict}
    for result in ours:
        by_verdict[result.verdict].append(result)
    delta = StorageDelta()
    _settle(tx, by_verdict[Verdict.DONE], by_verdict[Verdict.CANCELLED], held, delta, cycle_s)
    back = [result for verdict in (Verdict.RETRY, Verdict.PARKED, Verdict.RELEASED) for result in by_verdict[verdict]]
    attempts.rest_replicas(tx, [_place(held[result.request_id]) for result in back])
    attempts.requeue(tx, back, held)
    attempts.note(tx, [result for result in ours if result.is_tried], held)
    _suspect(tx, ours, held)
    _tell(tx, ChangeKind.PARKED, by_verdict[Verdict.PARKED], held)
    _write_events(tx, by_verdict, held)
    change_storages(tx, delta)
    counts = Counter({str(verdict): len(items) for verdict, items in by_verdict.items()})
    counts["late"] = len(results) - len(ours)
    return counts


def _place(row: Row[Any]) -> tuple[int, int]:
    return row.did_id, row.storage_id


def _compared(tx: Tx, results: list[Result], held: Held) -> list[Result]:
    """The results, after unknown checksums were learnt; a copy that disagrees with what is known is no success.

    Two copies of one file may arrive at once, from sources that differ: the first teaches, the other one fails.
    """
    unknown = [result for result in results if result.verdict is Verdict.DONE and result.is_unknown]
    found: dict[int, str] = {}
    for result in sorted(unknown, key=lambda result: held[result.request_id].did_id):
        if result.checksums.adler32 is not None:
            found.setdefault(held[result.request_id].did_id, result.checksums.adler32)
    known = attempts.learn_checksums(tx, found)
    wrong = set()
    for result in unknown:
        did_id = held[result.request_id].did_id
        before = known.get(did_id)
        taught = replace(before, adler32=found[did_id]) if before is not None and not before.known() else before
        if taught is not None and result.checksums.contradicts(taught):
            wrong.add(result.request_id)
    return [_mismatched(result) if result.request_id in wrong else result for result in results]


def _mismatched(result: Result) -> Result:
    return replace(
        result,
        verdict=Verdict.RETRY,
        delay_s=MISMATCH_DELAY_S,
        may_replace=True,
        error_class=ErrorClass.CHECKSUM_MISMATCH,
        error="another copy of the file arrived with other content",
        suspicion=ReplicaState.BAD,
    )


def _settle(
    tx: Tx, done: Sequence[Result], cancelled: Sequence[Result], held: Held, delta: StorageDelta, cycle_s: float
) -> None:
    """Finish the requests that are done or cancelled: replicas, requests, changes; usage goes into `delta`."""
    standing = [
        _standing(result, held[result.request_id], cycle_s) for result in [*done, *cancelled] if _is_there(result)
    ]
    for row in attempts.stand(tx, standing):
        delta.add(row.storage_id, reserved_bytes=-row.size_bytes, used_bytes=row.size_bytes, used_files=1)
    gone = [result for result in cancelled if not _is_there(result)]
    for row in attempts.drop_replicas(tx, [_place(held[result.request_id]) for result in gone]):
        delta.add(row.storage_id, reserved_bytes=-row.size_bytes)
    attempts.end_requests(tx, [result.request_id for result in [*done, *cancelled]])
    attempts.wake_sourceless(tx, [held[result.request_id].did_id for result in done])
    _tell(tx, ChangeKind.ARRIVED, done, held)
    _tell(tx, ChangeKind.GONE, cancelled, held)


def _is_there(result: Result) -> bool:
    return result.verdict is Verdict.DONE or result.leftover is not None


def _standing(result: Result, row: Row[Any], cycle_s: float) -> Standing:
    state = result.leftover or ReplicaState.AVAILABLE
    is_unwanted = result.verdict is Verdict.CANCELLED or row.is_cancelled
    check_s = next_check_s(cycle_s, row.did_id, row.storage_id)
    return Standing(row.did_id, row.storage_id, state, check_s, is_unwanted)


def _suspect(tx: Tx, results: Sequence[Result], held: Held) -> None:
    found = [
        (held[result.request_id].did_id, result.source_id, str(result.suspicion), result.error or "")
        for result in results
        if result.suspicion is not None and result.source_id is not None
    ]
    if found:
        audits.report(tx, found)



def _tell(tx: Tx, kind: ChangeKind, results: Sequence[Result], held: Held) -> None:
    if results:
        changes.add_by_storage(tx, kind, [_place(held[result.request_id]) for result in results])


def _write_events(tx: Tx, by_verdict: Mapping[Verdict, Sequence[Result]], held: Held) -> None:
    """One event per destination with what ended there; a retry is told by its attempt row alone."""
    ended: dict[int, Counter[str]] = {}
    for verdict in (Verdict.DONE, Verdict.PARKED, Verdict.CANCELLED):
        for result in by_verdict[verdict]:
            row = held[result.request_id]
            counts = ended.setdefault(row.storage_id, Counter())
            counts[str(verdict)] += 1
            if verdict is Verdict.DONE:
                counts["size_bytes"] += row.size_bytes
    events.record_many(tx, "storage", "conveyed", [(storage, None, dict(ended[storage])) for storage in sorted(ended)])
