"""The queue's SQL: claims beside each other, fences, statement counts, and that lanes are read by their index."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest

from catalogue import Beside, wait_until_blocked
from conveying import Yard
from dlm.clock import ManualClock
from dlm.core.conveying import load_batch
from dlm.core.conveyor import Patience
from dlm.core.recording import record_results
from dlm.db import letting_go, requests
from dlm.db.attempts import Result, Verdict
from dlm.db.engine import Database, Tx
from dlm.db.requests import Filters, Lease
from dlm.db.usage import StorageDelta
from dlm.errors import InvalidInput, NotFound
from dlm.types import Checksums, ErrorClass, Page, ReplicaState, RequestState

LEASE = Lease(base_s=100, rate_bytes_s=10, batch_bytes=10**9)
CYCLE_S = 1000.0


@pytest.fixture
def yard(database: Database, tmp_path: Path) -> Yard:
    return Yard(database, tmp_path)


def queued(yard: Yard, number: int, name: str = "there") -> tuple[int, list[int]]:
    """A storage with so many queued requests of 3 bytes, and their files."""
    storage_id = yard.storage(name)
    dids = yard.files([b"abc"] * number, name)
    yard.wish(dids, storage_id)
    return storage_id, dids


def claim(tx: Tx, storage_id: int, number: int, lease: Lease = LEASE) -> list[tuple[int, int]]:
    """(id, fence) of the claimed requests."""
    return [(row.id, row.fence) for row in requests.claim(tx, [(storage_id, 3, number)], lease)]


# --- claims


def test_two_conveyors_never_claim_the_same_request(yard: Yard) -> None:
    there, _ = queued(yard, 100)
    both_have_claimed = threading.Barrier(2)
    claimed: list[list[tuple[int, int]]] = []

    def work() -> None:
        with yard.database.begin("race") as tx:
            mine = claim(tx, there, 40)
            both_have_claimed.wait(10)
        claimed.append(mine)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(mine) for mine in claimed] == [40, 40]
    assert not set(claimed[0]) & set(claimed[1])


def test_a_claim_takes_the_longest_due_first_and_writes_the_lease(yard: Yard, clock: ManualClock) -> None:
    there, dids = queued(yard, 3)
    yard.run("UPDATE request SET next_attempt_at = next_attempt_at - make_interval(secs => id)")
    with yard.database.begin("test") as tx:
        (row,) = rows = requests.claim(tx, [(there, 3, 1)], LEASE)
        requests.lease_replicas(tx, rows)
    assert (row.did_id, row.fence, row.attempts) == (dids[2], 1, 1)
    assert row.claimed_until == clock.moment + timedelta(seconds=100 + 3 / 10)
    held = yard.row("SELECT claimed_until, fence FROM replica WHERE did_id = %(id)s", id=dids[2])
    assert held == (row.claimed_until, 1)


def test_what_is_not_due_is_not_claimed(yard: Yard, clock: ManualClock) -> None:
    there, _ = queued(yard, 3)
    clock.advance(-1)
    with yard.database.begin("test") as tx:
        assert requests.lanes(tx, 10, 10) == []
        assert claim(tx, there, 3) == []


def test_the_bound_on_bytes_cuts_the_batch_but_takes_one(yard: Yard) -> None:
    there, _ = queued(yard, 5)
    with yard.database.begin("test", commit=False) as tx:
        assert len(claim(tx, there, 5, Lease(100, 10, batch_bytes=1))) == 1
    with yard.database.begin("test", commit=False) as tx:
        assert len(claim(tx, there, 5, Lease(100, 10, batch_bytes=7))) == 3


def test_storages_take_turns_under_the_bound_on_bytes(yard: Yard) -> None:
    first, _ = queued(yard, 9, "first")
    second, _ = queued(yard, 9, "second")
    with yard.database.begin("test") as tx:
        rows = requests.claim(tx, [(first, 3, 9), (second, 3, 9)], Lease(100, 10, batch_bytes=12))
    assert sorted(row.storage_id for row in rows) == [first, first, second, second]


def test_lanes_show_room_and_leave_out_what_takes_no_data(yard: Yard) -> None:
    there, _ = queued(yard, 5)
    for number, switch in enumerate(("can_write", "is_available")):
        other, _ = queued(yard, 2, f"other{number}")
        yard.run(f"UPDATE storage SET {switch} = false WHERE id = %(id)s", id=other)
    with yard.database.begin("test") as tx:
        assert [tuple(row) for row in requests.lanes(tx, 3, 100)] == [(there, 3, 3, 3)]
        claim(tx, there, 2)
        assert [tuple(row) for row in requests.lanes(tx, 3, 100)] == [(there, 3, 1, 1)]
        claim(tx, there, 1)
        assert requests.lanes(tx, 3, 100) == []


def test_priority_ages_and_never_beyond_the_most_urgent(yard: Yard, clock: ManualClock) -> None:
    queued(yard, 2)
    for after_s, expected in ((0, 3), (301, 4), (402, 5), (10**6, 5)):
        clock.advance(after_s)
        with yard.database.begin("test") as tx:
            requests.age(tx, 100, 50)
        assert yard.row("SELECT DISTINCT priority FROM request") == (expected,)


def test_an_expired_lease_is_taken_back_with_a_new_fence(yard: Yard, clock: ManualClock) -> None:
    there, _ = queued(yard, 2)
    with yard.database.begin("test") as tx:
        claim(tx, there, 2)
    with yard.database.begin("test") as tx:
        assert recover(tx) == []
    clock.advance(200)
    with yard.database.begin("test") as tx:
        assert len(recover(tx)) == 2
    found = yard.row("SELECT DISTINCT state, fence, attempts, claimed_until, error_class FROM request")
    assert found == ("queued", 2, 1, None, "interrupted")
    assert yard.row("SELECT count(*) FROM attempt WHERE outcome = 'retry' AND error_class = 'interrupted'") == (2,)


def test_what_kills_its_worker_each_time_is_parked(yard: Yard, clock: ManualClock) -> None:
    there, _ = queued(yard, 1)
    yard.run("UPDATE request SET attempts = 5")
    with yard.database.begin("test") as tx:
        claim(tx, there, 1)
    clock.advance(200)
    with yard.database.begin("test") as tx:
        (row,) = recover(tx)
    assert row.state == "parked"
    (later,) = yard.row("SELECT next_attempt_at FROM request")
    assert later == clock.moment + timedelta(seconds=5000)


def recover(tx: Tx) -> list[object]:
    return list(requests.recover(tx, 100, max_attempts=6, backoff_s=10, parked_retry_s=5000))


def test_claims_of_two_kinds_wait_for_an_auditor_in_one_order(yard: Yard) -> None:
    there, dids = queued(yard, 2)
    yard.run("UPDATE request SET is_cancelled = true WHERE did_id = %(did)s", did=dids[1])
    held = threading.Event()

    def audit() -> None:
        with yard.database.begin("auditor") as tx:
            tx.run("SELECT FROM replica WHERE did_id = %(id)s FOR UPDATE", id=dids[0])
            held.set()
            wait_until_blocked(yard.database)
            tx.run("SELECT FROM replica WHERE did_id = %(id)s FOR UPDATE", id=dids[1])

    auditor = Beside(audit)
    assert held.wait(30)
    with yard.database.begin("conveyor") as tx:
        rows = [*requests.claim_cancelled(tx, 9, LEASE), *requests.claim(tx, [(there, 3, 9)], LEASE)]
        requests.lease_replicas(tx, rows)
    assert len(rows) == 2 and auditor.finish() == []


def test_two_recoveries_take_each_request_once(yard: Yard, clock: ManualClock) -> None:
    there, _ = queued(yard, 10)
    with yard.database.begin("test") as tx:
        claim(tx, there, 10)
    clock.advance(200)
    with yard.database.begin("one") as one, yard.database.begin("two") as two:
        assert (len(recover(one)), len(recover(two))) == (10, 0)


def test_an_old_fence_writes_nothing(yard: Yard, clock: ManualClock) -> None:
    there, _ = queued(yard, 3)
    with yard.database.begin("test") as tx:
        old = claim(tx, there, 3)
    clock.advance(200)
    with yard.database.begin("test") as tx:
        recover(tx)
        new = claim(tx, there, 1)
    before = yard.rows("SELECT * FROM request ORDER BY id"), yard.rows("SELECT * FROM replica ORDER BY 1, 2")
    for verdict in Verdict:
        with yard.database.begin("late") as tx:
            counts = record_results(tx, [Result(id_, fence, verdict) for id_, fence in old], CYCLE_S)
        assert counts["late"] == 3
    assert before == (yard.rows("SELECT * FROM request ORDER BY id"), yard.rows("SELECT * FROM replica ORDER BY 1, 2"))
    with yard.database.begin("ours") as tx:
        assert record_results(tx, done(new), CYCLE_S)["done"] == 1
    yard.check()


def test_a_late_report_waits_for_the_recovery_beside_it_and_then_counts_for_nothing(
    yard: Yard, clock: ManualClock
) -> None:
    """1. the recovery has moved the fence, 2. the late worker reports, 3. the recovery commits."""
    there, _ = queued(yard, 1)
    with yard.database.begin("test") as tx:
        old = claim(tx, there, 1)
    clock.advance(200)
    counts: list[int] = []

    def report() -> None:
        with yard.database.begin("late") as tx:
            counts.append(record_results(tx, done(old), CYCLE_S)["late"])

    with yard.database.begin("recovery") as tx:
        recover(tx)
        late = threading.Thread(target=report)
        late.start()
        wait_for_a_lock(yard)
    late.join()
    assert counts == [1]
    assert yard.row("SELECT state FROM request") == ("queued",)


def wait_for_a_lock(yard: Yard) -> None:
    """Return when some session waits for another's row."""
    pause = threading.Event()
    for _ in range(500):
        if yard.rows("SELECT 1 FROM pg_locks WHERE NOT granted"):
            return
        pause.wait(0.01)
    raise AssertionError("nobody waited")


