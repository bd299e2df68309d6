"""Rule and expression rows: declaring, finding, changing and ending them. What the judge reads is in db/judging.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Row

from dlm.db.engine import Tx
from dlm.types import RuleState

LIVE = "('declared', 'waiting_approval', 'suspended', 'impossible', 'stuck', 'replicating', 'ok')"

# A delayed rule before its start. Whatever else happens to it, it is not judged: it would be placed.
WAITS = "(r.state = 'declared' AND r.starts_at IS NOT NULL AND r.starts_at > %(now)s)"

# What a live rule moves to: past rules that were moved on themselves to the first that lives. Of one that ended: what took over.
_MOVES_TO = """
    CASE WHEN r.successor_id IS NOT NULL THEN (
        WITH RECURSIVE way AS (
            SELECT s.uuid, s.successor_id, s.state IN ('letting_go', 'gone') AND r.state NOT IN ('letting_go', 'gone') AS is_past
              FROM rule s WHERE s.id = r.successor_id
             UNION ALL
            SELECT s.uuid, s.successor_id, s.state IN ('letting_go', 'gone')
              FROM way JOIN rule s ON s.id = way.successor_id WHERE way.is_past)
        SELECT uuid FROM way WHERE NOT is_past) END"""

_SHOWN = f"""
    r.id, r.uuid, r.did_id, sc.name AS scope, d.name AS name, d.kind, d.files, d.size_bytes, a.name AS account, r.copies,
    r.account_id, r.expression_id, e.canonical AS storages, se.canonical AS sources, r.grouping, r.spread, r.weight, r.state,
    r.reason, r.priority, r.activity, r.comment, r.is_locked, r.is_suspended, r.created_at, r.state_since, r.starts_at,
    r.expires_at, r.next_judge_at, {_MOVES_TO} AS moves_to,
    (SELECT p.uuid FROM rule p WHERE p.successor_id = r.id AND p.state NOT IN ('letting_go', 'gone') LIMIT 1) AS moves_from"""
_FROM = """
    FROM rule r JOIN did d ON d.id = r.did_id JOIN scope sc ON sc.id = d.scope_id JOIN account a ON a.id = r.account_id
    JOIN expression e ON e.id = r.expression_id LEFT JOIN expression se ON se.id = r.source_expression_id"""


@dataclass(frozen=True, slots=True)
class NewRule:
    """One row to be, with every reference resolved."""

    did_id: int
    account_id: int
    copies: int | None
    expression_id: int
    source_expression_id: int | None
    grouping: str
    spread: str | None
    weight: str | None
    priority: int
    activity: str
    comment: str | None
    is_locked: bool
    starts_at: datetime | None
    reason: str | None
    expires_at: datetime | None
    idempotency_key: str | None
    wish_digest: bytes | None

    @property
    def wish(self) -> tuple[int, int, int, int]:
        """What no two live rules share: DID, account, expression, copies (0: all that match)."""
        return self.did_id, self.account_id, self.expression_id, self.copies or 0


def ensure_expressions(tx: Tx, matches: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The ids of these canonical expressions, made where missing with the storages they match now; one to three statements."""
    texts = sorted(matches)
    known = _expressions(tx, texts)
    if len(known) == len(texts):
        return known
    tx.run(
        """INSERT INTO expression (canonical, storage_ids, evaluated_at)
           SELECT t, string_to_array(ids, ',')::int[], %(now)s FROM unnest(%(texts)s::text[], %(ids)s::text[]) AS n (t, ids)
           ON CONFLICT (canonical) DO NOTHING""",
        texts=texts,
        ids=[",".join(map(str, sorted(matches[text]))) for text in texts],
    )
    return _expressions(tx, texts)


def _expressions(tx: Tx, texts: Sequence[str]) -> dict[str, int]:
    rows = tx.rows("SELECT id, canonical FROM expression WHERE canonical = ANY (%(texts)s::text[])", texts=list(texts))
    return {row.canonical: row.id for row in rows}


