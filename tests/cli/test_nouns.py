"""Accounts, tokens, scopes, sites, storages, expressions, breakers, events, daemons: there and back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cli.conftest import Admin
from world import World


@pytest.fixture
def perth(admin: Admin, tmp_path: Path) -> Path:
    """A storage `perth-disk` of 5 GB, with tier=1, at a site in Australia."""
    admin("site", "add", "perth", "--country", "AU", "--city", "Perth")
    root = tmp_path / "perth-disk"
    admin(
        "storage", "add", "perth-disk", "--site", "perth", "--path", root, "--attribute", "tier=1", "--capacity", "5GB"
    )
    return root


def test_an_account_is_made_shown_changed_limited_and_closed(admin: Admin, perth: Path) -> None:
    assert "dlm-admin token add eve" in admin("account", "add", "eve", "--role", "user", "--email", "eve@example.org")
    assert "eve@example.org" in admin("account", "show", "eve")
    assert admin.json("account", "set", "eve", "--role", "reader", "--email", "")["email"] is None
    assert admin("account", "limit", "eve", "perth-disk", "5GiB") == "eve at perth-disk: at most 5.4 GB\n"
    assert admin.json("account", "usage", "eve")["limit_bytes"] == 5 * 1024**3
    assert "no limit" in admin("account", "limit", "eve", "perth-disk", "none")
    assert "closed" in admin("account", "close", "eve")
    assert [item["name"] for item in admin.lines("account", "list")] == ["eve", "root"]
    assert "exists already" in admin.error("account", "add", "eve", status=1)


def test_a_token_is_alone_on_its_line_and_lets_its_account_in(admin: Admin) -> None:
    admin("account", "add", "eve", "--role", "user")
    text = admin("token", "add", "eve", "--label", "laptop", "--lifetime", "90d").strip()
    eve = Admin(admin.environment["DLM_URL"], text)
    (shown,) = eve.lines("token", "list")
    assert shown["label"] == "laptop" and shown["expires_at"]
    eve("token", "revoke", shown["id"])
    assert "token is not valid" in eve.error("token", "list", status=1)


def test_scopes_belong_to_accounts(admin: Admin, user: Admin) -> None:
    assert user("scope", "add", "ska") == "scope ska, owned by ada\n"
    assert {item["name"]: item["account"] for item in admin.lines("scope", "list")} == {"ska": "ada", "test": "root"}
    assert "may do this only to what it owns" in user.error("scope", "add", "x", "--account", "root", status=1)


def test_a_site_is_made_shown_changed_and_deleted(admin: Admin) -> None:
    admin("site", "add", "bern", "--country", "CH", "--latitude", "46.9", "--longitude", "7.4")
    assert "46.9 7.4" in admin("site", "show", "bern")
    assert admin.json("site", "set", "bern", "--city", "Bern", "--country", "")["country"] is None
    assert [item["name"] for item in admin.lines("site", "list")] == ["bern"]
    assert "is gone" in admin("site", "delete", "bern")
    assert "no sites" in admin("site", "list")
    assert "nothing to change" in admin.error("site", "set", "bern", status=2)


def test_a_storage_is_added_switched_described_and_retired(admin: Admin, perth: Path) -> None:
    assert any(perth.iterdir()), "the marker"
    assert "5.0 GB" in admin("storage", "show", "perth-disk")
    assert "reason" in admin.error("storage", "set", "perth-disk", "--write", "off", status=2)
    shown = admin("storage", "set", "perth-disk", "--write", "off", "--reason", "disk replacement")
    assert "no writing: disk replacement" in shown
    assert admin.json("storage", "set", "perth-disk", "--write", "on", "--undo-window", "2h")["undo_window_s"] == 7200
    assert admin.json("storage", "attributes", "set", "perth-disk", "media=ssd")["attributes"] == {
        "tier": "1",
        "media": "ssd",
    }
    assert admin.json("storage", "attributes", "unset", "perth-disk", "tier")["attributes"] == {"media": "ssd"}
    assert "media  ssd" in admin("storage", "attributes", "show", "perth-disk")
    (usage,) = admin.lines("storage", "usage", "perth-disk")
    assert usage["used_files"] == 0
    assert admin("storage", "list").splitlines()[1].split()[:4] == ["perth-disk", "perth", "AU", "disk"]
    assert "is retired" in admin("storage", "retire", "perth-disk")
    assert "no storage" in admin.error("storage", "usage", "perth-disk", status=1)


def test_a_storage_needs_a_way_to_it_and_a_root_that_can_be_written(admin: Admin, perth: Path) -> None:
    assert "--path DIR" in admin.error("storage", "add", "x", "--site", "perth", status=2)
    blocked = perth.parent / "file"
    blocked.touch()
    error = admin.error("storage", "add", "x", "--site", "perth", "--path", blocked / "below", status=2)
    assert error.startswith("error: ")
    assert "exists already" in admin.error("storage", "add", "perth-disk", "--site", "perth", "--path", "/x", status=1)
    assert "no site" in admin.error("storage", "add", "x", "--site", "pertt", "--path", "/x", status=1)


def test_an_expression_tells_what_it_matches_where_it_is_wrong_and_what_was_meant(admin: Admin, perth: Path) -> None:
    assert admin("expression", "evaluate", "tier=1&country=AU") == "tier=1&country=AU matches 1: perth-disk\n"
    assert admin.json("expression", "show", "tier=2")["storages"] == []
    assert "Did you mean 'country'?" in admin("expression", "evaluate", "contry=AU")
    assert "column 19" in admin.error("expression", "evaluate", "tier=1&(country=AU", status=2)


def test_deletions_are_held_and_go_on(admin: Admin) -> None:
    assert "no breaker is open" in admin("breaker", "list")
    number = admin.json("breaker", "hold", "the tape library is moving")["id"]
    assert "deletions" in admin("breaker", "list") and "breaker list" in admin("status")
    admin("breaker", "close", number)
    assert [item["id"] for item in admin.lines("breaker", "list", "--closed")] == [number]


def test_events_tell_who_did_what(admin: Admin, perth: Path) -> None:
    (event,) = admin.lines("event", "list", "storage", "perth-disk")
    assert (event["action"], event["actor"]) == ("added", "root")
    assert "perth" in admin("event", "list", "--limit", "3")
    assert "at most an object" in admin.error("event", "list", "a", "b", "c", status=2)


def test_status_says_in_one_look_whether_promises_are_kept(admin: Admin, perth: Path, world: World) -> None:
    text = admin("status")
    assert "promises   0 rules" in text and "none seen in the last minute ←" in text
    admin("storage", "set", "perth-disk", "--write", "off", "--reason", "until Friday")
    assert "perth-disk no writing: until Friday" in admin("status")
    assert admin.json("status")["promises"]["total"] == 0
    assert "dlm-admin up" in admin("daemon", "status")
    os.rename(perth, perth.with_name("away"))
    world.later(120)
    text = admin("status")
    assert "perth-disk unavailable" in text and "look       dlm-admin why storage perth-disk" in text
    assert "unavailable" in admin("why", "storage", "perth-disk")


def test_a_check_is_watched_to_its_end(admin: Admin, perth: Path, world: World) -> None:
    assert admin.json("storage", "check", "perth-disk", "--no-wait")["state"] == "running"
    assert "runs already" in admin.error("storage", "check", "perth-disk", "--no-wait", status=1)
    world.settle()
    (check,) = [
        line for line in admin.lines("event", "list", "storage", "perth-disk") if line["action"] == "check_started"
    ]
    assert check["actor"] == "root"


def test_a_word_that_is_nearly_right_is_asked_back(admin: Admin, perth: Path, world: World) -> None:
    world.many("perth-disk", 3, "harbour", verified=True)
    for words, question in (
        (("storage", "show", "perth-disc"), "Did you mean 'perth-disk'?"),
        (("why", "pert-disk"), "Did you mean 'perth-disk'?"),
        (("did", "show", "test:harbor"), "Did you mean 'test:harbour'?"),
        (("did", "show", "tset:harbour"), "Did you mean 'test'?"),
        (("did", "show", "other:harbour"), "scopes you can see: test"),
    ):
        assert question in admin.error(*words, status=1)
    wish = ("rule", "plan", "test:harbour", "--copies", "1", "--on", "tier=1")
    assert "Did you mean 'site'?" in admin.error(*wish, "--spread", "sit", status=2)
    assert "capital letters" in admin.error("site", "add", "bern", "--country", "Switzerland", status=2)
    assert "no number of a breaker" in admin.error("breaker", "close", "all", status=2)
    assert "available" in admin("why", "perth-disk").splitlines()[0]


def test_events_name_their_objects_and_are_found_by_name_alone(admin: Admin, perth: Path, world: World) -> None:
    world.many("perth-disk", 3, "harbour", verified=True)
    rule = str(admin.json("rule", "add", "test:harbour", "--copies", "1", "--on", "perth-disk")["id"])
    for name in ("perth-disk", "test:harbour", rule):
        assert {item["name"] for item in admin.lines("event", "list", name)} == {name}
    text = admin("event", "list")
    assert f"rule {rule}" in text and "storage perth-disk" in text and "did test:harbour" in text
    assert admin.lines("event", "list", "site")


def test_a_state_and_what_follows_it_stand_apart(admin: Admin, perth: Path, world: World) -> None:
    world.many("perth-disk", 3, "harbour", verified=True)
    rule = str(admin.json("rule", "add", "test:harbour", "--copies", "1", "--on", "perth-disk")["id"])
    assert admin("rule", "show", rule).startswith(" declared  1 copy of 3 files")
    with world.begin() as tx:
        tx.run("UPDATE rule SET state = 'impossible'")
    assert admin("rule", "show", rule).startswith(" impossible  1 copy of 3 files")
    assert "0 of 0 replicas ok" in admin("why", "rule", rule).splitlines()[0]
