"""DIDs: datasets, containers and files; what they hold, what holds them, and what is said about them.

The first segment tells what is asked of the DID (`/dids`, `/contents`, `/parents`, `/metadata`, `/replicas`), the rest
is its scope and its name with all its slashes, so that no name can be taken for a part of the address.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flask import Response
from marshmallow import Schema, fields, validate

from dlm import did as codec
from dlm.core import dids
from dlm.core.names import MAX_BATCH
from dlm.core.query import parse
from dlm.db.engine import Tx
from dlm.types import DidKind
from dlm.web.access import permission
from dlm.web.blueprint import Answer, Blueprint, PageQuery, page_of, paged
from dlm.web.context import as_one, begin, listed, own_scopes
from dlm.web.fields import Document, Flag, Moment, One, Words

blp = Blueprint("dids", __name__, description="The data by name: files, datasets, containers")

COLLECTIONS = (DidKind.DATASET, DidKind.CONTAINER)


class DidBody(Schema):
    did = Words(4096, required=True, metadata={"example": "ska:eb-m001-20260711"})
    kind = One(COLLECTIONS, load_default=str(DidKind.DATASET))
    is_monotonic = Flag(load_default=False, metadata={"description": "nothing is ever taken out of it"})
    metadata = Document(allow_none=True, load_default=None)
    expires_at = Moment(allow_none=True, load_default=None)


class DidsBody(Schema):
    dids = fields.List(fields.Nested(DidBody), required=True, validate=validate.Length(1, MAX_BATCH))


class DidChange(Schema):
    is_open = Flag(metadata={"description": "false: nothing is attached or detached any more"})
    expires_at = Moment(allow_none=True, metadata={"description": "when it ends and its rules let go; null: never"})


class DidQuery(PageQuery):
    scope = fields.String(required=True)
    name = fields.String(metadata={"description": "a pattern; '*' stands for any text"})
    kind = fields.String(validate=validate.OneOf([str(kind) for kind in DidKind]))
    filter = fields.String(
        metadata={
            "description": "what is said about them: `,` and, `;` or, `= != < <= > >=`, `*` for any text, a key alone",
            "example": "type=raw*, 100<run<=200; created_after=2026-01-01",
        }
    )


class Did(Answer):
    did = fields.String(required=True)
    scope = fields.String(required=True)
    name = fields.String(required=True)
    kind = fields.String(required=True)
    account = fields.String(required=True)
    size_bytes = fields.Integer(required=True)
    files = fields.Integer(
        required=True, metadata={"description": "of a container: the sum over the datasets below it"}
    )
    adler32 = fields.String(required=True, allow_none=True)
    md5 = fields.String(required=True, allow_none=True)
    sha256 = fields.String(required=True, allow_none=True)
    is_open = fields.Boolean(required=True)
    is_monotonic = fields.Boolean(required=True)
    metadata = fields.Dict(required=True)
    created_at = fields.AwareDateTime(required=True)
    expires_at = fields.AwareDateTime(required=True, allow_none=True)
    deleted_at = fields.AwareDateTime(required=True, allow_none=True)


DidPage = paged(Did, "DidPage")


class Added(Answer):
    dids = fields.List(fields.String(), required=True)


class ChildrenBody(Schema):
    children = fields.List(
        Words(4096), required=True, validate=validate.Length(1, MAX_BATCH), metadata={"example": ["ska:vis.0001.ms"]}
    )


class AttachedCount(Answer):
    added = fields.Integer(required=True)
    existing = fields.Integer(required=True, metadata={"description": "were there already"})


class DetachedCount(Answer):
    removed = fields.Integer(required=True)


def _dids(tx: Tx, rows: Sequence[Any]) -> list[dict[str, Any]]:
    """The rows as they are answered; what a container holds is counted below it."""
    below = dids.totals_below(tx, [(row.id, row.kind) for row in rows])
    return [_did(row, *below.get(row.id, (row.files, row.size_bytes))) for row in rows]


def _did(row: Any, files: int, size_bytes: int) -> dict[str, Any]:
    shown = {name: getattr(row, name) for name in Did._declared_fields if name != "did"}
    totals = {"files": files, "size_bytes": size_bytes}
    return {"did": f"{row.scope}:{row.name}", **shown, **totals, "metadata": row.metadata or {}}


def _page(tx: Tx, rows: Sequence[Any], cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
    return _dids(tx, rows), cursor


def _new(body: Mapping[str, Any], field: str) -> dids.NewCollection:
    scope, name = codec.parse(body["did"], f"{field}.did")
    described = (body["is_monotonic"], body["metadata"], body["expires_at"])
    return dids.NewCollection(scope, name, DidKind(body["kind"]), *described)


def _refs(texts: list[str]) -> list[tuple[str, str]]:
    return [codec.parse(text, f"children[{index}]") for index, text in enumerate(texts)]


def _add(tx: Tx, bodies: list[dict[str, Any]]) -> list[dids.NewCollection]:
    items = [_new(body, f"dids[{index}]") for index, body in enumerate(bodies)]
    own_scopes(tx, [item.scope for item in items])
    dids.add_collections(tx, items)
    return items


@blp.route("/dids", methods=["POST"])
@permission("did.add")
@blp.arguments(DidBody)
@blp.answers(Did, 201)
def add_did(body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Make a dataset or container; files come with their first replica"""
    with as_one("dids[0]"), begin("did.add") as tx:
        item = _add(tx, [body])[0]
        return _dids(tx, [dids.get(tx, item.scope, item.name)])[0], 201


