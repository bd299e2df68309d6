"""Every function of the judge's SQL takes as many statements for many rows as for ten, as its docstring says.

`CALLS` must name every function; one that is added and not called here fails the test.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest

from dlm.clock import ManualClock
from dlm.core import consequences, folding, placing
from dlm.core.judge import Placement
from dlm.core.placing import Limits
from dlm.db import (
    changes,
    counting,
    events,
    filling,
    judging,
    letting_go,
    parcels,
    rules,
    secrets,
    status,
    storages,
    surplus,
    tracing,
    usage,
)
from dlm.db.embedded import EmbeddedPostgres
from dlm.db.engine import Database, Tx
from dlm.types import ChangeKind, RuleState
from dlm.vault import Sealed

MODULES = (rules, judging, counting, surplus, filling, parcels, letting_go, changes, events, usage, storages, secrets, tracing, status)
FEW, MANY = 10, 900


@dataclass(frozen=True)
class Rows:
    """A catalogue of that many files, all in one dataset, each under a rule of its own and one on the dataset.

    They stand at `origin`; the files' rules want copies `here`, which are coming, and the dataset's rule `there`.
    """

    number: int
    files: list[int]
    rules: list[int]
    dataset: int
    of_dataset: int
    origin: int
    here: int
    there: int
    rule_uuid: str

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(file_id, self.here) for file_id in self.files]

    @property
    def keys(self) -> list[tuple[int, int, int]]:
        return [(file_id, self.here, rule) for file_id, rule in zip(self.files, self.rules, strict=True)]

    @property
    def columns(self) -> dict[str, Any]:
        return {"dids": self.files, "storages": [self.here] * self.number}

    @property
    def lanes(self) -> dict[str, Any]:
        return self.columns | {"priorities": [3] * self.number, "activities": ["default"] * self.number}


MAKE = (
    "INSERT INTO account (name, kind, created_at) VALUES ('ann', 'person', %(now)s)",
    "INSERT INTO scope (name, account_id, created_at) VALUES ('demo', 1, %(now)s)",
    "INSERT INTO site (name, created_at) VALUES ('perth', %(now)s)",
    "INSERT INTO storage (name, site_id, created_at)"
    " SELECT n, 1, %(now)s FROM unnest(ARRAY['origin', 'here', 'there']) n",
    "INSERT INTO storage_usage (storage_id) SELECT id FROM storage",
    "INSERT INTO protocol (storage_id, scheme, prefix) SELECT id, 'posix', '/' || name FROM storage",
    """INSERT INTO did (scope_id, kind, name, account_id, size_bytes, files, adler32, created_at)
       SELECT 1, 'file', 'f' || n, 1, 10, 1, '00000001', %(now)s FROM generate_series(1, %(number)s) n""",
    """INSERT INTO did (scope_id, kind, name, account_id, size_bytes, files, created_at)
       VALUES (1, 'dataset', 'ds', 1, 10 * %(number)s, %(number)s, %(now)s)""",
    "INSERT INTO attachment SELECT p.id, c.id, 10 FROM did p, did c WHERE p.kind = 'dataset' AND c.kind = 'file'",
    "INSERT INTO expression (canonical) VALUES ('here'), ('there')",
    """INSERT INTO rule (did_id, account_id, copies, expression_id, state, created_at, state_since, next_judge_at,
                         expires_at)
       SELECT id, 1, 1, CASE WHEN kind = 'file' THEN 1 ELSE 2 END, 'replicating', %(now)s, %(now)s, %(now)s, %(now)s
         FROM did ORDER BY id""",
    """INSERT INTO lock (did_id, storage_id, rule_id, files, size_bytes, created_at, fill_after)
       SELECT r.did_id, r.expression_id + 1, r.id, d.files + 1, d.size_bytes, %(now)s, 0
         FROM rule r JOIN did d ON d.id = r.did_id""",
    """INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at, verified_at, next_check_at)
       SELECT d.id, 1, 'available', 10, %(now)s, %(now)s, %(now)s FROM did d WHERE kind = 'file'""",
    "INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at)"
    " SELECT d.id, 2, 'copying', 10, %(now)s FROM did d WHERE kind = 'file'",
    """INSERT INTO request (did_id, storage_id, size_bytes, created_at, next_attempt_at, priority, state, error)
       SELECT did_id, storage_id, 10, %(now)s, %(now)s, 2, 'parked', 'full' FROM replica WHERE state = 'copying'""",
    "INSERT INTO secret (name, keys, version, key_id, ciphertext, created_at, set_at)"
    " SELECT 's' || n, '{token}', 1, 'old', '', %(now)s, %(now)s FROM generate_series(1, %(number)s) n",
    "INSERT INTO change (kind, did_id, storage_id, file_ids, created_at)"
    " SELECT 'gone', NULL, 2, ARRAY[id], %(now)s FROM did WHERE kind = 'file'",
    "INSERT INTO event (at, object, object_id, action, actor)"
    " SELECT %(now)s, 'rule', id, 'placed', 'ann' FROM rule",
    "ANALYZE",
)  # fmt: skip


def make(database: Database, number: int) -> Rows:
    with database.begin("make") as tx:
        for sql in MAKE:
            tx.run(sql, number=number)
        ids = [row.id for row in tx.rows("SELECT id FROM did ORDER BY id")]
        found = tx.rows("SELECT id, uuid FROM rule ORDER BY id")
    rule_ids = [row.id for row in found]
    return Rows(number, ids[:-1], rule_ids[:-1], ids[-1], rule_ids[-1], 1, 2, 3, found[-1].uuid)


Call = Callable[[Tx, Rows], Any]


def new_rules(rows: Rows) -> list[rules.NewRule]:
    fixed = (None, "dataset", None, None, 3, "default", None, False, None, None, None, None, None)
    return [rules.NewRule(file_id, 1, 2, 1, *fixed) for file_id in rows.files]


def placements(rows: Rows) -> list[Placement]:
    return [
        Placement(rule, 1, file_id, rows.there, 1, 10, 10) for file_id, rule in zip(rows.files, rows.rules, strict=True)
    ]


def locks(tx: Tx, rows: Rows) -> Any:
    return tx.rows("SELECT * FROM lock WHERE rule_id = ANY (%(rules)s)", rules=rows.rules)


def delta(rows: Rows) -> usage.StorageDelta:
    found = usage.StorageDelta()
    for _, storage_id in rows.pairs:
        found.add(storage_id, reserved_bytes=1)
    return found


def charges(rows: Rows) -> usage.Charges:
    found = usage.Charges()
    for _, storage_id in rows.pairs:
        found.add(1, storage_id, 1, 1)
    return found


def many(of: Any, rows: Rows) -> list[Any]:
    return [of] * rows.number


def mark(tx: Tx, rows: Rows) -> None:
    held = locks(tx, rows)
    tx.statements = 0
    filling.mark_filled(tx, held, many(0, rows), None, was_empty=False)


def with_locks(act: Callable[[Tx, Any], Any]) -> Call:
    """A call whose rows are read before its statements are counted."""

    def call(tx: Tx, rows: Rows) -> None:
        held = locks(tx, rows)
        tx.statements = 0
        act(tx, held)

    return call


def with_parcels(act: Callable[[Tx, Any], Any]) -> Call:
    """A call whose parcels, one for each file's rule, are written before its statements are counted."""

    def call(tx: Tx, rows: Rows) -> None:
        for file_id, rule in zip(rows.files, rows.rules, strict=True):
            parcels.add(tx, rule, file_id, file_id, 1, {rows.here: 10}, has_copies=True)
        held = parcels.claim(tx, 1, rows.number)
        tx.statements = 0
        act(tx, held)

    return call


