"""Who is let in, and what they are told when they are not."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from flask import Flask
from werkzeug.routing import Rule

from dlm.config import Settings
from dlm.core import accounts, authorize
from dlm.db.engine import SYSTEM, Database
from dlm.errors import Denied, InvalidInput, NotFound
from dlm.types import Identity
from dlm.web.access import PUBLIC, permission
from dlm.web.app import create_app
from dlm.web.context import begin
from web.conftest import API, Caller, caller

EXAMPLES = {"path": "name", "int": "1", "uuid": "00000000-0000-4000-8000-000000000000"}


def address_of(rule: Rule) -> str:
    """An address that the rule matches."""
    parts = []
    for part in rule.rule.split("/"):
        kind = part.strip("<>").partition(":")[0].partition("(")[0] if ":" in part else "text"
        parts.append(EXAMPLES.get(kind, "x") if part.startswith("<") else part)
    return "/".join(parts)


def calls(app: Flask) -> list[tuple[str, str, str | None]]:
    """(method, an address, permission) of every route."""
    return [
        (method, address_of(rule), getattr(app.view_functions[rule.endpoint], "permission", None))
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"HEAD"})
    ]


def test_every_route_names_a_permission_of_the_policy(app: Flask) -> None:
    known = authorize.shipped().permissions() | {PUBLIC}
    assert [(method, address) for method, address, name in calls(app) if name not in known] == []


ASKED_INSIDE = {"account.private", "replica.path", "secret.use"}  # depends on what is registered, so that the use case asks


def test_every_permission_of_the_policy_is_used_by_a_route(app: Flask) -> None:
    assert authorize.shipped().permissions() - {name for _, _, name in calls(app)} == ASKED_INSIDE


def test_naming_the_path_of_a_file_takes_a_permission_of_its_own(admin: Caller, user: Caller, tmp_path: Path) -> None:
    """Otherwise a user claims a neighbour's file that nobody registered, says it is bad, and has it overwritten."""
    admin.post("/sites", {"name": "perth"})
    way = {"scheme": "posix", "prefix": str(tmp_path / "shared")}
    admin.post("/storages", {"name": "shared", "site": "perth", "protocols": [way]})
    user.post("/scopes", {"name": "mine"})
    file = {"name": "f", "size_bytes": 1}
    user.post("/replicas", {"storage": "shared", "scope": "mine", "files": [{**file, "path": "theirs/data"}]}, 403)
    user.post("/replicas", {"storage": "shared", "scope": "mine", "files": [file]}, 201)


def test_without_a_token_only_public_routes_answer(app: Flask, nobody: Caller) -> None:
    for method, address, name in calls(app):
        response = nobody.client.open(address, method=method, json={}, buffered=True)
        if name == PUBLIC:
            assert response.status_code != 401, address
            continue
        assert response.status_code == 401, address
        assert response.headers["WWW-Authenticate"].startswith("Bearer"), address
        assert response.mimetype == "application/problem+json"


def test_an_account_without_roles_is_denied_everywhere(app: Flask, database: Database) -> None:
    with database.begin("test") as tx:
        accounts.add_account(tx, "mute")
        text, _ = accounts.make_token(tx, "mute")
    mute = Caller(app, text)
    for method, address, name in calls(app):
        if name != PUBLIC:
            assert mute.call(method, address.removeprefix(API), json={}).status_code == 403, (method, address)


def test_a_reader_changes_nothing(app: Flask, reader: Caller) -> None:
    for method, address, name in calls(app):
        reads = name == PUBLIC or "reader" in authorize.shipped().everywhere[name]
        owns = name != PUBLIC and "reader" in authorize.shipped().own[name]
        if not reads and not owns:
            assert reader.call(method, address.removeprefix(API), json={}).status_code == 403, (method, address)


@pytest.mark.parametrize(
    "header",
    [
        "Basic cm9vdDpyb290",
        "Bearer",
        "Bearer ",
        "Bearer short",
        "Bearer dlm_" + "A" * 43,
        "Bearer dlm_" + "A" * 5000,
        "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0.",
        "Bearer dlm_ünicode____________________________________",
    ],
)
def test_a_token_that_is_not_one_of_ours_is_refused(app: Flask, header: str) -> None:
    response = Caller(app).call("GET", "/accounts", headers={"Authorization": header})
    assert response.status_code == 401
    assert response.json["detail"] == "the token is not valid"


def test_a_revoked_token_is_refused(app: Flask, user: Caller) -> None:
    made = user.post("/tokens", {"label": "laptop"})
    laptop = Caller(app, made["token"])
    assert laptop.get("/tokens")["items"][0]["label"] == "laptop"
    user.delete(f"/tokens/{made['id']}")
    laptop.get("/tokens", 401)


def test_a_user_has_no_way_to_another_accounts_tokens(user: Caller, other: Caller) -> None:
    made = user.post("/tokens", {"label": "laptop"})
    foreign, unknown = (other.delete(f"/tokens/{number}", 404) for number in (made["id"], 999_999))
    assert foreign["detail"] == f"there is no token {made['id']}" and unknown["field"] == foreign["field"]
    other.get("/tokens?account=ada", 403)
    other.post("/tokens", {"account": "ada"}, 403)
    assert all(token["revoked_at"] is None for token in user.get("/tokens")["items"])


def test_a_token_makes_none_that_outlives_it(app: Flask, user: Caller) -> None:
    lent = user.post("/tokens", {"lifetime_s": 600})
    borrower = Caller(app, lent["token"])
    for body in ({}, {"lifetime_s": 86_400}):
        assert borrower.post("/tokens", body)["expires_at"] == lent["expires_at"]
    assert borrower.post("/tokens", {"lifetime_s": 60})["expires_at"] < lent["expires_at"]
    assert user.post("/tokens", {})["expires_at"] is None


