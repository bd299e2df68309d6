"""Sites and storages: added, switched, described, retired; and what happens to their roots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from catalogue import Beside, changes, fill, last_event, new_storage, register, wait_until_blocked
from dlm import effects
from dlm.core import roots, sites, storages
from dlm.core.protocols import NewProtocol
from dlm.core.storages import NewStorage
from dlm.db import storages as rows
from dlm.db.engine import Database
from dlm.errors import Conflict, InvalidInput, NotFound, StorageError, Transient
from dlm.protocols import open_protocol
from dlm.types import Page
from protocols.servers import silent


@pytest.fixture
def database(database: Database, tmp_path: Path) -> Database:
    fill(database, tmp_path)
    with database.begin("settle") as tx:
        changes(tx)
    return database


def tree(root: Path) -> list[tuple[str, int]]:
    """Every name below the root with its time of change, and the root's own."""
    return sorted((str(path), path.lstat().st_ctime_ns) for path in [root, *root.rglob("*")])


# --------------------------------------------------------------------------------------------------- sites


def test_a_site_is_added_updated_and_deleted_when_it_is_empty(database: Database) -> None:
    with database.begin("test") as tx:
        sites.add_site(tx, "bern", {"country": "CH", "latitude": 46.9, "longitude": 7.4})
        assert sites.update_site(tx, "bern", {"city": "Bern"}).country == "CH"
        assert changes(tx) == []
        sites.update_site(tx, "bern", {"country": "AU"})
        assert [kind for kind, *_ in changes(tx)] == ["storages"]
        sites.delete_site(tx, "bern")
        with pytest.raises(NotFound):
            sites.get_site(tx, "bern")
        with pytest.raises(Conflict, match="exists already"):
            sites.add_site(tx, "bern")
        with pytest.raises(Conflict, match="storages stand"):
            sites.delete_site(tx, "perth")
        assert [row.name for row in sites.list_sites(tx)[0]] == ["perth"]


@pytest.mark.parametrize(
    "facts", [{"latitude": 91}, {"longitude": float("nan")}, {"color": "red"}, {"country": "x" * 501}]
)
def test_facts_that_no_site_has_are_refused(database: Database, facts: dict[str, Any]) -> None:
    with database.begin("test") as tx, pytest.raises(InvalidInput):
        sites.add_site(tx, "bern", facts)


# --------------------------------------------------------------------------------------------------- adding


def test_a_storage_starts_with_usage_marker_event_and_a_word_to_the_judge(database: Database, tmp_path: Path) -> None:
    with database.begin("test") as tx:
        row = roots.add_storage(database.begin, new_storage("new", tmp_path / "a" / "new", attributes={"tier": "1"}))
        assert (row.site, row.attributes, row.is_available) == ("perth", {"tier": "1"}, True)
        assert [(kind, storage) for kind, _, storage, _ in changes(tx)] == [("storages", row.id)]
        assert tx.scalar("SELECT used_bytes FROM storage_usage WHERE storage_id = %(id)s", id=row.id) == 0
        protocol = open_protocol(rows.protocols(tx, [row.id])[row.id])
        assert protocol.identify() == str(row.uuid)
        assert last_event(tx).action == "added"


def test_nothing_changes_under_a_root_that_is_added_without_writing(database: Database, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "deep").mkdir(parents=True)
    (mine / "deep" / "file").write_text("mine")
    before = tree(mine)
    with database.begin("test") as tx:
        facts = {"can_write": False, "can_delete": False, "reason": "in place"}
        row = roots.add_storage(database.begin, new_storage("mine", mine, **facts))
        ref = rows.protocols(tx, [row.id])[row.id]
        assert ref.storage_uuid.startswith("root:")
        stat = open_protocol(ref).stat("deep/file")
    assert stat is not None and stat.size_bytes == 4
    assert tree(mine) == before


def test_another_directory_in_the_place_of_an_unmarked_root_is_not_taken_for_it(
    database: Database, tmp_path: Path
) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for path in (mine, other):
        path.mkdir()
        (path / "file").write_text("x")
    with database.begin("test") as tx:
        row = roots.add_storage(database.begin, new_storage("mine", mine, can_write=False, reason="in place"))
        protocol = open_protocol(rows.protocols(tx, [row.id])[row.id])
    mine.rename(tmp_path / "away")
    other.rename(mine)
    with pytest.raises(StorageError) as caught:
        protocol.stat("file")
    assert caught.value.error_class == "unavailable"