PAIRS = "SELECT *, 10 AS size_bytes FROM unnest(%(dids)s::bigint[], %(storages)s::int[]) AS p (did_id, storage_id)"
LATER = datetime(2026, 2, 1, tzinfo=UTC)
SEALED = Sealed("new", b"sealed")
S3 = {"scheme": "s3", "prefix": "https://host/b", "credentials": None, "options": {}, "priority": 0}
STORAGE = {
    "type": "disk", "phase": "gas", "capacity_bytes": None, "min_free_bytes": 0, "can_read": True, "can_write": True,
    "can_delete": True, "switch_reason": None, "reap": "eager", "undo_window_s": None, "attributes": {},
}  # fmt: skip

CALLS: dict[str, Call] = {
    "rules.ensure_expressions": lambda tx, r: rules.ensure_expressions(tx, {f"e{id_}": [1] for id_ in r.files}),
    "rules.add": lambda tx, r: rules.add(tx, new_rules(r)),
    "rules.find_standing": lambda tx, r: rules.find_standing(tx, *new_rules(r)[0].wish),
    "rules.with_keys": lambda tx, r: rules.with_keys(tx, r.files, [f"k{id_}" for id_ in r.files]),
    "rules.get": lambda tx, r: rules.get(tx, r.rule_uuid),
    "rules.get_by_uuids": lambda tx, r: rules.get_by_uuids(tx, [r.rule_uuid]),
    "rules.get_many": lambda tx, r: rules.get_many(tx, r.rules),
    "rules.list_page": lambda tx, r: rules.list_page(tx, limit=r.number),
    "rules.progress": lambda tx, r: rules.progress(tx, r.of_dataset),
    "rules.locks_page": lambda tx, r: rules.locks_page(tx, r.of_dataset, (0, 0), r.number),
    "rules.locked_storages": lambda tx, r: rules.locked_storages(tx, r.of_dataset),
    "rules.raise_requests": lambda tx, r: rules.raise_requests(tx, r.of_dataset),
    "rules.change": lambda tx, r: rules.change(tx, r.of_dataset, {"comment": "new"}),
    "rules.let_go": lambda tx, r: rules.let_go(tx, r.rules, "why"),
    "rules.set_successor": lambda tx, r: rules.set_successor(tx, r.of_dataset, r.rule_uuid),
    "rules.let_go_moved": lambda tx, r: rules.let_go_moved(tx, r.number),
    "rules.expired": lambda tx, r: rules.expired(tx, r.number),
    "rules.on_dids": lambda tx, r: rules.on_dids(tx, r.files),
    "rules.hold": lambda tx, r: rules.hold(tx, r.rules),
    "rules.wake": lambda tx, r: rules.wake(tx, r.rules),
    "rules.place_again": lambda tx, r: rules.place_again(tx, r.rules),
    "rules.ok_to_replicating": lambda tx, r: rules.ok_to_replicating(tx, r.rules, 30),
    "rules.set_states": lambda tx, r: rules.set_states(tx, [(id_, RuleState.OK, None, LATER) for id_ in r.rules]),
    "rules.with_locks": lambda tx, r: rules.with_locks(tx, r.rules),
    "rules.expressions": lambda tx, r: rules.expressions(tx),
    "rules.set_matches": lambda tx, r: rules.set_matches(tx, {id_: [1, 2] for id_ in r.rules}),
    "rules.impossible": lambda tx, r: rules.impossible(tx),
    "judging.claim_rules": lambda tx, r: judging.claim_rules(tx, r.number),
    "judging.rule_to_judge": lambda tx, r: judging.rule_to_judge(tx, r.of_dataset),
    "judging.none_rules_above": lambda tx, r: judging.none_rules_above(tx, r.files),
    "judging.rules_to_judge": lambda tx, r: judging.rules_to_judge(tx, r.rules),
    "judging.next_due_s": lambda tx, r: judging.next_due_s(tx),
    "judging.sizes": lambda tx, r: judging.sizes(tx, r.files),
    "judging.locks_of": lambda tx, r: judging.locks_of(tx, r.rules),
    "judging.coverage": lambda tx, r: judging.coverage(tx, r.files),
    "judging.quota_left": lambda tx, r: judging.quota_left(tx, r.files),
    "judging.add_locks": lambda tx, r: judging.add_locks(tx, placements(r)),
    "judging.resize_locks_on": lambda tx, r: judging.resize_locks_on(tx, r.files),
    "judging.resize_locks": with_locks(judging.resize_locks),
    "judging.hint": lambda tx, r: judging.hint(tx, r.pairs, ok=1),
    "judging.wake_complete": lambda tx, r: judging.wake_complete(tx, r.rules),
    "judging.count_copies": lambda tx, r: judging.count_copies(tx, r.rules, ["available"]),
    "counting.count_by_exceptions": lambda tx, r: counting.count_by_exceptions(tx, r.rules, ["available"]),
    "surplus.count_locks": lambda tx, r: surplus.count_locks(tx, r.rules),
    "surplus.release_files": lambda tx, r: surplus.release_files(tx, r.of_dataset, 1, [(2, 0, "a")], 0, r.number),
    "surplus.set_cursors": lambda tx, r: surplus.set_cursors(tx, [(id_, None) for id_ in r.rules]),
    "judging.parked_reasons": lambda tx, r: judging.parked_reasons(tx, r.rules),
    "judging.files_to_place": lambda tx, r: judging.files_to_place(tx, [r.dataset], 0, r.number),
    "judging.file_classes": lambda tx, r: judging.file_classes(tx, r.of_dataset, r.files, [2, 3]),
    "judging.add_file_locks": lambda tx, r: judging.add_file_locks(
        tx, r.of_dataset, r.files, [2, 3], [([2], [], [3], r.number)], as_parcel=True
    ),
    "judging.files_below": lambda tx, r: judging.files_below(tx, r.dataset, r.files),
    "judging.with_harm": lambda tx, r: judging.with_harm(tx, r.files),
    "judging.strayed_locks": lambda tx, r: judging.strayed_locks(tx, file_ids=r.files, rule_ids=r.rules),
    "judging.locks_on": lambda tx, r: judging.locks_on(tx, r.files),
    "judging.outlook": lambda tx, r: judging.outlook(tx, r.of_dataset),
    "filling.fill": lambda tx, r: filling.fill(tx, filling.LOCKS, delta(r), **r.lanes),
    "filling.make": lambda tx, r: filling.make(tx, filling.LOCKS, delta(r), **r.lanes),
    "filling.mend": lambda tx, r: filling.mend(tx, filling.LOCKS, delta(r), filling.Made({}, 1), **r.lanes),
    "filling.hold_standing": lambda tx, r: filling.hold_standing(tx, r.pairs, r.files),
    "filling.count_lacking": lambda tx, r: filling.count_lacking(tx, r.dataset, 0, filling.LAST, [2, 3]),
    "filling.fill_alike": lambda tx, r: filling.fill_alike(
        tx, PAIRS, delta(r), priority=3, activity="default", **r.columns
    ),
    "parcels.add": lambda tx, r: parcels.add(tx, r.of_dataset, 1, r.number, 1, {r.here: 10}, has_copies=True),
    "parcels.claim": lambda tx, r: parcels.claim(tx, 1, r.number),
    "parcels.count": with_parcels(parcels.count),
    "parcels.remove": with_parcels(parcels.remove),
    "filling.claim_small": lambda tx, r: filling.claim_small(tx, 10, r.number),
    "filling.claim_large": lambda tx, r: filling.claim_large(tx, 5),
    "filling.chunk_end": lambda tx, r: filling.chunk_end(tx, r.dataset, 0, r.number),
    "filling.mark_filled": mark,
    "filling.fill_again": lambda tx, r: filling.fill_again(tx, r.rules),
    "filling.recount_large": lambda tx, r: filling.recount_large(tx, **r.columns, rules=r.rules),
    "filling.recount": lambda tx, r: filling.recount(tx, **r.columns, rules=r.rules),
    "letting_go.let_go": lambda tx, r: letting_go.let_go(
        tx, letting_go.PAIRS, delta(r), undo_window_s=1, **{**r.columns, "storages": many(r.origin, r)}
    ),
    "letting_go.hold_requests": lambda tx, r: letting_go.hold_requests(tx, letting_go.PAIRS, **r.columns),
    "letting_go.let_go_held": lambda tx, r: letting_go.let_go_held(
        tx, letting_go.PAIRS, [], delta(r), undo_window_s=1, **r.columns
    ),
    "letting_go.bury": lambda tx, r: letting_go.bury(tx, r.pairs, undo_window_s=1),
    "letting_go.release": lambda tx, r: letting_go.release(tx, keys=r.keys),
    "letting_go.claim_small": lambda tx, r: letting_go.claim_small(tx, 10, r.number),
    "letting_go.advance": with_locks(lambda tx, held: letting_go.advance(tx, held, 5)),
    "letting_go.remove": with_locks(letting_go.remove),
    "changes.add": lambda tx, r: changes.add(tx, ChangeKind.ATTACHED, did_id=r.dataset, file_ids=r.files),
    "changes.add_dids": lambda tx, r: changes.add_dids(tx, ChangeKind.DID_ENDED, r.files),
    "changes.add_by_storage": lambda tx, r: changes.add_by_storage(tx, ChangeKind.GONE, r.pairs),
    "changes.claim": lambda tx, r: changes.claim(tx, r.number, 10**6),
    "changes.wake": lambda tx, r: changes.wake(tx, "judge"),
    "events.record": lambda tx, r: events.record(tx, "rule", 1, "placed", after={"files": r.files}),
    "events.record_many": lambda tx, r: events.record_many(tx, "rule", "x", [(id_, None, {"n": 1}) for id_ in r.rules]),
    "events.list_for": lambda tx, r: events.list_for(tx, "rule", 1, r.number),
    "events.list_page": lambda tx, r: events.list_page(tx, "rule", None, None, None, None, r.number),
    "usage.change_storages": lambda tx, r: usage.change_storages(tx, delta(r)),
    "usage.change_accounts": lambda tx, r: usage.change_accounts(tx, charges(r)),
    "usage.hold_storages": lambda tx, r: usage.hold_storages(tx, r.files),
    "usage.storages": lambda tx, r: usage.storages(tx),
    "usage.accounts": lambda tx, r: usage.accounts(tx),
    "storages.snapshot": lambda tx, r: storages.snapshot(tx),
    "storages.protocols": lambda tx, r: storages.protocols(tx, r.files),
    "storages.set_available": lambda tx, r: storages.set_available(tx, r.here, "away"),
    "storages.get": lambda tx, r: storages.get(tx, "here"),
    "storages.list_page": lambda tx, r: storages.list_page(tx, limit=r.number),
    "storages.hold": lambda tx, r: storages.hold(tx, "here"),
    "storages.begin": lambda tx, r: storages.begin(tx, 1, {"name": "new", **STORAGE}),
    "storages.finish": lambda tx, r: storages.finish(tx, r.here, tx.now),
    "storages.update": lambda tx, r: storages.update(tx, r.here, STORAGE),
    "storages.insert_protocol": lambda tx, r: storages.insert_protocol(tx, r.here, S3),
    "storages.update_protocol": lambda tx, r: storages.update_protocol(tx, r.here, "posix", "site-s3", {"timeout_s": "9"}),
    "storages.look_again": lambda tx, r: storages.look_again(tx, ["here", "there"]),
    "storages.list_protocols": lambda tx, r: storages.list_protocols(tx, r.here),
    "storages.set_marker": lambda tx, r: storages.set_marker(tx, r.here, "seal"),
    "storages.hold_usage": lambda tx, r: storages.hold_usage(tx, r.here),
    "storages.holds_anything": lambda tx, r: storages.holds_anything(tx, r.here),
    "storages.delete": lambda tx, r: storages.delete(tx, r.here),
    "storages.fill": lambda tx, r: storages.fill(tx, r.here),
    "secrets.insert": lambda tx, r: secrets.insert(tx, "new", ["token"], SEALED),
    "secrets.get": lambda tx, r: secrets.get(tx, "s1"),
    "secrets.list_page": lambda tx, r: secrets.list_page(tx, limit=r.number),
    "secrets.hold": lambda tx, r: secrets.hold(tx, "s1"),
    "secrets.keep": lambda tx, r: secrets.keep(tx, "s1"),
    "secrets.update": lambda tx, r: secrets.update(tx, 1, ["token"], SEALED),
    "secrets.delete": lambda tx, r: secrets.delete(tx, 1),
    "secrets.users": lambda tx, r: secrets.users(tx, "s1"),
    "secrets.sealed": lambda tx, r: secrets.sealed(tx, [f"s{number}" for number in range(r.number)]),
    "secrets.count_by_key": lambda tx, r: secrets.count_by_key(tx),
    "secrets.hold_old": lambda tx, r: secrets.hold_old(tx, ["old"], 0, r.number),
    "secrets.reseal": lambda tx, r: secrets.reseal(tx, dict.fromkeys(range(1, r.number + 1), SEALED)),
    "tracing.replicas": lambda tx, r: tracing.replicas(tx, r.files[0]),
    "tracing.holders": lambda tx, r: tracing.holders(tx, r.files[0]),
    "tracing.rules_above": lambda tx, r: tracing.rules_above(tx, r.files[0]),
    "tracing.rules_ended": lambda tx, r: tracing.rules_ended(tx, r.files[0], r.number),
    "tracing.harms": lambda tx, r: tracing.harms(tx, r.files[0], [r.here], tx.now),
    "tracing.undo_window": lambda tx, r: tracing.undo_window(tx, r.of_dataset, 1.0),
    "tracing.placements": lambda tx, r: tracing.placements(tx, r.rules),
    "tracing.attempts": lambda tx, r: tracing.attempts(tx, r.files[0], None, r.number),
    "tracing.proofs": lambda tx, r: tracing.proofs(tx, r.files[0], None, r.number),
    "tracing.rule_requests": lambda tx, r: tracing.rule_requests(tx, r.of_dataset, r.number),
    "tracing.storage_load": lambda tx, r: tracing.storage_load(tx, r.here),
    "status.rules_by_state": lambda tx, r: status.rules_by_state(tx),
    "status.queues": lambda tx, r: status.queues(tx),
    "status.storages_with_news": lambda tx, r: status.storages_with_news(tx),
    "status.copies_held_up": lambda tx, r: status.copies_held_up(tx),
    "status.count_storages": lambda tx, r: status.count_storages(tx),
}


