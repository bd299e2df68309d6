"""Usage: bytes reserved, used and charged, by storage and by account."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields

from dlm.core import accounts
from dlm.db import usage
from dlm.web.access import permission
from dlm.web.blueprint import Answer, Blueprint, many
from dlm.web.context import begin

blp = Blueprint("usage", __name__, url_prefix="/usage", description="How much is promised, there, and charged")


class StorageUsage(Answer):
    storage = fields.String(required=True)
    capacity_bytes = fields.Integer(required=True, allow_none=True, metadata={"description": "null: not limited"})
    min_free_bytes = fields.Integer(required=True)
    reserved_bytes = fields.Integer(required=True, metadata={"description": "promised, not there yet"})
    used_bytes = fields.Integer(required=True)
    used_files = fields.Integer(required=True)


class AccountQuery(Schema):
    account = fields.String()


class AccountUsage(Answer):
    account = fields.String(required=True)
    storage = fields.String(required=True)
    charged_bytes = fields.Integer(required=True, metadata={"description": "the sum over its locks"})
    charged_files = fields.Integer(required=True)
    limit_bytes = fields.Integer(required=True, allow_none=True, metadata={"description": "null: no limit"})


@blp.route("/storages")
@permission("usage.list")
@blp.answers(many(StorageUsage, "StorageUsages"))
def list_storages() -> dict[str, Any]:
    """What is on every storage, and what is promised to come"""
    with begin("usage.list") as tx:
        rows = [row._asdict() for row in usage.storages(tx)]
    return {"items": [{"storage": row["name"], **_named(row, StorageUsage)} for row in rows]}


@blp.route("/accounts")
@permission("usage.list")
@blp.arguments(AccountQuery, location="query")
@blp.answers(many(AccountUsage, "AccountUsages"))
def list_accounts(query: dict[str, Any]) -> dict[str, Any]:
    """What accounts are charged, and their limits, by storage"""
    name = query.get("account")
    with begin("usage.list") as tx:
        account_id = None if name is None else accounts.get_account(tx, name).id
        rows = [row._asdict() for row in usage.accounts(tx, account_id)]
    return {"items": [_named(row, AccountUsage) for row in rows]}


def _named(row: dict[str, Any], schema: type[Answer]) -> dict[str, Any]:
    return {name: row[name] for name in schema._declared_fields if name in row}