def done(claimed: list[tuple[int, int]]) -> list[Result]:
    return [Result(id_, fence, Verdict.DONE, checksums=Checksums("024d0127")) for id_, fence in claimed]


# --- statements


def statements_of_a_claim(yard: Yard, number: int, name: str) -> int:
    there, dids = queued(yard, number, name)
    source = yard.storage(f"source-{name}")
    yard.replicas(dids, source)
    with yard.database.begin("test") as tx:
        recover(tx)
        requests.retry_parked(tx, number, 6)
        requests.age(tx, 100, 50)
        requests.lanes(tx, number, number)
        requests.claim_cancelled(tx, number, LEASE)
        rows = requests.claim(tx, [(there, 3, number)], LEASE)
        requests.lease_replicas(tx, rows)
        batch = load_batch(tx, rows, Patience())
        requests.set_sources(tx, {action.request_id: action.source_id for action in batch.transfers()})
        assert len(batch.items) == len(rows) == number
    return tx.statements


def test_a_claim_takes_the_same_statements_for_10_and_10000_requests(yard: Yard) -> None:
    few, many = statements_of_a_claim(yard, 10, "few"), statements_of_a_claim(yard, 10_000, "many")
    assert few == many == 14


def every_kind_of_result(claimed: list[tuple[int, int]], source: int) -> list[Result]:
    """A fifth each: done (unknown checksums), cancelled, cancelled with a leftover, failed with a finding, parked."""
    kinds = [
        {"verdict": Verdict.DONE, "checksums": Checksums("024d0127"), "is_unknown": True},
        {"verdict": Verdict.CANCELLED},
        {"verdict": Verdict.CANCELLED, "leftover": ReplicaState.BAD},
        {"verdict": Verdict.RETRY, "error_class": ErrorClass.SOURCE_CORRUPT, "suspicion": ReplicaState.BAD},
        {"verdict": Verdict.PARKED, "error_class": ErrorClass.INVALID_PATH, "delay_s": 100.0},
    ]
    return [
        Result(id_, fence, source_id=source, **kinds[index % len(kinds)])  # type: ignore[arg-type]
        for index, (id_, fence) in enumerate(claimed)
    ]


