"""What locks entail: a replica and a request for every file that is not there yet.

Works on a *wish*: the set (did_id, storage_id, size_bytes, priority, activity) given by a piece of SQL. One statement makes
what is missing; only if something was there already do three more look at it. Statements do not grow with the rows.
The locks were committed before; this runs under a later snapshot (architecture 5, "commit, then look").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Row

from dlm.db import arrays
from dlm.db.below import files_of
from dlm.db.engine import Tx
from dlm.db.usage import StorageDelta

LAST = 2**63 - 1  # beyond every id
LARGE_FILES = 1000  # a lock of more files is filled in chunks of its own

# The files of one dataset between two ids, at several storages: a chunk of a large dataset.
CHUNK = """
    SELECT a.child_id AS did_id, s.storage_id, a.size_bytes, s.priority, s.activity
      FROM attachment a
     CROSS JOIN unnest(%(storages)s::int[], %(priorities)s::smallint[], %(activities)s::text[]) AS s (storage_id, priority, activity)
     WHERE a.parent_id = %(did_id)s AND a.child_id > %(after)s AND a.child_id <= %(upto)s"""

# The same where the planner saw everything there already: only what is not, to be found by looking once.
CHUNK_LACKING = f"""{CHUNK}
       AND NOT EXISTS (SELECT FROM replica r WHERE r.did_id = a.child_id AND r.storage_id = s.storage_id
                          AND r.state IN ('available', 'unverified'))"""

# All files of many small locks.
LOCKS = f"""
    WITH l AS (SELECT * FROM unnest(%(dids)s::bigint[], %(storages)s::int[], %(priorities)s::smallint[], %(activities)s::text[])
                             AS l (did_id, storage_id, priority, activity))
    SELECT f.file_id AS did_id, f.storage_id, f.file_bytes AS size_bytes, max(f.priority) AS priority, min(f.activity) AS activity
      FROM ({files_of("l")}) f
     GROUP BY 1, 2, 3"""

# Given files, wherever a lock on them or on a dataset that contains them wants them. The locks of each dataset are taken
# together before its files are: with twenty rules on one dataset it would be forty rows for each file otherwise. A lock on
# a file alone that waits to be filled is left to whoever fills it, as it has promised the bytes already.
FILES = """
    WITH f AS (SELECT did_id FROM unnest(%(files)s::bigint[]) AS f (did_id)),
         holder AS MATERIALIZED (SELECT did_id, did_id AS held_id, true AS is_file FROM f
                    UNION ALL SELECT a.child_id, a.parent_id, false FROM f JOIN attachment a ON a.child_id = f.did_id),
         l AS MATERIALIZED (SELECT l.did_id AS held_id, l.storage_id, max(r.priority) AS priority, min(r.activity) AS activity
                    FROM (SELECT DISTINCT held_id, is_file FROM holder) h
                    JOIN lock l ON l.did_id = h.held_id AND NOT l.is_released AND NOT (h.is_file AND l.fill_after IS NOT NULL)
                    JOIN rule r ON r.id = l.rule_id GROUP BY 1, 2)
    SELECT h.did_id, l.storage_id, d.size_bytes, max(l.priority) AS priority, min(l.activity) AS activity
      FROM holder h JOIN l USING (held_id) JOIN did d ON d.id = h.did_id AND d.kind = 'file'
     GROUP BY 1, 2, 3"""

# A FULL JOIN is hashed or merged, whatever the planner believes of the wish. While only some of the tables were ever
# analysed it believes in one row, and a plain join compared each of 100,000 files with every other one.
_MAKE = """
    WITH wish AS MATERIALIZED ({wish}),
         made AS (INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at)
                  SELECT did_id, storage_id, 'copying', size_bytes, %(now)s FROM wish ORDER BY did_id, storage_id
                  ON CONFLICT DO NOTHING RETURNING did_id, storage_id),
         asked AS (INSERT INTO request (did_id, storage_id, size_bytes, created_at, next_attempt_at, priority, activity)
                   SELECT did_id, storage_id, w.size_bytes, %(now)s, %(now)s, w.priority, w.activity
                     FROM (SELECT did_id, storage_id, true AS is_new FROM made) m
                     FULL JOIN wish w USING (did_id, storage_id) WHERE coalesce(is_new, false) ORDER BY did_id, storage_id
                   RETURNING storage_id, size_bytes)
    SELECT storage_id, count(*) AS files, sum(size_bytes)::bigint AS bytes, (SELECT count(*) FROM wish) AS wished
      FROM asked GROUP BY storage_id
    UNION ALL SELECT 0, 0, 0, (SELECT count(*) FROM wish)"""

# The same where every request has the same priority and activity: then the wish need not be joined once more.
_MAKE_ALIKE = """
    WITH wish AS MATERIALIZED ({wish}),
         made AS (INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at)
                  SELECT did_id, storage_id, 'copying', size_bytes, %(now)s FROM wish ORDER BY did_id, storage_id
                  ON CONFLICT DO NOTHING RETURNING did_id, storage_id, size_bytes),
         asked AS (INSERT INTO request (did_id, storage_id, size_bytes, created_at, next_attempt_at, priority, activity)
                   SELECT did_id, storage_id, size_bytes, %(now)s, %(now)s, %(priority)s::smallint, %(activity)s::text
                     FROM made ORDER BY did_id, storage_id)
    SELECT storage_id, count(*) AS files, sum(size_bytes)::bigint AS bytes, (SELECT count(*) FROM wish) AS wished
      FROM made GROUP BY storage_id
    UNION ALL SELECT 0, 0, 0, (SELECT count(*) FROM wish)"""

# A replica that is bad, lost or deleted is made again in place. Bad and lost ones only when a good copy stands elsewhere:
# otherwise their state is the honest answer, and it is left for the day a good copy turns up. What stands at a path that
# somebody named and never was the file is perhaps another's: it is not written over.
_MEND = """
    WITH wish AS MATERIALIZED ({wish}),
         ailing AS (SELECT r.did_id, r.storage_id, r.state, r.quiet_until, w.priority, w.activity
                      FROM replica r JOIN wish w USING (did_id, storage_id)
                     WHERE r.state IN ('bad', 'lost', 'deleted')
                       AND (r.state = 'deleted' OR EXISTS (SELECT FROM replica g WHERE g.did_id = r.did_id
                              AND g.storage_id <> r.storage_id AND g.state IN ('available', 'unverified')))
                       AND (r.state <> 'bad' OR r.path IS NULL OR r.verified_at IS NOT NULL)
                     ORDER BY r.did_id, r.storage_id FOR UPDATE OF r),
         mended AS (UPDATE replica r SET state = 'copying', verified_at = NULL, next_check_at = NULL, tombstone_at = NULL,
                           claimed_until = NULL, created_at = %(now)s
                      FROM ailing a WHERE r.did_id = a.did_id AND r.storage_id = a.storage_id
                    RETURNING r.did_id, r.storage_id, r.size_bytes, a.state AS was, a.quiet_until, a.priority, a.activity),
         asked AS (INSERT INTO request (did_id, storage_id, size_bytes, created_at, next_attempt_at, priority, activity, is_repair)
                   SELECT did_id, storage_id, size_bytes, %(now)s, greatest(%(now)s, quiet_until), priority, activity, was <> 'deleted'
                     FROM mended ORDER BY did_id, storage_id ON CONFLICT DO NOTHING)
    SELECT storage_id, was, count(*) AS files, sum(size_bytes)::bigint AS bytes FROM mended GROUP BY 1, 2"""

# A request that is in use is left as it is, so that nobody waits here with other requests in hand: whoever carries out a
# cancelling looks for locks first, and what it took away is told as gone. Only a higher priority may come to nothing.
_JOIN = """
    WITH wish AS MATERIALIZED ({wish}),
         held AS (SELECT q.id, w.priority FROM request q JOIN wish w USING (did_id, storage_id)
                   WHERE q.is_cancelled OR q.priority < w.priority
                   ORDER BY q.did_id, q.storage_id FOR UPDATE OF q SKIP LOCKED)
    UPDATE request q SET is_cancelled = false, priority = greatest(q.priority, held.priority) FROM held WHERE q.id = held.id"""


@dataclass(frozen=True, slots=True)
class Filled:
    """What a wish came to: replicas made anew by storage (files, bytes), and whether anything stood there before."""

    made: dict[int, tuple[int, int]]
    mended: int
    was_empty: bool

    @property
    def files(self) -> int:
        """Replicas that a conveyor has to make now."""
        return self.mended + sum(files for files, _ in self.made.values())


@dataclass(frozen=True, slots=True)
class Made:
    """Replicas that a wish made anew, by storage (files, bytes), of as many as it wishes."""

    by_storage: dict[int, tuple[int, int]]
    wished: int

    @property
    def is_all(self) -> bool:
        """True when nothing of the wish stood there before."""
        return sum(files for files, _ in self.by_storage.values()) == self.wished


def fill(tx: Tx, wish: str, delta: StorageDelta, **values: Any) -> Filled:
    """Make replicas and requests for the wish, adding the bytes reserved to `delta`; one to three statements."""
    return mend(tx, wish, delta, make(tx, wish, delta, **values), **values)


def fill_alike(tx: Tx, wish: str, delta: StorageDelta, **values: Any) -> Filled:
    """As `fill`, for a wish of (did_id, storage_id, size_bytes); `priority` and `activity` of all are among the values; one
    to three statements."""
    whole = f"SELECT w.*, %(priority)s::smallint AS priority, %(activity)s::text AS activity FROM ({wish}) w"
    return mend(tx, whole, delta, _make(tx, _MAKE_ALIKE, whole, delta, values), **values)


def make(tx: Tx, wish: str, delta: StorageDelta, **values: Any) -> Made:
    """The first part of `fill`: make what is not there at all; one statement."""
    return _make(tx, _MAKE, wish, delta, values)


def _make(tx: Tx, statement: str, wish: str, delta: StorageDelta, values: Mapping[str, Any]) -> Made:
    rows = tx.rows(statement.format(wish=wish), **values)
    made = {row.storage_id: (row.files, row.bytes) for row in rows if row.files}
    for storage_id, (_, size) in made.items():
        delta.add(storage_id, reserved_bytes=size)
    return Made(made, rows[-1].wished)


def mend(tx: Tx, wish: str, delta: StorageDelta, so_far: Made, **values: Any) -> Filled:
    """The second part of `fill`: make what is bad, lost or deleted anew, and join the requests that are under way; at most
    two statements."""
    if so_far.is_all:
        return Filled(so_far.by_storage, 0, was_empty=so_far.wished > 0)
    mended = 0
    for row in tx.rows(_MEND.format(wish=wish), **values):
        mended += row.files
        was_used = row.was == "bad"
        delta.add(row.storage_id, reserved_bytes=row.bytes, used_bytes=-row.bytes * was_used, used_files=-row.files * was_used)
    tx.run(_JOIN.format(wish=wish), **values)
    return Filled(so_far.by_storage, mended, was_empty=False)


def hold_standing(tx: Tx, pairs: Sequence[tuple[int, int]], file_ids: Sequence[int]) -> None:
    """Lock the replicas of these (file, storage), and those of the files that `mend` may write, in key order; one statement."""
    tx.run(
        """SELECT FROM (SELECT did_id, storage_id FROM unnest(%(dids)s::bigint[], %(storages)s::int[]) AS p (did_id, storage_id)
                         UNION SELECT did_id, storage_id FROM replica
                                WHERE did_id = ANY (%(files)s::bigint[]) AND state IN ('bad', 'lost', 'deleted')) p
             JOIN replica r USING (did_id, storage_id) ORDER BY r.did_id, r.storage_id FOR UPDATE OF r""",
        dids=arrays.integers(pair[0] for pair in pairs),
        storages=arrays.integers(pair[1] for pair in pairs),
        files=arrays.integers(file_ids),
    )


def count_lacking(tx: Tx, did_id: int, after: int, upto: int, storages: Sequence[int]) -> int:
    """How many of a chunk's files are not there, summed over these storages; one statement.

    Asked before `fill` where most likely none is: PostgreSQL counts with several processes, but never in a statement that
    may write.
    """
    return int(
        tx.scalar(
            """SELECT (SELECT count(*) FROM attachment
                        WHERE parent_id = %(did_id)s AND child_id > %(after)s AND child_id <= %(upto)s)
                      * cardinality(%(storages)s::int[])
                    - (SELECT count(*) FROM attachment a JOIN replica r ON r.did_id = a.child_id
                          AND r.storage_id = ANY (%(storages)s::int[]) AND r.state IN ('available', 'unverified')
                        WHERE a.parent_id = %(did_id)s AND a.child_id > %(after)s AND a.child_id <= %(upto)s)""",
            did_id=did_id,
            after=after,
            upto=upto,
            storages=list(storages),
        )
    )


def claim_small(tx: Tx, largest: int, limit: int) -> Sequence[Row[Any]]:
    """Locks of at most `largest` files that wait to be filled, with their rule's priority and activity; one statement."""
    return tx.rows(
        """SELECT l.did_id, l.storage_id, l.rule_id, l.files, l.promised_bytes, r.priority, r.activity
             FROM lock l JOIN rule r ON r.id = l.rule_id
            WHERE l.fill_after IS NOT NULL AND NOT l.is_released AND l.files <= %(largest)s
            ORDER BY l.rule_id, l.did_id, l.storage_id LIMIT %(limit)s FOR UPDATE OF l SKIP LOCKED""",
        largest=largest,
        limit=limit,
    )


