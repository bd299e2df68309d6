"""Bad requests: one body, the right status, the field, quickly, and never a 5xx of our own making."""

from __future__ import annotations

import gzip
import json
import logging
from typing import Any

import pytest
from flask import Flask

from dlm import errors
from dlm.config import Settings
from dlm.db.engine import Database
from dlm.web import body
from dlm.web.app import create_app
from dlm.web.problem import KINDS, TABLE, answer_ours
from web.conftest import Caller

DEAD = "postgresql+psycopg://nobody@127.0.0.1:1/none"


def raw(caller: Caller, data: bytes, path: str = "/accounts", **kwargs: Any) -> Any:
    """The answer to a POST of these bytes."""
    return caller.call("POST", path, data=data, **{"content_type": "application/json", **kwargs})


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "required"),
        (b"   ", "empty"),
        (b"{", "not JSON"),
        (b'{"name": "ada"} {}', "not JSON"),
        (b"[]", ""),
        (b'"name"', ""),
        (b"null", ""),
        (b"\xff\xfe", "UTF-8"),
        (b'{"name": "a", "name": "b"}', "twice"),
        (b'{"roles": [{"x": 1, "x": 2}]}', "twice"),
        (b"{" + b",".join(b'"k%d": 1' % (at % 199_999) for at in range(200_000)) + b"}", "twice"),
        (b'{"name": NaN}', "NaN"),
        (b'{"name": Infinity}', "Infinity"),
        (b'{"name": 1e999}', "too large"),
        (b'{"name": 9223372036854775808}', "64 bits"),
        (b'{"name": ' + b"9" * 100_000 + b"}", "64 bits"),
        (b'{"name": "a\\u0000b"}', "U+0000"),
        (b'{"name": "\\ud800"}', "U+D800"),
        (b'{"\\ud800": 1}', "U+D800"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 100_000, "nested"),
        (b"[" * 40 + b"]" * 40, "nested"),
    ],
)
def test_a_body_that_is_not_strict_json_is_refused(admin: Caller, data: bytes, detail: str) -> None:
    wrong = raw(admin, data)
    assert wrong.status_code == 400 and wrong.json["type"] == "/problems/invalid-input", wrong.text
    assert detail in wrong.json["detail"]
    assert [account["name"] for account in admin.get("/accounts")["items"]] == ["root"]


def test_numbers_of_64_bits_are_taken_as_they_are() -> None:
    assert body.parse(b"[9223372036854775807, -9223372036854775808]") == [2**63 - 1, -(2**63)]


def test_a_body_of_50_mb_is_refused_before_it_is_read(admin: Caller) -> None:
    wrong = raw(admin, b"x" * 50_000_000)
    assert wrong.status_code == 413 and wrong.json["type"] == "/problems/too-large"


def test_a_compressed_body_is_not_unpacked(admin: Caller) -> None:
    wrong = raw(admin, gzip.compress(b"0" * 10_000_000), headers={"Content-Encoding": "gzip"})
    assert wrong.status_code == 415


def test_a_body_needs_no_content_type(admin: Caller) -> None:
    assert raw(admin, b'{"name": "ada"}', content_type="application/x-www-form-urlencoded").status_code == 201


def test_every_wrong_field_is_named_and_an_unknown_one_met_half_way(admin: Caller) -> None:
    wrong = admin.post("/storages", {"nmae": "x", "site": 5, "protocols": [{"scheme": "posix"}]}, 400)
    named = {entry["field"] for entry in wrong["fields"]}
    assert named == {"name", "nmae", "site", "protocols[0].prefix"}
    assert wrong["field"] in named
    assert admin.post("/accounts", {"name": "x", "emial": "y"}, 400)["hint"] == "Did you mean email?"
    assert admin.get("/accounts?limt=5", 400)["hint"] == "Did you mean limit?"


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "limit=", "limit=1e3", "after="])
def test_a_page_that_cannot_be_is_refused(admin: Caller, query: str) -> None:
    admin.get(f"/accounts?{query}", 400)


@pytest.mark.parametrize(
    "path",
    [
        "/accounts/%00",
        "/accounts?after=%00",
        "/dids/ska/a%00b",
        "/events?name=%00",
    ],
)
def test_an_address_that_is_no_text_is_refused(admin: Caller, path: str) -> None:
    assert admin.get(path, 400)["field"] == "path"


@pytest.mark.parametrize("path", ["/accounts/\xff", "/dids/ska/\xff\xfe", "/dids/ska/\xed\xa0\x80"])
def test_an_address_that_is_not_utf_8_is_refused(admin: Caller, path: str) -> None:
    wrong = admin.call("GET", "/", 400, environ_overrides={"PATH_INFO": f"/api/v1{path}"})  # as a server gives it
    assert wrong.json["field"] == "path"


@pytest.mark.parametrize(
    "path",
    [
        "/accounts/' OR 1=1 --",
        "/accounts/..%2f..%2fetc",
        "/dids/ska/x'; DROP TABLE did; --",
        "/storages/%25s",
        "/sites/%(name)s",
    ],
)
def test_an_injection_is_a_name_that_is_not_there(admin: Caller, path: str) -> None:
    assert admin.get(path, 404)["type"] == "/problems/not-found"


