"""What the judge reads to decide, and the locks it writes. Planners never see SQL; they see what these functions return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from sqlalchemy.engine import Row

from dlm.db import arrays
from dlm.db.below import files_of
from dlm.db.engine import Tx
from dlm.db.rules import WAITS

_RULE = """
    r.id, r.did_id, d.kind, d.files, d.size_bytes, r.account_id, r.copies, e.id AS expression_id, e.canonical, e.storage_ids,
    r.grouping, r.spread, r.weight, r.state, r.reason, r.is_suspended, r.priority, d.deleted_at IS NOT NULL AS is_over,
    CASE WHEN r.grouping = 'none' AND r.state = 'impossible' THEN coalesce(r.place_after, 0) ELSE r.place_after END AS place_after,
    r.surplus_after"""


def claim_rules(tx: Tx, limit: int) -> Sequence[Row[Any]]:
    """Rules whose look is due, held for this transaction, longest due first; one statement."""
    return tx.rows(
        f"""SELECT {_RULE} FROM rule r JOIN did d ON d.id = r.did_id JOIN expression e ON e.id = r.expression_id
             WHERE r.next_judge_at <= %(now)s AND NOT {WAITS}
             ORDER BY r.next_judge_at, r.id LIMIT %(limit)s FOR UPDATE OF r SKIP LOCKED""",
        limit=limit,
    )


def rule_to_judge(tx: Tx, rule_id: int) -> Row[Any]:
    """One rule as the judge sees it; one statement."""
    row = tx.one(
        f"SELECT {_RULE} FROM rule r JOIN did d ON d.id = r.did_id JOIN expression e ON e.id = r.expression_id WHERE r.id = %(id)s", id=rule_id
    )
    assert row is not None
    return row


def none_rules_above(tx: Tx, file_ids: Sequence[int]) -> Sequence[int]:
    """Ids of the rules of grouping none on collections above these files; one statement."""
    rows = tx.rows(
        """WITH RECURSIVE above AS (
                SELECT a.parent_id AS did_id FROM attachment a WHERE a.child_id = ANY (%(files)s::bigint[])
                UNION SELECT a.parent_id FROM above JOIN attachment a ON a.child_id = above.did_id)
            SELECT id FROM rule WHERE did_id IN (SELECT did_id FROM above) AND grouping = 'none' AND state <> 'gone' ORDER BY id""",
        files=list(file_ids),
    )
    return [row.id for row in rows]


def rules_to_judge(tx: Tx, rule_ids: Sequence[int]) -> Sequence[Row[Any]]:
    """Those of the rules, which the caller has locked, that live, have begun and are not suspended, by id; one statement."""
    return tx.rows(
        f"""SELECT {_RULE} FROM rule r JOIN did d ON d.id = r.did_id JOIN expression e ON e.id = r.expression_id
             WHERE r.id = ANY (%(ids)s::bigint[]) AND NOT r.is_suspended AND r.state NOT IN ('letting_go', 'gone', 'waiting_approval')
               AND NOT {WAITS}
             ORDER BY r.id""",
        ids=list(rule_ids),
    )


def next_due_s(tx: Tx) -> float | None:
    """Seconds until the next rule, expiry or end of a move is due; None when nothing is; one statement."""
    return tx.scalar(
        """SELECT extract(epoch FROM least(
                  (SELECT min(next_judge_at) FROM rule WHERE next_judge_at IS NOT NULL),
                  (SELECT min(expires_at) FROM rule WHERE expires_at IS NOT NULL AND state NOT IN ('letting_go', 'gone') AND NOT is_locked),
                  (SELECT %(now)s FROM rule r JOIN rule s ON s.id = r.successor_id AND s.state = 'ok'
                    WHERE r.successor_id IS NOT NULL AND r.state NOT IN ('letting_go', 'gone') AND NOT r.is_locked
                      AND NOT r.is_suspended LIMIT 1),
                  (SELECT min(expires_at) FROM did WHERE expires_at IS NOT NULL AND deleted_at IS NULL)) - %(now)s)::float8"""
    )


def sizes(tx: Tx, did_ids: Sequence[int]) -> dict[int, Row[Any]]:
    """(id, kind, files, size_bytes, deleted_at) of these DIDs, by id; one statement."""
    rows = tx.rows("SELECT id, kind, files, size_bytes, deleted_at FROM did WHERE id = ANY (%(ids)s::bigint[])", ids=list(did_ids))
    return {row.id: row for row in rows}


def locks_of(tx: Tx, rule_ids: Sequence[int]) -> Sequence[Row[Any]]:
    """The locks of these rules that are not released and hold a dataset, or a file of a rule on that file; one statement."""
    return tx.rows(
        """SELECT l.rule_id, l.did_id, l.storage_id, l.files, l.size_bytes, l.fill_after
             FROM lock l JOIN rule r ON r.id = l.rule_id
            WHERE l.rule_id = ANY (%(ids)s::bigint[]) AND NOT l.is_released AND r.grouping <> 'none'
            ORDER BY l.rule_id, l.did_id, l.storage_id""",
        ids=list(rule_ids),
    )


# A large rule is judged alone. Told which dataset it is, PostgreSQL knows its size, and reads it side by side with the
# replicas instead of looking up each file. It is a dataset or a file, so one half is empty; a union below the join would
# have the replicas hashed instead of the files, which takes half as long again.
_STANDING = """
    SELECT %(id)s::bigint AS did_id, r.storage_id, count(*) AS files, sum(r.size_bytes)::bigint AS bytes,
           count(*) FILTER (WHERE r.state <> 'copying') AS ready_files
      FROM {files} JOIN replica r ON r.did_id = {file} AND r.state IN ('available', 'unverified', 'copying')
     WHERE {which} GROUP BY r.storage_id"""
_COVERAGE_OF_ONE = " UNION ALL ".join(
    (
        _STANDING.format(files="attachment a", file="a.child_id", which="a.parent_id = %(id)s"),
        _STANDING.format(files="did d", file="d.id", which="d.id = %(id)s AND d.kind = 'file'"),
    )
)


def coverage(tx: Tx, unit_ids: Sequence[int]) -> Sequence[Row[Any]]:
    """How much of each file or dataset stands (or is coming) where: (did_id, storage_id, files, bytes, ready_files); one statement."""
    if len(unit_ids) == 1:
        return tx.rows(_COVERAGE_OF_ONE, id=unit_ids[0])
    return tx.rows(
        f"""WITH u AS (SELECT did_id FROM unnest(%(ids)s::bigint[]) AS u (did_id))
            SELECT f.did_id, r.storage_id, count(*) AS files, sum(r.size_bytes)::bigint AS bytes,
                   count(*) FILTER (WHERE r.state <> 'copying') AS ready_files
              FROM ({files_of("u")}) f
              JOIN replica r ON r.did_id = f.file_id AND r.state IN ('available', 'unverified', 'copying')
             GROUP BY 1, 2""",
        ids=list(unit_ids),
    )


def quota_left(tx: Tx, account_ids: Sequence[int]) -> dict[tuple[int, int], int]:
    """Bytes that limited accounts may still be charged, by (account, storage); no entry means no limit; one statement."""
    rows = tx.rows(
        """SELECT account_id, storage_id, limit_bytes - charged_bytes AS left_bytes FROM account_usage
            WHERE account_id = ANY (%(ids)s::int[]) AND limit_bytes IS NOT NULL""",
        ids=list(account_ids),
    )
    return {(row.account_id, row.storage_id): row.left_bytes for row in rows}


class NewLock(Protocol):
    """What a lock to be written tells of itself."""

    @property
    def rule_id(self) -> int: ...
    @property
    def did_id(self) -> int: ...
    @property
    def storage_id(self) -> int: ...
    @property
    def files(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def promised_bytes(self) -> int: ...


def add_locks(tx: Tx, locks: Sequence[NewLock]) -> Sequence[Row[Any]]:
    """Insert the locks in key order and return those that were new; one statement.

    A lock of the same key that is just being let go is taken back, with its cursor at the start again.
    """
    return tx.rows(
        """INSERT INTO lock AS l (rule_id, did_id, storage_id, files, size_bytes, promised_bytes, created_at, fill_after)
           SELECT rule_id, did_id, storage_id, files, bytes, promised, %(now)s, 0
             FROM unnest(%(rules)s::bigint[], %(dids)s::bigint[], %(storages)s::int[], %(files)s::int[], %(bytes)s::bigint[],
                         %(promised)s::bigint[]) AS n (rule_id, did_id, storage_id, files, bytes, promised)
            ORDER BY did_id, storage_id, rule_id
           ON CONFLICT (did_id, storage_id, rule_id) DO UPDATE
              SET is_released = false, fill_after = 0, files = excluded.files, size_bytes = excluded.size_bytes,
                  promised_bytes = excluded.promised_bytes, files_ok = 0, files_stuck = 0, created_at = excluded.created_at
            WHERE l.is_released
           RETURNING rule_id, did_id, storage_id, files, size_bytes, promised_bytes""",
        rules=[lock.rule_id for lock in locks],
        dids=[lock.did_id for lock in locks],
        storages=[lock.storage_id for lock in locks],
        files=[lock.files for lock in locks],
        bytes=[lock.size_bytes for lock in locks],
        promised=[lock.promised_bytes for lock in locks],
    )


_KEYS = "unnest(%(dids)s::bigint[], %(storages)s::int[], %(rules)s::bigint[]) AS k (did_id, storage_id, rule_id)"
_RESIZE = """
    WITH held AS (SELECT l.did_id, l.storage_id, l.rule_id, l.files, l.size_bytes
                    FROM {locks} JOIN did d ON d.id = l.did_id
                   WHERE {which} AND NOT l.is_released AND (l.files, l.size_bytes) IS DISTINCT FROM (d.files, d.size_bytes)
                   ORDER BY l.did_id, l.storage_id, l.rule_id FOR UPDATE OF l),
         done AS (UPDATE lock l SET files = d.files, size_bytes = d.size_bytes
                    FROM held h JOIN did d ON d.id = h.did_id
                   WHERE l.did_id = h.did_id AND l.storage_id = h.storage_id AND l.rule_id = h.rule_id
                  RETURNING l.rule_id, l.storage_id, d.files - h.files AS files, d.size_bytes - h.size_bytes AS bytes)
    SELECT done.rule_id, r.account_id, done.storage_id, sum(done.files)::bigint AS files, sum(done.bytes)::bigint AS bytes
      FROM done JOIN rule r ON r.id = done.rule_id GROUP BY 1, 2, 3 ORDER BY 1, 3"""


def resize_locks_on(tx: Tx, dataset_ids: Sequence[int]) -> Sequence[Row[Any]]:
    """Bring the locks on these datasets to the datasets' present size; what changed per rule and storage; one statement.

    Set, not added: running it twice, or beside a placement that saw the new size already, changes nothing more.
    Runs when a change is folded; `resize_locks` runs again when a lock is filled. Otherwise: (1) a placement reads a dataset
    of 100 files, (2) ten are attached and folded, which finds no lock, (3) the placement commits its lock, of 100 files for
    ever. Not for two at once: who waited longer would write the older size. (Changes are folded by one judge at a time.)
    """
    return tx.rows(_RESIZE.format(locks="lock l", which="l.did_id = ANY (%(ids)s::bigint[])"), ids=sorted(set(dataset_ids)))


def resize_locks(tx: Tx, locks: Sequence[Row[Any]]) -> Sequence[Row[Any]]:
    """As `resize_locks_on`, but only these locks, which the caller has locked; one statement.

    Others on the same datasets may be another judge's, who waits for ours.
    """
    return tx.rows(
        _RESIZE.format(locks=f"{_KEYS} JOIN lock l USING (did_id, storage_id, rule_id)", which="true"),
        dids=[lock.did_id for lock in locks],
        storages=[lock.storage_id for lock in locks],
        rules=[lock.rule_id for lock in locks],
    )


def hint(tx: Tx, pairs: Sequence[tuple[int, int]], *, ok: int = 0, stuck: int = 0) -> Sequence[int]:
    """Move the display counters of the locks over these (file, storage) pairs; ids of their rules; one statement."""
    rows = tx.rows(
        """WITH f AS (SELECT * FROM unnest(%(files)s::bigint[], %(storages)s::int[]) AS f (file_id, storage_id)),
                place AS (SELECT a.parent_id AS did_id, f.storage_id, count(*)::int AS files
                            FROM f JOIN attachment a ON a.child_id = f.file_id GROUP BY 1, 2
                           UNION ALL SELECT file_id, storage_id, count(*)::int FROM f GROUP BY 1, 2),
                hit AS (SELECT l.did_id, l.storage_id, l.rule_id, place.files
                          FROM place JOIN lock l USING (did_id, storage_id) WHERE NOT l.is_released),
                held AS (SELECT l.did_id, l.storage_id, l.rule_id FROM lock l JOIN hit USING (did_id, storage_id, rule_id)
                          ORDER BY 1, 2, 3 FOR UPDATE OF l)
           UPDATE lock l SET files_ok = least(l.files, greatest(0, l.files_ok + %(ok)s * hit.files)),
                             files_stuck = least(l.files, greatest(0, l.files_stuck + %(stuck)s * hit.files))
             FROM hit JOIN held USING (did_id, storage_id, rule_id)
            WHERE l.did_id = hit.did_id AND l.storage_id = hit.storage_id AND l.rule_id = hit.rule_id
           RETURNING l.rule_id""",
        files=[pair[0] for pair in pairs],
        storages=[pair[1] for pair in pairs],
        ok=ok,
        stuck=stuck,
    )
    return sorted({row.rule_id for row in rows})


def wake_complete(tx: Tx, rule_ids: Sequence[int]) -> None:
    """Have those of the rules judged whose locks are filled and, by the hints, all there; one statement."""
    tx.run(
        """WITH held AS (SELECT r.id FROM rule r
                          WHERE r.id = ANY (%(ids)s::bigint[])
                            AND r.state IN ('declared', 'replicating', 'stuck', 'impossible')
                            AND NOT EXISTS (SELECT FROM lock l WHERE l.rule_id = r.id AND NOT l.is_released
                                               AND l.fill_after IS NOT NULL)
                            AND NOT EXISTS (SELECT FROM parcel p WHERE p.rule_id = r.id)
                            AND NOT EXISTS (SELECT FROM lock l WHERE l.rule_id = r.id AND NOT l.is_released
                                               AND l.files_ok < l.files)
                          ORDER BY r.id FOR UPDATE OF r)
           UPDATE rule r SET next_judge_at = %(now)s FROM held WHERE r.id = held.id""",
        ids=list(rule_ids),
    )


def count_copies(tx: Tx, rule_ids: Sequence[int], states: Sequence[str]) -> Sequence[Row[Any]]:
    """The truth about these rules' locks, per rule and storage, by joining every file with its replica; one statement.

    files wanted, ok (in `states`), harmed (bad or lost), parked requests, unverified, whether all locks are filled, and
    how many files have no replica row at all.
    """
    return tx.rows(
        f"""WITH l AS NOT MATERIALIZED (SELECT rule_id, did_id, storage_id, fill_after FROM lock
                        WHERE rule_id = ANY (%(ids)s::bigint[]) AND NOT is_released)
            SELECT f.rule_id, f.storage_id, count(*) AS files,
                   count(*) FILTER (WHERE r.state = ANY (%(states)s::replica_state[])) AS ok,
                   count(*) FILTER (WHERE r.state IN ('bad', 'lost')) AS harmed,
                   count(*) FILTER (WHERE q.state = 'parked') AS parked,
                   count(*) FILTER (WHERE r.state = 'unverified') AS unverified,
                   bool_and(f.fill_after IS NULL) AND NOT EXISTS (SELECT FROM parcel p WHERE p.rule_id = f.rule_id) AS is_filled,
                   count(*) - count(r.did_id) AS absent
              FROM ({files_of("l")}) f
              LEFT JOIN replica r ON r.did_id = f.file_id AND r.storage_id = f.storage_id
              LEFT JOIN request q ON q.did_id = f.file_id AND q.storage_id = f.storage_id AND r.state = 'copying'
             GROUP BY 1, 2 ORDER BY 1, 2""",
        ids=list(rule_ids),
        states=list(states),
    )


def parked_reasons(tx: Tx, rule_ids: Sequence[int]) -> dict[int, str]:
    """One stored reason of a parked request under each of these rules, looked for once where they hold the same; one statement."""
    rows = tx.rows(
        f"""WITH l AS MATERIALIZED (SELECT rule_id, did_id, storage_id FROM lock
                        WHERE rule_id = ANY (%(ids)s::bigint[]) AND NOT is_released),
                 p AS (SELECT DISTINCT did_id, storage_id FROM l),
                 first AS (SELECT f.did_id, f.storage_id, min(q.id) AS request_id
                             FROM ({files_of("p")}) f
                             JOIN request q ON q.did_id = f.file_id AND q.storage_id = f.storage_id AND q.state = 'parked'
                            GROUP BY 1, 2)
            SELECT DISTINCT ON (l.rule_id) l.rule_id, s.name AS storage, q.error
              FROM l JOIN first USING (did_id, storage_id) JOIN request q ON q.id = first.request_id
              JOIN storage s ON s.id = q.storage_id
             ORDER BY l.rule_id, q.id""",
        ids=list(rule_ids),
    )
    return {row.rule_id: f"{row.storage}: {row.error}" for row in rows}


def files_to_place(tx: Tx, rule_did_ids: Sequence[int], after: int, limit: int) -> Sequence[int]:
    """Ids of the next files below these datasets (or the file itself) beyond `after`, in order; one statement."""
    found = tx.scalar(
        """SELECT array_agg(file_id ORDER BY file_id) FROM (SELECT DISTINCT f.file_id FROM unnest(%(ids)s::bigint[]) AS u (did_id)
            CROSS JOIN LATERAL (SELECT child_id AS file_id FROM attachment WHERE parent_id = u.did_id AND child_id > %(after)s
                                UNION ALL SELECT id FROM did WHERE id = u.did_id AND kind = 'file' AND id > %(after)s) f
            ORDER BY 1 LIMIT %(limit)s) n""",
        ids=list(rule_did_ids),
        after=after,
        limit=limit,
    )
    return found or []


def file_classes(tx: Tx, rule_id: int, file_ids: Sequence[int], storage_ids: Sequence[int]) -> Sequence[Row[Any]]:
    """The files grouped by where they stand and where the rule holds them: (holders, held, least_id, files, bytes); one statement."""
    return tx.rows(
        f"""{_SIGNATURE}
            SELECT holders, held, min(did_id) AS least_id, count(*) AS files, sum(size_bytes)::bigint AS bytes
              FROM signed GROUP BY 1, 2 ORDER BY 1, 2""",
        rule=rule_id,
        files=arrays.integers(file_ids),
        storages=list(storage_ids),
    )


FileShare = tuple[Sequence[int], Sequence[int], Sequence[int], int]  # holders, held, chosen, files
_SIGNATURE = """
    WITH signed AS (
        SELECT d.id AS did_id, d.size_bytes, coalesce(r.holders, ARRAY[]::int[]) AS holders, coalesce(l.held, ARRAY[]::int[]) AS held
          FROM did d
          LEFT JOIN (SELECT did_id, array_agg(storage_id ORDER BY storage_id)
                                    FILTER (WHERE storage_id = ANY (%(storages)s::int[])) AS holders
                       FROM replica WHERE did_id = ANY (%(files)s::bigint[]) AND state IN ('available', 'unverified', 'copying')
                      GROUP BY did_id) r ON r.did_id = d.id
          LEFT JOIN (SELECT did_id, array_agg(storage_id ORDER BY storage_id) AS held
                       FROM lock WHERE did_id = ANY (%(files)s::bigint[]) AND rule_id = %(rule)s AND NOT is_released
                      GROUP BY did_id) l ON l.did_id = d.id
         WHERE d.id = ANY (%(files)s::bigint[]))"""


_ADD_FILE_LOCKS = f"""{_SIGNATURE},
    class AS MATERIALIZED (
        SELECT holders::int[] AS holders, held::int[] AS held, starts::bigint[] AS starts, stop, chosen::text[] AS chosen
          FROM unnest(%(holders)s::text[], %(helds)s::text[], %(starts)s::text[], %(stops)s::bigint[], %(chosen)s::text[])
               AS c (holders, held, starts, stop, chosen)),
    ranked AS (SELECT *, row_number() OVER (PARTITION BY holders, held ORDER BY hashint8(did_id), did_id) - 1 AS rank FROM signed),
    wish AS (SELECT f.did_id, s.storage_id, f.size_bytes,
                    CASE WHEN s.storage_id = ANY (f.holders) THEN 0 ELSE f.size_bytes END AS promised
               FROM ranked f JOIN class c ON c.holders = f.holders AND c.held = f.held AND f.rank < c.stop
              CROSS JOIN LATERAL unnest(c.chosen[width_bucket(f.rank, c.starts)]::int[]) AS s (storage_id)),
    made AS (INSERT INTO lock AS l (rule_id, did_id, storage_id, files, size_bytes, promised_bytes, created_at, fill_after)
             SELECT %(rule)s, did_id, storage_id, 1, size_bytes, {{promised}}, %(now)s, {{fill_after}}
               FROM wish ORDER BY did_id, storage_id
             ON CONFLICT (did_id, storage_id, rule_id) DO UPDATE
                SET is_released = false, fill_after = excluded.fill_after, files_ok = 0, files_stuck = 0,
                    promised_bytes = excluded.promised_bytes, size_bytes = excluded.size_bytes, created_at = excluded.created_at
              WHERE l.is_released
             RETURNING storage_id, size_bytes, promised_bytes)
    SELECT storage_id, m.files, m.bytes, {{whole}}.promised
      FROM (SELECT storage_id, count(*) AS files, sum(size_bytes)::bigint AS bytes, sum(promised_bytes)::bigint AS promised
              FROM made GROUP BY 1) m
      JOIN (SELECT storage_id, sum(promised)::bigint AS promised FROM wish GROUP BY 1) w USING (storage_id)
     ORDER BY 1"""


def add_file_locks(
    tx: Tx, rule_id: int, file_ids: Sequence[int], storage_ids: Sequence[int], shares: Sequence[FileShare], *, as_parcel: bool
) -> Sequence[Row[Any]]:
    """Lock files of grouping none: each share (holders, held, storages, files) takes that many files of its class.

    Files of a class are taken in the order of a hash of their id, so that the same view gives the same plan; shares of one
    class follow each other in the order given. `as_parcel`: a parcel that the caller writes says that they are to be
    filled and what they promise, not each of them. New locks per storage: (storage_id, files, bytes, promised); one statement.
    """
    promised, fill_after, whole = ("0", "NULL::bigint", "w") if as_parcel else ("promised", "0", "m")
    return tx.rows(
        _ADD_FILE_LOCKS.format(promised=promised, fill_after=fill_after, whole=whole),
        rule=rule_id,
        files=arrays.integers(file_ids),
        storages=list(storage_ids),
        **_columns(shares),
    )


def _columns(shares: Sequence[FileShare]) -> dict[str, list[Any]]:
    """The classes that shares are of: where the shares of each begin and end in the order of its files, and what they chose.

    The storages of a share stand in one text, found by the share's number: a join would look at every share for every file.
    """
    classes: dict[tuple[str, str], tuple[list[int], int, list[str]]] = {}
    for holders, held, chosen, files in shares:
        starts, stop, choices = classes.setdefault((arrays.integers(holders), arrays.integers(held)), ([], 0, []))
        starts.append(stop)
        choices.append(arrays.integers(chosen))
        classes[arrays.integers(holders), arrays.integers(held)] = (starts, stop + files, choices)
    return {
        "holders": [holders for holders, _ in classes],
        "helds": [held for _, held in classes],
        "starts": [arrays.integers(starts) for starts, _, _ in classes.values()],
        "stops": [stop for _, stop, _ in classes.values()],
        "chosen": [arrays.texts(choices) for _, _, choices in classes.values()],
    }


def files_below(tx: Tx, did_id: int, file_ids: Sequence[int]) -> Sequence[int]:
    """Those of the files that are below the DID, in order; one statement."""
    rows = tx.rows(
        """WITH RECURSIVE above (file_id, did_id) AS (
               SELECT id, id FROM unnest(%(files)s::bigint[]) AS f (id)
               UNION SELECT above.file_id, a.parent_id FROM above JOIN attachment a ON a.child_id = above.did_id)
           SELECT file_id FROM above WHERE did_id = %(did_id)s ORDER BY 1""",
        files=list(file_ids),
        did_id=did_id,
    )
    return [row.file_id for row in rows]


def with_harm(tx: Tx, file_ids: Sequence[int]) -> Sequence[int]:
    """Those of the files that are bad or lost somewhere, in order; one statement."""
    rows = tx.rows(
        """SELECT DISTINCT did_id FROM replica WHERE did_id = ANY (%(files)s::bigint[]) AND state IN ('bad', 'lost') ORDER BY 1""",
        files=list(file_ids),
    )
    return [row.did_id for row in rows]


def strayed_locks(tx: Tx, *, file_ids: Sequence[int] = (), rule_ids: Sequence[int] = ()) -> list[tuple[int, int, int]]:
    """Locks of the files, or of the rules, whose DID is no longer below their rule's: (did, storage, rule); one statement."""
    rows = tx.rows(
        """WITH RECURSIVE mine AS (
               SELECT l.did_id, l.storage_id, l.rule_id, r.did_id AS root_id FROM lock l JOIN rule r ON r.id = l.rule_id
                WHERE NOT l.is_released AND l.did_id <> r.did_id
                  AND (l.did_id = ANY (%(files)s::bigint[]) OR l.rule_id = ANY (%(rules)s::bigint[]))),
             above AS (SELECT did_id, did_id AS ancestor_id FROM mine
                       UNION SELECT above.did_id, a.parent_id FROM above JOIN attachment a ON a.child_id = above.ancestor_id)
           SELECT did_id, storage_id, rule_id FROM mine
            WHERE NOT EXISTS (SELECT FROM above WHERE above.did_id = mine.did_id AND above.ancestor_id = mine.root_id)
            ORDER BY 1, 2, 3""",
        files=list(file_ids),
        rules=list(rule_ids),
    )
    return [(row.did_id, row.storage_id, row.rule_id) for row in rows]