def add(tx: Tx, rules: Sequence[NewRule]) -> list[Row[Any] | None]:
    """Insert the rules; each one's (id, uuid), in order, or None where a live rule or the key stands already; one statement.

    They are written in the order of their wishes: two who declare the same ones wait for each other and never both.
    """
    rows = tx.rows(
        """INSERT INTO rule (did_id, account_id, copies, expression_id, source_expression_id, grouping, spread, weight, priority,
                             activity, comment, is_locked, starts_at, reason, expires_at, idempotency_key, wish_digest,
                             created_at, state_since, next_judge_at, place_after)
           SELECT did_id, account_id, nullif(copies, 0), expression_id, nullif(source_id, 0), grouping::rule_grouping, spread, weight,
                  priority, activity, comment, is_locked, starts_at, reason, expires_at, key, digest, %(now)s, %(now)s,
                  greatest(%(now)s, starts_at),
                  CASE WHEN grouping = 'none' THEN 0 END
             FROM unnest(%(dids)s::bigint[], %(accounts)s::int[], %(copies)s::int[], %(expressions)s::int[], %(sources)s::int[],
                         %(groupings)s::text[], %(spreads)s::text[], %(weights)s::text[], %(priorities)s::smallint[],
                         %(activities)s::text[], %(comments)s::text[], %(locked)s::bool[], %(starts)s::timestamptz[],
                         %(reasons)s::text[], %(expires)s::timestamptz[], %(keys)s::text[], %(digests)s::bytea[])
                  AS n (did_id, account_id, copies, expression_id, source_id, grouping, spread, weight, priority, activity, comment,
                        is_locked, starts_at, reason, expires_at, key, digest)
            ORDER BY did_id, account_id, expression_id, copies
           ON CONFLICT DO NOTHING
           RETURNING id, uuid, did_id, account_id, expression_id, coalesce(copies, 0) AS copies""",
        dids=[rule.did_id for rule in rules],
        accounts=[rule.account_id for rule in rules],
        copies=[rule.copies or 0 for rule in rules],
        expressions=[rule.expression_id for rule in rules],
        sources=[rule.source_expression_id or 0 for rule in rules],
        groupings=[rule.grouping for rule in rules],
        spreads=[rule.spread for rule in rules],
        weights=[rule.weight for rule in rules],
        priorities=[rule.priority for rule in rules],
        activities=[rule.activity for rule in rules],
        comments=[rule.comment for rule in rules],
        locked=[rule.is_locked for rule in rules],
        starts=[rule.starts_at for rule in rules],
        reasons=[rule.reason for rule in rules],
        expires=[rule.expires_at for rule in rules],
        keys=[rule.idempotency_key for rule in rules],
        digests=[rule.wish_digest for rule in rules],
    )
    made = {(row.did_id, row.account_id, row.expression_id, row.copies): row for row in rows}
    return [made.pop(rule.wish, None) for rule in rules]


def with_keys(tx: Tx, account_ids: Sequence[int], keys: Sequence[str | None]) -> list[Row[Any] | None]:
    """The rule (uuid, wish_digest) that each account made with the key, in order, or None; one statement."""
    found = tx.rows(
        """SELECT r.uuid, r.wish_digest, r.account_id, r.idempotency_key AS key
             FROM unnest(%(accounts)s::int[], %(keys)s::text[]) AS n (account_id, key)
             JOIN rule r ON r.account_id = n.account_id AND r.idempotency_key = n.key""",
        accounts=list(account_ids),
        keys=list(keys),
    )
    made = {(row.account_id, row.key): row for row in found}
    return [made.get(asked) for asked in zip(account_ids, keys, strict=True)]


def find_standing(tx: Tx, did_id: int, account_id: int, expression_id: int, copies: int) -> Row[Any] | None:
    """The live rule that has this wish already (copies 0: all that match), or None; one statement."""
    return tx.one(
        f"""SELECT uuid FROM rule
             WHERE did_id = %(did)s AND account_id = %(account)s AND expression_id = %(expression)s
               AND coalesce(copies, 0) = %(copies)s AND state IN {LIVE}""",
        did=did_id,
        account=account_id,
        expression=expression_id,
        copies=copies,
    )


