"""Moving a rule to other storages: there is no move, only a new rule and then the end of the old one.

The old rule stays as it is, with all it holds, until the new one is `ok`: until every copy of every file stands, counted.
Then a judge lets it go, and what the new rule holds, too, stays. When the new rule ends before, the old one stands as if
nothing had been asked. A rule that is moved on before it is ok passes its turn on: of A moved to B, and B to C, A goes
when B or C is ok, whichever comes first, and B when C is.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from sqlalchemy.engine import Row

from dlm.core import expression, retries, rules
from dlm.core.authorize import authorize
from dlm.core.rules import Declaration, DeclaredRule
from dlm.db import events
from dlm.db import rules as rows
from dlm.db.engine import Tx
from dlm.errors import Conflict, InvalidInput
from dlm.types import RuleState

MOVABLE = ("storages", "copies", "grouping", "spread", "weight", "sources")


def move(tx: Tx, uuid: str, wanted: Mapping[str, Any], idempotency_key: str | None = None) -> DeclaredRule:
    """Declare the rule that takes this one's place: `wanted` (MOVABLE, `storages` at least) and all else as it is.

    Refused as a declaration is, and: when it has ended, is locked, suspended or moving already (Conflict, naming the other rule),
    and when neither storages nor copies would be others (InvalidInput).
    """
    for key in wanted:
        if key not in MOVABLE:
            raise InvalidInput(f"{key} cannot be changed by a move", field=key, hint=f"what can: {', '.join(MOVABLE)}")
    if "storages" not in wanted:
        raise InvalidInput("it is not said where to", field="storages", hint="an expression, e.g. tier=1&country=AU")
    rules.require(tx, uuid, hold=True)
    old = rules.require(tx, uuid)  # the first waits for another move, only the second sees what that one made
    authorize(tx.actor, "rule.move", owner=old.account)
    calls = retries.calls([{"moves": [uuid, wanted], retries.KEY: idempotency_key}])  # here None is something asked
    before = retries.made_before(tx, [old.account_id], calls)
    if before is not None:
        return DeclaredRule(before[0], f"{old.scope}:{old.name}", False)
    _refuse(tx, old, wanted)
    made = _declare(tx, _wish(old, wanted, idempotency_key), calls)
    rows.set_successor(tx, old.id, made.id)
    facts = {"to": made.id, "storages": wanted["storages"]}
    events.record(tx, "rule", old.id, "moving", before={"storages": old.storages}, after=facts)
    return made


def _refuse(tx: Tx, old: Row[Any], wanted: Mapping[str, Any]) -> None:
    """Refuse what the old rule's state, or what is asked of it, does not allow."""
    if old.state in (RuleState.LETTING_GO, RuleState.GONE):
        raise Conflict(f"rule {old.uuid} has ended", field="rule", hint="declare a rule with the storages you want")
    if old.state == RuleState.WAITING_APPROVAL:
        raise Conflict(f"rule {old.uuid} waits for an approver", field="rule", hint="cancel it and declare another")
    if rules.waits(tx, old):
        hint = "it holds nothing yet: cancel it and declare another"
        raise Conflict(f"rule {old.uuid} {rules.waits_for(old.starts_at)}", field="rule", hint=hint)
    if old.is_locked:
        raise Conflict(f"rule {old.uuid} is locked", field="rule", hint=f"unlock it first: dlm-admin rule set {old.uuid} --unlock")
    if old.is_suspended:
        raise Conflict(f"rule {old.uuid} is suspended", field="rule", hint=f"resume it first: dlm-admin rule set {old.uuid} --resume")
    if old.moves_to is not None:
        way = f"move that one, or take this move back: dlm-admin rule cancel {old.moves_to}"
        raise Conflict(f"rule {old.uuid} is moving to rule {old.moves_to} already", field="rule", hint=way, rule=old.moves_to)
    parsed = expression.parse(wanted["storages"], "storages")
    if is_same(parsed, expression.parse(old.storages)) and wanted.get("copies", old.copies) == old.copies:
        way = f"another number of copies: dlm-admin rule set {old.uuid} --copies …"
        raise InvalidInput(f"rule {old.uuid} is on {old.storages} already", field="storages", hint=way)


def is_same(one: expression.Expression, other: expression.Expression) -> bool:
    """True when the two ask for the same, the order of what stands between `&`, or between `|`, aside.

    Not when they only match the same now: whoever moves from a name to an attribute means what will match later.
    """
    numbers: dict[Hashable, int] = {}
    return _shape(one, numbers) == _shape(other, numbers)


def _shape(parsed: expression.Expression, numbers: dict[Hashable, int]) -> tuple[expression.Op | None, frozenset[int]]:
    """The last operator and its operands, each by the number it has in `numbers`, so that nothing recurses."""
    stack: list[tuple[expression.Op | None, frozenset[int]]] = []
    for item in parsed.postfix:
        if not isinstance(item, expression.Op):
            stack.append((None, frozenset({numbers.setdefault(item, len(numbers))})))
            continue
        right, left = stack.pop(), stack.pop()
        if item == expression.Op.EXCEPT:
            stack.append((None, frozenset({numbers.setdefault((item, left, right), len(numbers))})))
            continue
        operands: set[int] = set()
        for side in (left, right):
            operands |= side[1] if side[0] in (item, None) else {numbers.setdefault(side, len(numbers))}
        stack.append((item if len(operands) > 1 else None, frozenset(operands)))
    return stack.pop()


def _wish(old: Row[Any], wanted: Mapping[str, Any], idempotency_key: str | None) -> Declaration:
    """The old rule with what is wanted otherwise."""
    kept = {key: getattr(old, key) for key in ("copies", "grouping", "spread", "weight", "sources")}
    return Declaration(
        did=f"{old.scope}:{old.name}",
        **{**kept, **wanted},
        expires_at=old.expires_at,
        priority=old.priority,
        activity=old.activity,
        account=old.account,
        comment=old.comment,
        idempotency_key=idempotency_key,
    )


def _declare(tx: Tx, wish: Declaration, calls: list[retries.Call]) -> DeclaredRule:
    """The new rule; what its DID would be blamed for is the storages' here: nothing else was named."""
    try:
        return rules.declare(tx, [wish], calls)[0]
    except Conflict as error:
        error.field = "storages" if error.field == "did" else error.field
        raise


def end_moved(tx: Tx, limit: int) -> tuple[int, bool]:
    """Begin the end of rules whose successor is ok; (how many, whether more may wait); at most three statements."""
    ended = rows.let_go_moved(tx, limit)
    gone = [(e.id, {"state": e.was}, {"state": "letting_go", "to": e.to_uuid}) for e in ended]
    events.record_many(tx, "rule", "moved", gone, cause="moved")
    come = [(e.to_id, None, {"from": e.uuid}) for e in ended]
    events.record_many(tx, "rule", "took over", come, cause="moved")
    return len(ended), len(ended) == limit
