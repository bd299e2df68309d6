"""Replicas, rules, requests and checks through the real app."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask

from dlm.core import declaring, rules
from dlm.core.conveyor import request_uuid
from dlm.db.engine import Database
from dlm.types import Identity
from web.conftest import Caller

DIGEST = "0badcafe"
MOMENTS = ("created_at", "state_since", "starts_at", "expires_at", "next_judge_at")


@pytest.fixture
def storages(admin: Caller, tmp_path: Path) -> list[str]:
    """Two storages at each of two sites."""
    for site, country in (("perth", "AU"), ("bern", "CH")):
        admin.post("/sites", {"name": site, "country": country})
        for kind in ("disk", "tape"):
            way = {"scheme": "posix", "prefix": str(tmp_path / f"{site}-{kind}")}
            admin.post("/storages", {"name": f"{site}-{kind}", "site": site, "type": kind, "protocols": [way]})
    return ["perth-disk", "perth-tape", "bern-disk", "bern-tape"]


@pytest.fixture
def dataset(user: Caller, storages: list[str]) -> str:
    """A dataset of two files at perth-disk."""
    user.post("/scopes", {"name": "ska"})
    user.post("/dids", {"did": "ska:set"})
    files = [{"name": f"set/{number}", "size_bytes": 10, "adler32": DIGEST} for number in (1, 2)]
    body = {"storage": "perth-disk", "scope": "ska", "dataset": "ska:set", "files": files}
    assert user.post("/replicas", body) == {
        "files": 2,
        "new_dids": 2,
        "new_replicas": 2,
        "new_bytes": 20,
        "attached": 2,
    }
    return "ska:set"


# --- replicas -----------------------------------------------------------------------------------------------------


def test_registered_files_are_listed_by_file_dataset_and_storage(user: Caller, dataset: str) -> None:
    by_file = user.get("/replicas/ska/set/1")["items"]
    by_dataset = user.get("/replicas/ska/set")["items"]
    assert [item["did"] for item in by_dataset] == ["ska:set/1", "ska:set/2"]
    assert by_file == by_dataset[:1]
    assert user.get("/replicas?storage=perth-disk")["items"] == by_dataset
    assert user.get("/replicas?storage=perth-disk&state=bad")["items"] == []
    assert (by_file[0]["state"], by_file[0]["adler32"]) == ("unverified", DIGEST)
    assert user.get("/sources/ska/set/1")["items"][0]["path"] == by_file[0]["path"]
    assert user.get("/replicas/ska/none", 404)["field"] == "did"


def test_registering_again_changes_nothing(user: Caller, dataset: str) -> None:
    files = [{"name": "set/1", "size_bytes": 10, "adler32": DIGEST}]
    body = {"storage": "perth-disk", "scope": "ska", "dataset": "ska:set", "files": files}
    done = user.post("/replicas", body)
    assert (done["new_dids"], done["new_replicas"], done["attached"]) == (0, 0, 0)
    body["files"][0]["size_bytes"] = 11
    assert user.post("/replicas", body, 409)["field"] == "files[0].size_bytes"


def test_files_of_any_valid_name_are_registered_and_found(user: Caller, dataset: str) -> None:
    names = ["a b/%2F/ñ", "日本語/?#&", "x;y/+z"]
    files = [{"name": name, "size_bytes": 1} for name in names]
    user.post("/replicas", {"storage": "bern-disk", "scope": "ska", "files": files})
    for name in names:
        assert user.get(f"/replicas/ska/{quote(name)}")["items"][0]["did"] == f"ska:{name}"


def test_files_come_as_lines_too(user: Caller, dataset: str) -> None:
    lines = b"".join(json.dumps({"name": f"line/{n}", "size_bytes": n}).encode() + b"\n" for n in range(3))
    query = {"storage": "bern-disk", "scope": "ska", "dataset": "ska:set"}
    kwargs = {"data": lines, "content_type": "application/x-ndjson", "query_string": query}
    assert user.call("POST", "/replicas", 201, **kwargs).json["attached"] == 3
    kwargs["data"] = lines + b'{"name": "x", \n'
    assert "line 4" in user.call("POST", "/replicas", 400, **kwargs).json["detail"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "../x"}, "files[0]"),
        ({"name": "x\u0000"}, "body"),
        ({"name": 7}, "files[0].name"),
        ({"size_bytes": -1}, "files[0].size_bytes"),
        ({"size_bytes": 2**63}, "body"),
        ({"size_bytes": True}, "files[0].size_bytes"),
        ({"size_bytes": "1"}, "files[0].size_bytes"),
        ({"adler32": "abc"}, "files[0].adler32"),
        ({"sha256": "0" * 63}, "files[0].sha256"),
        ({"path": "/etc/passwd"}, "files[0]"),
        ({"path": "a/../../b"}, "files[0]"),
        ({"pth": "x"}, "files[0]"),
    ],
)
def test_a_file_that_is_not_valid_is_refused_by_name(
    user: Caller, dataset: str, change: dict[str, Any], field: str
) -> None:
    body = {"storage": "bern-disk", "scope": "ska", "files": [{"name": "x", "size_bytes": 1, **change}]}
    wrong = user.post("/replicas", body, 400)
    assert wrong["field"].startswith(field) or wrong["field"].startswith("names[0]"), wrong


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"storage": "nowhere"}, 404, "storage"),
        ({"storage": None}, 400, "storage"),
        ({"scope": "nowhere"}, 404, "scope"),
        ({"dataset": "ska:none"}, 404, "dataset"),
        ({"dataset": "none"}, 400, "dataset"),
        ({"files": []}, 400, "files"),
        ({"files": {}}, 400, "files"),
        ({"files": [1]}, 400, "files[0]"),
        ({"file": []}, 400, "file"),
        ({"files": [{"name": str(n), "size_bytes": 1} for n in range(10_001)]}, 413, "files"),
    ],
)
def test_a_registration_that_is_not_valid_says_why(
    user: Caller, dataset: str, change: dict[str, Any], status: int, field: str
) -> None:
    body = {"storage": "bern-disk", "scope": "ska", "files": [{"name": "x", "size_bytes": 1}], **change}
    assert user.post("/replicas", body, status)["field"] == field
    assert user.get("/replicas?storage=bern-disk")["items"] == []


def test_only_the_owner_of_the_scope_and_of_the_dataset_registers(user: Caller, other: Caller, dataset: str) -> None:
    file = {"name": "x", "size_bytes": 1}
    other.post("/replicas", {"storage": "bern-disk", "scope": "ska", "files": [file]}, 403)
    other.post("/scopes", {"name": "bobs"})
    body = {"storage": "bern-disk", "scope": "bobs", "files": [file]}
    other.post("/replicas", {**body, "dataset": "ska:set"}, 403)
    other.post("/replicas", {**body, "files": [{**file, "scope": "ska"}]}, 403)
    other.post("/replicas", body)


def test_a_bad_replica_is_declared_by_an_operator_only(user: Caller, admin: Caller, dataset: str) -> None:
    body = {"replicas": [{"did": "ska:set/1", "storage": "perth-disk"}], "reason": "bit rot"}
    user.post("/replicas/bad", body, 403)
    assert admin.post("/replicas/bad", body, 200) == {"declared": 1}
    assert admin.post("/replicas/bad", body, 200) == {"declared": 0}
    assert user.get("/replicas?storage=perth-disk&state=bad")["items"][0]["did"] == "ska:set/1"
    body["replicas"][0]["storage"] = "bern-disk"
    assert admin.post("/replicas/bad", body, 404)["field"] == "replicas[0]"


def register(user: Caller, number: int, start: int = 0) -> float:
    """Register that many files in calls of 10,000; files a second."""
    spent = 0.0
    for first in range(start, start + number, 10_000):
        names = range(first, min(first + 10_000, start + number))
        files = [{"name": f"bulk/{n:09}", "size_bytes": n, "adler32": f"{n:08x}"} for n in names]
        body = json.dumps({"storage": "bern-disk", "scope": "ska", "files": files}).encode()
        began = time.monotonic()
        user.call("POST", "/replicas", 201, data=body)
        spent += time.monotonic() - began
    return number / spent


def test_ten_thousand_files_are_registered_in_one_call_quickly(user: Caller, dataset: str) -> None:
    register(user, 10_000, start=1_000_000)
    assert register(user, 20_000) > 5_000  # a machine that is busy with other tests; docs/reference/rest.md has figures


def test_a_stream_is_read_page_by_page_and_stays_flat(app: Flask, user: Caller, dataset: str, caplog: Any) -> None:
    register(user, 20_000)
    headers = {**user.headers, "Accept": "application/x-ndjson"}
    response = user.client.get("/api/v1/replicas?storage=bern-disk", headers=headers)
    sizes = [len(chunk) for chunk in response.iter_encoded()]
    assert response.status_code == 200 and response.mimetype == "application/x-ndjson"
    assert len(sizes) >= 4 and max(sizes) < 5_000 * 400
    whole = user.client.get("/api/v1/replicas?storage=bern-disk", headers=headers).text.splitlines()
    assert [json.loads(line)["size_bytes"] for line in whole] == list(range(20_000))


def test_what_is_wrong_with_a_stream_shows_in_its_status(user: Caller, storages: list[str]) -> None:
    wrong = user.call("GET", "/replicas?storage=none", 404, headers={"Accept": "application/x-ndjson"})
    assert wrong.mimetype == "application/problem+json"


# --- rules --------------------------------------------------------------------------------------------------------


def wish(**changes: Any) -> dict[str, Any]:
    return {"did": "ska:set", "copies": 2, "storages": "type=disk", "spread": "site", **changes}


def test_rules_declared_together_are_each_told_under_their_own_request(
    user: Caller, dataset: str, database: Database
) -> None:
    asked = [
        declaring.Asked(rules.Declaration(dataset, copies, "country=AU|country=CH"), f"request-{copies}")
        for copies in (1, 2)
    ]
    with database.begin("test.account") as tx:
        row = tx.one("SELECT a.id, a.name FROM account a JOIN scope s ON s.account_id = a.id WHERE s.name = 'ska'")
    assert row is not None
    with database.begin("test.declare", Identity(row.id, row.name, frozenset({"user"}), "request-1")) as tx:
        shown = declaring.declare_each(tx, asked)
    assert [rule["copies"] for rule in shown] == [1, 2]
    assert shown[0] == {**user.get(f"/rules/{shown[0]['id']}"), **{k: shown[0][k] for k in MOMENTS}}
    with database.begin("test.events") as tx:
        told = tx.rows("SELECT request_id FROM event WHERE object = 'rule' AND action = 'declared' ORDER BY id")
    assert [row.request_id for row in told] == ["request-1", "request-2"]


def test_a_rule_is_declared_shown_changed_and_cancelled(user: Caller, dataset: str) -> None:
    rule = user.post("/rules", wish(comment="for the paper", lifetime_s=3600))
    assert (rule["state"], rule["account"], rule["copies"], rule["spread"]) == ("declared", "ada", 2, "site")
    at = f"/rules/{rule['id']}"
    assert user.get(at) == rule
    assert [found["id"] for found in user.get("/rules?did=ska:set&account=ada&state=declared")["items"]] == [rule["id"]]
    changed = user.patch(at, {"priority": 5, "comment": None, "lifetime_s": None, "suspended": True})
    assert (changed["priority"], changed["comment"], changed["expires_at"], changed["suspended"]) == (
        5,
        None,
        None,
        True,
    )
    assert user.patch(at, {"locked": True})["locked"] is True
    assert user.delete(at, 409)["hint"]
    user.patch(at, {"locked": False})
    assert user.delete(at, 200)["state"] == "letting_go"
    assert [event["action"] for event in user.get(f"{at}/history")["items"]][-1] == "declared"
    assert user.get(f"{at}/locks")["items"] == []
    assert user.get(f"/events?object=rule&name={rule['id']}")["items"][0]["actor"] == "ada"


def test_the_number_of_copies_of_a_rule_is_changed(user: Caller, dataset: str) -> None:
    rule = user.post("/rules", wish(spread=None))
    at = f"/rules/{rule['id']}"
    assert user.patch(at, {"copies": "*"})["copies"] == "*"
    assert user.patch(at, {"copies": 1})["copies"] == 1
    standing = user.post("/rules", wish(copies=2))
    for copies, status in ((0, 400), (True, 400), (9, 422), (2, 409)):
        assert user.call("PATCH", at, status, json={"copies": copies}).json["field"] == "copies"
    assert user.patch(at, {"copies": 2}, 409)["rule"] == standing["id"]


def test_a_rule_is_moved_by_its_account_and_nobody_else(user: Caller, other: Caller, reader: Caller, dataset: str) -> None:
    old = user.post("/rules", wish(copies=1, spread=None))
    at = f"/rules/{old['id']}/move"
    for stranger in (other, reader):
        stranger.post(at, {"storages": "bern-tape"}, 403)
    key = {"Idempotency-Key": "k1"}
    new = user.post(at, {"storages": "bern-tape"}, headers=key)
    assert (new["storages"], new["copies"], new["account"], new["moves_from"]) == ("bern-tape", 1, "ada", old["id"])
    assert user.post(at, {"storages": "bern-tape"}, 200, headers=key)["id"] == new["id"]
    assert user.get(f"/rules/{old['id']}")["moves_to"] == new["id"]
    assert user.post(at, {"storages": "bern-disk"}, 409)["rule"] == new["id"]
    onward = f"/rules/{new['id']}/move"
    for body, status, field in (
        ({}, 400, "storages"),
        ({"storages": "bern-tape"}, 400, "storages"),
        ({"storages": "type=("}, 400, "storages"),
        ({"storages": "nowhere"}, 422, "storages"),
        ({"storages": "type=disk", "copies": 3}, 422, "copies"),
        ({"storages": "type=disk", "account": "bob"}, 400, "account"),
    ):
        assert user.post(onward, body, status)["field"] == field


def test_a_rule_begins_later_and_its_start_is_changed(user: Caller, dataset: str) -> None:
    rule = user.post("/rules", wish(delay_s=3600, lifetime_s=60))
    assert rule["starts_at"] < rule["expires_at"] and rule["next_judge_at"] == rule["starts_at"]
    at = f"/rules/{rule['id']}"
    assert user.patch(at, {"starts_at": "2100-01-01T00:00:00Z", "expires_at": None})["reason"].startswith("begins at 2100")
    assert user.post("/rules/plan", wish(copies=1, starts_at="2100-01-01T00:00:00Z"), 200)["starts_at"]
    for body in ({"delay_s": -1}, {"delay_s": 1, "starts_at": "2100-01-01T00:00:00Z"}, {"delay_s": True}):
        assert user.patch(at, body, 400)["field"] == "delay_s"
    assert user.patch(at, {"starts_at": None})["starts_at"] is None
    assert user.patch(at, {"delay_s": 5}, 409)["field"] == "delay_s"
    assert user.post("/rules", wish(copies=1, starts_at="2020-01-01T00:00:00Z"), 400)["field"] == "starts_at"


def test_a_plan_tells_what_a_rule_would_do_and_changes_nothing(
    user: Caller, other: Caller, reader: Caller, dataset: str
) -> None:
    plan = user.post("/rules/plan", wish(), 200)
    assert plan["transfers"] == {"files": 2, "bytes": 20}
    assert {place["storage"] for place in plan["destinations"]} == {"perth-disk", "bern-disk"}
    assert plan["impossible"] is None
    assert user.get("/rules")["items"] == []
    assert user.post("/rules/plan", wish(copies=3), 422)["field"] == "copies"
    other.post("/rules/plan", wish(account="ada"), 403)
    reader.post("/rules/plan", wish(), 403)


def test_the_same_wish_twice_names_the_rule_that_stands(user: Caller, dataset: str) -> None:
    rule = user.post("/rules", wish())
    again = user.post("/rules", wish(), 409)
    assert again["rule"] == rule["id"] and again["type"] == "/problems/conflict"


def test_a_retry_with_the_same_key_makes_no_second_rule(user: Caller, dataset: str) -> None:
    kwargs = {"json": wish(), "headers": {"Idempotency-Key": "e7a1"}}
    first = user.call("POST", "/rules", 201, **kwargs).json
    second = user.call("POST", "/rules", 200, **kwargs).json
    assert first["id"] == second["id"]
    kwargs["json"] = wish(copies=1)
    assert user.call("POST", "/rules", 409, **kwargs).json["field"] == "Idempotency-Key"
    user.call("POST", "/rules", 400, json=wish(), headers={"Idempotency-Key": "x" * 201})


def test_many_rules_are_declared_all_or_none(user: Caller, dataset: str) -> None:
    good = [wish(), wish(copies="*", storages="type=tape")]
    wrong = user.post("/rules/many", {"rules": [*good, wish(copies=0)]}, 400)
    assert wrong["field"] == "rules[2].copies"
    assert user.get("/rules")["items"] == []
    made = user.post("/rules/many", {"rules": good})["rules"]
    assert [rule["is_new"] for rule in made] == [True, True]
    assert {rule["copies"] for rule in user.get("/rules")["items"]} == {2, "*"}


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"did": "ska:none"}, 404, "did"),
        ({"did": "none"}, 400, "did"),
        ({"did": "ska:e\u0301"}, 400, "did"),
        ({"copies": 0}, 400, "copies"),
        ({"copies": -1}, 400, "copies"),
        ({"copies": 3}, 422, "copies"),
        ({"copies": "two"}, 400, "copies"),
        ({"copies": 2.0}, 400, "copies"),
        ({"copies": True}, 400, "copies"),
        ({"copies": None}, 400, "copies"),
        ({"storages": "type=disk&contry=AU"}, 422, "storages"),
        ({"storages": "type=disk&("}, 400, "storages"),
        ({"storages": "(" * 100_000}, 400, "storages"),
        ({"storages": ""}, 400, "storages"),
        ({"grouping": "some"}, 400, "grouping"),
        ({"priority": 6}, 400, "priority"),
        ({"lifetime_s": -1}, 400, "lifetime_s"),
        ({"lifetime_s": 1, "expires_at": "2027-01-01T00:00:00Z"}, 400, "expires_at"),
        ({"expires_at": "tomorrow"}, 400, "expires_at"),
        ({"expires_at": "9999-12-31T23:59:59-12:00"}, 400, "expires_at"),
        ({"account": "nobody"}, 404, "account"),
        ({"copeis": 2}, 400, "copeis"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_with_the_field(
    admin: Caller, user: Caller, dataset: str, change: dict[str, Any], status: int, field: str
) -> None:
    wrong = admin.post("/rules", wish(**change), status)
    assert wrong["field"] == field, wrong
    assert admin.get("/rules")["items"] == []


def test_a_slip_of_the_pen_is_met_half_way(user: Caller, dataset: str) -> None:
    assert user.post("/rules", wish(copeis=2), 400)["hint"] == "Did you mean copies?"
    lacking = {key: value for key, value in wish(copys=2).items() if key != "copies"}
    assert user.post("/rules", lacking, 400)["hint"] == "Did you mean copies?"
    lacking = {key: value for key, value in wish(expression="*").items() if key != "storages"}
    assert user.post("/rules", lacking, 400)["hint"] == "missing here: storages"
    assert user.post("/rules/many", {"rules": [wish(copys=2)]}, 400)["hint"] == "Did you mean copies?"
    assert user.post("/rules", wish(priority=9), 400)["hint"] == "1 (low) to 5 (urgent)"
    assert "country" in user.post("/rules", wish(storages="contry=AU"), 422)["detail"]
    assert "2 " in user.post("/rules", wish(copies=3), 422)["detail"]


def test_a_quota_is_kept(user: Caller, admin: Caller, dataset: str) -> None:
    for storage in ("perth-disk", "bern-disk"):
        admin.call("PUT", f"/accounts/ada/limits/{storage}", 204, json={"limit_bytes": 19})
    wrong = user.post("/rules", wish(), 422)
    assert wrong["type"] == "/problems/quota-exceeded"


def test_a_rule_is_its_accounts_own(user: Caller, other: Caller, reader: Caller, admin: Caller, dataset: str) -> None:
    rule = user.post("/rules", wish())
    at = f"/rules/{rule['id']}"
    for stranger in (other, reader):
        assert stranger.get(at)["id"] == rule["id"]
        stranger.patch(at, {"priority": 1}, 403)
        stranger.delete(at, 403)
        stranger.post("/rules", wish(account="ada", copies=1), 403)
        stranger.post("/rules/many", {"rules": [wish(account="ada", copies=1)]}, 403)
    assert other.post("/rules", wish(copies=1))["account"] == "bob"
    assert admin.delete(at, 200)["state"] == "letting_go"


@pytest.mark.parametrize("rule", ["x", "00000000-0000-4000-8000-000000000000", "1;DROP TABLE rule"])
def test_a_rule_that_is_not_there_is_not_found(user: Caller, rule: str) -> None:
    for method, path in [("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/locks"), ("GET", "/history")]:
        kwargs = {"json": {}} if method == "PATCH" else {}
        wrong = user.call(method, f"/rules/{quote(rule)}{path}", **kwargs)
        assert wrong.status_code in (400, 404) and wrong.json["field"] == "rule"


# --- requests and checks ------------------------------------------------------------------------------------------


@pytest.fixture
def parked(database: Database, dataset: str) -> str:
    """A request that a conveyor gave up."""
    with database.begin("test") as tx:
        number = tx.scalar(
            """INSERT INTO request (did_id, storage_id, state, size_bytes, created_at, next_attempt_at, priority,
                                    attempts, error_class, error)
               SELECT d.id, s.id, 'parked', d.size_bytes, %(now)s, %(now)s, 3, 6, 'no_source', 'no source is left'
                 FROM did d, storage s WHERE d.name = 'set/1' AND s.name = 'bern-disk' RETURNING id"""
        )
    return request_uuid(number)


def test_a_parked_request_shows_its_reason_and_is_tried_again(user: Caller, admin: Caller, parked: str) -> None:
    for query in ("state=parked", "storage=bern-disk", "did=ska:set", "did=ska:set/1"):
        assert [item["id"] for item in user.get(f"/requests?{query}")["items"]] == [parked], query
    assert user.get("/requests?state=queued")["items"] == user.get("/requests?storage=bern-tape")["items"] == []
    found = user.get(f"/requests/{parked}")
    assert (found["error"], found["tried"]) == ("no source is left", [])
    user.post(f"/requests/{parked}/retry", None, 403)
    assert admin.post(f"/requests/{parked}/retry", None, 200)["state"] == "queued"
    assert admin.post(f"/requests/{parked}/retry", None, 409)["field"] == "request"
    assert admin.post("/requests/retry", {"did": "ska:set"}, 200) == {"retried": 0, "parked": 0, "waited": 0}
    user.get(f"/requests/{request_uuid(99999)}", 404)
    user.get("/requests/99999", 400)
    user.get(f"/why/requests/{parked}")


def test_a_check_is_asked_for_once_at_a_time(user: Caller, admin: Caller, dataset: str) -> None:
    user.post("/storages/perth-disk/checks", {}, 403)
    check = admin.post("/storages/perth-disk/checks", {"with_checksum": False})
    assert (check["state"], check["storage"], check["total"]) == ("running", "perth-disk", 2)
    assert user.get(f"/checks/{check['id']}") == check == user.get("/storages/perth-disk/checks")["items"][0]
    admin.post("/storages/perth-disk/checks", {}, 409)
    admin.post(f"/checks/{check['id']}/confirm", None, 409)
    admin.post("/checks/99999/confirm", None, 404)
    assert user.get("/findings?storage=perth-disk")["items"] == []


def test_why_tells_of_files_datasets_rules_and_storages(user: Caller, dataset: str) -> None:
    rule = user.post("/rules", wish())
    for path in (
        "dids/ska/set/1",
        "dids/ska/set/1?at=perth-disk",
        "dids/ska/set",
        f"rules/{rule['id']}",
        "storages/perth-disk",
    ):
        told = user.get(f"/why/{path}")
        assert told["next"]["text"], path
    assert rule["id"] in json.dumps(user.get("/why/dids/ska/set/1")["chain"])
    for path in (
        "dids/ska/none",
        "dids/ska/set/1?at=none",
        "rules/" + "0" * 8 + "-0000-4000-8000-" + "0" * 12,
        "storages/none",
    ):
        user.get(f"/why/{path}", 404)