def get(tx: Tx, uuid: str, *, hold: bool = False) -> Row[Any] | None:
    """One rule as people see it, or None; `hold` locks its row; one statement."""
    return tx.one(f"SELECT {_SHOWN} {_FROM} WHERE r.uuid = %(uuid)s::uuid {'FOR UPDATE OF r' if hold else ''}", uuid=uuid)


def get_many(tx: Tx, ids: Sequence[int]) -> Sequence[Row[Any]]:
    """Rules by id, in id order; one statement."""
    return tx.rows(f"SELECT {_SHOWN} {_FROM} WHERE r.id = ANY (%(ids)s::bigint[]) ORDER BY r.id", ids=list(ids))


def get_by_uuids(tx: Tx, uuids: Sequence[str]) -> dict[str, Row[Any]]:
    """Rules as people see them, by public id; one statement."""
    rows = tx.rows(f"SELECT {_SHOWN} {_FROM} WHERE r.uuid = ANY (%(uuids)s::uuid[])", uuids=list(uuids))
    return {row.uuid: row for row in rows}


def list_page(
    tx: Tx,
    *,
    did_id: int | None = None,
    account: str | None = None,
    state: str | None = None,
    storage_id: int | None = None,
    before_id: int | None = None,
    limit: int = 100,
) -> Sequence[Row[Any]]:
    """Rules newest first, those before `before_id`; one statement."""
    conditions = ["true"]
    if before_id is not None:
        conditions.append("r.id < %(before_id)s")
    if did_id is not None:
        conditions.append("r.did_id = %(did_id)s")
    if account is not None:
        conditions.append("a.name = %(account)s")
    conditions.append("r.state = %(state)s::rule_state" if state is not None else "r.state <> 'gone'")
    if storage_id is not None:
        conditions.append("EXISTS (SELECT FROM lock l WHERE l.rule_id = r.id AND l.storage_id = %(storage_id)s)")
    return tx.rows(
        f"SELECT {_SHOWN} {_FROM} WHERE {' AND '.join(conditions)} ORDER BY r.id DESC LIMIT %(limit)s",
        did_id=did_id,
        account=account,
        state=state,
        storage_id=storage_id,
        before_id=before_id,
        limit=limit,
    )


def progress(tx: Tx, rule_id: int) -> Row[Any]:
    """Files and bytes of the rule's locks, and the hints of how many are there or stuck; one statement."""
    row = tx.one(
        """SELECT coalesce(sum(files), 0)::bigint AS files, coalesce(sum(size_bytes), 0)::bigint AS bytes,
                  coalesce(sum(files_ok), 0)::bigint AS files_ok, coalesce(sum(files_stuck), 0)::bigint AS files_stuck,
                  count(*) AS locks, count(*) FILTER (WHERE fill_after IS NOT NULL)
                      + (SELECT coalesce(sum(p.locks), 0)::bigint FROM parcel p WHERE p.rule_id = %(id)s) AS locks_to_fill
             FROM lock WHERE rule_id = %(id)s AND NOT is_released""",
        id=rule_id,
    )
    assert row is not None
    return row


def locks_page(tx: Tx, rule_id: int, after: tuple[int, int], limit: int) -> Sequence[Row[Any]]:
    """The rule's locks that are not released, by (did, storage), those beyond `after`; one statement."""
    return tx.rows(
        """SELECT l.did_id, l.storage_id, sc.name AS scope, d.name, d.kind, s.name AS storage, l.files, l.size_bytes, l.files_ok,
                  l.files_stuck, l.created_at,
                  l.fill_after IS NULL AND NOT EXISTS (
                      SELECT FROM parcel p WHERE p.rule_id = l.rule_id AND l.did_id BETWEEN p.first_id AND p.last_id) AS is_filled
             FROM lock l JOIN did d ON d.id = l.did_id JOIN scope sc ON sc.id = d.scope_id JOIN storage s ON s.id = l.storage_id
            WHERE l.rule_id = %(rule)s AND NOT l.is_released AND (l.did_id, l.storage_id) > (%(did)s, %(storage)s)
            ORDER BY l.did_id, l.storage_id LIMIT %(limit)s""",
        rule=rule_id,
        did=after[0],
        storage=after[1],
        limit=limit,
    )


