"""Accounts, their limits, their tokens, and the scopes they own."""

from __future__ import annotations

from typing import Any

from flask import Response, g
from marshmallow import Schema, fields

from dlm.core import accounts
from dlm.types import Identity
from dlm.web.access import permission
from dlm.web.blueprint import Answer, Blueprint, PageQuery, many, page_of, paged
from dlm.web.context import begin, listed, own, own_account
from dlm.web.fields import One, Whole, Words

blp = Blueprint("accounts", __name__, url_prefix="/accounts", description="Who uses dlm, and how much they may hold")
tokens = Blueprint("tokens", __name__, url_prefix="/tokens", description="What lets an account in")
scopes = Blueprint("scopes", __name__, url_prefix="/scopes", description="Namespaces of DIDs, each owned by an account")


_ENDS = "null: no end; in any case it ends with the token that asks for it"


class AccountBody(Schema):
    name = Words(64, required=True, metadata={"example": "ska-ops"})
    kind = One(accounts.KINDS, load_default="person")
    email = Words(500, allow_none=True, load_default=None)
    roles = fields.List(Words(64), load_default=list, metadata={"example": ["user"]})


class AccountChange(Schema):
    email = Words(500, allow_none=True)
    roles = fields.List(Words(64))


class LimitBody(Schema):
    limit_bytes = Whole(required=True, allow_none=True, metadata={"description": "null: no limit"})


class Account(Answer):
    name = fields.String(required=True)
    kind = fields.String(required=True)
    email = fields.String(required=True, allow_none=True, metadata={"description": "null also when not yours to see"})
    roles = fields.List(fields.String(), required=True)
    created_at = fields.AwareDateTime(required=True)
    closed_at = fields.AwareDateTime(required=True, allow_none=True)


class TokenBody(Schema):
    account = Words(64, metadata={"description": "default: the caller's own"})
    label = Words(500, least=0, load_default="")
    lifetime_s = Whole(1, allow_none=True, load_default=None, metadata={"description": _ENDS})


class TokenQuery(Schema):
    account = fields.String(metadata={"description": "default: the caller's own"})


class Token(Answer):
    id = fields.Integer(required=True)
    account = fields.String(required=True)
    label = fields.String(required=True)
    created_at = fields.AwareDateTime(required=True)
    expires_at = fields.AwareDateTime(required=True, allow_none=True)
    revoked_at = fields.AwareDateTime(required=True, allow_none=True)


class NewToken(Token):
    token = fields.String(required=True, metadata={"description": "shown this once; dlm keeps only its hash"})


class ScopeBody(Schema):
    name = Words(64, required=True, metadata={"example": "ska"})
    account = Words(64, metadata={"description": "who owns it; default: the caller"})


class Scope(Answer):
    name = fields.String(required=True)
    account = fields.String(required=True)
    created_at = fields.AwareDateTime(required=True)


def me() -> str:
    """The caller's own account."""
    identity: Identity = g.identity
    return identity.account


def _account(row: Any) -> dict[str, Any]:
    shown = {name: getattr(row, name) for name in ("name", "kind", "email", "roles", "created_at", "closed_at")}
    return shown if accounts.sees_private(g.identity, row.name) else {**shown, "email": None}


def _token(row: Any, account: str) -> dict[str, Any]:
    shown = {name: getattr(row, name) for name in ("id", "label", "created_at", "expires_at", "revoked_at")}
    return {**shown, "account": account}


@blp.route("")
@permission("account.list")
@blp.arguments(PageQuery, location="query")
@blp.answers(paged(Account, "AccountPage"), streams=True)
def list_accounts(query: dict[str, Any]) -> Any:
    """Accounts by name"""
    return listed("account.list", accounts.list_accounts, page_of(query), _account)


