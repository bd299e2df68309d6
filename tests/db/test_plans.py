"""The plans of the hot statements, on a catalogue of a million files: none of them may walk through a hot table.

A small dataset goes through its whole life (registered, declared, placed, copied, checked, let go, reaped) amid a million
files that have nothing to do with it, and every statement is explained before it runs.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlm.clock import ManualClock
from dlm.core import amending, moving
from dlm.db import engine
from dlm.db.engine import Database, Tx
from world import DAY, World

FILES = 1_000_000
HOT = {"did", "attachment", "replica", "lock", "request"}
EXPLAINED = ("select", "with", "insert", "update", "delete")

# Reads the queue once when a storage comes back, and says so: an index for that would cost every request.
ALLOWED = {"requests.wake_waiting"}

Scans = dict[str, set[str]]


class Explaining(Tx):
    """A transaction that asks for the plan of every statement first, and keeps which table was read how, by function."""

    scans: Scans = defaultdict(set)

    def run(self, sql: str, **values: Any) -> Any:
        if sql.lstrip().lower().startswith(EXPLAINED):
            bound = {**values, "now": self.now}
            ((plan,),) = self.connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {sql}", bound).fetchall()
            self.scans[_caller()].update(_scans(plan[0]["Plan"]))
        return super().run(sql, **values)


def _caller() -> str:
    """The function of dlm.db that sent the statement."""
    frame = sys._getframe(2)
    while frame.f_back is not None and "/dlm/db/" not in frame.f_code.co_filename:
        frame = frame.f_back
    while "/dlm/db/engine.py" in frame.f_code.co_filename and frame.f_back is not None:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"


def _scans(node: dict[str, Any]) -> Iterator[str]:
    if "Relation Name" in node and node["Node Type"].endswith("Scan"):
        yield f"{node['Node Type']} {node['Relation Name']}"
    for child in node.get("Plans", ()):
        yield from _scans(child)


@pytest.fixture
def world(database: Database, clock: ManualClock, tmp_path: Path) -> World:
    """One dataset of a million files at `bulk`, 10,000 of ten files each, locks and a queue that is long elsewhere."""
    world = World(database, clock, tmp_path, breaker_delete_share=1, database_statement_timeout_s=600)
    for name, site in (("perth-a", "perth"), ("bern-a", "bern"), ("origin", "perth"), ("bulk", "oslo"), ("busy", "oslo")):
        world.add_storage(name, site, type="bulk" if site == "oslo" else "disk")
    with database.begin("test") as tx:
        _crowd(tx)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")
    return world


def _crowd(tx: Tx) -> None:
    tx.run("SET LOCAL statement_timeout = 0")
    tx.run(
        """INSERT INTO did (scope_id, kind, name, account_id, size_bytes, files, adler32, created_at)
           SELECT 1, 'file', 'crowd.' || i, 1, 1000, 1, '00000001', %(now)s FROM generate_series(1, %(n)s) i""",
        n=FILES,
    )
    tx.run(
        """INSERT INTO did (scope_id, kind, name, account_id, size_bytes, files, created_at)
           SELECT 1, 'dataset', 'crowd-ds.' || i, 1, CASE i WHEN 0 THEN 1000::bigint * %(n)s ELSE 10000 END,
                  CASE i WHEN 0 THEN %(n)s ELSE 10 END, %(now)s FROM generate_series(0, 10000) i""",
        n=FILES,
    )
    tx.run(
        """INSERT INTO attachment (parent_id, child_id, size_bytes)
           SELECT p.id, f.id, 1000 FROM did f JOIN did p ON p.name = 'crowd-ds.0' WHERE f.name LIKE 'crowd.%%' ORDER BY f.id"""
    )
    tx.run(
        """INSERT INTO attachment (parent_id, child_id, size_bytes)
           SELECT p.id, f.id, 1000 FROM generate_series(1, 10000) i JOIN did p ON p.name = 'crowd-ds.' || i
             CROSS JOIN generate_series(1, 10) k JOIN did f ON f.name = 'crowd.' || (i * 10 + k)"""
    )
    tx.run(
        """INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at, verified_at, next_check_at)
           SELECT id, (SELECT id FROM storage WHERE name = 'bulk'), 'available', 1000, %(now)s, %(now)s, %(now)s + interval '10 years'
             FROM did WHERE name LIKE 'crowd.%%' ORDER BY did.id"""
    )
    tx.run(
        """INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at)
           SELECT id, (SELECT id FROM storage WHERE name = 'busy'), 'copying', 1000, %(now)s
             FROM did WHERE name LIKE 'crowd.%%' ORDER BY did.id"""
    )
    tx.run(
        """INSERT INTO request (did_id, storage_id, size_bytes, created_at, next_attempt_at, priority)
           SELECT did_id, storage_id, 1000, %(now)s, %(now)s + interval '10 years', 3 FROM replica WHERE state = 'copying' ORDER BY 1"""
    )
    tx.run(
        """INSERT INTO expression (canonical, storage_ids, evaluated_at)
           SELECT name, ARRAY[id], %(now)s FROM storage WHERE name = 'bulk'"""
    )
    tx.run(
        """INSERT INTO rule (did_id, account_id, copies, expression_id, state, created_at, state_since, next_judge_at)
           SELECT id, 1, 1, 1, 'ok', %(now)s, %(now)s, %(now)s + interval '10 years' FROM did WHERE kind = 'dataset'"""
    )
    tx.run(
        """INSERT INTO lock (did_id, storage_id, rule_id, files, size_bytes, files_ok, fill_after, created_at)
           SELECT r.did_id, (SELECT id FROM storage WHERE name = 'bulk'), r.id, d.files, d.size_bytes, d.files, NULL, %(now)s
             FROM rule r JOIN did d ON d.id = r.did_id"""
    )
    tx.run(
        """INSERT INTO lock (did_id, storage_id, rule_id, files, size_bytes, files_ok, fill_after, created_at)
           SELECT id, (SELECT id FROM storage WHERE name = 'bulk'), (SELECT min(id) FROM rule), 1, 1000, 1, NULL, %(now)s
             FROM did WHERE name LIKE 'crowd.%%' ORDER BY did.id"""
    )


def _changed(world: World, rule: str, shared: str) -> list[str]:
    """More copies, fewer, elsewhere, and later; the rules of grouping none that came of it."""
    wider = world.declare("small", 1, "(perth-a|bern-a)&type=disk", grouping="none", delay_s=DAY)
    world.later(DAY)
    for copies in (2, 1):
        with world.begin() as tx:
            for each in (rule, wider):
                amending.update(tx, each, {"copies": copies})
        world.settle()
    with world.begin() as tx:
        moved = moving.move(tx, shared, {"storages": "bern-a"}).id
    world.settle()
    assert (world.state(shared), world.state(moved), world.state(wider)) == ("gone", "ok", "ok")
    return [moved, wider]


def test_no_hot_statement_walks_through_a_hot_table(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "Tx", Explaining)
    world.many("origin", 200, dataset="small")
    world.put("origin", {"single": b"single"})
    rule = world.declare("small", 2, "perth-a|bern-a", spread="site")
    single = world.declare("single", 1, "perth-a|bern-a")
    shared = world.declare("small", 1, "perth-a", grouping="none")
    world.settle()
    assert {world.state(r) for r in (rule, single, shared)} == {"ok"}
    world.many("origin", 20, dataset="small", prefix="late")
    world.path("perth-a", "f3").unlink()
    world.settle()
    world.later(40 * DAY)
    changed = _changed(world, rule, shared)
    world.detach("small", "f1", "f2")
    for ended in (rule, *changed):
        world.cancel(ended)
    world.settle()
    world.later(2 * DAY)
    assert world.count("bern-a") <= 1
    wrong = {
        function: sorted(scan for scan in scans if scan.startswith("Seq Scan") and scan.removeprefix("Seq Scan ") in HOT)
        for function, scans in Explaining.scans.items()
        if function.split(".")[0] not in ("test_plans", "world") and function not in ALLOWED
    }
    found = [f"{function}: {', '.join(scans)}" for function, scans in sorted(wrong.items()) if scans]
    assert not found, "\n".join(found)
    assert len(Explaining.scans) > 65, "the life of a dataset runs through most of the SQL there is"
