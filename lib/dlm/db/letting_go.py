"""The other direction: locks released, replicas that nothing protects any more get a tombstone, unneeded requests end.

A replica is protected by a lock on the file, or on any dataset that contains it, at that storage. The release commits
first; protection is looked up under a later snapshot. Otherwise two let-gos beside each other each see the other's lock,
and a replica is left that nobody holds and nobody reaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Row

from dlm.db import changes
from dlm.db.below import files_of
from dlm.db.engine import Tx
from dlm.db.parcels import SPANNED
from dlm.db.usage import StorageDelta

# true when some lock wants replica `r` to stay
PROTECTED = """(
    EXISTS (SELECT FROM lock l WHERE l.did_id = r.did_id AND l.storage_id = r.storage_id AND NOT l.is_released)
    OR EXISTS (SELECT FROM attachment a JOIN lock l ON l.did_id = a.parent_id AND l.storage_id = r.storage_id AND NOT l.is_released
                WHERE a.child_id = r.did_id))"""

# Sources of (did_id, storage_id) whose hold ended. A file that left its dataset while a lock on the dataset is let go is
# among them, too: by the change that tells of it, as long as that is not folded, and by the lock when it is. Otherwise the
# change finds the lock gone, the lock finds the file gone, and a replica is left that nobody holds and nobody reaps.
CHUNK = """
    SELECT a.child_id AS did_id, s.storage_id FROM attachment a CROSS JOIN unnest(%(storages)s::int[]) AS s (storage_id)
     WHERE a.parent_id = %(did_id)s AND a.child_id > %(after)s AND a.child_id <= %(upto)s"""
LAST_CHUNK = f"""{CHUNK}
     UNION
    SELECT unnest(c.file_ids), s.storage_id FROM change c CROSS JOIN unnest(%(storages)s::int[]) AS s (storage_id)
     WHERE c.kind = 'detached' AND c.did_id = %(did_id)s"""
LOCKS = f"""
    WITH l AS (SELECT * FROM unnest(%(dids)s::bigint[], %(storages)s::int[]) AS l (did_id, storage_id))
    SELECT f.file_id AS did_id, f.storage_id FROM ({files_of("l")}) f
     UNION
    SELECT unnest(c.file_ids), l.storage_id FROM l JOIN change c ON c.kind = 'detached' AND c.did_id = l.did_id"""
PAIRS = "SELECT did_id, storage_id FROM unnest(%(dids)s::bigint[], %(storages)s::int[]) AS p (did_id, storage_id)"

# A tombstone that leaves the whole window since the rules ended stays: where twenty end that hold the same files, each
# file is written once and not twenty times.
_TOMBSTONE = f"""
    WITH ended AS MATERIALIZED ({{ended}}),
         last AS (SELECT coalesce(max(CASE WHEN state = 'letting_go' THEN state_since ELSE %(now)s END), %(now)s) AS at
                    FROM rule WHERE id = ANY (%(rule_ids)s::bigint[])),
         free AS (SELECT r.did_id, r.storage_id, s.undo_window_s
                    FROM ended JOIN replica r USING (did_id, storage_id) JOIN storage s ON s.id = r.storage_id CROSS JOIN last
                   WHERE r.state IN ('available', 'unverified', 'bad', 'lost') {{only}}
                     AND CASE WHEN r.tombstone_at >= last.at + make_interval(secs => coalesce(s.undo_window_s, %(undo_window_s)s))
                              THEN false ELSE NOT {PROTECTED} END
                   ORDER BY r.did_id, r.storage_id FOR UPDATE OF r)
    UPDATE replica r SET tombstone_at = %(now)s + make_interval(secs => coalesce(free.undo_window_s, %(undo_window_s)s))
      FROM free WHERE r.did_id = free.did_id AND r.storage_id = free.storage_id"""

# The request rows are locked by a statement of their own: a conveyor may be claiming one, and only a later
# statement's snapshot tells whether it did. One that was ever claimed (fence > 0) is only flagged: an attempt that
# died may have left its file there, and the conveyor looks before the row that owns it goes. One that was never
# claimed goes with its replica, except where the path rests: an earlier reaper may still delete what stands there, so
# the row stays, as deleted, and whoever wants the replica again waits for the end of the rest, too.
# What goes is told. Otherwise: 1. we find nothing that protects a replica and wait for its request; 2. a new lock is
# written and filled, the replica is coming already; 3. we go on; 4. the lock waits for a replica that is not there.
_HOLD_REQUESTS = f"""
    WITH ended AS MATERIALIZED ({{ended}})
    SELECT q.id FROM ended JOIN request q USING (did_id, storage_id) JOIN replica r USING (did_id, storage_id)
     WHERE NOT {PROTECTED} ORDER BY q.did_id, q.storage_id FOR UPDATE OF q"""
_HOLD_REPLICAS = f"""
    WITH ended AS MATERIALIZED ({{ended}})
    SELECT FROM ended JOIN replica r USING (did_id, storage_id)
     WHERE NOT {PROTECTED} OR (r.did_id, r.storage_id) IN (
           SELECT did_id, storage_id FROM request WHERE id = ANY (%(request_ids)s::bigint[]))
     ORDER BY r.did_id, r.storage_id FOR UPDATE OF r"""
_CANCEL = """
    WITH held AS (SELECT unnest(%(ids)s::bigint[]) AS id),
         dropped AS (DELETE FROM request q USING held
                      WHERE q.id = held.id AND q.fence = 0 AND NOT q.is_repair
                     RETURNING q.did_id, q.storage_id, q.size_bytes),
         removed AS (DELETE FROM replica r USING dropped d WHERE r.did_id = d.did_id AND r.storage_id = d.storage_id
                        AND coalesce(r.quiet_until <= %(now)s, true)),
         resting AS (UPDATE replica r SET state = 'deleted' FROM dropped d
                      WHERE r.did_id = d.did_id AND r.storage_id = d.storage_id AND r.quiet_until > %(now)s),
         flagged AS (UPDATE request q SET is_cancelled = true,
                            next_attempt_at = CASE WHEN q.fence > 0 THEN %(now)s ELSE q.next_attempt_at END,
                            state = CASE WHEN q.state = 'parked' THEN 'queued' ELSE q.state END
                       FROM held WHERE q.id = held.id AND (q.fence > 0 OR q.is_repair)),
         told AS (INSERT INTO change (kind, storage_id, file_ids, created_at)
                  SELECT 'gone', storage_id, array_agg(did_id ORDER BY did_id), %(now)s FROM dropped GROUP BY storage_id)
    SELECT storage_id, count(*) AS files, sum(size_bytes)::bigint AS bytes FROM dropped GROUP BY storage_id"""


def let_go(
    tx: Tx, ended: str, delta: StorageDelta, *, undo_window_s: float, rule_ids: Sequence[int] = (), **values: Any
) -> int:
    """End the requests of `ended` and tombstone its replicas, where nothing protects them; how many; two to seven statements.

    `rule_ids` tell since when that holds, when it is all that they held.

    The requests come first. Otherwise: 1. a conveyor has recorded an arrival and not committed; 2. the replica is still
    `copying` to us, so it gets no tombstone; 3. we wait for its request, and when the conveyor commits that one is gone;
    4. a replica stands there that nobody holds and nobody reaps.
    """
    request_ids = hold_requests(tx, ended, **values)
    return let_go_held(tx, ended, request_ids, delta, undo_window_s=undo_window_s, rule_ids=rule_ids, **values)


def hold_requests(tx: Tx, ended: str, **values: Any) -> Sequence[int]:
    """Lock the requests of `ended` that nothing protects, in key order; their ids; one statement."""
    return [row.id for row in tx.rows(_HOLD_REQUESTS.format(ended=ended), **values)]


def let_go_held(
    tx: Tx,
    ended: str,
    request_ids: Sequence[int],
    delta: StorageDelta,
    *,
    undo_window_s: float,
    rule_ids: Sequence[int] = (),
    **values: Any,
) -> int:
    """As `let_go`, when the requests are held already; one to six statements.

    Replicas that go with their requests and those that get a tombstone are two statements' work: all are locked before,
    in their one order.
    """
    if request_ids:
        tx.run(_HOLD_REPLICAS.format(ended=ended), request_ids=list(request_ids), **values)
        for row in tx.rows(_CANCEL, ids=list(request_ids)):
            delta.add(row.storage_id, reserved_bytes=-row.bytes)
        changes.wake(tx, "conveyor")
        changes.wake(tx, "judge")
    window = {"undo_window_s": undo_window_s, "rule_ids": list(rule_ids)}
    count = len(request_ids) + tx.run(_TOMBSTONE.format(ended=ended, only=""), **window, **values).rowcount
    if count:
        changes.wake(tx, "reaper")
    return count


_KEYS = "unnest(%(dids)s::bigint[], %(storages)s::int[], %(rules)s::bigint[]) AS k (did_id, storage_id, rule_id)"
_RELEASE = """
    WITH held AS (SELECT l.did_id, l.storage_id, l.rule_id, l.size_bytes, l.files, l.promised_bytes
                    FROM {locks} WHERE {which} AND NOT l.is_released
                   ORDER BY l.did_id, l.storage_id, l.rule_id FOR UPDATE OF l SKIP LOCKED),
         done AS (UPDATE lock l SET is_released = true, fill_after = 0, promised_bytes = 0
                    FROM held h WHERE l.did_id = h.did_id AND l.storage_id = h.storage_id AND l.rule_id = h.rule_id
                  RETURNING l.rule_id, l.storage_id, h.size_bytes, h.files, h.promised_bytes)
    SELECT r.account_id, done.storage_id, sum(done.size_bytes)::bigint AS bytes, sum(done.files)::bigint AS files,
           sum(done.promised_bytes)::bigint AS promised_bytes, count(*) AS locks
      FROM done JOIN rule r ON r.id = done.rule_id GROUP BY 1, 2 ORDER BY 1, 2"""


def bury(tx: Tx, pairs: Sequence[tuple[int, int]], *, undo_window_s: float) -> None:
    """Give those (file, storage) a tombstone that have none and that nothing protects; one statement.

    For replicas that a reaper gave back because a lock held them, when the lock was let go before the reaper said so:
    letting go leaves alone what is being deleted.
    """
    tx.run(
        _TOMBSTONE.format(ended=PAIRS, only="AND r.tombstone_at IS NULL"),
        undo_window_s=undo_window_s,
        rule_ids=[],
        dids=[pair[0] for pair in pairs],
        storages=[pair[1] for pair in pairs],
    )


def release(
    tx: Tx, keys: Sequence[tuple[int, int, int]] | None = None, rule_ids: Sequence[int] | None = None
) -> Sequence[Row[Any]]:
    """Mark locks as released, these (did, storage, rule) or all of some rules; one statement.

    What went, by account and storage: (account_id, storage_id, locks, files, bytes charged, promised_bytes). Released
    locks protect nothing; `fill_after` starts again as the cursor of letting go. Locks that another transaction has
    locked are left out, for a later call: a judge that fills them waits for their rules, which our caller holds.
    """
    locks, which, columns = "lock l", "l.rule_id = ANY (%(rules)s::bigint[])", {"rules": list(rule_ids or ())}
    if keys is not None:
        locks, which = f"{_KEYS} JOIN lock l USING (did_id, storage_id, rule_id)", "true"
        columns = {name: [key[i] for key in keys] for i, name in enumerate(("dids", "storages", "rules"))}
    return tx.rows(_RELEASE.format(locks=locks, which=which), **columns)


def claim_small(tx: Tx, largest: int, limit: int) -> Sequence[Row[Any]]:
    """Released locks of at most `largest` files, to be let go, but for those that are in a parcel yet; one statement."""
    return tx.rows(
        f"""SELECT did_id, storage_id, rule_id, files FROM lock
            WHERE is_released AND fill_after IS NOT NULL AND files <= %(largest)s AND NOT {SPANNED}
            ORDER BY rule_id, did_id, storage_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED""",
        largest=largest,
        limit=limit,
    )


def advance(tx: Tx, locks: Sequence[Row[Any]], fill_after: int) -> None:
    """Write how far released locks have been let go; one statement."""
    tx.run(
        """UPDATE lock l SET fill_after = %(fill_after)s
             FROM unnest(%(dids)s::bigint[], %(storages)s::int[], %(rules)s::bigint[]) AS n (did_id, storage_id, rule_id)
            WHERE l.did_id = n.did_id AND l.storage_id = n.storage_id AND l.rule_id = n.rule_id""",
        fill_after=fill_after,
        **_keys(locks),
    )


def remove(tx: Tx, locks: Sequence[Row[Any]]) -> None:
    """Delete released locks whose replicas are all let go, and have the rules judged that end with them; two statements.

    A rule that is being judged just now is left out: its judge sees the lock still, and comes back for it.
    """
    tx.run(
        """DELETE FROM lock l USING unnest(%(dids)s::bigint[], %(storages)s::int[], %(rules)s::bigint[]) AS n (did_id, storage_id, rule_id)
            WHERE l.did_id = n.did_id AND l.storage_id = n.storage_id AND l.rule_id = n.rule_id""",
        **_keys(locks),
    )
    tx.run(
        """WITH held AS (SELECT id FROM rule r WHERE id = ANY (%(rules)s::bigint[]) AND state = 'letting_go'
                            AND NOT EXISTS (SELECT FROM lock l WHERE l.rule_id = r.id) ORDER BY id FOR UPDATE SKIP LOCKED)
           UPDATE rule r SET next_judge_at = %(now)s FROM held WHERE r.id = held.id""",
        rules=sorted({lock.rule_id for lock in locks}),
    )


def _keys(locks: Sequence[Row[Any]]) -> dict[str, list[int]]:
    return {
        "dids": [lock.did_id for lock in locks],
        "storages": [lock.storage_id for lock in locks],
        "rules": [lock.rule_id for lock in locks],
    }