def statements_of_a_record(yard: Yard, number: int, name: str) -> int:
    there, dids = queued(yard, number, name)
    source = yard.storage(f"source-{name}")
    yard.replicas(dids, source)
    with yard.database.begin("test") as tx:
        claimed = claim(tx, there, number)
    with yard.database.begin("test") as tx:
        counts = record_results(tx, every_kind_of_result(claimed, source), CYCLE_S)
    fifth = number // 5
    assert (counts["done"], counts["cancelled"], counts["retry"], counts["parked"]) == (fifth, 2 * fifth, fifth, fifth)
    yard.check()
    return tx.statements


def test_recording_takes_the_same_statements_for_10_and_1000_results(yard: Yard) -> None:
    few, many = statements_of_a_record(yard, 10, "few"), statements_of_a_record(yard, 1000, "many")
    assert few == many == 20


def test_a_claim_reads_a_lane_by_its_index(yard: Yard) -> None:
    there, _ = queued(yard, 5000)
    yard.run("ANALYZE request")
    plan = "\n".join(
        str(row[0])
        for row in yard.rows(
            """EXPLAIN SELECT id FROM request
                WHERE state = 'queued' AND storage_id = %(id)s AND priority = 3 AND next_attempt_at <= %(now)s
                ORDER BY next_attempt_at, id LIMIT 10 FOR UPDATE SKIP LOCKED""",
            id=there,
        )
    )
    assert "ix_request_lane" in plan and "Sort" not in plan


