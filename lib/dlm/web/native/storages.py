"""Storages: add, describe, switch, retire; what is on them, and checking that it is."""

from __future__ import annotations

from typing import Any

from flask import Response
from marshmallow import Schema, fields, validate

from dlm.core import roots, storages
from dlm.types import Phase, Reap
from dlm.web.access import permission
from dlm.web.blueprint import Answer, Blueprint, PageQuery, page_of, paged
from dlm.web.context import begin, listed
from dlm.web.fields import Flag, One, Whole, Words

blp = Blueprint("storages", __name__, url_prefix="/storages", description="Where data is kept")


class ProtocolBody(Schema):
    scheme = Words(64, required=True, metadata={"example": "posix"})
    prefix = Words(1000, required=True, metadata={"example": "/data/dlm"})
    credentials = Words(
        64, allow_none=True, load_default=None, metadata={"description": "the name of a secret, never the secret"}
    )
    options = fields.Dict(fields.String(), fields.String(), load_default=dict, metadata={"example": {}})
    priority = Whole(-100, 100, load_default=0)


class ProtocolChange(Schema):
    credentials = Words(64, allow_none=True, metadata={"description": "the name of a secret; null: none"})
    options = fields.Dict(
        fields.String(), fields.String(allow_none=True), metadata={"description": "null takes one away, others stay"}
    )


class StorageChange(Schema):
    type = Words(64, metadata={"example": "disk"})
    phase = One(Phase)
    capacity_bytes = Whole(allow_none=True, metadata={"description": "null: not limited"})
    min_free_bytes = Whole()
    can_read = Flag()
    can_write = Flag()
    can_delete = Flag()
    reason = Words(500, metadata={"description": "why a switch is off; needed to turn one off"})
    reap = One(Reap)
    undo_window_s = Whole(0, 365 * 86400, allow_none=True, metadata={"description": "null: the server's setting"})


class StorageBody(StorageChange):
    name = Words(64, required=True, metadata={"example": "perth-disk"})
    site = Words(64, required=True)
    protocols = fields.List(fields.Nested(ProtocolBody), required=True, validate=validate.Length(1, 16))
    attributes = fields.Dict(fields.String(), fields.String(), load_default=dict, metadata={"example": {"tier": "1"}})


class Storage(Answer):
    uuid = fields.UUID(required=True)
    name = fields.String(required=True)
    site = fields.String(required=True)
    country = fields.String(required=True, allow_none=True)
    type = fields.String(required=True)
    phase = fields.String(required=True)
    capacity_bytes = fields.Integer(required=True, allow_none=True)
    min_free_bytes = fields.Integer(required=True)
    can_read = fields.Boolean(required=True)
    can_write = fields.Boolean(required=True)
    can_delete = fields.Boolean(required=True)
    switch_reason = fields.String(required=True, allow_none=True)
    is_available = fields.Boolean(required=True, metadata={"description": "its marker was seen at the last look"})
    unavailable_reason = fields.String(required=True, allow_none=True)
    looked_at = fields.AwareDateTime(required=True, allow_none=True)
    reap = fields.String(required=True)
    undo_window_s = fields.Integer(required=True, allow_none=True)
    attributes = fields.Dict(fields.String(), fields.String(), required=True)
    created_at = fields.AwareDateTime(required=True)


class Protocol(Answer):
    scheme = fields.String(required=True)
    prefix = fields.String(required=True)
    credentials = fields.String(required=True, allow_none=True)
    options = fields.Dict(fields.String(), fields.String(), required=True)
    priority = fields.Integer(required=True)


class StorageDetails(Storage):
    protocols = fields.List(fields.Nested(Protocol), required=True)


def _storage(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Storage._declared_fields}


def _details(tx: Any, row: Any) -> dict[str, Any]:
    ways = [
        {key: getattr(way, key) for key in Protocol._declared_fields} for way in storages.list_protocols(tx, row.name)
    ]
    return {**_storage(row), "protocols": ways}


@blp.route("")
@permission("storage.list")
@blp.arguments(PageQuery, location="query")
@blp.answers(paged(Storage, "StoragePage"), streams=True)
def list_storages(query: dict[str, Any]) -> Any:
    """Storages by name"""
    return listed("storage.list", storages.list_storages, page_of(query), _storage)


@blp.route("", methods=["POST"])
@permission("storage.add")
@blp.arguments(StorageBody)
@blp.answers(StorageDetails, 201)
def add_storage(body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Add a storage; dlm's marker is put into its root, which is made if it is not there"""
    ways = [storages.NewProtocol(**way) for way in body.pop("protocols")]
    row = roots.add_storage(begin, storages.NewStorage(protocols=ways, **body))
    with begin("storage.show") as tx:
        return _details(tx, row), 201


@blp.route("/<storage>")
@permission("storage.list")
@blp.answers(StorageDetails)
def show_storage(storage: str) -> dict[str, Any]:
    """One storage"""
    with begin("storage.show") as tx:
        return _details(tx, storages.get_storage(tx, storage))


@blp.route("/<storage>", methods=["PATCH"])
@permission("storage.set")
@blp.arguments(StorageChange)
@blp.answers(StorageDetails)
def set_storage(body: dict[str, Any], storage: str) -> dict[str, Any]:
    """Change a storage; turning a switch off needs the reason"""
    reason = body.pop("reason", None)
    row = roots.update_storage(begin, storage, body, reason)
    with begin("storage.show") as tx:
        return _details(tx, row)


@blp.route("/<storage>/attributes", methods=["PATCH"])
@permission("storage.set")
@blp.json_body({"type": "object", "additionalProperties": {"type": ["string", "null"]}}, "null takes one away")
@blp.answers(StorageDetails)
def set_attributes(body: Any, storage: str) -> dict[str, Any]:
    """Set attributes; what is not named stays, and rules look again"""
    with begin("storage.set") as tx:
        return _details(tx, storages.set_attributes(tx, storage, body))


@blp.route("/<storage>/protocols/<scheme>", methods=["PATCH"])
@permission("storage.set")
@blp.arguments(ProtocolChange)
@blp.answers(StorageDetails)
def set_protocol(body: dict[str, Any], storage: str, scheme: str) -> dict[str, Any]:
    """Change what a protocol is spoken with: the secret that it names, its options"""
    with begin("storage.set") as tx:
        return _details(tx, storages.update_protocol(tx, storage, scheme, body))


@blp.route("/<storage>", methods=["DELETE"])
@permission("storage.delete")
@blp.empties
def retire_storage(storage: str) -> Response:
    """Retire a storage that holds nothing; its files and its marker are left as they are"""
    with begin("storage.delete") as tx:
        storages.retire_storage(tx, storage)
    return Response(status=204)
