"""Rules: declare, plan, look at, change and end them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask import g, request
from marshmallow import Schema, ValidationError, fields, validate

from dlm.core import amending, declaring, moving, plan, rules
from dlm.core.names import MAX_BATCH
from dlm.types import Grouping, RuleState
from dlm.web.access import permission
from dlm.web.blueprint import Answer, Blueprint, PageQuery, page_of, paged
from dlm.web.context import begin, listed, own, web
from dlm.web.fields import Flag, Moment, Number, One, Whole, Words

blp = Blueprint("rules", __name__, url_prefix="/rules", description="Promises: how many copies, where, for how long")

KEY = {
    "in": "header",
    "name": "Idempotency-Key",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
    "description": "any text; the same request with the same key makes no second rule",
}
LIFETIME_S = 1000 * 366 * 86_400
TOGETHER = "what stays together: all of it, each dataset, or none, so that each file is placed by itself"
URGENCY = "1 (low) to 5 (urgent)"


class Copies(fields.Raw):
    """A number of copies, or '*' for all storages that match."""

    def __init__(self, **kwargs: Any) -> None:
        shape = {"oneOf": [{"type": "integer", "minimum": 1, "maximum": rules.MAX_COPIES}, {"const": "*"}]}
        super().__init__(metadata={**shape, "example": 2}, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int | None:
        if value == "*":
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValidationError("a whole number or '*' is expected")
        return value


class RuleBody(Schema):
    did = Words(4096, required=True, metadata={"example": "ska:eb-m001-20260711"})
    copies = Copies(required=True)
    storages = Words(4096, least=0, required=True, metadata={"example": "tier=1&country=AU"})
    grouping = One(Grouping, load_default=str(Grouping.DATASET), metadata={"description": TOGETHER})
    spread = Words(500, allow_none=True, metadata={"description": "copies differ in this key", "example": "site"})
    weight = Words(500, allow_none=True)
    sources = Words(4096, allow_none=True, metadata={"description": "copy only from storages that match"})
    starts_at = Moment(allow_none=True, metadata={"description": "until then it holds nothing; without it, at once"})
    delay_s = Number(0, LIFETIME_S, allow_none=True, metadata={"description": "or so long from now"})
    lifetime_s = Number(0, LIFETIME_S, allow_none=True, metadata={"description": "from its start"})
    expires_at = Moment(allow_none=True)
    priority = Whole(1, 5, load_default=3, metadata={"description": URGENCY})
    activity = Words(500, load_default="default")
    account = Words(64, allow_none=True, metadata={"description": "who is charged; default: the caller"})
    comment = Words(1000, least=0, allow_none=True)
    locked = Flag(load_default=False, metadata={"description": "may not be cancelled until it is unlocked"})


class RulesBody(Schema):
    rules = fields.List(fields.Nested(RuleBody), required=True, validate=validate.Length(1, MAX_BATCH))


class RuleChange(Schema):
    copies = Copies()
    starts_at = Moment(allow_none=True, metadata={"description": "while it has not begun; null: now"})
    delay_s = Number(0, LIFETIME_S)
    expires_at = Moment(allow_none=True)
    lifetime_s = Number(
        0, LIFETIME_S, allow_none=True, metadata={"description": "from now, or from its start; null: for ever"}
    )
    priority = Whole(1, 5, metadata={"description": URGENCY})
    comment = Words(1000, least=0, allow_none=True)
    activity = Words(500)
    suspended = Flag()
    locked = Flag()


class MoveBody(Schema):
    storages = Words(4096, least=0, required=True, metadata={"example": "tier=2&country=AU"})
    copies = Copies()
    grouping = One(Grouping, metadata={"description": TOGETHER})
    spread = Words(500, allow_none=True)
    weight = Words(500, allow_none=True)
    sources = Words(4096, allow_none=True)


class RuleQuery(PageQuery):
    did = fields.String()
    account = fields.String()
    state = fields.String(validate=validate.OneOf([str(state) for state in RuleState]))
    storage = fields.String()


class Rule(Answer):
    id = fields.UUID(required=True)
    did = fields.String(required=True)
    kind = fields.String(required=True)
    files = fields.Integer(
        required=True, metadata={"description": "of its DID; of a container: the sum over the datasets below it"}
    )
    size_bytes = fields.Integer(required=True)
    account = fields.String(required=True)
    copies = Copies(required=True)
    storages = fields.String(required=True, metadata={"description": "the expression in its canonical form"})
    sources = fields.String(required=True, allow_none=True)
    grouping = fields.String(required=True)
    spread = fields.String(required=True, allow_none=True)
    weight = fields.String(required=True, allow_none=True)
    state = fields.String(required=True)
    reason = fields.String(required=True, allow_none=True, metadata={"description": "why it is stuck or impossible"})
    priority = fields.Integer(required=True)
    activity = fields.String(required=True)
    comment = fields.String(required=True, allow_none=True)
    locked = fields.Boolean(required=True)
    suspended = fields.Boolean(required=True)
    created_at = fields.AwareDateTime(required=True)
    state_since = fields.AwareDateTime(required=True)
    starts_at = fields.AwareDateTime(
        required=True, allow_none=True, metadata={"description": "null: when it was declared"}
    )
    expires_at = fields.AwareDateTime(required=True, allow_none=True)
    next_judge_at = fields.AwareDateTime(required=True, allow_none=True)
    moves_to = fields.UUID(
        required=True, allow_none=True, metadata={"description": "it is let go when that rule is ok, or was"}
    )
    moves_from = fields.UUID(
        required=True, allow_none=True, metadata={"description": "that rule stays until this one is ok"}
    )


class Progress(Answer):
    locks = fields.Integer(required=True)
    locks_to_fill = fields.Integer(required=True)
    files = fields.Integer(required=True)
    bytes = fields.Integer(required=True)
    files_ok = fields.Integer(required=True)
    files_stuck = fields.Integer(required=True)


class RuleDetails(Rule):
    progress = fields.Nested(Progress, required=True)


class CancelledRule(RuleDetails):
    undo_until = fields.AwareDateTime(
        required=True,
        allow_none=True,
        metadata={"description": "until then at least, a new rule keeps everything; null: it held nothing"},
    )


class DeclaredRule(Answer):
    id = fields.UUID(required=True)
    did = fields.String(required=True)
    is_new = fields.Boolean(required=True, metadata={"description": "false: the same Idempotency-Key made it before"})


class DeclaredRules(Answer):
    rules = fields.List(fields.Nested(DeclaredRule), required=True)


class Lock(Answer):
    did = fields.String(required=True)
    kind = fields.String(required=True)
    storage = fields.String(required=True)
    files = fields.Integer(required=True)
    size_bytes = fields.Integer(required=True)
    files_ok = fields.Integer(required=True)
    files_stuck = fields.Integer(required=True)
    filled = fields.Boolean(
        required=True, metadata={"description": "a replica or request exists for each of its files"}
    )
    created_at = fields.AwareDateTime(required=True)


class RuleEvent(Answer):
    at = fields.AwareDateTime(required=True)
    action = fields.String(required=True)
    actor = fields.String(required=True)
    cause = fields.String(required=True, allow_none=True)
    before = fields.Dict(required=True, allow_none=True)
    after = fields.Dict(required=True, allow_none=True)


def _wish(body: dict[str, Any]) -> rules.Declaration:
    return rules.Declaration(**body, idempotency_key=request.headers.get("Idempotency-Key"))


def _own_accounts(bodies: list[dict[str, Any]]) -> None:
    own(*sorted({body.get("account") or g.identity.account for body in bodies}))


@blp.route("", methods=["POST"])
@permission("rule.add")
@blp.arguments(RuleBody)
@blp.doc(parameters=[KEY])
@blp.answers(RuleDetails, 201)
@blp.alt_response(200, schema=RuleDetails, description="the same Idempotency-Key made it before", success=True)
def declare(body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Declare a rule: it is written as intent and answered at once; the judge does the rest"""
    _own_accounts([body])
    wish = _wish(body)
    if wish.idempotency_key is None:
        return _declare_together(wish), 201
    with begin("rule.add") as tx:
        made = rules.declare(tx, [wish])[0]
        return rules.get(tx, made.id), 201 if made.is_new else 200