def locked_storages(tx: Tx, rule_id: int) -> Sequence[Row[Any]]:
    """(storage_id) where the rule holds anything; one statement."""
    return tx.rows("SELECT DISTINCT storage_id FROM lock WHERE rule_id = %(id)s AND NOT is_released ORDER BY 1", id=rule_id)


def raise_requests(tx: Tx, rule_id: int) -> None:
    """Give the rule's waiting requests the highest priority of the rules that hold them; one statement."""
    tx.run(
        """WITH wanted AS (
               SELECT q.id, max(r.priority) AS priority
                 FROM lock mine
                CROSS JOIN LATERAL (SELECT child_id AS did_id FROM attachment WHERE parent_id = mine.did_id
                                    UNION ALL SELECT mine.did_id) f
                 JOIN request q ON q.did_id = f.did_id AND q.storage_id = mine.storage_id AND q.state <> 'active'
                 JOIN lock l ON l.storage_id = q.storage_id AND NOT l.is_released
                  AND (l.did_id = q.did_id OR l.did_id IN (SELECT parent_id FROM attachment WHERE child_id = q.did_id))
                 JOIN rule r ON r.id = l.rule_id
                WHERE mine.rule_id = %(rule)s AND NOT mine.is_released GROUP BY q.id),
             held AS (SELECT q.id, wanted.priority FROM request q JOIN wanted USING (id)
                       WHERE q.priority <> wanted.priority ORDER BY q.did_id, q.storage_id FOR UPDATE OF q)
           UPDATE request q SET priority = held.priority FROM held WHERE q.id = held.id""",
        rule=rule_id,
    )


def change(tx: Tx, rule_id: int, values: Mapping[str, Any]) -> None:
    """Set columns of one rule and have it judged again, not before its start; one statement.

    The caller names only columns of the schema.
    """
    columns = ", ".join(f"{name} = %({name})s" for name in values)
    columns += ", state_since = %(now)s" if "state" in values else ""
    start = "%(starts_at)s::timestamptz" if "starts_at" in values else "starts_at"
    due = f"CASE WHEN state = 'declared' THEN greatest(%(now)s, {start}) ELSE %(now)s END"
    tx.run(f"UPDATE rule SET {columns}, next_judge_at = {due} WHERE id = %(id)s", id=rule_id, **values)


def let_go(tx: Tx, ids: Sequence[int], reason: str) -> Sequence[Row[Any]]:
    """Begin the end of live rules; those that were live, with the state before; one statement.

    A move of theirs is over with them: a successor that ended and has one itself was moved on (`let_go_moved`).
    """
    return tx.rows(
        f"""WITH held AS (SELECT id, state FROM rule WHERE id = ANY (%(ids)s::bigint[]) AND state IN {LIVE} ORDER BY id FOR UPDATE)
           UPDATE rule r SET state = 'letting_go', reason = %(reason)s, state_since = %(now)s, next_judge_at = %(now)s, successor_id = NULL
             FROM held WHERE r.id = held.id RETURNING r.id, r.uuid, held.state AS was""",
        ids=list(ids),
        reason=reason,
    )


def set_successor(tx: Tx, rule_id: int, uuid: str) -> None:
    """Have the rule let go when the one with this uuid is ok; the caller has locked it; one statement."""
    tx.run("UPDATE rule SET successor_id = (SELECT id FROM rule WHERE uuid = %(uuid)s::uuid) WHERE id = %(id)s", id=rule_id, uuid=uuid)


# From a live rule to what takes its place: through rules that were moved on themselves, to one that is ok. Of a hundred
# thousand moves on their way the join leaves those that may be over.
_WAY = """
    way AS (
        SELECT o.id, s.id AS next_id, s.state, s.successor_id FROM rule o JOIN rule s ON s.id = o.successor_id
         WHERE o.successor_id IS NOT NULL AND o.state NOT IN ('letting_go', 'gone') AND s.state IN ('ok', 'letting_go', 'gone')
         UNION ALL
        SELECT way.id, s.id, s.state, s.successor_id FROM way JOIN rule s ON s.id = way.successor_id
         WHERE way.state IN ('letting_go', 'gone') AND s.state IN ('ok', 'letting_go', 'gone'))"""


