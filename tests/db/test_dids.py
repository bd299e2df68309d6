"""Collections: made, filled, emptied, closed, described, ended; and two at once."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from catalogue import Beside, changes, collect, fill, last_event, refs, register, wait_until_blocked
from dlm.clock import ManualClock
from dlm.core import dids, query
from dlm.db import dids as rows
from dlm.db.engine import Database, Tx
from dlm.errors import Conflict, InvalidInput, NotFound
from dlm.types import Checksums, DidKind, Page

CONTAINER = DidKind.CONTAINER


@pytest.fixture
def database(database: Database, tmp_path: Path) -> Database:
    fill(database, tmp_path)
    with database.begin("settle") as tx:
        changes(tx)
    return database


def names(number: int, start: int = 0) -> list[dids.Ref]:
    return refs(*(f"f{index:05d}" for index in range(start, start + number)))


def totals(tx: Tx, name: str) -> tuple[int, int]:
    """(files, bytes) of the dataset, which must be what its attachments add up to."""
    row = dids.get(tx, "demo", name)
    counted = tx.one(
        "SELECT count(*), coalesce(sum(size_bytes), 0)::bigint FROM attachment WHERE parent_id = %(id)s", id=row.id
    )
    assert counted is not None and (row.files, row.size_bytes) == tuple(counted)
    return row.files, row.size_bytes


# --------------------------------------------------------------------------------------------------- making


def test_collections_are_made_in_order_and_all_or_none(database: Database) -> None:
    with database.begin("test") as tx:
        made = collect(tx, "z", "a", "m")
        assert [dids.get(tx, "demo", name).id for name in ("z", "a", "m")] == made
        assert dids.get(tx, "demo", "z").account == "ann"  # nobody in particular acts: the scope's owner has it
    with pytest.raises(Conflict) as caught, database.begin("test") as tx:
        collect(tx, "b", "a")
    assert caught.value.field == "dids[1]"
    with pytest.raises(InvalidInput, match="twice"), database.begin("test") as tx:
        collect(tx, "c", "c")
    with database.begin("test") as tx, pytest.raises(NotFound):
        dids.get(tx, "demo", "b")


def test_making_ten_thousand_collections_takes_as_many_statements_as_ten(database: Database) -> None:
    counts = []
    for number in (10, 10_000):
        with database.begin("test") as tx:
            collect(tx, *(f"d{number}-{index}" for index in range(number)))
            counts.append(tx.statements)
    assert counts[0] == counts[1] <= 4


def test_what_is_no_collection_is_refused(database: Database, clock: ManualClock) -> None:
    for facts in (
        {"name": "a\nb"},
        {"name": "../x"},
        {"kind": DidKind.FILE},
        {"metadata": {"": 1}},
        {"expires_at": clock.moment},
        {"expires_at": clock.moment.replace(tzinfo=None) + timedelta(days=1)},
    ):
        with database.begin("test") as tx, pytest.raises(InvalidInput) as caught:
            dids.add_collections(tx, [dids.NewCollection(**{"scope": "demo", "name": "x", **facts})])
        assert caught.value.field is not None and caught.value.field.startswith("dids[0].")
    with database.begin("test") as tx, pytest.raises(NotFound, match="no scope"):
        dids.add_collections(tx, [dids.NewCollection("nope", "x")])


# --------------------------------------------------------------------------------------------- attach and detach


def test_attaching_counts_tells_the_judge_and_ignores_what_is_there(database: Database) -> None:
    with database.begin("test") as tx:
        (ds,) = collect(tx, "ds")
        ids = register(tx, 5).did_ids
        changes(tx)
        assert dids.attach(tx, "demo", "ds", names(3)) == dids.Attached(3, 0)
        assert changes(tx) == [("attached", ds, None, sorted(ids[:3]))]
        assert dids.attach(tx, "demo", "ds", names(5)) == dids.Attached(2, 3)
        assert dids.attach(tx, "demo", "ds", names(1) * 2) == dids.Attached(0, 2)
        assert changes(tx) == [("attached", ds, None, sorted(ids[3:]))]
        assert totals(tx, "ds") == (5, 50)
        assert dids.detach(tx, "demo", "ds", names(2)) == 2
        assert dids.detach(tx, "demo", "ds", names(2)) == 0
        assert changes(tx) == [("detached", ds, None, sorted(ids[:2]))]
        assert totals(tx, "ds") == (3, 30)


def test_attach_and_detach_of_ten_thousand_take_as_many_statements_as_of_ten(database: Database) -> None:
    with database.begin("test") as tx:
        register(tx, 10_000)
    for act in (dids.attach, dids.detach):
        counts = []
        for number in (10, 10_000):
            with database.begin("test") as tx:
                if act is dids.attach:
                    collect(tx, f"ds{number}")
                before = tx.statements
                act(tx, "demo", f"ds{number}", names(number))
                counts.append(tx.statements - before)
        assert counts[0] == counts[1] <= 8


def test_what_the_caller_believes_of_a_file_must_agree_with_the_catalogue(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "ds")
        register(tx, 2)
        good = Checksums(adler32="00000001")
        with pytest.raises(Conflict, match="10 bytes, not 11") as caught:
            dids.attach(tx, "demo", "ds", names(2), {1: (11, good)})
        assert caught.value.field == "children[1].size_bytes"
        with pytest.raises(Conflict, match="another checksum"):
            dids.attach(tx, "demo", "ds", names(2), {0: (10, good)})
        dids.attach(tx, "demo", "ds", names(2), {1: (10, good), 0: (None, Checksums(md5="0" * 32))})
        assert totals(tx, "ds") == (2, 20)


def test_a_dataset_holds_files_and_a_container_one_kind_of_collection(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "ds", "ds2")
        collect(tx, "c", "inner", kind=CONTAINER)
        register(tx, 1)
        with pytest.raises(InvalidInput, match="a dataset holds files") as caught:
            dids.attach(tx, "demo", "ds", [*names(1), *refs("ds2")])
        assert caught.value.field == "children[1]"
        with pytest.raises(InvalidInput, match="a container holds"):
            dids.attach(tx, "demo", "c", names(1))
        with pytest.raises(InvalidInput, match="not both"):
            dids.attach(tx, "demo", "c", refs("ds", "inner"))
        dids.attach(tx, "demo", "c", refs("ds"))
        with pytest.raises(Conflict, match="not both"):
            dids.attach(tx, "demo", "c", refs("inner"))
        with pytest.raises(Conflict, match="is a file"):
            dids.attach(tx, "demo", "f00000", refs("ds"))
        with pytest.raises(NotFound) as missing:
            dids.attach(tx, "demo", "ds", [*names(1), *refs("nope")])
        assert missing.value.field == "children[1]"


def test_a_cycle_is_refused_however_long(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "a", "b", "c", kind=CONTAINER)
        dids.attach(tx, "demo", "a", refs("b"))
        dids.attach(tx, "demo", "b", refs("c"))
        for parent, child in (("c", "a"), ("b", "a"), ("a", "a")):
            with pytest.raises(Conflict, match="cycle"):
                dids.attach(tx, "demo", parent, refs(child))


def test_two_containers_cannot_attach_each_other_at_once(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "a", "b", kind=CONTAINER)

    def other_way() -> None:
        with database.begin("other") as tx:
            dids.attach(tx, "demo", "b", refs("a"))

    with database.begin("one") as tx:
        dids.attach(tx, "demo", "a", refs("b"))
        other = Beside(other_way)
        wait_until_blocked(database)
    assert other.finish() == [Conflict]


# ------------------------------------------------------------------------------------ closed, monotonic, ended


def test_a_closed_collection_neither_gains_nor_loses(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "ds")
        register(tx, 2)
        dids.attach(tx, "demo", "ds", names(1))
        dids.set_open(tx, "demo", "ds", False)
        for act in (dids.attach, dids.detach):
            with pytest.raises(Conflict, match="closed"):
                act(tx, "demo", "ds", names(2))
        dids.set_open(tx, "demo", "ds", True)
        assert last_event(tx).action == "opened"
        dids.attach(tx, "demo", "ds", names(2))
        assert totals(tx, "ds") == (2, 20)


def test_an_attach_that_a_close_overtakes_leaves_nothing_behind(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "ds")
        register(tx, 2)

    def attach() -> None:
        with database.begin("attach") as tx:
            dids.attach(tx, "demo", "ds", names(2))

    with database.begin("close") as tx:
        dids.set_open(tx, "demo", "ds", False)
        attaching = Beside(attach)
        wait_until_blocked(database)
    assert attaching.finish() == [Conflict]
    with database.begin("test") as tx:
        assert totals(tx, "ds") == (0, 0)


def test_attaches_at_once_count_each_file_once(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "ds")
        register(tx, 30)

    def attach() -> None:
        with database.begin("attach") as tx:
            dids.attach(tx, "demo", "ds", names(20, 10)[::-1])

    with database.begin("attach") as tx:
        dids.attach(tx, "demo", "ds", names(20))
        attaching = Beside(attach)
        wait_until_blocked(database)
    assert attaching.finish() == []
    with database.begin("test") as tx:
        assert totals(tx, "ds") == (30, 300)


def test_nothing_leaves_a_monotonic_collection(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "ds", is_monotonic=True)
        register(tx, 1)
        dids.attach(tx, "demo", "ds", names(1))
        with pytest.raises(Conflict, match="monotonic"):
            dids.detach(tx, "demo", "ds", names(1))


def test_a_deleted_did_is_out_of_use_and_its_name_too(database: Database) -> None:
    with database.begin("test") as tx:
        (ds, _) = collect(tx, "ds", "other")
        collect(tx, "c", kind=CONTAINER)
        changes(tx)
        dids.delete_did(tx, "demo", "ds")
        assert changes(tx) == [("did_ended", ds, None, None)]
        for act in (
            lambda: dids.attach(tx, "demo", "c", refs("ds")),
            lambda: dids.attach(tx, "demo", "ds", names(1)),
            lambda: dids.set_open(tx, "demo", "ds", True),
            lambda: dids.set_metadata(tx, "demo", "ds", {"a": 1}),
            lambda: dids.set_expiry(tx, "demo", "ds", None),
            lambda: dids.delete_did(tx, "demo", "ds"),
            lambda: collect(tx, "ds"),
        ):
            with pytest.raises(Conflict):
                act()
        assert [row.name for row in dids.list_dids(tx, dids.Filter("demo"))[0]] == ["c", "other"]


def test_a_did_in_a_live_collection_is_not_deleted(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "ds")
        register(tx, 1)
        dids.attach(tx, "demo", "ds", names(1))
        with pytest.raises(Conflict, match="is in 'demo:ds'"):
            dids.delete_did(tx, "demo", "f00000")
        dids.delete_did(tx, "demo", "ds")
        dids.delete_did(tx, "demo", "f00000")


def test_what_expired_ends_at_its_time_and_the_judge_is_told(database: Database, clock: ManualClock) -> None:
    with database.begin("test") as tx:
        a, b, c = collect(tx, "a", "b", "c", expires_at=clock.moment + timedelta(days=1))
        dids.set_expiry(tx, "demo", "c", None)
        dids.set_expiry(tx, "demo", "b", clock.moment + timedelta(days=2))
        changes(tx)
        assert dids.expire_due(tx, 10) == 0
    clock.advance(86400)
    with database.begin("test") as tx:
        assert dids.expire_due(tx, 10) == 1
        assert changes(tx) == [("did_ended", a, None, None)]
        assert dids.get(tx, "demo", "a").deleted_at == clock.moment
    clock.advance(86400)
    with database.begin("test") as tx:
        assert (dids.expire_due(tx, 10), dids.expire_due(tx, 10)) == (1, 0)


def test_a_locked_rule_keeps_its_did(database: Database, clock: ManualClock) -> None:
    with database.begin("test") as tx:
        (ds,) = collect(tx, "ds", expires_at=clock.moment + timedelta(days=1))
        tx.run("INSERT INTO expression (canonical) VALUES ('*')")
        tx.run(
            """INSERT INTO rule (did_id, account_id, expression_id, is_locked, created_at, state_since)
               SELECT %(ds)s, a.id, e.id, true, %(now)s, %(now)s FROM account a, expression e""",
            ds=ds,
        )
        with pytest.raises(Conflict, match="locked rule"):
            dids.delete_did(tx, "demo", "ds")
        with pytest.raises(Conflict, match="locked rule"):
            dids.set_expiry(tx, "demo", "ds", clock.moment + timedelta(hours=1))
        dids.set_expiry(tx, "demo", "ds", clock.moment + timedelta(days=1, minutes=1))
    clock.advance(90000)
    with database.begin("test") as tx:
        assert dids.expire_due(tx, 10) == 0
        tx.run("UPDATE rule SET is_locked = false")
        assert dids.expire_due(tx, 10) == 1


# --------------------------------------------------------------------------------------------- metadata and lists


def test_metadata_is_merged_and_null_removes(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "ds", metadata={"run": 7, "site": "x"})
        assert dids.set_metadata(tx, "demo", "ds", {"run": 8, "site": None, "new": [1]}) == {"run": 8, "new": [1]}
        assert dids.get(tx, "demo", "ds").metadata == {"run": 8, "new": [1]}
        assert dids.set_metadata(tx, "demo", "ds", {"run": None, "new": None}) == {}
        assert dids.get(tx, "demo", "ds").metadata is None
        dids.set_metadata(tx, "demo", "ds", {"a": "x" * 40_000})
        with pytest.raises(InvalidInput):  # each is small enough, the sum is not
            dids.set_metadata(tx, "demo", "ds", {"b": "x" * 40_000})


def test_dids_are_listed_by_pattern_kind_and_metadata_in_pages(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "run_1", "run_2", "runX3", metadata={"run": 1, "tags": {"good": True}})
        collect(tx, "100%", metadata={"run": 2})
        collect(tx, "box", kind=CONTAINER)

        def listed(**which: object) -> list[str]:
            return [row.name for row in dids.list_dids(tx, dids.Filter("demo", **which))[0]]  # type: ignore[arg-type]

        assert listed() == ["100%", "box", "runX3", "run_1", "run_2"]
        assert listed(pattern="run_*") == ["run_1", "run_2"]
        assert listed(pattern="*%") == ["100%"]
        assert listed(pattern="box") == listed(kind=CONTAINER) == ["box"]
        assert listed(query=query.parse("run=1"), pattern="*X*") == ["runX3"]
        assert listed(query=query.parse("run, tags; run>1")) == ["100%", "runX3", "run_1", "run_2"]
        first, cursor = dids.list_dids(tx, dids.Filter("demo"), Page(limit=3))
        rest, end = dids.list_dids(tx, dids.Filter("demo"), Page(limit=3, after=cursor))
        assert [row.name for row in [*first, *rest]] == listed() and end is None


def test_contents_and_parents_are_listed_in_pages(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "x", "y")
        register(tx, 3)
        for name in ("x", "y"):
            dids.attach(tx, "demo", name, names(3))
        first, cursor = dids.contents(tx, "demo", "x", Page(limit=2))
        rest, _ = dids.contents(tx, "demo", "x", Page(limit=2, after=cursor))
        assert [row.name for row in [*first, *rest]] == [name for _, name in names(3)]
        assert [row.name for row in dids.parents(tx, "demo", "f00001")[0]] == ["x", "y"]
        with pytest.raises(InvalidInput, match="no cursor"):
            dids.contents(tx, "demo", "x", Page(after="1; DROP TABLE did"))


def test_below_and_above_count_a_diamond_once(database: Database) -> None:
    with database.begin("test") as tx:
        top, left, right = collect(tx, "top", "left", "right", kind=CONTAINER)
        ds, lone = collect(tx, "ds", "lone")
        (file,) = register(tx, 1).did_ids
        dids.attach(tx, "demo", "top", refs("left", "right"))
        dids.attach(tx, "demo", "left", refs("ds"))
        dids.attach(tx, "demo", "right", refs("ds", "lone"))
        dids.attach(tx, "demo", "ds", names(1))
        before = tx.statements
        assert [tuple(row) for row in rows.datasets_below(tx, [top, ds, file, left])] == sorted(
            [(top, ds), (top, lone), (ds, ds), (left, ds)]
        )
        assert [tuple(row) for row in rows.ancestors(tx, [file, left])] == sorted(
            [(file, file), (file, ds), (file, left), (file, right), (file, top), (left, left), (left, top)]
        )
        assert tx.statements - before == 2


def test_resolving_names_the_first_that_is_missing_or_has_ended(database: Database) -> None:
    with database.begin("test") as tx:
        a, b = collect(tx, "a", "b")
        assert [row.id for row in dids.resolve(tx, refs("b", "a", "b"))] == [b, a, b]
        with pytest.raises(NotFound) as missing:
            dids.resolve(tx, refs("a", "x"))
        assert missing.value.field == "dids[1]"
        dids.delete_did(tx, "demo", "b")
        with pytest.raises(Conflict, match="has ended"):
            dids.resolve(tx, refs("a", "b"))
        assert [row.id for row in dids.resolve(tx, refs("a", "b"), live=False)] == [a, b]
