"""Storage expressions: what one matches now."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields

from dlm.core import expression as expressions
from dlm.db import storages as storage_rows
from dlm.web.access import permission
from dlm.web.blueprint import Answer, Blueprint
from dlm.web.context import begin
from dlm.web.fields import Words

blp = Blueprint("expressions", __name__, url_prefix="/expressions", description="Which storages an expression matches")


class ExpressionBody(Schema):
    storages = Words(least=0, required=True, metadata={"example": "tier=1&country=AU"})


class Matches(Answer):
    canonical = fields.String(
        required=True, metadata={"description": "the one written form; equal texts match the same"}
    )
    storages = fields.List(fields.String(), required=True)
    hints = fields.List(
        fields.String(), required=True, metadata={"description": "terms that match nothing, and what was meant"}
    )


@blp.route("", methods=["POST"])
@permission("expression.evaluate")
@blp.arguments(ExpressionBody)
@blp.answers(Matches)
def evaluate(body: dict[str, Any]) -> dict[str, Any]:
    """Evaluate an expression; 400 says where it is malformed"""
    parsed = expressions.parse(body["storages"], "storages")
    with begin("expression.evaluate") as tx:
        snapshot = expressions.Snapshot(storage_rows.snapshot(tx))
    matched = expressions.evaluate(parsed, snapshot)
    return {
        "canonical": parsed.canonical,
        "storages": [storage.name for storage in snapshot.storages if storage.id in matched],
        "hints": [hint.text for hint in expressions.check(parsed, snapshot)],
    }
