"""One error body for everything (RFC 9457), and the one table from the error tree to status codes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, g, json, request
from werkzeug.exceptions import HTTPException

from dlm import errors

log = logging.getLogger("dlm.web")

MIMETYPE = "application/problem+json"
MAX_FIELDS = 20


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem: its slug is part of the API and never changes."""

    slug: str
    status: int
    title: str
    meaning: str


# The first class that fits counts, so special errors stand before general ones.
TABLE: tuple[tuple[type[Exception], Kind], ...] = (
    (errors.TooLarge, Kind("too-large", 413, "Too large", "The input exceeds a limit; send it in smaller pieces.")),
    (
        errors.InvalidInput,
        Kind("invalid-input", 400, "Invalid input", "Change the named field; the same request fails again."),
    ),
    (
        errors.Unauthenticated,
        Kind("unauthenticated", 401, "A valid token is required", "Send `Authorization: Bearer <token>`."),
    ),
    (errors.Denied, Kind("denied", 403, "Not allowed", "The policy does not give this account the permission.")),
    (errors.NotFound, Kind("not-found", 404, "Not found", "There is no such object.")),
    (errors.Conflict, Kind("conflict", 409, "Conflict", "The state of the object does not allow this.")),
    (errors.QuotaExceeded, Kind("quota-exceeded", 422, "Quota exceeded", "The account's limit does not allow this.")),
    (errors.CannotPlace, Kind("cannot-place", 422, "Cannot be placed", "No storage can take what is asked.")),
    (
        errors.StorageError,
        Kind("storage-error", 422, "The storage refused", "The storage did not do what was asked of it."),
    ),
    (errors.Unsupported, Kind("unsupported", 501, "Not installed", "This needs an optional package on the server.")),
    (
        errors.Transient,
        Kind("try-again", 503, "Not possible at the moment", "Repeat the request after Retry-After seconds."),
    ),
)
METHOD = Kind("method-not-allowed", 405, "Method not allowed", "This address has other methods; see Allow.")
INTERNAL = Kind(
    "internal", 500, "Internal error", "A bug or a broken installation; the log has it under the request id."
)
KINDS = {kind.slug: kind for kind in [*(kind for _, kind in TABLE), METHOD, INTERNAL]}
_HTTP = {kind.status: kind for kind in reversed(KINDS.values())} | {422: KINDS["cannot-place"]}


def register(app: Flask) -> None:
    """Answer every error of the app with a problem body."""
    app.register_error_handler(errors.DlmError, answer_ours)
    app.register_error_handler(HTTPException, answer_http)
    app.register_error_handler(Exception, answer_bug)


def answer_ours(error: errors.DlmError) -> Response:
    """The problem that an error of the tree is."""
    kind = next((kind for cls, kind in TABLE if isinstance(error, cls)), INTERNAL)
    if kind is INTERNAL:
        return answer_bug(error)
    body = {**error.facts, "detail": error.detail, "field": error.field, "hint": error.hint}
    response = problem(kind, body)
    if isinstance(error, errors.Transient):
        response.headers["Retry-After"] = str(error.retry_after_s)
        log.warning("%s: %s", g.get("request_id", ""), error.detail)
    if isinstance(error, errors.Unauthenticated):
        response.headers["WWW-Authenticate"] = 'Bearer realm="dlm"'
    return response


def answer_http(error: HTTPException) -> Response:
    """The problem that an error of HTTP itself is: no such address, wrong method, too large."""
    status = error.code or 500
    if status < 400:
        return error.get_response()  # type: ignore[return-value]
    kind = _HTTP.get(status) or Kind(f"http-{status}", status, error.name, "")
    told: dict[str, Any] = {"detail": error.description or error.name}
    if status == 404 and request.url_rule is None:
        told = {"detail": f"nothing is at {request.path}", "hint": "what there is: /api/v1/docs"}
    response = problem(kind, told)
    response.headers.extend((name, text) for name, text in error.get_headers() if name in ("Allow", "Retry-After"))
    return response


def answer_bug(error: Exception) -> Response:
    """The problem for what nobody expected: the log has the traceback, the caller the request id."""
    log.error("%s failed", g.get("request_id", ""), exc_info=error)
    return problem(INTERNAL, {"detail": "this is a fault of the server; its log has more under the request id"})


def problem(kind: Kind, body: dict[str, Any]) -> Response:
    """The response for a kind of problem; members that are None are left out."""
    own = {"type": f"/problems/{kind.slug}", "title": kind.title, "status": kind.status}
    facts = {name: value for name, value in body.items() if value is not None and name not in own}
    members = {**own, **facts, "request_id": g.get("request_id", "")}
    return Response(json.dumps(members), HTTPStatus(kind.status), mimetype=MIMETYPE)