def let_go_moved(tx: Tx, limit: int) -> Sequence[Row[Any]]:
    """Begin the end of rules whose successor is ok: (id, uuid, was, to_id, to_uuid); one statement.

    Both rows are locked, and looked at again once they are. Otherwise: 1. we see that the successor is ok; 2. it is
    cancelled; 3. we let the old one go, and nothing holds what both did. Rows that another holds are left for later.
    """
    return tx.rows(
        f"""WITH RECURSIVE {_WAY},
                due AS (
                    SELECT o.id, o.state AS was, s.id AS to_id, s.uuid AS to_uuid
                      FROM way JOIN rule s ON s.id = way.next_id JOIN rule o ON o.id = way.id
                     WHERE way.state = 'ok' AND s.state = 'ok' AND NOT o.is_locked AND NOT o.is_suspended AND o.state IN {LIVE}
                     ORDER BY o.id LIMIT %(limit)s FOR UPDATE OF o, s SKIP LOCKED)
            UPDATE rule r SET state = 'letting_go', reason = 'moved to rule ' || due.to_uuid, successor_id = due.to_id,
                   state_since = %(now)s, next_judge_at = %(now)s
              FROM due WHERE r.id = due.id RETURNING r.id, r.uuid, due.was, due.to_id, due.to_uuid""",
        limit=limit,
    )


def expired(tx: Tx, limit: int) -> Sequence[int]:
    """Ids of live rules whose time is over and that are not locked, held for this transaction; one statement."""
    rows = tx.rows(
        """SELECT id FROM rule
             WHERE expires_at <= %(now)s AND state NOT IN ('letting_go', 'gone') AND NOT is_locked
             ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED""",
        limit=limit,
    )
    return [row.id for row in rows]


def on_dids(tx: Tx, did_ids: Sequence[int]) -> Sequence[Row[Any]]:
    """Live rules declared on exactly these DIDs: (id, did_id, grouping); one statement."""
    return tx.rows(
        f"SELECT id, did_id, grouping FROM rule WHERE did_id = ANY (%(dids)s::bigint[]) AND state IN {LIVE} ORDER BY id",
        dids=list(did_ids),
    )


def hold(tx: Tx, ids: Iterable[int]) -> None:
    """Lock these rules in key order, waiting for whoever judges one of them; one statement."""
    tx.run("SELECT FROM rule WHERE id = ANY (%(ids)s::bigint[]) ORDER BY id FOR UPDATE", ids=sorted(set(ids)))


def wake(tx: Tx, ids: Sequence[int], due: datetime | None = None) -> None:
    """Have these rules judged at `due` (default now) at the latest, without those that wait for their start; one statement.

    Waits for whoever judges one of them now, even if it is due already. Otherwise: 1. a judge has counted a rule, and
    not committed; 2. a replica is lost, and the rule seems due as it is; 3. the judge commits `ok`, until tomorrow.
    """
    tx.run(
        f"""WITH held AS (SELECT id FROM rule r WHERE id = ANY (%(ids)s::bigint[]) AND NOT is_suspended AND state IN {LIVE}
                             AND NOT {WAITS} ORDER BY id FOR UPDATE)
           UPDATE rule r SET next_judge_at = least(r.next_judge_at, %(due)s) FROM held WHERE r.id = held.id""",
        ids=list(ids),
        due=due or tx.now,
    )


def place_again(tx: Tx, ids: Sequence[int]) -> None:
    """Have these rules judged now, those of grouping none from their first file on; none before its start; one statement."""
    tx.run(
        f"""WITH held AS (SELECT id FROM rule r WHERE id = ANY (%(ids)s::bigint[]) AND NOT is_suspended AND state IN {LIVE}
                             AND NOT {WAITS} ORDER BY id FOR UPDATE)
           UPDATE rule r SET next_judge_at = %(now)s, place_after = CASE WHEN r.grouping = 'none' THEN 0 ELSE r.place_after END
             FROM held WHERE r.id = held.id""",
        ids=list(ids),
    )