def after(sql: str, call: Call) -> Call:
    """The call in a world that this statement made other."""

    def changed(tx: Tx, rows: Rows) -> None:
        tx.run(sql)
        tx.statements = 0
        call(tx, rows)

    return changed


FREE = "DELETE FROM lock"
RELEASED = "UPDATE lock SET is_released = true"
FAILED = "WITH r AS (DELETE FROM request) UPDATE replica SET state = 'bad' WHERE state = 'copying'"
SURPLUS = """WITH l AS (INSERT INTO lock (did_id, storage_id, rule_id, files, size_bytes, created_at)
                        SELECT l.did_id, s.id, l.rule_id, l.files, l.size_bytes, l.created_at FROM lock l, storage s
                        ON CONFLICT DO NOTHING)
             UPDATE rule SET surplus_after = 0"""
ENDED = "UPDATE rule SET state = 'letting_go'"

# the other ways through some of them, and the judge's steps, which are made of them
WAYS: dict[str, Call] = {
    "letting_go.let_go of what is coming": after(
        FREE, lambda tx, r: letting_go.let_go(tx, letting_go.PAIRS, delta(r), undo_window_s=1, **r.columns)
    ),
    "filling.fill of what is bad": after(FAILED, CALLS["filling.fill"]),
    "filling.fill where nothing is": lambda tx, r: filling.fill(
        tx, filling.LOCKS, delta(r), **{**r.lanes, "storages": many(r.there, r)}
    ),
    "letting_go.release of rules": lambda tx, r: letting_go.release(tx, rule_ids=r.rules),
    "placing.judge_due": lambda tx, r: placing.judge_due(tx, Limits(batch_rules=10**6, chunk_files=10**6)),
    "placing.judge_due without locks": after(
        FREE, lambda tx, r: placing.judge_due(tx, Limits(batch_rules=10**6, chunk_files=10**6))
    ),
    "placing.judge_due with surplus": after(
        SURPLUS, lambda tx, r: placing.judge_due(tx, Limits(batch_rules=10**6, chunk_files=10**6))
    ),
    "placing.judge_due at their end": after(
        ENDED, lambda tx, r: placing.judge_due(tx, Limits(batch_rules=10**6, chunk_files=10**6))
    ),
    "consequences.fill_small": lambda tx, r: consequences.fill_small(tx, Limits()),
    "consequences.let_go_small": after(RELEASED, lambda tx, r: consequences.let_go_small(tx, Limits(), 1)),
    "folding.fold": lambda tx, r: folding.fold(tx, r.number, 1),
}


