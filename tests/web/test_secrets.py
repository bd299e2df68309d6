"""Secrets over REST: values go in and never come out; who may do what with whose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from dlm.core import credentials
from dlm.db.engine import Database
from web.conftest import API, Caller, caller

BODY = {"name": "perth-dav", "values": {"username": "dlm", "password": "seeded-hunter2"}}


@pytest.fixture
def operator(app: Flask, database: Database) -> Caller:
    return caller(app, database, "oda", "operator")


def test_values_go_in_and_never_come_out(admin: Caller, database: Database) -> None:
    made = admin.post("/secrets", BODY)
    assert (made["name"], made["owner"], made["keys"]) == ("perth-dav", "root", ["password", "username"])
    changed = {"values": {"token": "seeded-token"}}
    said = [
        made,
        admin.get("/secrets"),
        admin.get("/secrets/perth-dav"),
        admin.client.get(API + "/secrets", headers={**admin.headers, "Accept": "application/x-ndjson"}).text,
        admin.call("PUT", "/secrets/perth-dav", 200, json=changed).json,
        admin.get("/events"),
    ]
    assert "seeded" not in str(said)
    events = admin.get("/events?object=secret&name=perth-dav")["items"]
    assert [(event["action"], event["name"]) for event in events] == [("set", "perth-dav"), ("added", "perth-dav")]
    with database.begin("look") as tx:
        assert credentials.get(tx, "perth-dav") == {"token": "seeded-token"}
    admin.delete("/secrets/perth-dav")
    admin.get("/secrets/perth-dav", 404)


@pytest.mark.parametrize(
    "body",
    [
        {**BODY, "values": {"password": 12345678901234567890123}},
        {**BODY, "values": {"password": ["seeded-hunter2"]}},
        {**BODY, "values": {"seeded hunter2": "seeded-hunter2"}},
        {**BODY, "values": "seeded-hunter2"},
        {**BODY, "values": {}},
        {**BODY, "name": "no name", "values": {"password": "seeded-hunter2"}},
        {**BODY, "values": {"password": "seeded-hunter2" * 10_000}},
        {**BODY, "secret_key": "seeded-hunter2"},
    ],
)
def test_a_body_that_is_refused_is_not_repeated(admin: Caller, body: dict[str, Any]) -> None:
    answer = admin.call("POST", "/secrets", 400, json=body).text
    assert "seeded-hunter2" not in answer and "1234567890" not in answer


def test_a_body_that_is_no_json_is_not_repeated(admin: Caller) -> None:
    data = b'{"name": "x", "values": {"password": "seeded-hunter2"'
    answer = admin.call("POST", "/secrets", 400, data=data, content_type="application/json").text
    assert "seeded" not in answer


def test_operators_change_only_their_own_and_users_see_none(admin: Caller, operator: Caller, user: Caller) -> None:
    admin.post("/secrets", BODY)
    operator.post("/secrets", {**BODY, "name": "mine"})
    assert [item["owner"] for item in operator.get("/secrets")["items"]] == ["oda", "root"]
    operator.call("PUT", "/secrets/perth-dav", 403, json={"values": BODY["values"]})
    operator.delete("/secrets/perth-dav", 403)
    operator.call("PUT", "/secrets/mine", 200, json={"values": BODY["values"]})
    operator.delete("/secrets/mine")
    for status, path in ((403, "/secrets"), (403, "/secrets/perth-dav"), (403, "/secrets/none")):
        user.get(path, status)
    user.post("/secrets", BODY, 403)


def test_what_a_protocol_is_spoken_with_is_shown_and_changed(admin: Caller, tmp_path: Path) -> None:
    admin.post("/sites", {"name": "perth"})
    way = {"scheme": "posix", "prefix": str(tmp_path / "disk"), "options": {"timeout_s": "30"}}
    made = admin.post("/storages", {"name": "disk", "site": "perth", "protocols": [way]})
    assert made["protocols"][0]["options"] == {"timeout_s": "30"}
    at = "/storages/disk/protocols/posix"
    assert admin.patch(at, {"options": {"timeout_s": "60"}})["protocols"][0]["options"] == {"timeout_s": "60"}
    assert admin.patch(at, {"options": {"timeout_s": None}})["protocols"][0]["options"] == {}
    event = admin.get("/events?object=storage")["items"][0]
    assert (event["action"], event["after"]["options"]) == ("protocol set", {})
    admin.patch("/storages/disk/protocols/s3", {"options": {}}, 404)


@pytest.mark.parametrize(
    ("change", "field", "told"),
    [
        ({"options": {"password": "hunter2"}}, "options.password", "is no option of posix"),
        ({"options": {"timeout": "5"}}, "options.timeout", "is no option of posix"),
        ({"options": {"timeout_s": "fast"}}, "options.timeout_s", "is no timeout"),
        ({"options": {"timeout_s": "0"}}, "options.timeout_s", "is no timeout"),
        ({"credentials": "not a name"}, "credentials", "not a valid name"),
        ({"credentials": "perth-dav"}, "credentials", "there is no secret perth-dav"),
    ],
)
def test_what_a_protocol_cannot_be_spoken_with_is_refused(
    admin: Caller, tmp_path: Path, change: dict[str, Any], field: str, told: str
) -> None:
    admin.post("/sites", {"name": "perth"})
    way = {"scheme": "posix", "prefix": str(tmp_path / "disk")}
    admin.post("/storages", {"name": "disk", "site": "perth", "protocols": [way]})
    problem = admin.patch("/storages/disk/protocols/posix", change, 400)
    assert problem["field"] == field and told in problem["detail"]
    assert "hunter2" not in str(problem)