def _declare_together(wish: rules.Declaration) -> dict[str, Any]:
    """The new rule; what the account asks for at the same time is declared in one transaction."""
    database, actor = web().database, g.identity

    def carry_out(asked: Sequence[declaring.Asked]) -> list[dict[str, Any]]:
        with database.begin("web.rule.add", actor) as tx:
            return declaring.declare_each(tx, asked)

    key = (actor.account_id, actor.account, actor.roles)
    answer: dict[str, Any] = web().declarations.ask(key, declaring.Asked(wish, actor.request_id), carry_out)
    return answer


@blp.route("/many", methods=["POST"])
@permission("rule.add")
@blp.arguments(RulesBody)
@blp.doc(parameters=[KEY])
@blp.answers(DeclaredRules, 201)
def declare_many(body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Declare up to 10,000 rules, all or none"""
    _own_accounts(body["rules"])
    with begin("rule.add") as tx:
        made = rules.declare(tx, [_wish(wish) for wish in body["rules"]])
    return {"rules": [{"id": rule.id, "did": rule.did, "is_new": rule.is_new} for rule in made]}, 201


@blp.route("/plan", methods=["POST"])
@permission("rule.plan")
@blp.arguments(RuleBody)
@blp.alt_response(200, schema={"type": "object"}, success=True)
def plan_rule(body: dict[str, Any]) -> dict[str, Any]:
    """What a rule would do: transfers, bytes by source, space after, what is impossible and why. Nothing is changed"""
    with begin("rule.plan") as tx:
        return plan.plan(tx, _wish(body))


@blp.route("")
@permission("rule.list")
@blp.arguments(RuleQuery, location="query")
@blp.answers(paged(Rule, "RulePage"), streams=True)
def list_rules(query: dict[str, Any]) -> Any:
    """Rules, newest first; those that are gone only with state=gone"""
    page = page_of(query)
    return listed("rule.list", lambda tx, page: rules.list_rules(tx, **query, page=page), page)


@blp.route("/<rule>")
@permission("rule.list")
@blp.answers(RuleDetails)
def show_rule(rule: str) -> dict[str, Any]:
    """One rule and how far it is"""
    with begin("rule.show") as tx:
        return rules.get(tx, rule)


@blp.route("/<rule>", methods=["PATCH"])
@permission("rule.update")
@blp.arguments(RuleChange)
@blp.answers(RuleDetails)
def update_rule(body: dict[str, Any], rule: str) -> dict[str, Any]:
    """Change a rule's copies, start, lifetime, priority, comment, activity; suspend and resume; lock and unlock"""
    with begin("rule.update") as tx:
        own(rules.require(tx, rule).account)
        return amending.update(tx, rule, body)


@blp.route("/<rule>/move", methods=["POST"])
@permission("rule.move")
@blp.arguments(MoveBody)
@blp.doc(parameters=[KEY])
@blp.answers(RuleDetails, 201)
@blp.alt_response(200, schema=RuleDetails, description="the same Idempotency-Key made it before", success=True)
def move_rule(body: dict[str, Any], rule: str) -> tuple[dict[str, Any], int]:
    """Move a rule: a new one on other storages, all else as it is; when that is ok the old one lets go"""
    with begin("rule.move") as tx:
        own(rules.require(tx, rule).account)
        made = moving.move(tx, rule, body, request.headers.get("Idempotency-Key"))
        return rules.get(tx, made.id), 201 if made.is_new else 200


@blp.route("/<rule>", methods=["DELETE"])
@permission("rule.cancel")
@blp.answers(CancelledRule)
def cancel_rule(rule: str) -> dict[str, Any]:
    """Begin the end of a rule: what no other rule holds waits in the undo window, then goes"""
    with begin("rule.cancel") as tx:
        own(rules.require(tx, rule).account)
        rules.cancel(tx, rule)
        return {**rules.get(tx, rule), "undo_until": rules.undo_until(tx, rule, web().settings.reaper_undo_window_s)}


@blp.route("/<rule>/locks")
@permission("rule.list")
@blp.arguments(PageQuery, location="query")
@blp.answers(paged(Lock, "LockPage"), streams=True)
def list_locks(query: dict[str, Any], rule: str) -> Any:
    """What the rule holds, where"""
    return listed("rule.locks", lambda tx, page: rules.locks(tx, rule, page), page_of(query))


@blp.route("/<rule>/history")
@permission("rule.list")
@blp.arguments(PageQuery, location="query")
@blp.answers(paged(RuleEvent, "RuleEventPage"), streams=True)
def show_history(query: dict[str, Any], rule: str) -> Any:
    """What happened to the rule, newest first"""
    return listed("rule.history", lambda tx, page: rules.history(tx, rule, page), page_of(query))