@pytest.fixture(scope="module")
def catalogues(server: EmbeddedPostgres, template: str) -> Iterator[dict[int, tuple[Database, Rows]]]:
    """A database with few rows, and one with many."""
    made = {}
    for number in (FEW, MANY):
        clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
        database = Database(server.create_database(f"test_counts_{os.getpid()}_{number}", template), clock=clock)
        made[number] = (database, make(database, number))
        clock.moment += timedelta(days=1)
    yield made
    for number, (database, _) in made.items():
        database.dispose()
        server.drop_database(f"test_counts_{os.getpid()}_{number}")


def public(module: ModuleType) -> list[str]:
    """The functions of the module that take a transaction."""
    stem = module.__name__.rpartition(".")[2]
    own = [f for _, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__]
    takes = [
        f for f in own if not f.__name__.startswith("_") and next(iter(inspect.signature(f).parameters), "") == "tx"
    ]
    return [f"{stem}.{f.__name__}" for f in takes]


WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen")
NUMBER = {word: number for number, word in enumerate(WORDS, 1)}
SAID = re.compile(r"(at most )?\b(\w+)(?: (?:to|or) (\w+))? statements?\b")


def said(name: str) -> tuple[int, int]:
    """(least, most) statements by the docstring."""
    stem, _, function = name.partition(".")
    module = next(module for module in (*MODULES, consequences) if module.__name__.endswith(f".{stem}"))
    found = SAID.search(inspect.getdoc(getattr(module, function)) or "")
    assert found is not None, f"{name} does not say how many statements it takes"
    at_most, least, most = found.groups()
    return 0 if at_most else NUMBER[least], NUMBER[most or least]


def count(database: Database, rows: Rows, call: Call) -> int:
    """The statements of the call, which is rolled back."""
    with database.begin("count", commit=False) as tx:
        call(tx, rows)
        return tx.statements


def test_every_function_is_counted() -> None:
    assert sorted(CALLS) == sorted(name for module in MODULES for name in public(module))


@pytest.mark.parametrize("name", CALLS)
def test_statements_do_not_grow_with_rows_and_are_as_many_as_said(
    catalogues: dict[int, tuple[Database, Rows]], name: str
) -> None:
    few, more = (count(*catalogues[number], CALLS[name]) for number in (FEW, MANY))
    assert few == more
    least, most = said(name)
    assert least <= few <= most


@pytest.mark.parametrize("way", WAYS)
def test_nor_do_they_the_other_ways_through(catalogues: dict[int, tuple[Database, Rows]], way: str) -> None:
    few, more = (count(*catalogues[number], WAYS[way]) for number in (FEW, MANY))
    assert few == more
    name = way.partition(" ")[0]
    if name not in ("placing.judge_due", "folding.fold"):  # "a fixed number"
        least, most = said(name)
        assert least <= few <= most
