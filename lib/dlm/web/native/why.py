"""Why: the chain of stored facts to the present state, and what happens next, when."""

from __future__ import annotations

from typing import Any

from marshmallow import INCLUDE, Schema, fields

from dlm.core import why
from dlm.web.access import permission
from dlm.web.blueprint import Answer, Blueprint
from dlm.web.context import begin

blp = Blueprint("why", __name__, url_prefix="/why", description="Why something is as it is, and what is next")


class WhyQuery(Schema):
    at = fields.String(metadata={"description": "only the replica at this storage"})


class Step(Answer):
    """One fact, with members of its own beside these."""

    class Meta:
        unknown = INCLUDE

    step = fields.String(required=True, metadata={"example": "decided"})
    at = fields.AwareDateTime(required=True, allow_none=True)
    text = fields.String(required=True)


class Next(Answer):
    at = fields.AwareDateTime(required=True, allow_none=True, metadata={"description": "null: when something changes"})
    text = fields.String(required=True)


class Why(Answer):
    """The object with its state, the chain of facts, and the next action."""

    class Meta:
        unknown = INCLUDE

    chain = fields.List(fields.Nested(Step), required=True)
    next = fields.Nested(Next, required=True)


@blp.route("/dids/<scope>/<path:name>")
@permission("why.ask")
@blp.arguments(WhyQuery, location="query")
@blp.answers(Why)
def why_did(query: dict[str, Any], scope: str, name: str) -> dict[str, Any]:
    """Why a DID is where it is; of a file, each of its replicas"""
    with begin("why.did") as tx:
        return why.did(tx, scope, name, query.get("at"))


@blp.route("/rules/<rule>")
@permission("why.ask")
@blp.answers(Why)
def why_rule(rule: str) -> dict[str, Any]:
    """Why a rule is in its state"""
    with begin("why.rule") as tx:
        return why.rule(tx, rule)


@blp.route("/requests/<uuid>")
@permission("why.ask")
@blp.answers(Why)
def why_request(uuid: str) -> dict[str, Any]:
    """Why a request is in its state"""
    with begin("why.request") as tx:
        return why.request(tx, uuid)


@blp.route("/storages/<storage>")
@permission("why.ask")
@blp.answers(Why)
def why_storage(storage: str) -> dict[str, Any]:
    """Why a storage takes, keeps or loses what it does"""
    with begin("why.storage") as tx:
        return why.storage(tx, storage)
