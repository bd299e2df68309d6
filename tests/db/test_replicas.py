"""Replicas: registered in bulk, again, and by two at once; listed; declared bad; found to read."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from catalogue import Beside, changes, collect, fill, last_event, refs, register, usage, wait_until_blocked
from dlm import did as codec
from dlm.core import dids, files, replicas, storages
from dlm.db import arrays
from dlm.db.engine import Database, Tx
from dlm.errors import CannotPlace, Conflict, Denied, InvalidInput, NotFound, Transient
from dlm.types import DidKind, Identity, Page


@pytest.fixture
def database(database: Database, tmp_path: Path) -> Database:
    fill(database, tmp_path)
    with database.begin("settle") as tx:
        changes(tx)
    return database


def storage_id(tx: Tx, name: str = "perth-disk") -> int:
    return storages.get_storage(tx, name).id


def one(**facts: Any) -> files.Files:
    """One file, `a` of 10 bytes, with these facts."""
    return files.read([{"name": "a", "size_bytes": 10, **facts}], "demo")


def set_state(tx: Tx, state: str) -> None:
    """Put every replica into that state, and the usage with it."""
    tx.run("UPDATE replica SET state = %(state)s, verified_at = %(now)s, claimed_until = %(now)s", state=state)
    tx.run(
        """UPDATE storage_usage u SET (used_bytes, used_files) = (
               SELECT coalesce(sum(size_bytes), 0), count(*) FROM replica r WHERE r.storage_id = u.storage_id
                  AND state IN ('available', 'unverified', 'bad', 'deleting'))"""
    )


# --------------------------------------------------------------------------------------------------- registering


def test_a_registered_file_waits_to_be_verified_and_has_no_tombstone(database: Database) -> None:
    with database.begin("test") as tx:
        done = register(tx, 1)
        row = tx.one("SELECT * FROM replica")
        assert row is not None
        assert (row.did_id, row.storage_id, row.state, row.size_bytes) == (
            done.did_ids[0],
            storage_id(tx),
            "unverified",
            10,
        )
        assert (row.verified_at, row.next_check_at, row.tombstone_at, row.path) == (None, tx.now, None, None)
        file = dids.get(tx, "demo", "f00000")
        assert (file.kind, file.size_bytes, file.files, file.adler32, file.account) == (
            "file",
            10,
            1,
            "00000000",
            "ann",
        )
        assert changes(tx) == [("arrived", None, storage_id(tx), done.did_ids)]
        assert usage(tx) == (10, 1)
        assert (last_event(tx).action, last_event(tx).after["files"]) == ("registered", 1)


def test_registering_ten_thousand_files_takes_as_many_statements_as_ten(database: Database) -> None:
    counts = []
    for number, start in ((10, 0), (10_000, 10)):
        with database.begin("test") as tx:
            collect(tx, f"ds{number}")
            before = tx.statements
            done = register(tx, number, start, dataset=("demo", f"ds{number}"))
            counts.append(tx.statements - before)
            assert (done.new_dids, done.new_replicas, done.new_bytes, done.attached) == (
                number,
                number,
                10 * number,
                number,
            )
    assert counts[0] == counts[1] <= 16
    with database.begin("test") as tx:
        assert usage(tx) == (100_100, 10_010)
        assert dids.get(tx, "demo", "ds10000").files == 10_000


def test_no_storage_is_told_to_hold_more_than_it_can(database: Database) -> None:
    with pytest.raises(InvalidInput) as together, database.begin("test") as tx:
        replicas.register(tx, "perth-disk", files.read([{"name": n, "size_bytes": 2**62} for n in "ab"], "demo"))
    assert together.value.field == "files"
    with database.begin("test") as tx:
        tx.run("UPDATE storage SET capacity_bytes = NULL")
        replicas.register(tx, "perth-disk", one(size_bytes=2**62 - 1))
    with pytest.raises(CannotPlace), database.begin("test") as tx:
        replicas.register(tx, "perth-disk", one(name="b", size_bytes=1))
    with pytest.raises(CannotPlace, match="capacity of 25") as full, database.begin("test") as tx:
        tx.run("UPDATE storage SET capacity_bytes = 25")
        replicas.register(tx, "perth-vault", one(name="c", size_bytes=26))
    assert full.value.field == "storage"


def test_a_user_registers_nothing_where_nothing_can_be_written(database: Database) -> None:
    with database.begin("test") as tx:
        tx.run("UPDATE storage SET can_write = false, switch_reason = 'archive'")
    with pytest.raises(Denied), database.begin("test", Identity(1, "ann", frozenset({"user"}))) as tx:
        replicas.register(tx, "perth-disk", one())
    with database.begin("test", Identity(1, "ann", frozenset({"operator"}))) as tx:
        assert replicas.register(tx, "perth-disk", one()).new_replicas == 1


def test_ids_come_back_in_the_order_of_the_files(database: Database) -> None:
    with database.begin("test") as tx:
        register(tx, 5, 3)
        items = [{"name": name, "size_bytes": 10} for name in ("f00007", "z", "f00003", "a")]
        done = replicas.register(tx, "perth-vault", files.read(items, "demo"))
        assert [dids.get(tx, "demo", item["name"]).id for item in items] == done.did_ids
        assert (done.new_dids, done.new_replicas) == (2, 4)


def test_a_registration_can_be_repeated(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "ds")
        first = register(tx, 5, dataset=("demo", "ds"))
        changes(tx)
        again = register(tx, 5, dataset=("demo", "ds"))
        assert again == replicas.Registered(first.did_ids, 0, 0, 0, 0)
        assert changes(tx) == []
        more = register(tx, 8, dataset=("demo", "ds"))
        assert (more.new_dids, more.new_replicas, more.attached) == (3, 3, 3)
        assert usage(tx) == (80, 8)


def test_names_of_every_kind_come_back_as_they_were(database: Database) -> None:
    names = [
        'say "hi"',
        "back\\slash",
        "a,b",
        "{}",
        "NULL",
        "null",
        "100%",
        "ünï/cödé",
        "'; DROP TABLE did; --",
        "%(now)s",
    ]
    with database.begin("test") as tx:
        done = replicas.register(
            tx,
            "perth-disk",
            files.read([{"name": name, "size_bytes": 1, "path": f"in/{name}"} for name in names], "demo"),
        )
        stored = tx.rows("SELECT id, name FROM did WHERE kind = 'file'")
        assert {row.id: row.name for row in stored} == dict(zip(done.did_ids, names, strict=True))
        listed = replicas.list_by_storage(tx, "perth-disk")[0]
        assert {row.path for row in listed} == {f"in/{name}" for name in names}
        texts = [*names, None, ""]
        assert tx.scalar("SELECT %(texts)s::text[]", texts=arrays.texts(texts)) == texts


def test_metadata_comes_with_new_files(database: Database) -> None:
    items = [{"name": "a", "size_bytes": 1, "metadata": {"run": 1}}, {"name": "b", "size_bytes": 1}]
    with database.begin("test") as tx:
        replicas.register(tx, "perth-disk", files.read(items, "demo"))
        assert [dids.get(tx, "demo", name).metadata for name in "ab"] == [{"run": 1}, None]


def test_what_the_caller_has_just_verified_is_available(database: Database) -> None:
    with database.begin("test") as tx:
        register(tx, 1, verified=True, check_interval_s=60)
        row = tx.one("SELECT state, verified_at, next_check_at FROM replica")
        assert row is not None and tuple(row) == ("available", tx.now, tx.now + timedelta(seconds=60))


@pytest.mark.parametrize(
    ("facts", "words", "field"),
    [
        ({"size_bytes": 11}, "10 bytes, not 11", "files[1].size_bytes"),
        ({"adler32": "00000002"}, "adler32 00000001, not 00000002", "files[1].adler32"),
    ],
)
def test_a_file_that_the_catalogue_knows_otherwise_stops_the_call(
    database: Database, facts: dict[str, Any], words: str, field: str
) -> None:
    with database.begin("test") as tx:
        register(tx, 3)
    items = [{"name": "new", "size_bytes": 1}, {"name": "f00001", "size_bytes": 10, **facts}]
    with pytest.raises(Conflict, match=words) as caught, database.begin("test") as tx:
        replicas.register(tx, "perth-vault", files.read(items, "demo"))
    assert caught.value.field == field
    with database.begin("test") as tx:
        assert usage(tx, "perth-vault") == (0, 0)
        with pytest.raises(NotFound):
            dids.get(tx, "demo", "new")


def test_a_checksum_that_the_catalogue_does_not_know_is_no_contradiction(database: Database) -> None:
    with database.begin("test") as tx:
        register(tx, 1)
        replicas.register(
            tx, "perth-vault", files.read([{"name": "f00000", "size_bytes": 10, "md5": "0" * 32}], "demo")
        )


def test_names_of_collections_and_of_ended_files_are_not_files_to_register(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "a")
        with pytest.raises(Conflict, match="is a dataset"):
            replicas.register(tx, "perth-disk", one())
    with database.begin("test") as tx:
        register(tx, 1)
        dids.delete_did(tx, "demo", "f00000")
        with pytest.raises(Conflict, match="has ended"):
            register(tx, 1)


def test_unknown_places_scopes_and_datasets_are_named(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "box", kind=DidKind.CONTAINER)
        collect(tx, "closed")
        dids.set_open(tx, "demo", "closed", False)
        for act, error, field in (
            (lambda: replicas.register(tx, "nowhere", one()), NotFound, "storage"),
            (
                lambda: replicas.register(tx, "perth-disk", files.read([{"name": "a", "size_bytes": 1}], "nope")),
                NotFound,
                "scope",
            ),
            (lambda: replicas.register(tx, "perth-disk", one(), dataset=("demo", "nope")), NotFound, "dataset"),
            (lambda: replicas.register(tx, "perth-disk", one(), dataset=("demo", "box")), InvalidInput, "dataset"),
            (lambda: replicas.register(tx, "perth-disk", one(), dataset=("demo", "closed")), Conflict, "dataset"),
        ):
            with pytest.raises(error) as caught:
                act()
            assert caught.value.field == field  # type: ignore[attr-defined]


def test_two_files_cannot_have_one_path(database: Database) -> None:
    with database.begin("test") as tx:
        replicas.register(tx, "perth-disk", one(path="x/1"))
        other = files.read([{"name": "b", "size_bytes": 1}, {"name": "c", "size_bytes": 1, "path": "x/1"}], "demo")
        with pytest.raises(Conflict, match="that of 'demo:a'") as caught:
            replicas.register(tx, "perth-disk", other)
        assert caught.value.field == "files[1].path"
        with pytest.raises(Conflict, match="stands at 'x/1'"):
            replicas.register(tx, "perth-disk", one(path="x/2"))
        with pytest.raises(Conflict, match="stands at 'x/1'"):
            replicas.register(tx, "perth-disk", one())
        assert replicas.register(tx, "perth-disk", one(path="x/1")).new_replicas == 0


@pytest.mark.parametrize("state", ["copying", "deleting", "deleted"])
def test_what_is_on_its_way_cannot_be_registered_again(database: Database, state: str) -> None:
    with database.begin("test") as tx:
        register(tx, 2)
        set_state(tx, state)
        with pytest.raises(Conflict, match=f"is {state} at perth-disk") as caught:
            register(tx, 2)
        assert caught.value.field == "files[0]" and caught.value.hint


@pytest.mark.parametrize("state", ["bad", "lost"])
def test_a_bad_or_lost_replica_that_is_registered_again_is_to_be_verified(database: Database, state: str) -> None:
    with database.begin("test") as tx:
        ids = register(tx, 2).did_ids
        set_state(tx, state)
        changes(tx)
        assert register(tx, 2).new_replicas == 0
        assert changes(tx) == [("arrived", None, storage_id(tx), ids)]
        assert {tuple(row) for row in tx.rows("SELECT state, verified_at FROM replica")} == {("unverified", None)}
        assert usage(tx) == (20, 2)


def test_registrations_that_overlap_wait_for_each_other_and_count_each_file_once(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "ds")
    backwards = files.read([{"name": f"f{index:05d}", "size_bytes": 10} for index in reversed(range(10, 40))], "demo")
    done: list[replicas.Registered] = []

    def other() -> None:
        with database.begin("other") as tx:
            done.append(replicas.register(tx, "perth-disk", backwards, dataset=("demo", "ds")))

    with database.begin("one") as tx:
        register(tx, 30, dataset=("demo", "ds"))
        arriving = Beside(other)
        wait_until_blocked(database)
    assert arriving.finish() == []
    assert (done[0].new_dids, done[0].new_replicas, done[0].attached) == (10, 10, 10)
    with database.begin("test") as tx:
        assert usage(tx) == (400, 40)
        assert dids.get(tx, "demo", "ds").files == 40


# --------------------------------------------------------------------------------------------------- listing


def test_replicas_are_listed_by_file_dataset_and_container_each_once(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "x", "y")
        collect(tx, "box", kind=DidKind.CONTAINER)
        dids.attach(tx, "demo", "box", refs("x", "y"))
        for storage in ("perth-disk", "perth-vault"):
            for name in ("x", "y"):
                register(tx, 3, storage=storage, dataset=("demo", name))
        register(tx, 1, 3)
        whole = [(row.name, row.storage) for row in replicas.stream(tx, "demo", "box")]
        assert whole == [(f"f{i:05d}", storage) for i in range(3) for storage in ("perth-disk", "perth-vault")]
        assert [(row.name, row.storage) for row in replicas.stream(tx, "demo", "x")] == whole
        (alone,) = replicas.stream(tx, "demo", "f00003")
        assert (alone.state, alone.adler32, replicas.path_of(alone)) == (
            "unverified",
            "00000003",
            codec.derived_path("demo", "f00003"),
        )


def test_pages_of_replicas_join_to_the_whole(database: Database) -> None:
    with database.begin("test") as tx:
        collect(tx, "x")
        for storage in ("perth-disk", "perth-vault"):
            register(tx, 5, storage=storage, dataset=("demo", "x"))
        register(tx, 1, 9)
        asked = refs("x", "f00009", "f00000")
        seen, cursor = [], None
        while True:
            rows, cursor = replicas.list_by_dids(tx, asked, Page(3, cursor))
            seen += [(row.name, row.storage) for row in rows]
            if cursor is None:
                break
        assert len(seen) == len(set(seen)) == 11
        seen, cursor = [], None
        while True:
            rows, cursor = replicas.list_by_storage(tx, "perth-disk", None, Page(4, cursor))
            seen += [row.name for row in rows]
            if cursor is None:
                break
        assert seen == [f"f{index:05d}" for index in (0, 1, 2, 3, 4, 9)]
        for cursor in ("x", "1", "1-x", "1-2-3"):
            with pytest.raises(InvalidInput):
                replicas.list_by_dids(tx, asked, Page(3, cursor))


# --------------------------------------------------------------------------------------------------- found wrong


def named(*names: str, storage: str = "perth-disk") -> list[tuple[str, str, str]]:
    return [("demo", name, storage) for name in names]


def test_a_replica_declared_bad_is_told_to_the_judge_the_breaker_and_the_record(database: Database) -> None:
    with database.begin("test") as tx:
        ids = register(tx, 3).did_ids
        changes(tx)
        assert replicas.declare_bad(tx, named("f00001", "f00000"), "unreadable") == 2
        assert changes(tx) == [("harmed", None, storage_id(tx), ids[:2])]
        rows = replicas.list_by_storage(tx, "perth-disk")[0]
        assert [row.state for row in rows] == ["bad", "bad", "unverified"]
        assert tx.scalar("SELECT files FROM harm WHERE act = 'loss'") == 2
        assert last_event(tx).after == {"storage_id": storage_id(tx), "reason": "unreadable"}
        assert usage(tx) == (30, 3)
        assert replicas.declare_bad(tx, named("f00000", "f00001", "f00002"), "again") == 1
        assert replicas.declare_bad(tx, named("f00000"), "again") == 0


def test_declaring_ten_thousand_bad_takes_as_many_statements_as_two_hundred(database: Database) -> None:
    with database.begin("test") as tx:
        register(tx, 10_000)
        counts = []
        for start, number in ((0, 200), (200, 9_800)):
            before = tx.statements
            replicas.declare_bad(tx, named(*(f"f{index:05d}" for index in range(start, start + number))), "fire")
            counts.append(tx.statements - before)
    assert counts[0] == counts[1] <= 10


def test_declaring_bad_what_is_not_there_stops_the_call(database: Database) -> None:
    with database.begin("test") as tx:
        register(tx, 1)
        with pytest.raises(NotFound, match="no replica at perth-vault") as caught:
            replicas.declare_bad(tx, [*named("f00000"), *named("f00000", storage="perth-vault")], "fire")
        assert caught.value.field == "replicas[1]"
        with pytest.raises(InvalidInput):
            replicas.declare_bad(tx, named("f00000"), " ")
        set_state(tx, "copying")
        with pytest.raises(Conflict, match="is copying"):
            replicas.declare_bad(tx, named("f00000"), "fire")


def test_whoever_declares_bad_holds_the_other_replicas_of_the_file(database: Database) -> None:
    with database.begin("test") as tx:
        for storage in ("perth-disk", "perth-vault"):
            register(tx, 1, storage=storage)

    def other() -> None:
        with database.begin("other") as tx:
            replicas.declare_bad(tx, named("f00000", storage="perth-vault"), "fire")

    with database.begin("one") as tx:
        replicas.declare_bad(tx, named("f00000"), "fire")
        declaring = Beside(other)
        wait_until_blocked(database)
    assert declaring.finish() == []


# --------------------------------------------------------------------------------------------------- to read


def test_the_best_replica_is_verified_stays_and_can_be_read(database: Database) -> None:
    with database.begin("test") as tx:
        register(tx, 1, storage="perth-disk")
        register(tx, 1, storage="perth-vault", verified=True)
        best, second = replicas.best_replicas(tx, "demo", "f00000")
        assert (best.storage, second.storage) == ("perth-vault", "perth-disk")
        assert (best.path, best.size_bytes, best.checksums.adler32) == (
            codec.derived_path("demo", "f00000"),
            10,
            "00000000",
        )
        assert best.protocol.scheme == "posix"
        storages.update_storage(tx, "perth-vault", {"can_read": False}, "maintenance")
        assert [source.storage for source in replicas.best_replicas(tx, "demo", "f00000")] == ["perth-disk"]
        replicas.declare_bad(tx, named("f00000"), "fire")
        with pytest.raises(Transient, match="it is at perth-vault, not readable at the moment"):
            replicas.best_replicas(tx, "demo", "f00000")
        replicas.declare_bad(tx, named("f00000", storage="perth-vault"), "fire")
        with pytest.raises(NotFound, match="can be read now"):
            replicas.best_replicas(tx, "demo", "f00000")
