"""Bytes over the wire: an intent first, nothing half-written, and what a dead web process leaves is cleaned up."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from dlm import did as codec
from dlm import effects
from dlm.clock import ManualClock
from dlm.config import Settings
from dlm.core import uploads
from dlm.db import uploads as rows
from dlm.db.engine import Database
from dlm.types import Checksums
from dlm.web.app import create_app
from web.conftest import Caller, caller
from world import World

CONTENT = b"a user's own bytes" * 100
ADLER32 = f"{zlib.adler32(CONTENT):08x}"
AT = f"/bytes/test/a/b.dat?storage=shelf&adler32={ADLER32}"


@pytest.fixture
def world(database: Database, clock: ManualClock, tmp_path: Path) -> World:
    world = World(database, clock, tmp_path / "world")
    world.add_storage("shelf")
    return world


@pytest.fixture
def root(world: World, database: Database) -> Caller:
    return caller(create_app(database, Settings(web_max_upload_bytes=10_000)), database, "admin", "admin")


@pytest.fixture
def stop_at() -> Any:
    """Makes an exception come out of a point, as a kill would."""

    def install(name: str) -> None:
        def handler(reached: str) -> None:
            if reached == name:
                effects.install(None)
                raise Killed

        effects.install(handler)

    yield install
    effects.install(None)


class Killed(BaseException):
    """The web process died."""


def stored(world: World) -> list[str]:
    """The files on the shelf, dlm's own left out."""
    return [path.name for path in (world.root / "shelf").rglob("*") if path.is_file() and not path.name.startswith(".")]


def put(root: Caller, status: int = 201, path: str = AT, data: bytes = CONTENT, **how: Any) -> Any:
    return root.call("PUT", path, status, data=data, **how).json


def test_bytes_are_stored_read_back_and_given_out(root: Caller, world: World) -> None:
    done = put(root)
    assert done == {
        "did": "test:a/b.dat",
        "storage": "shelf",
        "size_bytes": len(CONTENT),
        "checksums": {"adler32": ADLER32},
    }
    assert (world.root / "shelf" / codec.derived_path("test", "a/b.dat")).read_bytes() == CONTENT
    got = root.call("GET", "/bytes/test/a/b.dat", 200)
    assert got.data == CONTENT
    assert (got.headers["X-Checksum-Adler32"], got.headers["X-Storage"]) == (ADLER32, "shelf")
    assert world.where("a/b.dat") == {"shelf": "available"}
    world.check()
    world.later(86_400)
    assert world.where("a/b.dat") == {"shelf": "available"}, "no rule wants it, and it stays"


def test_more_digests_than_one_are_compared_and_kept(root: Caller, world: World) -> None:
    put(root, path=f"{AT}&md5={'0' * 32}", status=400)
    assert root.get("/dids/test/a/b.dat")["md5"] is None
    assert put(root)["checksums"] == {"adler32": ADLER32}


@pytest.mark.parametrize(
    ("path", "data", "status", "field"),
    [
        (AT.replace(ADLER32, "00000001"), CONTENT, 400, "body"),
        (AT.replace(ADLER32, "xyz"), CONTENT, 400, "adler32"),
        (AT.replace("storage=shelf", "storage=nowhere"), CONTENT, 404, "storage"),
        (AT.replace("storage=shelf&", ""), CONTENT, 400, "storage"),
        (AT + "&dataset=test:nope", CONTENT, 404, "dataset"),
        (AT.replace("test", "nope"), CONTENT, 404, "scope"),
        (AT.replace("b.dat", ".."), CONTENT, 400, "name"),
        (AT, b"x" * 10_001, 413, None),
    ],
)
def test_what_is_refused_leaves_nothing_behind(
    root: Caller, world: World, path: str, data: bytes, status: int, field: str | None
) -> None:
    assert put(root, status, path, data).get("field") == field
    assert stored(world) == [] and not list((world.root / "shelf").rglob("*part*"))
    assert root.get("/requests")["items"] == []
    assert root.get("/usage/storages")["items"][0]["reserved_bytes"] == 0
    world.check()


def test_a_body_that_ends_early_is_no_file(root: Caller, world: World) -> None:
    more = {"CONTENT_LENGTH": str(len(CONTENT) + 5)}
    root.call("PUT", AT, 400, data=CONTENT, environ_overrides=more)
    assert stored(world) == []
    world.check()


def test_the_length_must_be_known_before(root: Caller) -> None:
    response = root.call("PUT", AT, 411, data=CONTENT, headers={"Transfer-Encoding": "chunked"})
    assert "Content-Length" in response.json["detail"]


def test_a_name_that_is_known_with_other_content_is_refused(root: Caller, world: World) -> None:
    put(root)
    assert put(root, 409, AT.replace(f"&adler32={ADLER32}", ""), b"other")["field"] == "did"
    assert put(root, 409)["detail"].endswith("has a replica at shelf")


def test_a_storage_that_takes_nothing_or_is_full_is_refused(root: Caller, world: World) -> None:
    root.patch("/storages/shelf", {"capacity_bytes": 10})
    assert put(root, 422)["field"] == "storage"
    root.patch("/storages/shelf", {"capacity_bytes": None, "can_write": False, "reason": "until Friday"})
    assert "until Friday" in put(root, 409)["detail"]


