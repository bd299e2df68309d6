"""Breakers: what stopped deletions or losses, and closing them again."""

from __future__ import annotations

from typing import Any

from flask import Response
from marshmallow import Schema, fields

from dlm.db import breakers as breaker_rows
from dlm.web.access import permission
from dlm.web.blueprint import Answer, Blueprint, many
from dlm.web.context import begin
from dlm.web.fields import Words

blp = Blueprint("breakers", __name__, url_prefix="/breakers", description="What is stopped until a person says so")


class BreakerQuery(Schema):
    closed = fields.Boolean(load_default=False, metadata={"description": "show closed ones too"})


class HoldBody(Schema):
    reason = Words(1000, required=True, metadata={"example": "the tape library is moving"})


class Breaker(Answer):
    id = fields.Integer(required=True)
    storage = fields.String(required=True, allow_none=True, metadata={"description": "null: all storages"})
    act = fields.String(required=True, metadata={"description": "delete or loss"})
    reason = fields.String(required=True)
    facts = fields.Dict(required=True)
    opened_at = fields.AwareDateTime(required=True)
    opened_by = fields.String(required=True)
    closed_at = fields.AwareDateTime(required=True, allow_none=True)
    closed_by = fields.String(required=True, allow_none=True)


class Held(Answer):
    id = fields.Integer(required=True)


@blp.route("")
@permission("breaker.list")
@blp.arguments(BreakerQuery, location="query")
@blp.answers(many(Breaker, "Breakers"))
def list_breakers(query: dict[str, Any]) -> dict[str, Any]:
    """Breakers that are open, newest first"""
    with begin("breaker.list") as tx:
        rows = breaker_rows.list_all(tx, with_closed=query["closed"])
    return {"items": [{name: value for name, value in row._asdict().items() if name != "storage_id"} for row in rows]}


@blp.route("", methods=["POST"])
@permission("breaker.open")
@blp.arguments(HoldBody)
@blp.answers(Held, 201)
def hold(body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Hold all deletions, everywhere, until the breaker is closed"""
    with begin("breaker.open") as tx:
        return {"id": breaker_rows.hold(tx, body["reason"])}, 201


@blp.route("/<int(max=2147483647):breaker>", methods=["DELETE"])
@permission("breaker.close")
@blp.empties
def close(breaker: int) -> Response:
    """Close a breaker: what it stopped goes on, with a new window"""
    with begin("breaker.close") as tx:
        breaker_rows.close(tx, breaker)
    return Response(status=204)
