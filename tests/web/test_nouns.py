"""Every noun there and back through the real app, over a real database."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from web.conftest import Caller

NAMES = [
    "plain",
    "with/slashes/in/it",
    "contents/ska/x",
    "a b",
    "100%",
    "%2F",
    "%2e%2e",
    "question?mark#hash",
    "semi;colon:colon&amp=",
    "+plus+",
    "ünïcode/ñ",
    "日本語/データ",
    "quote'\"\\back",
    "*star*",
    "~tilde",
    ".hidden/.x",
    "a" * 1000,
]
BAD_NAMES = [
    "a//b",
    "a/../b",
    "..",
    "a/./b",
    "nul\x00",
    "line\r\nbreak",
    "e\u0301",
    "rlo\u202e",
    "x" * 4096,
    "trailing/",
    " space",
]


def at(name: str) -> str:
    """A DID's part of the address."""
    return "ska/" + quote(name, safe="/")


@pytest.fixture
def storage(admin: Caller, tmp_path: Path) -> dict[str, Any]:
    admin.post("/sites", {"name": "perth", "country": "AU"})
    way = {"scheme": "posix", "prefix": str(tmp_path / "perth")}
    body = {"name": "perth-disk", "site": "perth", "protocols": [way], "attributes": {"tier": "1"}}
    return admin.post("/storages", body)


def test_accounts_are_made_changed_and_closed(admin: Caller) -> None:
    made = admin.post("/accounts", {"name": "ada", "roles": ["user"], "email": "ada@example.org"})
    assert admin.get("/accounts/ada") == made
    assert admin.patch("/accounts/ada", {"email": None})["email"] is None
    assert admin.delete("/accounts/ada", 200)["closed_at"] is not None
    assert admin.post("/accounts", {"name": "ada"}, 409)["field"] == "name"
    admin.get("/accounts/bob", 404)


def test_an_account_has_limits_by_storage(admin: Caller, storage: dict[str, Any]) -> None:
    admin.call("PUT", "/accounts/root/limits/perth-disk", 204, json={"limit_bytes": 10})
    assert admin.get("/usage/accounts?account=root")["items"][0]["limit_bytes"] == 10
    admin.call("PUT", "/accounts/root/limits/perth-disk", 400, json={"limit_bytes": -1})
    admin.call("PUT", "/accounts/root/limits/nowhere", 404, json={"limit_bytes": 1})


def test_scopes_belong_to_who_made_them(user: Caller, other: Caller) -> None:
    assert user.post("/scopes", {"name": "ska"})["account"] == "ada"
    assert user.get("/scopes/ska") == user.get("/scopes")["items"][0]
    other.post("/scopes", {"name": "ska"}, 409)
    other.post("/scopes", {"name": "theirs", "account": "ada"}, 403)


def test_sites_and_storages_are_made_changed_and_retired(admin: Caller, storage: dict[str, Any]) -> None:
    assert admin.get("/sites/perth")["country"] == "AU"
    assert admin.patch("/sites/perth", {"latitude": -31.9})["latitude"] == -31.9
    assert admin.get("/storages/perth-disk") == storage
    assert storage["attributes"] == {"tier": "1"} and storage["protocols"][0]["scheme"] == "posix"
    assert admin.patch("/storages/perth-disk", {"can_write": False}, 400)["field"] == "reason"
    off = admin.patch("/storages/perth-disk", {"can_write": False, "reason": "disk replacement"})
    assert (off["can_write"], off["switch_reason"]) == (False, "disk replacement")
    assert admin.patch("/storages/perth-disk/attributes", {"tier": None, "media": "ssd"})["attributes"] == {
        "media": "ssd"
    }
    admin.delete("/sites/perth", 409)
    admin.delete("/storages/perth-disk")
    admin.get("/storages/perth-disk", 404)


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"prefix": "relative/path"}, 400, "protocols[0].prefix"),
        ({"prefix": "/data/../etc"}, 400, "protocols[0].prefix"),
        ({"scheme": "gopher"}, 400, "protocols[0].scheme"),
        ({"priority": 101}, 400, "protocols[0].priority"),
    ],
)
def test_a_storage_that_cannot_be_spoken_to_is_refused(
    admin: Caller, tmp_path: Path, change: dict[str, Any], status: int, field: str
) -> None:
    admin.post("/sites", {"name": "perth"})
    way = {"scheme": "posix", "prefix": str(tmp_path / "x"), **change}
    assert admin.post("/storages", {"name": "new", "site": "perth", "protocols": [way]}, status)["field"] == field
    admin.get("/storages/new", 404)