def claim_large(tx: Tx, largest_small: int, *, released: bool = False) -> Sequence[Row[Any]]:
    """The locks of one large dataset that stand at the same place, least filled first; two statements.

    Taken together so that a chunk's files are read once and their replicas are written in key order.
    """
    first = tx.one(
        """SELECT did_id, fill_after FROM lock
            WHERE fill_after IS NOT NULL AND is_released = %(released)s AND files > %(largest)s
            ORDER BY rule_id, fill_after LIMIT 1 FOR UPDATE SKIP LOCKED""",
        released=released,
        largest=largest_small,
    )
    if first is None:
        return []
    return tx.rows(
        """SELECT l.did_id, l.storage_id, l.rule_id, l.files, l.promised_bytes, l.fill_after, d.files AS files_now, r.priority, r.activity
             FROM lock l JOIN rule r ON r.id = l.rule_id JOIN did d ON d.id = l.did_id
            WHERE l.did_id = %(did_id)s AND l.fill_after = %(after)s AND l.is_released = %(released)s
            ORDER BY l.storage_id, l.rule_id FOR UPDATE OF l SKIP LOCKED""",
        did_id=first.did_id,
        after=first.fill_after,
        released=released,
    )


def chunk_end(tx: Tx, did_id: int, after: int, limit: int) -> int | None:
    """The id of the last file of the next chunk, or None when fewer than `limit` files are left; one statement."""
    row = tx.one(
        """SELECT child_id FROM attachment WHERE parent_id = %(did_id)s AND child_id > %(after)s
            ORDER BY child_id OFFSET %(skip)s LIMIT 1""",
        did_id=did_id,
        after=after,
        skip=limit - 1,
    )
    return None if row is None else row.child_id


