"""Requests: each is one wish to create one replica; here is what moves, what waits, and what is stuck."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields, validate

from dlm.core import requests
from dlm.types import RequestState
from dlm.web.access import permission
from dlm.web.blueprint import Answer, Blueprint, PageQuery, page_of, paged
from dlm.web.context import begin, listed
from dlm.web.fields import Words

blp = Blueprint("requests", __name__, url_prefix="/requests", description="Copies on their way")


class RequestQuery(PageQuery):
    rule = fields.String()
    storage = fields.String(metadata={"description": "the destination"})
    did = fields.String(metadata={"description": "a file, or a dataset that holds files"})
    state = fields.String(validate=validate.OneOf([str(state) for state in RequestState]))


class RetryBody(Schema):
    rule = Words(64)
    storage = Words(64)
    did = Words(4096)


class Request(Answer):
    id = fields.UUID(required=True)
    did = fields.String(required=True)
    storage = fields.String(required=True)
    source = fields.String(required=True, allow_none=True)
    state = fields.String(required=True)
    size_bytes = fields.Integer(required=True)
    priority = fields.Integer(required=True)
    activity = fields.String(required=True)
    attempts = fields.Integer(required=True)
    created_at = fields.AwareDateTime(required=True)
    next_attempt_at = fields.AwareDateTime(required=True)
    claimed_until = fields.AwareDateTime(required=True, allow_none=True)
    is_cancelled = fields.Boolean(required=True)
    is_repair = fields.Boolean(required=True)
    error_class = fields.String(required=True, allow_none=True)
    error = fields.String(required=True, allow_none=True)


class Attempt(Answer):
    number = fields.Integer(required=True)
    ended_at = fields.AwareDateTime(required=True)
    source = fields.String(required=True, allow_none=True)
    outcome = fields.String(required=True)
    size_bytes = fields.Integer(required=True, allow_none=True)
    duration_s = fields.Float(required=True, allow_none=True)
    error_class = fields.String(required=True, allow_none=True)
    error = fields.String(required=True, allow_none=True)


class RequestDetails(Request):
    tried = fields.List(fields.Nested(Attempt), required=True, metadata={"description": "newest first"})


class Retried(Answer):
    retried = fields.Integer(required=True)
    parked = fields.Integer(required=True, metadata={"description": "of them were parked"})
    waited = fields.Integer(required=True, metadata={"description": "of them waited for their next attempt"})


def _request(row: Any) -> dict[str, Any]:
    plain = {name: getattr(row, name) for name in Request._declared_fields if name not in ("id", "did")}
    return {"id": requests.request_uuid(row.id), "did": f"{row.scope}:{row.name}", **plain}


def _details(tx: Any, uuid: str) -> dict[str, Any]:
    row, attempts = requests.get_request(tx, uuid)
    tried = [{name: getattr(attempt, name) for name in Attempt._declared_fields} for attempt in attempts]
    return {**_request(row), "tried": tried}


@blp.route("")
@permission("request.list")
@blp.arguments(RequestQuery, location="query")
@blp.answers(paged(Request, "RequestPage"), streams=True)
def list_requests(query: dict[str, Any]) -> Any:
    """Requests that are queued, active or parked; what is done leaves only its attempts (`why`)"""
    page = page_of(query)
    state = RequestState(query.pop("state")) if "state" in query else None
    which = requests.Which(**query, state=state)
    return listed("request.list", lambda tx, page: requests.list_requests(tx, which, page), page, _request)


@blp.route("/<uuid>")
@permission("request.list")
@blp.answers(RequestDetails)
def show_request(uuid: str) -> dict[str, Any]:
    """One request and its attempts"""
    with begin("request.show") as tx:
        return _details(tx, uuid)


@blp.route("/<uuid>/retry", methods=["POST"])
@permission("request.retry")
@blp.answers(RequestDetails)
def retry_request(uuid: str) -> dict[str, Any]:
    """Try a request that is parked or waits again now, with all its attempts"""
    with begin("request.retry") as tx:
        requests.retry_one(tx, uuid)
        return _details(tx, uuid)


@blp.route("/retry", methods=["POST"])
@permission("request.retry")
@blp.arguments(RetryBody)
@blp.answers(Retried)
def retry_requests(body: dict[str, Any]) -> dict[str, Any]:
    """Try all requests that are parked or wait, of a rule, storage or DID, again now; all when none is named"""
    with begin("request.retry") as tx:
        parked, waited = requests.retry(tx, requests.Which(**body))
    return {"retried": parked + waited, "parked": parked, "waited": waited}
