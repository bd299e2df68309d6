"""Checks: looking whether a storage has what the catalogue says."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields, validate

from dlm.core import audit, storages
from dlm.db import audits
from dlm.errors import NotFound
from dlm.web.access import permission
from dlm.web.blueprint import Answer, Blueprint, many
from dlm.web.context import begin
from dlm.web.fields import Flag

blp = Blueprint("checks", __name__, description="Does a storage hold what the catalogue says")


class CheckBody(Schema):
    with_checksum = Flag(load_default=True, metadata={"description": "read every byte; else presence and size only"})
    confirm_lost = Flag(
        load_default=False,
        metadata={"description": "a person's word: what is missing is lost, however much, last copies included"},
    )


class FindingQuery(Schema):
    storage = fields.String()
    limit = fields.Integer(load_default=100, validate=validate.Range(1, 1000))


class Check(Answer):
    id = fields.Integer(required=True)
    storage = fields.String(required=True)
    state = fields.String(required=True)
    with_checksum = fields.Boolean(required=True)
    confirm_lost = fields.Boolean(required=True)
    files = fields.Integer(required=True, metadata={"description": "looked at so far"})
    total = fields.Integer(required=True)
    missing = fields.Integer(required=True)
    corrupt = fields.Integer(required=True)
    message = fields.String(required=True, allow_none=True)
    asked_by = fields.String(required=True)
    created_at = fields.AwareDateTime(required=True)
    ended_at = fields.AwareDateTime(required=True, allow_none=True)


class FoundQuery(Schema):
    limit = fields.Integer(load_default=10, validate=validate.Range(1, 1000))


class Wrong(Answer):
    did = fields.String(required=True)
    state = fields.String(required=True, metadata={"description": "lost, bad, or in doubt: its last copy"})
    detail = fields.String(required=True, allow_none=True)


class Finding(Answer):
    did = fields.String(required=True)
    storage = fields.String(required=True)
    state = fields.String(required=True, metadata={"description": "bad or lost"})
    probes = fields.Integer(required=True, metadata={"description": "how often it was seen so"})
    detail = fields.String(required=True, allow_none=True)
    found_at = fields.AwareDateTime(required=True)


def _check(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Check._declared_fields}


def _get(tx: Any, number: int) -> dict[str, Any]:
    row = audits.get(tx, number)
    if row is None:
        raise NotFound(f"there is no check {number}", field="check")
    return _check(row)


@blp.route("/storages/<storage>/checks", methods=["POST"])
@permission("storage.check")
@blp.arguments(CheckBody)
@blp.answers(Check, 201)
def start_check(body: dict[str, Any], storage: str) -> tuple[dict[str, Any], int]:
    """Have the auditor look at everything on a storage"""
    with begin("storage.check") as tx:
        return _get(tx, audit.start_check(tx, storages.get_storage(tx, storage).id, **body)), 201


@blp.route("/storages/<storage>/checks")
@permission("storage.list")
@blp.answers(many(Check, "Checks"))
def list_checks(storage: str) -> dict[str, Any]:
    """A storage's latest checks, newest first"""
    with begin("storage.checks") as tx:
        return {"items": [_check(row) for row in audits.list_for(tx, storages.get_storage(tx, storage).id)]}


@blp.route("/checks/<int(max=2147483647):number>")
@permission("storage.list")
@blp.answers(Check)
def show_check(number: int) -> dict[str, Any]:
    """One check and how far it is"""
    with begin("storage.checks") as tx:
        return _get(tx, number)


@blp.route("/checks/<int(max=2147483647):number>/found")
@permission("storage.list")
@blp.arguments(FoundQuery, location="query")
@blp.answers(many(Wrong, "Wrongs"))
def list_found(query: dict[str, Any], number: int) -> dict[str, Any]:
    """The first files that a check found missing or corrupt"""
    with begin("storage.checks") as tx:
        _get(tx, number)
        rows = audits.found_by(tx, number, query["limit"])
    return {"items": [{"did": f"{row.scope}:{row.name}", "state": row.state, "detail": row.detail} for row in rows]}


@blp.route("/checks/<int(max=2147483647):number>/confirm", methods=["POST"])
@permission("storage.check")
@blp.answers(Check)
def confirm_check(number: int) -> dict[str, Any]:
    """Let a check that the breaker stopped declare its losses: a person's word"""
    with begin("storage.check") as tx:
        audit.confirm(tx, number)
        return _get(tx, number)


@blp.route("/findings")
@permission("storage.list")
@blp.arguments(FindingQuery, location="query")
@blp.answers(many(Finding, "Findings"))
def list_findings(query: dict[str, Any]) -> dict[str, Any]:
    """What looks wrong and is not declared yet, oldest first"""
    with begin("storage.findings") as tx:
        storage_id = storages.get_storage(tx, query["storage"]).id if "storage" in query else None
        rows = audits.list_findings(tx, storage_id, query["limit"])
    return {"items": [_finding(row) for row in rows]}


def _finding(row: Any) -> dict[str, Any]:
    plain = {name: getattr(row, name) for name in Finding._declared_fields if name != "did"}
    return {"did": f"{row.scope}:{row.name}", **plain}