def mark_filled(
    tx: Tx, locks: Sequence[Row[Any]], promised: Sequence[int], fill_after: int | None, *, was_empty: bool
) -> None:
    """Write how far the locks are filled and what stays promised; one or two statements.

    `files_ok` is counted anew for locks that are complete, unless nothing stood there before.
    """
    keys = {
        "dids": [lock.did_id for lock in locks],
        "storages": [lock.storage_id for lock in locks],
        "rules": [lock.rule_id for lock in locks],
    }
    tx.run(
        """UPDATE lock l SET fill_after = %(fill_after)s, promised_bytes = n.promised
             FROM unnest(%(dids)s::bigint[], %(storages)s::int[], %(rules)s::bigint[], %(promised)s::bigint[])
                  AS n (did_id, storage_id, rule_id, promised)
            WHERE l.did_id = n.did_id AND l.storage_id = n.storage_id AND l.rule_id = n.rule_id""",
        fill_after=fill_after,
        promised=list(promised),
        **keys,
    )
    if fill_after is None and not was_empty:
        count = recount_large if locks[0].files > LARGE_FILES else recount
        count(tx, **keys)


def fill_again(tx: Tx, rule_ids: Sequence[int]) -> None:
    """Have the filled locks of these rules filled from the start, as files of theirs have no replica; one statement.

    Locks that are in use are left to the next count: their rules are held already, and locks come before rules.
    """
    tx.run(
        """WITH held AS (SELECT did_id, storage_id, rule_id FROM lock
                          WHERE rule_id = ANY (%(ids)s::bigint[]) AND NOT is_released AND fill_after IS NULL
                          ORDER BY did_id, storage_id, rule_id FOR UPDATE SKIP LOCKED)
           UPDATE lock l SET fill_after = 0 FROM held h
            WHERE l.did_id = h.did_id AND l.storage_id = h.storage_id AND l.rule_id = h.rule_id""",
        ids=list(rule_ids),
    )