def test_a_storage_whose_root_cannot_be_made_leaves_nothing_behind(admin: Caller, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    admin.post("/sites", {"name": "perth"})
    way = {"scheme": "posix", "prefix": str(tmp_path / "file" / "root")}
    wrong = admin.call("POST", "/storages", json={"name": "new", "site": "perth", "protocols": [way]})
    assert wrong.status_code in (400, 422) and wrong.json["detail"]
    admin.get("/storages/new", 404)
    assert admin.get("/events?object=storage")["items"] == []


def test_the_root_of_one_storage_is_not_taken_by_another(admin: Caller, storage: dict[str, Any]) -> None:
    taken = {"name": "second", "site": "perth", "protocols": [{**storage["protocols"][0]}]}
    assert 400 <= admin.call("POST", "/storages", json=taken).status_code < 500
    admin.get("/storages/second", 404)


def test_a_user_does_not_touch_storages(user: Caller, storage: dict[str, Any]) -> None:
    user.patch("/storages/perth-disk", {"can_write": False, "reason": "mine"}, 403)
    assert user.get("/storages/perth-disk")["can_write"] is True


def test_an_expression_shows_what_it_matches_and_what_was_meant(user: Caller, storage: dict[str, Any]) -> None:
    found = user.post("/expressions", {"storages": " tier = 1 & country=AU"}, 200)
    assert found["storages"] == ["perth-disk"] and found["hints"] == []
    meant = user.post("/expressions", {"storages": "tier=1&contry=AU"}, 200)
    assert meant["storages"] == [] and "country" in meant["hints"][0]
    wrong = user.post("/expressions", {"storages": "tier=1&(country=AU"}, 400)
    assert wrong["field"] == "storages" and wrong["column"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_did_of_any_valid_name_goes_there_and_back(user: Caller, name: str) -> None:
    user.post("/scopes", {"name": "ska"})
    made = user.post("/dids", {"did": f"ska:{name}"})
    assert made["name"] == name
    assert user.get(f"/dids/{at(name)}") == made
    assert [did["name"] for did in user.get("/dids?scope=ska")["items"]] == [name]
    user.post("/dids", {"did": "ska:box", "kind": "container"})
    user.post("/contents/ska/box", {"children": [f"ska:{name}"]}, 200)
    assert user.get("/contents/ska/box")["items"] == [made]
    assert user.get(f"/parents/{at(name)}")["items"][0]["name"] == "box"
    assert user.patch(f"/metadata/{at(name)}", {"telescope": "low"}) == {"telescope": "low"}
    assert user.delete("/contents/ska/box", 200, json={"children": [f"ska:{name}"]}) == {"removed": 1}
    user.delete(f"/dids/{at(name)}")
    assert user.get(f"/dids/{at(name)}")["deleted_at"] is not None


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_did_of_an_invalid_name_is_refused_by_body_and_by_address(user: Caller, name: str) -> None:
    user.post("/scopes", {"name": "ska"})
    wrong = user.post("/dids", {"did": f"ska:{name}"}, 400)
    assert wrong["field"] in ("did", "body")
    assert user.call("GET", f"/dids/{at(name)}").status_code in (400, 404)


def test_dids_are_found_by_name_kind_and_metadata(user: Caller) -> None:
    user.post("/scopes", {"name": "ska"})
    wanted = [
        {"did": "ska:low.1", "metadata": {"band": "low", "beams": 2}},
        {"did": "ska:low.2", "metadata": {"band": "low"}},
        {"did": "ska:all", "kind": "container"},
    ]
    assert user.post("/dids/many", {"dids": wanted})["dids"] == ["ska:low.1", "ska:low.2", "ska:all"]
    for query, names in [
        ("name=low*", ["low.1", "low.2"]),
        ("kind=container", ["all"]),
        ("filter=band=low,beams>=2", ["low.1"]),
        ("filter=beams;kind=container", ["all", "low.1"]),
        ("filter=band=\"' OR true --\"", []),
    ]:
        assert [did["name"] for did in user.get(f"/dids?scope=ska&{query}")["items"]] == names, query
    wrong = user.get("/dids?scope=ska&filter=band==low", 400)
    assert (wrong["field"], wrong["detail"]) == ("filter", "column 6: expected a value, found '='")


def test_many_dids_are_made_all_or_none(user: Caller) -> None:
    user.post("/scopes", {"name": "ska"})
    wrong = user.post("/dids/many", {"dids": [{"did": "ska:a"}, {"did": "ska:b/../c"}]}, 400)
    assert wrong["field"] == "dids[1].did"
    assert user.get("/dids?scope=ska")["items"] == []


def test_only_the_owner_of_a_scope_changes_what_is_in_it(user: Caller, other: Caller) -> None:
    user.post("/scopes", {"name": "ska"})
    user.post("/dids", {"did": "ska:set"})
    other.post("/dids", {"did": "ska:mine"}, 403)
    other.post("/dids/many", {"dids": [{"did": "ska:mine"}]}, 403)
    other.patch("/dids/ska/set", {"is_open": False}, 403)
    other.patch("/metadata/ska/set", {"a": 1}, 403)
    other.post("/contents/ska/set", {"children": ["ska:x"]}, 403)
    other.delete("/contents/ska/set", 403, json={"children": ["ska:x"]})
    other.delete("/dids/ska/set", 403)
    found = other.get("/dids/ska/set")
    assert (found["is_open"], found["metadata"], found["deleted_at"]) == (True, {}, None)


def test_a_closed_dataset_takes_nothing(user: Caller) -> None:
    user.post("/scopes", {"name": "ska"})
    user.post("/dids", {"did": "ska:box", "kind": "container"})
    user.post("/dids", {"did": "ska:set"})
    assert user.patch("/dids/ska/box", {"is_open": False})["is_open"] is False
    assert user.post("/contents/ska/box", {"children": ["ska:set"]}, 409)["detail"].endswith("is closed")


def test_a_container_is_never_inside_itself(user: Caller) -> None:
    user.post("/scopes", {"name": "ska"})
    for name in "ab":
        user.post("/dids", {"did": f"ska:{name}", "kind": "container"})
    user.post("/contents/ska/a", {"children": ["ska:b"]}, 200)
    assert "cycle" in user.post("/contents/ska/b", {"children": ["ska:a"]}, 409)["detail"]


def test_pages_follow_each_other_without_gaps(user: Caller) -> None:
    user.post("/scopes", {"name": "ska"})
    user.post("/dids/many", {"dids": [{"did": f"ska:{number:03}"} for number in range(25)]})
    seen, after = [], ""
    while after is not None:
        page = user.get("/dids", query_string={"scope": "ska", "limit": 10, **({"after": after} if after else {})})
        seen += [did["name"] for did in page["items"]]
        after = page["next"]
    assert seen == [f"{number:03}" for number in range(25)]


def test_events_tell_who_did_what_in_which_request(user: Caller) -> None:
    user.call("POST", "/scopes", 201, json={"name": "ska"}, headers={"X-Request-Id": "harbour-0001"})
    event = user.get("/events?object=scope&name=ska")["items"][0]
    assert (event["actor"], event["action"], event["request_id"]) == ("ada", "added", "harbour-0001")
    assert user.get("/events?actor=nobody")["items"] == []
    user.get("/events?name=ska", 400)
    user.get("/events?object=scope&name=none", 404)
    user.get("/events?after=x", 400)


def test_holding_all_deletions_is_a_breaker_that_a_person_closes(admin: Caller, user: Caller) -> None:
    made = admin.post("/breakers", {"reason": "the tape library is moving"})
    assert admin.post("/breakers", {"reason": "again"}, 409)["breaker"] == made["id"]
    assert user.get("/breakers")["items"][0]["storage"] is None
    user.delete(f"/breakers/{made['id']}", 403)
    admin.delete(f"/breakers/{made['id']}")
    admin.delete(f"/breakers/{made['id']}", 409)
    assert user.get("/breakers")["items"] == []
    assert user.get("/breakers?closed=true")["items"][0]["closed_by"] == "root"


def test_status_says_whether_promises_are_kept(user: Caller, storage: dict[str, Any]) -> None:
    status = user.get("/status")
    assert status["promises"] == {"total": 0} and status["storages"]["total"] == 1
    assert status["storages"]["look_at"] == status["storages"]["held_up"] == []
    assert user.get("/usage/storages")["items"][0]["storage"] == "perth-disk"
    assert user.get("/daemons")["items"] == []
