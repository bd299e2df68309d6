"""Replicas: register files where they are, list them, say that one is bad.

Registration is the bulk way in: its body is parsed once and goes to the core as columns, without an object a file.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from flask import request
from marshmallow import Schema, fields, validate

from dlm import did as codec
from dlm.core import files, replicas
from dlm.core.names import MAX_BATCH
from dlm.errors import InvalidInput
from dlm.types import ReplicaState
from dlm.web.access import permission
from dlm.web.blueprint import Answer, Blueprint, PageQuery, page_of, paged
from dlm.web.body import NDJSON, read_lines, read_object
from dlm.web.context import as_one, begin, listed, own_scopes
from dlm.web.fields import Document, Whole, Words

blp = Blueprint("replicas", __name__, description="Files on storages")

KEYS = ("storage", "scope", "dataset", "files")


class FileBody(Schema):
    scope = Words(64, metadata={"description": "default: the body's `scope`"})
    name = Words(4096, required=True, metadata={"example": "eb-m001/vis.0001.ms"})
    size_bytes = Whole(required=True)
    adler32 = Words(8, 8, allow_none=True)
    md5 = Words(32, 32, allow_none=True)
    sha256 = Words(64, 64, allow_none=True)
    path = Words(
        4096, allow_none=True, metadata={"description": "below the storage's root; default: derived from the DID"}
    )
    metadata = Document(allow_none=True)


class RegisterBody(Schema):
    storage = Words(64, required=True)
    scope = Words(64)
    dataset = Words(4096, allow_none=True, metadata={"description": "attach the files to it", "example": "ska:eb-m001"})
    files = fields.List(fields.Nested(FileBody), required=True, validate=validate.Length(1, MAX_BATCH))


class RegisterQuery(Schema):
    storage = fields.String(metadata={"description": "for an NDJSON body, as are the next two"})
    scope = fields.String()
    dataset = fields.String()


class Registered(Answer):
    files = fields.Integer(required=True)
    new_dids = fields.Integer(required=True)
    new_replicas = fields.Integer(required=True)
    new_bytes = fields.Integer(required=True)
    attached = fields.Integer(required=True)


class ReplicaQuery(PageQuery):
    storage = fields.String(required=True)
    state = fields.String(validate=validate.OneOf([str(state) for state in ReplicaState]))


class Replica(Answer):
    did = fields.String(required=True)
    storage = fields.String(required=True)
    state = fields.String(required=True)
    size_bytes = fields.Integer(required=True)
    adler32 = fields.String(required=True, allow_none=True)
    md5 = fields.String(required=True, allow_none=True)
    sha256 = fields.String(required=True, allow_none=True)
    path = fields.String(required=True, metadata={"description": "below the storage's root"})
    created_at = fields.AwareDateTime(required=True)
    verified_at = fields.AwareDateTime(required=True, allow_none=True)
    next_check_at = fields.AwareDateTime(required=True, allow_none=True)
    tombstone_at = fields.AwareDateTime(required=True, allow_none=True, metadata={"description": "null: kept"})


ReplicaPage = paged(Replica, "ReplicaPage")


class BadReplica(Schema):
    did = Words(4096, required=True)
    storage = Words(64, required=True)


class BadBody(Schema):
    replicas = fields.List(fields.Nested(BadReplica), required=True, validate=validate.Length(1, MAX_BATCH))
    reason = Words(500, required=True)


class Declared(Answer):
    declared = fields.Integer(required=True, metadata={"description": "were not known as bad or lost before"})


class Source(Answer):
    storage = fields.String(required=True)
    scheme = fields.String(required=True)
    prefix = fields.String(required=True)
    path = fields.String(required=True)
    state = fields.String(required=True)
    size_bytes = fields.Integer(required=True)
    checksums = fields.Dict(fields.String(), fields.String(), required=True)


class Sources(Answer):
    items = fields.List(fields.Nested(Source), required=True)


_PLAIN = tuple(name for name in Replica._declared_fields if name not in ("did", "path"))
_plain_values = attrgetter(*_PLAIN)


def _replica(row: Any) -> dict[str, Any]:
    plain = zip(_PLAIN, _plain_values(row), strict=True)
    return {"did": f"{row.scope}:{row.name}", "path": replicas.path_of(row), **dict(plain)}


def _registration(query: dict[str, Any]) -> dict[str, Any]:
    """The members of RegisterBody, from a JSON object, or from NDJSON lines and the query."""
    if request.mimetype == NDJSON:
        return {**query, "files": read_lines(request)}
    body = read_object(request)
    for key in body.keys() - set(KEYS):
        raise InvalidInput(f"{key[:64]}: Unknown field.", field=key[:64], hint=f"known here: {', '.join(KEYS)}")
    return {**query, **body}


def _text(body: dict[str, Any], key: str, *, required: bool = False) -> str | None:
    value = body.get(key)
    if value is None and not required:
        return None
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"{key} is missing" if value is None else f"{key} is text", field=key)
    return value


@blp.route("/replicas", methods=["POST"])
@permission("replica.add")
@blp.arguments(RegisterQuery, location="query")
@blp.answers(Registered, 201)
@blp.doc(
    requestBody={
        "required": True,
        "content": {"application/json": {"schema": RegisterBody}, NDJSON: {"schema": {"type": "string"}}},
    }
)
def register(query: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Register up to 10,000 files that are at a storage; what is registered already counts as done"""
    body = _registration(query)
    storage, scope, dataset = _text(body, "storage", required=True), _text(body, "scope"), _text(body, "dataset")
    items = body.get("files")
    if not isinstance(items, list):
        raise InvalidInput("files is a list of files", field="files")
    columns = files.read(items, scope)
    parent = codec.parse(dataset, "dataset") if dataset else None
    with begin("replica.add") as tx:
        own_scopes(tx, {*columns.scopes, *(parent[:1] if parent else ())})
        done = replicas.register(tx, str(storage), columns, dataset=parent)
    counts = {name: getattr(done, name) for name in ("new_dids", "new_replicas", "new_bytes", "attached")}
    return {"files": len(columns), **counts}, 201