def recount(tx: Tx, dids: Sequence[int], storages: Sequence[int], rules: Sequence[int]) -> None:
    """Count `files_ok` of these locks from the replicas; one statement."""
    tx.run(
        """UPDATE lock l SET files_ok = n.ok
             FROM (SELECT k.did_id, k.storage_id, k.rule_id,
                          (SELECT count(*) FROM attachment a JOIN replica r ON r.did_id = a.child_id AND r.storage_id = k.storage_id
                            WHERE a.parent_id = k.did_id AND r.state = 'available')
                        + (SELECT count(*) FROM replica r JOIN did d ON d.id = r.did_id AND d.kind = 'file'
                            WHERE r.did_id = k.did_id AND r.storage_id = k.storage_id AND r.state = 'available') AS ok
                     FROM unnest(%(dids)s::bigint[], %(storages)s::int[], %(rules)s::bigint[]) AS k (did_id, storage_id, rule_id)) n
            WHERE l.did_id = n.did_id AND l.storage_id = n.storage_id AND l.rule_id = n.rule_id""",
        dids=list(dids),
        storages=list(storages),
        rules=list(rules),
    )


def recount_large(tx: Tx, dids: Sequence[int], storages: Sequence[int], rules: Sequence[int]) -> None:
    """The same for filled locks on large datasets: all files but those whose replica is not available; one statement."""
    tx.run(
        """UPDATE lock l SET files_ok = greatest(0, l.files - n.odd)
             FROM (SELECT k.did_id, k.storage_id, k.rule_id,
                          (SELECT count(*) FROM replica r JOIN attachment a ON a.parent_id = k.did_id AND a.child_id = r.did_id
                            WHERE r.storage_id = k.storage_id AND r.state <> 'available') AS odd
                     FROM unnest(%(dids)s::bigint[], %(storages)s::int[], %(rules)s::bigint[])
                          AS k (did_id, storage_id, rule_id)) n
            WHERE l.did_id = n.did_id AND l.storage_id = n.storage_id AND l.rule_id = n.rule_id""",
        dids=list(dids),
        storages=list(storages),
        rules=list(rules),
    )