def locks_on(tx: Tx, dataset_ids: Sequence[int]) -> Sequence[Row[Any]]:
    """(did_id, storage_id, rule_id) of the locks on these collections, released ones too; one statement."""
    return tx.rows(
        "SELECT did_id, storage_id, rule_id FROM lock WHERE did_id = ANY (%(ids)s::bigint[]) ORDER BY 1, 2, 3",
        ids=list(dataset_ids),
    )


# --- what a placement would move ---------------------------------------------------------------------------------


def outlook(tx: Tx, rule_id: int) -> Sequence[Row[Any]]:
    """What the rule's locks would have to move, by destination and by where the files stand now; one statement.

    (storage_id, is_there, holders as [storage, state] pairs, files, bytes); files that are there or coming have `is_there`.
    """
    return tx.rows(
        """SELECT l.storage_id, coalesce(r.state IN ('available', 'unverified', 'copying'), false) AS is_there,
                  (SELECT coalesce(jsonb_agg(jsonb_build_array(o.storage_id, o.state) ORDER BY o.storage_id), '[]')
                     FROM replica o WHERE o.did_id = f.did_id AND o.storage_id <> l.storage_id) AS holders,
                  count(*) AS files, sum(f.size_bytes)::bigint AS bytes
             FROM lock l
            CROSS JOIN LATERAL (SELECT child_id AS did_id, size_bytes FROM attachment WHERE parent_id = l.did_id
                                UNION ALL SELECT id, size_bytes FROM did WHERE id = l.did_id AND kind = 'file') f
             LEFT JOIN replica r ON r.did_id = f.did_id AND r.storage_id = l.storage_id
            WHERE l.rule_id = %(rule)s AND NOT l.is_released
            GROUP BY 1, 2, 3 ORDER BY 1, 2, 3""",
        rule=rule_id,
    )