def ok_to_replicating(tx: Tx, ids: Sequence[int], watch_s: float) -> list[int]:
    """Set those of the rules that were ok to replicating, to be counted in `watch_s` at the latest; their ids; one statement."""
    rows = tx.rows(
        """WITH held AS (SELECT id, state FROM rule WHERE id = ANY (%(ids)s::bigint[]) ORDER BY id FOR UPDATE)
           UPDATE rule r SET state = 'replicating', state_since = %(now)s, next_judge_at = %(now)s + make_interval(secs => %(watch_s)s)
             FROM held WHERE r.id = held.id AND held.state = 'ok' RETURNING r.id""",
        ids=list(ids),
        watch_s=watch_s,
    )
    return [row.id for row in rows]


def set_states(tx: Tx, states: Sequence[tuple[int, RuleState, str | None, datetime | None]]) -> Sequence[Row[Any]]:
    """Write (id, state, reason, next look) and return those whose state changed: (id, was, state); one statement."""
    return tx.rows(
        """WITH n AS (SELECT * FROM unnest(%(ids)s::bigint[], %(states)s::rule_state[], %(reasons)s::text[], %(dues)s::timestamptz[])
                             AS n (id, state, reason, due)),
                held AS (SELECT r.id, r.state FROM rule r JOIN n USING (id) ORDER BY r.id FOR UPDATE OF r),
                done AS (
           UPDATE rule r
              SET state = n.state, reason = n.reason, next_judge_at = n.due,
                  state_since = CASE WHEN r.state = n.state THEN r.state_since ELSE %(now)s END
             FROM n JOIN held USING (id) WHERE r.id = n.id
           RETURNING r.id, held.state AS was, n.state, n.reason)
           SELECT id, was, state, reason FROM done WHERE was <> state ORDER BY id""",
        ids=[row[0] for row in states],
        states=[str(row[1]) for row in states],
        reasons=[row[2] for row in states],
        dues=[row[3] for row in states],
    )


def with_locks(tx: Tx, ids: Sequence[int]) -> dict[int, bool]:
    """Those of the rules that still have lock rows, and whether all of these are released; one statement."""
    rows = tx.rows(
        "SELECT rule_id, bool_and(is_released) AS is_released FROM lock WHERE rule_id = ANY (%(ids)s::bigint[]) GROUP BY 1", ids=list(ids)
    )
    return {row.rule_id: row.is_released for row in rows}


def expressions(tx: Tx) -> Sequence[Row[Any]]:
    """Every expression that a rule still uses, with the storages it matched last; one statement."""
    return tx.rows(
        """SELECT e.id, e.canonical, e.storage_ids FROM expression e
            WHERE EXISTS (SELECT FROM rule r WHERE r.state <> 'gone' AND (r.expression_id = e.id OR r.source_expression_id = e.id))
            ORDER BY e.id"""
    )


def set_matches(tx: Tx, matches: Mapping[int, Sequence[int]]) -> Sequence[Row[Any]]:
    """Store what expressions match now and return the live rules that use them: (id, copies); two statements."""
    ids = sorted(matches)
    tx.run(
        """UPDATE expression e SET storage_ids = string_to_array(n.ids, ',')::int[], evaluated_at = %(now)s
             FROM unnest(%(expressions)s::int[], %(ids)s::text[]) AS n (id, ids) WHERE e.id = n.id""",
        expressions=ids,
        ids=[",".join(map(str, sorted(matches[id_]))) for id_ in ids],
    )
    return tx.rows(f"SELECT id, copies FROM rule WHERE expression_id = ANY (%(ids)s::int[]) AND state IN {LIVE} ORDER BY id", ids=ids)


def impossible(tx: Tx) -> Sequence[int]:
    """Ids of rules that miss a placement; one statement."""
    return [row.id for row in tx.rows("SELECT id FROM rule WHERE state = 'impossible' ORDER BY id")]