def test_addresses_and_tokens_of_accounts_are_for_themselves_and_operators(
    app: Flask, database: Database, admin: Caller, user: Caller, reader: Caller
) -> None:
    admin.patch("/accounts/ada", {"email": "ada@example.org"})
    user.post("/tokens", {"label": "laptop"})
    for seeing in (admin, user, caller(app, database, "op", "operator")):
        assert seeing.get("/accounts/ada")["email"] == "ada@example.org"
        actions = [event["action"] for event in seeing.get("/events?object=account&name=ada")["items"]]
        assert actions == ["token made", "updated", "token made", "added"]
    assert reader.get("/accounts/ada")["email"] is None
    assert all(account["email"] is None for account in reader.get("/accounts")["items"])
    for query in ("", "?object=account&name=ada", "?actor=ada", "?actor=root"):
        assert {event["name"] for event in reader.get(f"/events{query}")["items"]} <= {"eve"}, query
    accept = {**reader.headers, "Accept": "application/x-ndjson"}
    streamed = reader.client.get(f"{API}/events", headers=accept).text
    assert "eve" in streamed
    assert "laptop" not in streamed and "ada@example.org" not in streamed


def test_a_token_is_never_shown_again_nor_logged(user: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = user.post("/tokens", {})
    assert "token" not in user.get("/tokens")["items"][0]
    assert made["token"] not in caplog.text
    assert user.headers["Authorization"].split()[1] not in caplog.text


def test_the_access_log_says_who_did_what(user: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dlm.web.access")
    user.call("GET", "/accounts", 200, headers={"X-Request-Id": "harbour-0001"})
    line = json.loads(caplog.records[-1].getMessage())
    assert (line["request_id"], line["account"], line["path"], line["status"]) == (
        "harbour-0001",
        "ada",
        "/api/v1/accounts",
        200,
    )


def test_a_sane_request_id_is_kept_and_another_is_replaced(nobody: Caller) -> None:
    for given, is_kept in [("harbour-0001", True), ("x", False), ("a" * 65, False), ("two words here", False)]:
        shown = nobody.call("GET", "/version", headers={"X-Request-Id": given}).headers["X-Request-Id"]
        assert (shown == given) == is_kept and len(shown) >= 8


def test_a_view_that_forgets_whose_it_is_changes_nothing_for_a_user(app: Flask, admin: Caller, user: Caller) -> None:
    @permission("did.set")
    def forgetful() -> dict[str, str]:
        with begin("test") as tx:
            accounts.add_scope(tx, "stolen", "ada")
        return {}

    app.add_url_rule("/api/v1/forgetful", view_func=forgetful, methods=["POST"])
    user.call("POST", "/forgetful", 403)
    user.get("/scopes/stolen", 404)
    admin.call("POST", "/forgetful", 200)


def test_a_sites_policy_holds_for_routes_too(database: Database, user: Caller, pytestconfig: pytest.Config) -> None:
    user.post("/scopes", {"name": "ska"})
    user.post("/dids", {"did": "ska:set"})
    strict = create_app(
        database, Settings(web_policy_file=str(pytestconfig.rootpath / "etc/policies/site.toml.example"))
    )
    there = Caller(strict, user.headers["Authorization"].split()[1])
    there.delete("/dids/ska/set", 403)
    create_app(database, Settings())
    user.delete("/dids/ska/set")


# --- the policy ---------------------------------------------------------------------------------------------------

ADA = Identity(1, "ada", frozenset({"user"}))


def test_what_a_policy_does_not_name_is_denied() -> None:
    root = Identity(2, "root", frozenset({"admin"}))
    with pytest.raises(Denied):
        authorize.authorize(root, "moon.landing")


def test_own_reaches_to_what_the_account_owns_and_no_further() -> None:
    authorize.authorize(ADA, "rule.cancel", owner="ada")
    for owner in ("bob", "", None):
        with pytest.raises(Denied):
            authorize.authorize(ADA, "rule.cancel", owner=owner)


def test_dlm_itself_may_do_everything_and_an_account_called_daemon_may_not() -> None:
    authorize.authorize(SYSTEM, "rule.add", owner="ada")
    with pytest.raises(Denied):
        authorize.authorize(Identity(9, "dlm", frozenset({"daemon"})), "rule.add", owner="ada")


def test_the_example_of_a_sites_policy_is_laid_over_the_shipped_one(pytestconfig: pytest.Config) -> None:
    policy = authorize.load(pytestconfig.rootpath / "etc/policies/site.toml.example")
    ingest = Identity(3, "correlator", frozenset({"ingest"}))
    assert policy.allows(ingest, "did.add", owner="correlator")
    assert not policy.allows(ADA, "did.delete", owner="ada")
    assert policy.allows(ADA, "rule.cancel", owner="ada")


@pytest.mark.parametrize(
    "text",
    [
        '[permissions]\n"rule.canel" = ["admin"]',
        '[permissions]\n"rule.cancel" = "admin"',
        '[permissions]\n"rule.cancel" = [1]',
        '[permission]\n"rule.cancel" = ["admin"]',
        "rule.cancel = [",
    ],
)
def test_a_policy_with_a_slip_is_refused_at_the_start(tmp_path, database: Database, text: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput):
        create_app(database, Settings(web_policy_file=str(path)))


def test_a_policy_file_that_is_not_there_is_told_at_the_start(database: Database) -> None:
    with pytest.raises(NotFound):
        create_app(database, Settings(web_policy_file="/nowhere/policy.toml"))
