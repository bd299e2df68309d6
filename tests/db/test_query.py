"""Filters against a real catalogue: they find what a plain reading of the metadata finds, and by indexes."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalogue import collect, fill
from dlm.clock import ManualClock
from dlm.core import dids, files, replicas
from dlm.core.query import parse
from dlm.core.verify import verify
from dlm.db.engine import Database, Tx
from dlm.db.query import MAX_VALUE_CHARACTERS
from dlm.types import Condition, DidKind, Page, Query

LONG = "x" * (MAX_VALUE_CHARACTERS + 1)
VALUES: list[Any] = [
    *(0, 1, -1, 2, 2.5, 10, 1e300, 10**30, True, False, None, [], [1], {"b": 1}),
    *("", "a", "ab", "b", "1", "true", "a%b", "a_b", "a\\", "é", "ab'c", "2026-01-31", LONG),
]
KEYS = ("a", "b", "c", "name", "%")
HOLDS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@pytest.fixture
def database(database: Database, tmp_path: Path) -> Database:
    fill(database, tmp_path)
    return database


def found(tx: Tx, text: str | Query, limit: int = 1000, after: str | None = None) -> list[str]:
    query = parse(text) if isinstance(text, str) else text
    return [row.name for row in dids.list_dids(tx, dids.Filter("demo", query=query), Page(limit, after))[0]]


# ------------------------------------------------------------------------------------------------------ the same


def asked(value: Any) -> str | Decimal | None:
    """What a value of metadata is compared as."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return Decimal(str(value))
    return value if isinstance(value, str) and len(value) <= MAX_VALUE_CHARACTERS else None


def holds(condition: Condition, metadata: Mapping[str, Any]) -> bool:
    """Whether the metadata does what the condition says, without any index."""
    if condition.key not in metadata:
        return False
    if not condition.op:
        return True
    if condition.op == "!=":
        return not holds(Condition(condition.key, "=", condition.value), metadata)
    have, want = asked(metadata[condition.key]), condition.value
    if isinstance(want, tuple):
        pattern = ".*".join(map(re.escape, want))
        return isinstance(have, str) and re.fullmatch(pattern, have, re.DOTALL) is not None
    return type(have) is type(want) and HOLDS[condition.op](have, want)


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    key = draw(st.sampled_from(KEYS))
    if draw(st.integers(0, 9)) == 0:
        return Condition(key)
    value = draw(st.sampled_from([value for each in VALUES if (value := asked(each)) is not None]))
    if isinstance(value, str) and draw(st.booleans()):
        cut = draw(st.integers(0, len(value)))
        return Condition(
            key, draw(st.sampled_from(["=", "!="])), (value[:cut], value[draw(st.integers(cut, len(value))) :])
        )
    return Condition(key, draw(st.sampled_from(["!=", *HOLDS])), value)