@blp.route("/dids/many", methods=["POST"])
@permission("did.add")
@blp.arguments(DidsBody)
@blp.answers(Added, 201)
def add_dids(body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Make up to 10,000 datasets and containers, all or none"""
    with begin("did.add") as tx:
        _add(tx, body["dids"])
    return {"dids": [item["did"] for item in body["dids"]]}, 201


@blp.route("/dids")
@permission("did.list")
@blp.arguments(DidQuery, location="query")
@blp.answers(DidPage, streams=True)
def list_dids(query: dict[str, Any]) -> Any:
    """The DIDs of a scope by name; those that have ended are left out"""
    page = page_of(query)
    kind = DidKind(query["kind"]) if "kind" in query else None
    asked = parse(query["filter"]) if "filter" in query else None
    which = dids.Filter(query["scope"], query.get("name"), kind, asked)
    return listed("did.list", lambda tx, page: _page(tx, *dids.list_dids(tx, which, page)), page)


@blp.route("/dids/<scope>/<path:name>")
@permission("did.list")
@blp.answers(Did)
def show_did(scope: str, name: str) -> dict[str, Any]:
    """One DID, ended or not"""
    with begin("did.show") as tx:
        return _dids(tx, [dids.get(tx, scope, name)])[0]


@blp.route("/dids/<scope>/<path:name>", methods=["PATCH"])
@permission("did.set")
@blp.arguments(DidChange)
@blp.answers(Did)
def set_did(body: dict[str, Any], scope: str, name: str) -> dict[str, Any]:
    """Close or open a collection; say when the DID ends"""
    with begin("did.set") as tx:
        own_scopes(tx, [scope])
        if "is_open" in body:
            dids.set_open(tx, scope, name, body["is_open"])
        if "expires_at" in body:
            dids.set_expiry(tx, scope, name, body["expires_at"])
        return _dids(tx, [dids.get(tx, scope, name)])[0]


@blp.route("/dids/<scope>/<path:name>", methods=["DELETE"])
@permission("did.delete")
@blp.empties
def delete_did(scope: str, name: str) -> Response:
    """End a DID: its rules let go, its name is never used again"""
    with begin("did.delete") as tx:
        own_scopes(tx, [scope])
        dids.delete_did(tx, scope, name)
    return Response(status=204)


@blp.route("/metadata/<scope>/<path:name>")
@permission("did.list")
@blp.alt_response(200, schema={"type": "object"}, success=True)
def show_metadata(scope: str, name: str) -> dict[str, Any]:
    """What is said about a DID"""
    with begin("did.metadata") as tx:
        return dids.get(tx, scope, name).metadata or {}


@blp.route("/metadata/<scope>/<path:name>", methods=["PATCH"])
@permission("did.set")
@blp.json_body({"type": "object"}, "keys to set; null takes a key away")
@blp.alt_response(200, schema={"type": "object"}, success=True)
def set_metadata(body: Any, scope: str, name: str) -> dict[str, Any]:
    """Set keys of a DID's metadata; what is not named stays"""
    with begin("did.set") as tx:
        own_scopes(tx, [scope])
        return dids.set_metadata(tx, scope, name, body)


@blp.route("/contents/<scope>/<path:name>")
@permission("did.list")
@blp.arguments(PageQuery, location="query")
@blp.answers(DidPage, streams=True)
def list_contents(query: dict[str, Any], scope: str, name: str) -> Any:
    """What a dataset or container holds directly"""
    return listed("did.contents", lambda tx, page: _page(tx, *dids.contents(tx, scope, name, page)), page_of(query))


@blp.route("/contents/<scope>/<path:name>", methods=["POST"])
@permission("did.attach")
@blp.arguments(ChildrenBody)
@blp.answers(AttachedCount)
def attach(body: dict[str, Any], scope: str, name: str) -> dict[str, Any]:
    """Attach files to a dataset, or collections to a container; what is there already is counted, not refused"""
    children = _refs(body["children"])
    with begin("did.attach") as tx:
        own_scopes(tx, [scope])
        done = dids.attach(tx, scope, name, children)
    return {"added": done.added, "existing": done.existing}


@blp.route("/contents/<scope>/<path:name>", methods=["DELETE"])
@permission("did.detach")
@blp.arguments(ChildrenBody)
@blp.answers(DetachedCount)
def detach(body: dict[str, Any], scope: str, name: str) -> dict[str, Any]:
    """Take children out of a collection; refused when it is monotonic or closed"""
    children = _refs(body["children"])
    with begin("did.detach") as tx:
        own_scopes(tx, [scope])
        return {"removed": dids.detach(tx, scope, name, children)}


@blp.route("/parents/<scope>/<path:name>")
@permission("did.list")
@blp.arguments(PageQuery, location="query")
@blp.answers(DidPage, streams=True)
def list_parents(query: dict[str, Any], scope: str, name: str) -> Any:
    """The collections that hold a DID directly"""
    return listed("did.parents", lambda tx, page: _page(tx, *dids.parents(tx, scope, name, page)), page_of(query))
