"""Events: what happened, who did it, in which request."""

from __future__ import annotations

from typing import Any

from marshmallow import fields, validate

from dlm.core import history
from dlm.web.access import permission
from dlm.web.blueprint import Answer, Blueprint, PageQuery, page_of, paged
from dlm.web.context import listed

blp = Blueprint("events", __name__, url_prefix="/events", description="What happened, who did it, and why")


class EventQuery(PageQuery):
    object = fields.String(validate=validate.Length(1, 64), metadata={"example": "rule"})
    name = fields.String(
        metadata={"description": "with `object`: scope:name of a DID, UUID of a rule, else name or number"}
    )
    actor = fields.String()


class Event(Answer):
    id = fields.Integer(required=True)
    at = fields.AwareDateTime(required=True)
    object = fields.String(required=True)
    object_id = fields.Integer(required=True)
    name = fields.String(required=True, allow_none=True, metadata={"description": "what people call the object"})
    action = fields.String(required=True)
    actor = fields.String(required=True)
    request_id = fields.String(required=True, allow_none=True)
    cause = fields.String(required=True, allow_none=True)
    before = fields.Dict(required=True, allow_none=True)
    after = fields.Dict(required=True, allow_none=True)


@blp.route("")
@permission("event.list")
@blp.arguments(EventQuery, location="query")
@blp.answers(paged(Event, "EventPage"), streams=True)
def list_events(query: dict[str, Any]) -> Any:
    """Events, newest first"""
    page = page_of(query)
    which = (query.get("object"), query.get("name"), query.get("actor"))
    return listed("event.list", lambda tx, page: history.list_events(tx, page, *which), page, lambda row: row._asdict())