@pytest.mark.parametrize(
    "point", ["upload.write:before", "posix.fsync:after", "upload.write:after", "web.bytes.put:before-commit"]
)
def test_what_a_dead_web_process_left_is_cleaned_up(
    root: Caller, world: World, stop_at: Callable[[str], None], point: str
) -> None:
    stop_at(point)
    with pytest.raises(Killed):
        put(root)
    world.check()
    world.later(400)  # the lease is over
    world.later(86_400 + 60)  # and what stood there may have waited for its end
    assert stored(world) == []
    world.check()
    world.later(86_400)
    put(root)
    assert world.where("a/b.dat")["shelf"] == "available"
    world.check()


def test_a_storage_that_goes_before_the_bytes_are_read_back_keeps_no_file_that_nobody_owns(
    root: Caller, world: World
) -> None:
    shelf, away = world.root / "shelf", world.root / "away"

    def go_away(reached: str) -> None:
        if reached == "upload.write:after":
            effects.install(None)
            shelf.rename(away)

    effects.install(go_away)
    put(root, 503)
    away.rename(shelf)
    assert len(stored(world)) == 1 and world.where("a/b.dat")["shelf"] == "bad"
    world.check()
    world.later(86_400 + 60)
    assert stored(world) == []
    world.check()


def test_a_rule_that_comes_while_bytes_come_is_kept_with_them(root: Caller, world: World) -> None:
    world.add_storage("other", "bern")
    with world.begin() as tx:
        upload = uploads.begin_upload(tx, "test", "a", "shelf", len(CONTENT), Checksums(), 300)
    rule = world.declare("a", 2, "type=disk")
    world.run(world.judge)
    done = uploads.read_back(uploads.store(upload, [CONTENT], lambda: None))
    with world.begin() as tx:
        uploads.finish_upload(tx, done, 86_400)
    world.settle()
    world.later(3600)
    assert world.state(rule) == "ok"
    world.check()


def test_an_upload_that_lost_its_lease_does_not_count(root: Caller, world: World) -> None:
    with world.begin() as tx:
        upload = uploads.begin_upload(tx, "test", "a", "shelf", len(CONTENT), Checksums(), 300)
    world.later(301)
    with world.begin() as tx:
        assert not rows.extend(tx, upload.request_id, upload.fence, 300)
    world.check()


def test_beginning_and_extending_take_a_fixed_number_of_statements(root: Caller, world: World) -> None:
    with world.begin() as tx:
        upload = uploads.begin_upload(tx, "test", "a", "shelf", 5, Checksums(), 300)
        assert tx.statements <= 10
    with world.begin() as tx:
        assert rows.extend(tx, upload.request_id, upload.fence, 300)
        rows.keep(tx, upload.request_id, upload.fence)
        rows.learn(tx, upload.did_id, Checksums(adler32="00000001"))
        assert tx.statements == 4


def test_an_account_stores_no_more_than_its_limit_leaves(root: Caller, world: World) -> None:
    root.call("PUT", "/accounts/admin/limits/shelf", 204, json={"limit_bytes": len(CONTENT) - 1})
    refused = put(root, 422)
    assert (refused["type"], refused["field"]) == ("/problems/quota-exceeded", "storage")
    assert not world.where("a/b.dat")
    root.call("PUT", "/accounts/admin/limits/shelf", 204, json={"limit_bytes": len(CONTENT)})
    put(root, 201)


def test_a_storage_that_is_away_says_nothing_of_its_files(root: Caller, world: World) -> None:
    put(root)
    shelf, away = world.root / "shelf", world.root / "away"
    shelf.rename(away)
    wrong = root.call("GET", "/bytes/test/a/b.dat", 503)
    assert wrong.json["field"] == "did" and wrong.headers["Retry-After"]
    away.rename(shelf)
    root.patch("/storages/shelf", {"can_read": False, "reason": "until Friday"})
    assert "it is at shelf" in root.call("GET", "/bytes/test/a/b.dat", 503).json["detail"]
    root.patch("/storages/shelf", {"can_read": True})
    (shelf / codec.derived_path("test", "a/b.dat")).unlink()
    root.call("GET", "/bytes/test/a/b.dat", 404)


def test_a_storage_that_this_host_cannot_speak_to_hides_no_other(
    root: Caller, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_storage("other", "bern")
    put(root)
    world.declare("a/b.dat", 2, "type=disk")
    world.settle()
    assert world.where("a/b.dat") == {"shelf": "available", "other": "available"}
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    for module in ("sftp", "ssh"):
        monkeypatch.delitem(sys.modules, f"dlm.protocols.{module}", raising=False)
    for name, other in (("shelf", "other"), ("other", "shelf")):
        set_scheme(world, name, "sftp")
        got = root.call("GET", "/bytes/test/a/b.dat", 200)
        assert (got.data, got.headers["X-Storage"]) == (CONTENT, other)
        set_scheme(world, name, "posix")
    set_scheme(world, "shelf", "sftp")
    set_scheme(world, "other", "sftp")
    lacking = root.call("GET", "/bytes/test/a/b.dat", 501).json
    assert "needs the package asyncssh" in lacking["detail"] and "pip install" in lacking["hint"]


def set_scheme(world: World, storage: str, scheme: str) -> None:
    with world.begin() as tx:
        tx.run(
            """UPDATE protocol SET scheme = %(scheme)s
                 FROM storage s WHERE s.id = storage_id AND s.name = %(storage)s""",
            scheme=scheme,
            storage=storage,
        )


def test_a_reader_reads_and_stores_nothing(world: World, database: Database, app: Flask) -> None:
    reader = caller(app, database, "eve", "reader")
    put(reader, 403)
    assert reader.call("GET", "/bytes/test/nope", 404).json["field"] == "did"