@blp.route("/replicas")
@permission("replica.list")
@blp.arguments(ReplicaQuery, location="query")
@blp.answers(ReplicaPage, streams=True)
def list_by_storage(query: dict[str, Any]) -> Any:
    """The replicas at a storage"""
    page = page_of(query)
    state = ReplicaState(query["state"]) if "state" in query else None
    name = query["storage"]
    return listed("replica.list", lambda tx, page: replicas.list_by_storage(tx, name, state, page), page, _replica)


@blp.route("/replicas/<scope>/<path:name>")
@permission("replica.list")
@blp.arguments(PageQuery, location="query")
@blp.answers(ReplicaPage, streams=True)
def list_by_did(query: dict[str, Any], scope: str, name: str) -> Any:
    """The replicas of a file, or of every file below a dataset or container"""
    with as_one("dids[0]", "did"):
        return listed(
            "replica.list",
            lambda tx, page: replicas.list_by_dids(tx, [(scope, name)], page),
            page_of(query),
            _replica,
        )


@blp.route("/replicas/bad", methods=["POST"])
@permission("replica.declare_bad")
@blp.arguments(BadBody)
@blp.answers(Declared)
def declare_bad(body: dict[str, Any]) -> dict[str, Any]:
    """Say that replicas are bad; what follows is repair from a good one, where a rule wants the file"""
    named = [
        (*codec.parse(item["did"], f"replicas[{index}].did"), item["storage"])
        for index, item in enumerate(body["replicas"])
    ]
    with begin("replica.declare_bad") as tx:
        return {"declared": replicas.declare_bad(tx, named, body["reason"])}


@blp.route("/sources/<scope>/<path:name>")
@permission("replica.list")
@blp.answers(Sources)
def list_sources(scope: str, name: str) -> dict[str, Any]:
    """Where a file can be read now, the best first, and how to get there"""
    with begin("replica.sources") as tx:
        found = replicas.best_replicas(tx, scope, name)
    return {"items": [_source(item) for item in found]}


def _source(item: replicas.Source) -> dict[str, Any]:
    return {
        "storage": item.storage,
        "scheme": item.protocol.scheme,
        "prefix": item.protocol.prefix,
        "path": item.path,
        "state": item.state,
        "size_bytes": item.size_bytes,
        "checksums": item.checksums.known(),
    }