def test_switching_writing_on_puts_the_marker_into_the_root(database: Database, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("x")
    with database.begin("test") as tx:
        row = roots.add_storage(database.begin, new_storage("mine", mine, can_write=False, reason="in place"))
        roots.update_storage(database.begin, "mine", {"can_write": True})
        ref = rows.protocols(tx, [row.id])[row.id]
        assert ref.storage_uuid == str(row.uuid) == open_protocol(ref).identify()


def test_a_root_of_another_storage_is_refused_and_nothing_is_written(database: Database, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="belongs to storage perth-disk") as caught:
        roots.add_storage(database.begin, new_storage("twin", tmp_path / "perth-disk"))
    assert caught.value.field == "prefix"
    with database.begin("test") as tx, pytest.raises(NotFound):
        storages.get_storage(tx, "twin")


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True), (False, False)])
def test_one_root_is_never_two_storages_whether_dlm_writes_there_or_not(
    database: Database, tmp_path: Path, first: bool, second: bool
) -> None:
    """Two replicas of a file would be one file, and each the witness for the other's deletion."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "data").write_bytes(b"precious")

    def add(name: str, can_write: bool) -> None:
        reason = None if can_write else "in place"
        roots.add_storage(database.begin, new_storage(name, mine, can_write=can_write, reason=reason))

    add("one", first)
    before = tree(mine)
    with pytest.raises(InvalidInput, match="one"):
        add("two", second)
    assert tree(mine) == before


def test_a_root_in_or_around_anothers_is_refused_unless_the_outer_one_is_only_read(
    database: Database, tmp_path: Path
) -> None:
    roots.add_storage(database.begin, new_storage("outer", tmp_path / "outer"))
    (tmp_path / "link").symlink_to(tmp_path / "outer")
    for inner in (tmp_path / "outer" / "a" / "b", tmp_path / "link" / "a"):
        with pytest.raises(InvalidInput, match="lies in the root of storage outer"):
            roots.add_storage(database.begin, new_storage("inner", inner))
    with pytest.raises(InvalidInput, match="contains the root of storage"):
        roots.add_storage(database.begin, new_storage("around", tmp_path))
    only_read = new_storage("around", tmp_path, can_write=False, can_delete=False, reason="the originals")
    roots.add_storage(database.begin, only_read)
    with pytest.raises(InvalidInput, match="contains the root of storage"):
        roots.update_storage(database.begin, "around", {"can_delete": True})
    with database.begin("test") as tx:
        storages.retire_storage(tx, "outer")
    with pytest.raises(InvalidInput, match="carries the marker"):
        roots.add_storage(database.begin, new_storage("inner", tmp_path / "outer" / "a"))


class Crash(BaseException):
    """The end of the process, as far as what runs in it can tell."""


@pytest.fixture
def at_point() -> Iterator[Callable[[str, Callable[[], object]], None]]:
    """Have something happen the first time that an effects point is reached."""

    def install(point: str, act: Callable[[], object]) -> None:
        left = [act]
        effects.install(lambda reached: left.pop()() if reached == point and left else None)

    yield install
    effects.install(None)


def crash() -> None:
    raise Crash


@pytest.mark.parametrize("point", ["storage.root:before", "posix.write:after", "storage.root:after"])
def test_a_storage_whose_adding_was_broken_off_is_not_there_and_can_be_added_again(
    database: Database, tmp_path: Path, at_point: Callable[..., None], point: str
) -> None:
    at_point(point, crash)
    with pytest.raises(Crash):
        roots.add_storage(database.begin, new_storage("new", tmp_path / "new", attributes={"tier": "1"}))
    with database.begin("test") as tx:
        assert "new" not in {row.name for row in storages.list_storages(tx)[0]} | {one.name for one in rows.snapshot(tx)}
        assert changes(tx) == [] and "new" not in {ref.storage_name for ref in rows.protocols(tx).values()}
        with pytest.raises(NotFound):
            storages.get_storage(tx, "new")
    row = roots.add_storage(database.begin, new_storage("new", tmp_path / "new", attributes={"tier": "2"}))
    assert (row.attributes, row.is_available, row.deleted_at) == ({"tier": "2"}, True, None)
    with database.begin("test") as tx:
        assert len(storages.list_protocols(tx, "new")) == 1
        assert open_protocol(rows.protocols(tx, [row.id])[row.id]).identify() == str(row.uuid)
    with pytest.raises(Conflict, match="exists already"):
        roots.add_storage(database.begin, new_storage("new", tmp_path / "other"))


def test_no_transaction_is_open_while_a_root_is_touched(
    database: Database, tmp_path: Path, at_point: Callable[..., None]
) -> None:
    is_open: list[int] = []
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("x")

    def look() -> None:
        is_open.append(database.engine.pool.checkedout())  # type: ignore[attr-defined]

    for act in (
        lambda: roots.add_storage(database.begin, new_storage("new", tmp_path / "new")),
        lambda: roots.add_storage(database.begin, new_storage("mine", mine, can_write=False, reason="in place")),
        lambda: roots.update_storage(database.begin, "mine", {"can_write": True}),
    ):
        at_point("storage.root:before" if len(is_open) == 1 else "posix.write:before", look)
        act()
    assert is_open == [0, 0, 0]


@pytest.mark.parametrize("only_read", [False, True])
def test_of_two_storages_that_come_at_once_with_roots_in_each_other_one_comes(
    database: Database, tmp_path: Path, at_point: Callable[..., None], only_read: bool
) -> None:
    """1. a begins, and finds nobody around its root; 2. b comes, around it, and finds nobody in it; 3. a would finish."""
    (tmp_path / "b" / "a").mkdir(parents=True)
    switches: dict[str, Any] = {"can_write": False, "reason": "in place"} if only_read else {}
    at_point(
        "storage.root:after", lambda: roots.add_storage(database.begin, new_storage("b", tmp_path / "b", **switches))
    )
    with pytest.raises(InvalidInput, match="lies in the root of storage b"):
        roots.add_storage(database.begin, new_storage("a", tmp_path / "b" / "a", **switches))
    with database.begin("test") as tx:
        assert [row.name for row in storages.list_storages(tx)[0]] == ["b", "perth-disk", "perth-vault"]


def test_of_two_that_add_one_storage_at_once_one_is_told_of_the_other(
    database: Database, tmp_path: Path, at_point: Callable[..., None]
) -> None:
    at_point("storage.root:after", lambda: roots.add_storage(database.begin, new_storage("new", tmp_path / "new")))
    with pytest.raises(Conflict, match="by another request"):
        roots.add_storage(database.begin, new_storage("new", tmp_path / "new"))
    with database.begin("test") as tx:
        row = storages.get_storage(tx, "new")
        assert open_protocol(rows.protocols(tx, [row.id])[row.id]).identify() == str(row.uuid)


@pytest.mark.parametrize("timeout_s", ["0.3", "300"])
def test_a_server_that_never_answers_holds_nobody_who_adds_a_storage(
    database: Database, monkeypatch: pytest.MonkeyPatch, timeout_s: str
) -> None:
    monkeypatch.setattr("dlm.core.roots.TAKING_S", 0.5)
    with silent() as port:
        way = NewProtocol("dav", f"dav://127.0.0.1:{port}/a/b/c/d", options={"timeout_s": timeout_s})
        started = time.monotonic()
        with pytest.raises(Transient) as caught:
            roots.add_storage(database.begin, NewStorage(name="mute", site="perth", protocols=[way]))
    assert caught.value.field == "prefix" and time.monotonic() - started < 5
    with database.begin("test") as tx, pytest.raises(NotFound):
        storages.get_storage(tx, "mute")


def test_a_root_that_is_no_directory_is_refused(database: Database, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput):
        roots.add_storage(database.begin, new_storage("new", tmp_path / "file"))
    with pytest.raises(InvalidInput, match="not there"):
        roots.add_storage(database.begin, new_storage("new", tmp_path / "nowhere", can_write=False, reason="in place"))


@pytest.mark.parametrize("root", ["/proc/self", "/proc/self/new"])  # unwritable for root, too
def test_an_unwritable_root_is_refused(database: Database, root: str) -> None:
    with pytest.raises(InvalidInput, match="cannot") as caught:
        roots.add_storage(database.begin, new_storage("new", Path(root)))
    assert caught.value.field == "prefix"


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"name": "a b"}, "name"),
        ({"phase": "ice"}, "phase"),
        ({"reap": "never"}, "reap"),
        ({"capacity_bytes": -1}, "capacity_bytes"),
        ({"capacity_bytes": 2**63}, "capacity_bytes"),
        ({"undo_window_s": -1}, "undo_window_s"),
        ({"can_delete": False}, "reason"),
        ({"attributes": {"a b": "1"}}, "attributes.a b"),
        ({"attributes": {"country": "AU"}}, "attributes.country"),
        ({"attributes": {"rse_type": "DISK"}}, "attributes.rse_type"),
        ({"attributes": {"tier": 1}}, "attributes.tier"),
        ({"attributes": {"tier": "a\nb"}}, "attributes.tier"),
        ({"site": "nowhere"}, "site"),
        ({"protocols": []}, "protocols"),
        ({"protocols": [storages.NewProtocol("gopher", "/x")]}, "protocols[0].scheme"),
        ({"protocols": [storages.NewProtocol("posix", "x")]}, "protocols[0].prefix"),
        ({"protocols": [storages.NewProtocol("posix", "/x/../y")]}, "protocols[0].prefix"),
        ({"protocols": [storages.NewProtocol("posix", "/x\x00")]}, "protocols[0].prefix"),
        (
            {"protocols": [storages.NewProtocol("posix", "/x"), storages.NewProtocol("posix", "/y")]},
            "protocols[1].scheme",
        ),
    ],
)
def test_a_storage_that_is_not_valid_is_refused_with_its_field(
    database: Database, tmp_path: Path, facts: dict[str, Any], field: str
) -> None:
    valid = {"name": "new", "site": "perth", "protocols": [storages.NewProtocol("posix", str(tmp_path / "new"))]}
    with pytest.raises((InvalidInput, NotFound)) as caught:
        roots.add_storage(database.begin, storages.NewStorage(**{**valid, **facts}))
    assert caught.value.field == field
    assert not (tmp_path / "new").exists()


# --------------------------------------------------------------------------------------------------- changing


def test_switching_off_needs_a_reason_that_stays_until_all_are_on(database: Database) -> None:
    with database.begin("test") as tx:
        with pytest.raises(InvalidInput) as caught:
            storages.update_storage(tx, "perth-disk", {"can_write": False})
        assert caught.value.field == "reason"
        storages.update_storage(tx, "perth-disk", {"can_write": False}, "disk replacement")
        row = storages.update_storage(tx, "perth-disk", {"capacity_bytes": 10**12})
        assert (row.switch_reason, row.can_write, row.capacity_bytes) == ("disk replacement", False, 10**12)
        row = storages.update_storage(tx, "perth-disk", {"can_write": True})
        assert row.switch_reason is None
        event = last_event(tx)
        assert event.before == {"can_write": False, "switch_reason": "disk replacement"}
        assert event.after == {"can_write": True, "switch_reason": None}


def test_a_change_wakes_the_judge_and_no_change_does_not(database: Database) -> None:
    with database.begin("test") as tx:
        row = storages.set_attributes(tx, "perth-disk", {"tier": "1", "quick": "true"})
        assert [(kind, storage) for kind, _, storage, _ in changes(tx)] == [("storages", row.id)]
        storages.set_attributes(tx, "perth-disk", {"tier": "1"})
        storages.update_storage(tx, "perth-disk", {"type": "disk"})
        assert changes(tx) == []
        assert storages.set_attributes(tx, "perth-disk", {"tier": None}).attributes == {"quick": "true"}
        with pytest.raises(InvalidInput):
            storages.update_storage(tx, "perth-disk", {"uuid": "x"})


def test_storages_are_listed_in_pages(database: Database) -> None:
    with database.begin("test") as tx:
        found, cursor = storages.list_storages(tx, Page(limit=1))
        assert ([row.name for row in found], cursor) == (["perth-disk"], "perth-disk")
        assert [row.name for row in storages.list_storages(tx, Page(after=cursor))[0]] == ["perth-vault"]


# --------------------------------------------------------------------------------------------------- retiring


def test_a_storage_is_retired_when_it_holds_nothing(database: Database, tmp_path: Path) -> None:
    with database.begin("test") as tx:
        register(tx, 1)
        with pytest.raises(Conflict, match="still holds"):
            storages.retire_storage(tx, "perth-disk")
        storages.retire_storage(tx, "perth-vault")
        with pytest.raises(NotFound):
            storages.get_storage(tx, "perth-vault")
        assert [storage.name for storage in rows.snapshot(tx)] == ["perth-disk"]
    with pytest.raises(Conflict):
        roots.add_storage(database.begin, new_storage("perth-vault", tmp_path / "again"))


def test_a_registration_beside_a_retirement_sees_it(database: Database) -> None:
    def arrive() -> None:
        with database.begin("arrive") as tx:
            register(tx, 3)

    with database.begin("retire") as tx:
        storages.retire_storage(tx, "perth-disk")
        arriving = Beside(arrive)
        wait_until_blocked(database)
    assert arriving.finish() == [Conflict]
    with database.begin("test") as tx:
        assert tx.scalar("SELECT count(*) FROM replica") == 0


def test_a_retirement_beside_a_registration_sees_it(database: Database) -> None:
    def retire() -> None:
        with database.begin("retire") as tx:
            storages.retire_storage(tx, "perth-disk")

    with database.begin("arrive") as tx:
        register(tx, 3)
        retiring = Beside(retire)
        wait_until_blocked(database)
    assert retiring.finish() == [Conflict]