# --- what people ask


def test_requests_are_listed_by_rule_storage_state_and_did(yard: Yard) -> None:
    there, dids = queued(yard, 3)
    other, others = queued(yard, 2, "other")
    rule = yard.wish(others[:1], there)
    yard.run("UPDATE request SET state = 'parked' WHERE did_id = %(id)s", id=dids[1])
    with yard.database.begin("test") as tx:
        assert found(tx, Filters(storage_id=other)) == [(others[0], other), (others[1], other)]
        assert found(tx, Filters(rule_id=rule)) == [(others[0], there)]
        assert found(tx, Filters(did_id=dids[0])) == [(dids[0], there)]
        assert found(tx, Filters(state=RequestState.PARKED)) == [(dids[1], there)]
        assert len(found(tx, Filters())) == 6


def found(tx: Tx, filters: Filters) -> list[tuple[int, int]]:
    rows, _ = requests.list_requests(tx, filters, Page())
    return [(row.did_id, row.storage_id) for row in rows]


def test_a_dataset_shows_the_requests_of_its_files_and_of_the_rules_on_it(yard: Yard) -> None:
    there, dids = queued(yard, 3)
    with yard.database.begin("test") as tx:
        dataset = tx.scalar(
            """INSERT INTO did (scope_id, kind, name, account_id, created_at) VALUES (1, 'dataset', 'd', 1, %(now)s)
               RETURNING id"""
        )
        tx.run("INSERT INTO attachment (parent_id, child_id) VALUES (%(d)s, %(f)s)", d=dataset, f=dids[1])
        tx.run("UPDATE lock SET did_id = %(d)s WHERE did_id = %(f)s", d=dataset, f=dids[1])
        assert found(tx, Filters(did_id=dataset)) == [(dids[1], there)]
        assert found(tx, Filters(rule_id=1)) == [(did, there) for did in dids]
        rows = requests.claim(tx, [(there, 3, 3)], LEASE)
        assert {row.id for row in requests.load_holds(tx, rows)} == {row.id for row in rows}


