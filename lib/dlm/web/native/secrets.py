"""Secrets: what storages are spoken to with. Values come in, and never go out."""

from __future__ import annotations

from typing import Any

from flask import Response
from marshmallow import Schema, fields

from dlm.core import secrets
from dlm.web.access import permission
from dlm.web.blueprint import Answer, Blueprint, PageQuery, page_of, paged
from dlm.web.context import begin, listed, own
from dlm.web.fields import Words

blp = Blueprint(
    "secrets", __name__, url_prefix="/secrets", description="What storages are spoken to with; values never come out"
)
NOBODY = ""  # made on the host: no account owns it


class SecretValues(Schema):
    values_ = fields.Dict(
        fields.String(),
        fields.String(),
        required=True,
        data_key="values",
        metadata={"example": {"access_key": "AKEXAMPLE", "secret_key": "…"}, "writeOnly": True},
    )


class SecretBody(SecretValues):
    name = Words(64, required=True, metadata={"example": "perth-s3"})


class Secret(Answer):
    name = fields.String(required=True)
    owner = fields.String(required=True, allow_none=True, metadata={"description": "null: made on the host"})
    keys = fields.List(fields.String(), required=True, metadata={"description": "what its values are called"})
    key_id = fields.String(required=True, metadata={"description": "of the key that it is encrypted under"})
    created_at = fields.AwareDateTime(required=True)
    set_at = fields.AwareDateTime(required=True, metadata={"description": "when it got these values"})
    rotated_at = fields.AwareDateTime(required=True, allow_none=True)
    storages = fields.List(fields.String(), required=True, metadata={"description": "which name it"})


def _secret(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Secret._declared_fields}


@blp.route("")
@permission("secret.list")
@blp.arguments(PageQuery, location="query")
@blp.answers(paged(Secret, "SecretPage"), streams=True)
def list_secrets(query: dict[str, Any]) -> Any:
    """Secrets by name; never their values"""
    return listed("secret.list", secrets.list_secrets, page_of(query), _secret)


@blp.route("", methods=["POST"])
@permission("secret.add")
@blp.arguments(SecretBody)
@blp.answers(Secret, 201)
def add_secret(body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Keep a secret, encrypted; a storage names it in `credentials`"""
    with begin("secret.add") as tx:
        return _secret(secrets.add_secret(tx, body["name"], body["values_"])), 201


@blp.route("/<secret>")
@permission("secret.list")
@blp.answers(Secret)
def show_secret(secret: str) -> dict[str, Any]:
    """One secret; never its values"""
    with begin("secret.show") as tx:
        return _secret(secrets.get_secret(tx, secret))


@blp.route("/<secret>", methods=["PUT"])
@permission("secret.set")
@blp.arguments(SecretValues)
@blp.answers(Secret)
def set_secret(body: dict[str, Any], secret: str) -> dict[str, Any]:
    """Give a secret these values, and no others; storages that name it are spoken to with them from the next pass on"""
    with begin("secret.set") as tx:
        own(secrets.get_secret(tx, secret).owner or NOBODY)
        return _secret(secrets.set_secret(tx, secret, body["values_"]))


@blp.route("/<secret>", methods=["DELETE"])
@permission("secret.delete")
@blp.empties
def remove_secret(secret: str) -> Response:
    """Remove a secret that no storage names"""
    with begin("secret.delete") as tx:
        own(secrets.get_secret(tx, secret).owner or NOBODY)
        secrets.remove_secret(tx, secret)
    return Response(status=204)