def test_an_unknown_address_or_method_is_a_problem_too(admin: Caller, nobody: Caller) -> None:
    assert admin.get("/nothing", 404)["type"] == "/problems/not-found"
    wrong = admin.call("DELETE", "/accounts", 405)
    assert wrong.json["type"] == "/problems/method-not-allowed" and "GET" in wrong.headers["Allow"]
    assert nobody.client.get("/nothing", buffered=True).mimetype == "application/problem+json"


@pytest.mark.parametrize(("error", "kind"), TABLE, ids=lambda value: getattr(value, "slug", ""))
def test_each_error_has_its_status_and_its_facts(app: Flask, error: type[errors.DlmError], kind: Any) -> None:
    args = ("timeout",) if error is errors.StorageError else ()
    with app.test_request_context():
        answer = answer_ours(error(*args, "what", field="f", hint="h", rule="r"))
    shown = answer.json
    assert answer.status_code == kind.status == shown["status"]
    assert (shown["type"], shown["detail"]) == (f"/problems/{kind.slug}", "what")
    assert (shown["field"], shown["hint"], shown["rule"]) == ("f", "h", "r")
    assert ("Retry-After" in answer.headers) == (kind.status == 503)
    assert ("WWW-Authenticate" in answer.headers) == (kind.status == 401)


def test_facts_never_hide_what_every_problem_has(app: Flask) -> None:
    with app.test_request_context():
        shown = answer_ours(errors.Conflict("what", type="x", status=200, title="y", request_id="z")).json
    assert (shown["type"], shown["status"], shown["title"]) == ("/problems/conflict", 409, "Conflict")


def test_every_problem_type_is_explained_at_its_address(nobody: Caller) -> None:
    for slug, kind in KINDS.items():
        assert nobody.client.get(f"/problems/{slug}", buffered=True).json["status"] == kind.status


def test_a_bug_is_logged_under_its_request_id_and_not_shown(
    app: Flask, user: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    def explode() -> None:
        raise errors.UnsafeDrop("the secret inner state")

    explode.permission = "public"  # type: ignore[attr-defined]
    app.add_url_rule("/api/v1/explode", view_func=explode)
    wrong = user.call("GET", "/explode", 500, headers={"X-Request-Id": "harbour-0001"})
    assert wrong.json["type"] == "/problems/internal" and "secret" not in wrong.text
    assert wrong.json["request_id"] == "harbour-0001"
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "harbour-0001" in logged[0].getMessage() and "secret inner state" in caplog.text


def test_a_route_without_a_permission_is_served_to_nobody(app: Flask, admin: Caller) -> None:
    app.add_url_rule("/api/v1/forgotten", view_func=lambda: {"secret": 1}, endpoint="forgotten")
    assert "secret" not in admin.call("GET", "/forgotten", 403).text


def test_a_database_that_is_down_is_503_with_retry_after() -> None:
    database = Database(DEAD)
    away = Caller(create_app(database, Settings()), "dlm_" + "A" * 43)
    for path in ("/health", "/accounts"):
        answer = away.call("GET", path, 503)
        assert int(answer.headers["Retry-After"]) > 0 and answer.json["type"] == "/problems/try-again"
    away.get("/version")
    away.get("/openapi.json")
    database.dispose()


def test_the_description_is_openapi_31_and_names_every_permission(nobody: Caller) -> None:
    document = nobody.get("/openapi.json")
    assert document["openapi"].startswith("3.1")
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method in ("get", "post", "put", "patch", "delete"):
                assert operation["summary"] and operation["x-permission"], (method, path)
                problem = operation["responses"]["default"]["$ref"].rpartition("/")[2]
                assert "application/problem+json" in document["components"]["responses"][problem]["content"]


def test_the_page_to_browse_it_needs_no_other_host(nobody: Caller) -> None:
    page = nobody.call("GET", "/docs", 200)
    assert "http" not in page.text.replace('charset="utf-8"', "").replace("http-equiv", "")
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    for file in ("docs.js", "swagger-ui/swagger-ui-bundle.js", "swagger-ui/swagger-ui.css"):
        assert nobody.call("GET", f"/docs/{file}", 200).content_length
    nobody.get("/docs/../app.py", 404)
    nobody.get("/docs/%2e%2e/app.py", 404)


def test_nothing_answered_is_kept_by_a_cache(user: Caller) -> None:
    headers = user.call("GET", "/accounts", 200).headers
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"


def test_every_key_of_an_answer_is_in_json_types(user: Caller) -> None:
    user.post("/scopes", {"name": "ska"})
    made = json.dumps(user.get("/scopes/ska"))
    assert made.endswith('Z"}') and '"created_at": "2026-01-01T00:00:00' in made


def test_an_address_that_is_none_is_told_in_our_words_and_the_bare_one_leads_to_the_documentation(app: Flask) -> None:
    answer = app.test_client().get("/api/v1/nothing")
    assert answer.status_code == 404
    assert answer.json["detail"] == "nothing is at /api/v1/nothing"
    assert answer.json["hint"] == "what there is: /api/v1/docs"
    assert app.test_client().get("/").location == "/api/v1/docs"