def test_a_released_lock_holds_no_request(yard: Yard) -> None:
    there, _ = queued(yard, 2)
    yard.run("UPDATE lock SET is_released = true")
    with yard.database.begin("test") as tx:
        assert requests.load_holds(tx, requests.claim(tx, [(there, 3, 2)], LEASE)) == []


def test_the_list_comes_in_pages(yard: Yard) -> None:
    queued(yard, 5)
    with yard.database.begin("test") as tx:
        ids, after = [], None
        for expected in (2, 2, 1):
            rows, after = requests.list_requests(tx, Filters(), Page(limit=2, after=after))
            assert len(rows) == expected
            ids += [row.id for row in rows]
        assert after is None and ids == sorted(ids) and len(set(ids)) == 5
        with pytest.raises(InvalidInput):
            requests.list_requests(tx, Filters(), Page(after="1; DROP"))


def test_a_request_is_shown_or_not_found(yard: Yard) -> None:
    there, dids = queued(yard, 1)
    with yard.database.begin("test") as tx:
        row = requests.get(tx, 1)
        assert (row.did_id, row.storage, row.state, row.name) == (dids[0], "there", "queued", "there1")
        with pytest.raises(NotFound):
            requests.get(tx, 99)


def test_retry_makes_due_what_is_parked_or_waits(yard: Yard, clock: ManualClock) -> None:
    queued(yard, 3)
    yard.run("UPDATE request SET state = 'parked', attempts = 6, next_attempt_at = 'infinity' WHERE id < 3")
    with yard.database.begin("test") as tx:
        tx.run("UPDATE request SET next_attempt_at = %(now)s + interval '1 h', attempts = 3 WHERE id = 3")
        assert requests.retry(tx, Filters(ids=[2, 3])) == (1, 1)
        assert tuple(tx.one("SELECT state, attempts, next_attempt_at FROM request WHERE id = 2")) == (
            "queued",
            0,
            clock.moment,
        )
        assert tx.scalar("SELECT attempts FROM request WHERE id = 3") == 0
        assert requests.retry(tx, Filters()) == (1, 0)


def let_go(tx: Tx, dids: list[int], storage_id: int) -> int:
    """Let go of the files there, to which no lock holds any more."""
    tx.run("UPDATE lock SET is_released = true")
    places = {"dids": dids, "storages": [storage_id] * len(dids)}
    return letting_go.let_go(tx, letting_go.PAIRS, StorageDelta(), undo_window_s=60, **places)


def test_a_cancelled_request_is_due_and_its_owner_keeps_it(yard: Yard, clock: ManualClock) -> None:
    there, dids = queued(yard, 3)
    yard.run("UPDATE request SET fence = 1")
    with yard.database.begin("test") as tx:
        ((active, fence),) = claim(tx, there, 1)
        tx.run("UPDATE request SET state = 'parked' WHERE id = 3")
    clock.advance(50)
    with yard.database.begin("test") as tx:
        assert let_go(tx, dids, there) == 3
        rows = requests.claim_cancelled(tx, 10, LEASE)
    assert sorted(row.id for row in rows) == [2, 3]
    with yard.database.begin("test") as tx:
        record_results(tx, done([(active, fence)]), CYCLE_S)
    unwanted = yard.row("SELECT state, tombstone_at FROM replica WHERE did_id = %(id)s", id=dids[0])
    assert unwanted == ("available", clock.moment)


def test_a_request_cancelled_while_it_failed_is_due_at_once(yard: Yard, clock: ManualClock) -> None:
    there, dids = queued(yard, 1)
    with yard.database.begin("test") as tx:
        ((id_, fence),) = claim(tx, there, 1)
    with yard.database.begin("test") as tx:
        let_go(tx, dids, there)
    with yard.database.begin("test") as tx:
        record_results(tx, [Result(id_, fence, Verdict.PARKED, delay_s=5000)], CYCLE_S)
    assert yard.row("SELECT state, next_attempt_at, is_cancelled FROM request") == ("queued", clock.moment, True)