@blp.route("", methods=["POST"])
@permission("account.add")
@blp.arguments(AccountBody)
@blp.answers(Account, 201)
def add_account(body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Make an account"""
    with begin("account.add") as tx:
        row = accounts.add_account(tx, body["name"], body["kind"], email=body["email"], roles=body["roles"])
    return _account(row), 201


@blp.route("/<account>")
@permission("account.list")
@blp.answers(Account)
def show_account(account: str) -> dict[str, Any]:
    """One account"""
    with begin("account.show") as tx:
        return _account(accounts.get_account(tx, account))


@blp.route("/<account>", methods=["PATCH"])
@permission("account.set")
@blp.arguments(AccountChange)
@blp.answers(Account)
def set_account(body: dict[str, Any], account: str) -> dict[str, Any]:
    """Change an account's address or roles"""
    with begin("account.set") as tx:
        return _account(accounts.update_account(tx, account, **body))


@blp.route("/<account>", methods=["DELETE"])
@permission("account.close")
@blp.answers(Account)
def close_account(account: str) -> dict[str, Any]:
    """Close an account: its tokens end at once, its rules and data stay"""
    with begin("account.close") as tx:
        return _account(accounts.close_account(tx, account))


@blp.route("/<account>/limits/<storage>", methods=["PUT"])
@permission("account.limit")
@blp.arguments(LimitBody)
@blp.empties
def set_limit(body: dict[str, Any], account: str, storage: str) -> Response:
    """Set how many bytes the account may be charged at a storage"""
    with begin("account.limit") as tx:
        accounts.set_limit(tx, account, storage, body["limit_bytes"])
    return Response(status=204)


@tokens.route("")
@permission("token.list")
@tokens.arguments(TokenQuery, location="query")
@tokens.answers(many(Token, "Tokens"))
def list_tokens(query: dict[str, Any]) -> dict[str, Any]:
    """An account's tokens, newest first; never their text"""
    account = query.get("account", me())
    own(account)
    with begin("token.list") as tx:
        return {"items": [_token(row, row.account) for row in accounts.list_tokens(tx, account)]}


@tokens.route("", methods=["POST"])
@permission("token.add")
@tokens.arguments(TokenBody)
@tokens.answers(NewToken, 201)
def add_token(body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Make a token; its text is in this answer and nowhere else"""
    account = body.get("account", me())
    own(account)
    with begin("token.add") as tx:
        text, row = accounts.make_token(tx, account, body["label"], body["lifetime_s"])
    return {**_token(row, account), "token": text}, 201


@tokens.route("/<int(max=2147483647):token>", methods=["DELETE"])
@permission("token.revoke")
@tokens.empties
def revoke_token(token: int) -> Response:
    """Revoke a token; again does no harm"""
    with begin("token.revoke") as tx:
        mine = g.identity.account_id if g.must_own else None
        own_account(accounts.revoke_token(tx, token, mine).account_id)
    return Response(status=204)


@scopes.route("")
@permission("scope.list")
@scopes.arguments(PageQuery, location="query")
@scopes.answers(paged(Scope, "ScopePage"), streams=True)
def list_scopes(query: dict[str, Any]) -> Any:
    """Scopes by name"""
    return listed("scope.list", accounts.list_scopes, page_of(query), _scope)


@scopes.route("", methods=["POST"])
@permission("scope.add")
@scopes.arguments(ScopeBody)
@scopes.answers(Scope, 201)
def add_scope(body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Make a scope"""
    account = body.get("account", me())
    own(account)
    with begin("scope.add") as tx:
        row = accounts.add_scope(tx, body["name"], account)
    return {"name": row.name, "account": account, "created_at": row.created_at}, 201


@scopes.route("/<scope>")
@permission("scope.list")
@scopes.answers(Scope)
def show_scope(scope: str) -> dict[str, Any]:
    """One scope"""
    with begin("scope.show") as tx:
        return _scope(accounts.get_scope(tx, scope))


def _scope(row: Any) -> dict[str, Any]:
    return {"name": row.name, "account": row.account, "created_at": row.created_at}