QUERIES = st.lists(st.lists(conditions(), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3)


def test_a_filter_finds_what_a_plain_reading_finds(database: Database) -> None:
    catalogue = {
        f"d{index:03d}": {key: value for key, step in zip(KEYS, (1, 3, 7, 5, 11), strict=True)
                          if (value := VALUES[index * step % len(VALUES)]) != 10 or key == "a"}
        for index in range(120)
    }  # fmt: skip
    with database.begin("test") as tx:
        for name, metadata in catalogue.items():
            collect(tx, name, metadata=metadata)

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(QUERIES, st.sampled_from([10_000, 30, 0]))
    def compare(alternatives: list[tuple[Condition, ...]], few: int) -> None:
        meant = [
            name for name, said in catalogue.items() if any(all(holds(c, said) for c in each) for each in alternatives)
        ]
        with database.begin("test") as tx, pytest.MonkeyPatch.context() as patch:
            patch.setattr("dlm.db.query.FEW", few)  # from the entries, by name, and between
            assert found(tx, Query(tuple(alternatives))) == meant

    compare()


def test_dlms_own_facts_are_asked_beside_metadata(database: Database, clock: ManualClock) -> None:
    with database.begin("test") as tx:
        collect(tx, "a", "b", metadata={"run": 1, "name": "x"})
        collect(tx, "box", kind=DidKind.CONTAINER, metadata={"run": 2})
    clock.advance(3600)
    with database.begin("test") as tx:
        items = [{"name": f"f{n}", "size_bytes": n * 100, "metadata": {"run": n}} for n in range(3)]
        replicas.register(tx, "perth-disk", files.read(items, "demo"), dataset=("demo", "a"))
        for text, names in {
            "run>1": ["box", "f2"],
            "run>1, kind=file": ["f2"],
            "kind!=file": ["a", "b", "box"],
            "size_bytes>100; name=b*, run<2": ["a", "b", "f2"],
            "length=3": ["a"],
            "0<=size_bytes<=100, kind=file": ["f0", "f1"],
            f"created_after={clock.moment.isoformat()}": ["f0", "f1", "f2"],
            f"created_at<{clock.moment.isoformat()}, run": ["a", "b", "box"],
            "name!=f*, kind": ["a", "b", "box"],
            "'name'=x": ["a", "b"],
            "run=*, name": ["a", "b", "box", "f0", "f1", "f2"],
        }.items():
            assert found(tx, text) == names, text


def test_what_is_found_follows_every_change_of_the_metadata(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "ds", metadata={"run": 7, "type": "raw"})
        assert found(tx, "run=7, type=raw") == ["ds"]
        dids.set_metadata(tx, "demo", "ds", {"run": "7", "type": None, "good": True})
        assert found(tx, "run=7; type") == [] and found(tx, "run='7', good=true") == ["ds"]
        dids.set_metadata(tx, "demo", "ds", {"run": None, "good": None})
        assert tx.scalar("SELECT count(*) FROM metadatum") == 0
        dids.set_metadata(tx, "demo", "ds", {"k" * 128: "é" * 400, "n": 10**399, "text": LONG, "deep": {"a": [1]}})
        assert found(tx, "n>1e398, text, deep, text!=a") == ["ds"]
        assert [finding for finding in verify(tx) if "filters" in finding.invariant] == []


def test_a_file_that_is_registered_again_keeps_what_was_said_of_it(database: Database) -> None:
    item = {"name": "f", "size_bytes": 1, "metadata": {"run": 1}}
    with database.begin("test") as tx:
        replicas.register(tx, "perth-disk", files.read([item], "demo"))
        replicas.register(tx, "perth-vault", files.read([{**item, "metadata": {"run": 2}}], "demo"))
        assert found(tx, "run=1") == ["f"] and found(tx, "run=2") == []
        assert [finding for finding in verify(tx) if "filters" in finding.invariant] == []


def test_the_largest_filter_is_answered(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "ds", metadata={"run": 7})
        assert found(tx, ",".join(f"run!={n}" for n in range(8, 72))) == ["ds"]
        assert found(tx, ";".join(f"run={n}" for n in range(7, 71))) == ["ds"]


# ---------------------------------------------------------------------------------------------------- by indexes


@dataclass(slots=True)
class Explained(Tx):
    """A transaction that keeps the plans of its queries."""

    plan: str = ""

    def run(self, sql: str, **values: Any) -> sa.CursorResult[Any]:
        if "FROM did" in sql:
            rows = Tx.run(self, f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) {sql}", **values).fetchall()
            self.plan = "\n".join(row[0] for row in rows)
        return Tx.run(self, sql, **values)


@pytest.fixture
def large(database: Database) -> Database:
    """50,000 files, each with four keys."""
    with database.begin("fill") as tx:
        tx.run(
            """WITH made AS (
                   INSERT INTO did (scope_id, kind, name, account_id, files, is_open, created_at, metadata)
                   SELECT s.id, 'file', 'f' || lpad(i::text, 6, '0'), s.account_id, 1, false, %(now)s,
                          jsonb_build_object('run', i / 10, 'exposure_s', i * 7919 %% 50000 / 50.0,
                                             'type', (ARRAY['raw', 'raw', 'image', 'log'])[1 + i %% 4],
                                             'field', 'J' || lpad((i * 31 %% 50000)::text, 5, '0'))
                     FROM scope s, generate_series(0, 49999) AS i RETURNING id, scope_id, metadata)
               INSERT INTO metadatum (did_id, key, scope_id, number, text)
               SELECT id, key, scope_id, CASE jsonb_typeof(value) WHEN 'number' THEN value::numeric END,
                      CASE jsonb_typeof(value) WHEN 'string' THEN value #>> '{}' END
                 FROM made CROSS JOIN LATERAL jsonb_each(metadata)"""
        )
        tx.run("ANALYZE did, metadatum")
    return database


ANY = "ix_metadatum_number|ix_metadatum_text"
PLANS = {  # filter: (how many of the first hundred, the index that finds them)
    "run=4711": (10, "ix_metadatum_number"),
    "field=J00031": (1, "ix_metadatum_text"),
    "999.9<exposure_s<=1000": (4, "ix_metadatum_number"),  # most runs are above that, and hide it from statistics
    "field=J0003*": (10, "ix_metadatum_text"),
    "type=raw, run=4711": (4, "ix_metadatum_number"),
    "run=4711; field=J00031; type=nope": (11, ANY),
    "run=4711, type!=raw": (6, "ix_metadatum_number"),
    "type=nothing*": (0, "ix_metadatum_text"),
    "nothing": (0, "ix_metadatum_text"),
    "type=raw": (100, "uq_did_scope_id_name"),
}
WHOLE_KEY = {"field=*31": 100, "type!=raw": 100}  # no range of an index: a quarter of the rows here, however it is read


def test_no_filter_reads_a_whole_table(large: Database) -> None:
    for text, (number, index) in PLANS.items():
        with large.begin("test") as plain:
            tx = Explained(plain.connection, plain.now)
            assert len(found(tx, text, 100)) == number, text
        done = "\n".join(line for line in tx.plan.splitlines() if "never executed" not in line)
        assert re.search(rf"\b({index})\b", done), f"{text}\n{tx.plan}"
        assert not re.search(r"Seq Scan on (did|metadatum)", done), f"{text}\n{tx.plan}"


def test_a_filter_without_a_range_reads_no_more_dids_than_it_finds(large: Database) -> None:
    for text, number in WHOLE_KEY.items():
        with large.begin("test") as plain:
            tx = Explained(plain.connection, plain.now)
            assert len(found(tx, text, 100)) == number, text
        assert not re.search(r"Seq Scan on did\b", tx.plan), f"{text}\n{tx.plan}"


def test_pages_of_a_filter_follow_each_other(large: Database) -> None:
    with large.begin("test") as tx:
        for text in ("400<=run<410", "type=log"):
            whole = found(tx, text)
            first = found(tx, text, 30)
            second = found(tx, text, 30, first[-1])
            assert [*first, *second] == whole[:60] and len(whole) >= 60
