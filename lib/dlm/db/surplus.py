"""Locks beyond the copies that a rule asks for: counted by unit, and released file by file for grouping none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Row

from dlm.db.below import files_of
from dlm.db.engine import Tx


def count_locks(tx: Tx, rule_ids: Sequence[int]) -> Sequence[Row[Any]]:
    """Every lock of the units of which these rules hold more than they ask, with its files, counted; one statement.

    (rule_id, did_id, storage_id, files, files_ok, is_filled), by rule and unit. Of grouping all every unit comes: its
    storages are given up for all of them, or for none.
    """
    return tx.rows(
        f"""WITH l AS MATERIALIZED (
                SELECT l.rule_id, l.did_id, l.storage_id, l.fill_after IS NULL AS is_filled FROM lock l JOIN (
                       SELECT k.rule_id, k.did_id, count(*) AS locks FROM lock k
                        WHERE k.rule_id = ANY (%(ids)s::bigint[]) AND NOT k.is_released GROUP BY 1, 2) u USING (rule_id, did_id)
                  JOIN rule r ON r.id = l.rule_id
                 WHERE NOT l.is_released AND (r.grouping = 'all' OR u.locks > r.copies)),
                 found AS (
                SELECT f.rule_id, f.did_id, f.storage_id, count(*) AS files,
                       count(*) FILTER (WHERE r.state = 'available') AS files_ok
                  FROM ({files_of("l")}) f LEFT JOIN replica r ON r.did_id = f.file_id AND r.storage_id = f.storage_id
                 GROUP BY 1, 2, 3)
            SELECT l.rule_id, l.did_id, l.storage_id, l.is_filled, coalesce(f.files, 0) AS files, coalesce(f.files_ok, 0) AS files_ok
              FROM l LEFT JOIN found f USING (rule_id, did_id, storage_id) ORDER BY 1, 2, 3""",
        ids=list(rule_ids),
    )


# A file's locks by rank: the best of each spread value first. `place` up to the number of copies stays.
_RANKED = """
    next AS MATERIALIZED (
        SELECT did_id FROM lock WHERE rule_id = %(rule)s AND NOT is_released AND did_id > %(after)s
         GROUP BY did_id HAVING count(*) > %(copies)s ORDER BY did_id LIMIT %(limit)s),
    held AS (
        SELECT l.did_id, l.storage_id, t.tier, t.domain, hashint8extended(l.did_id, l.storage_id) AS chance,
               l.fill_after IS NULL AND coalesce(r.state = 'available', false) AS is_good
          FROM next JOIN lock l ON l.did_id = next.did_id AND l.rule_id = %(rule)s AND NOT l.is_released
          JOIN unnest(%(storages)s::int[], %(tiers)s::int[], %(domains)s::text[]) AS t (storage_id, tier, domain) USING (storage_id)
          LEFT JOIN replica r ON r.did_id = l.did_id AND r.storage_id = l.storage_id),
    ordered AS (
        SELECT *, row_number() OVER (PARTITION BY did_id, domain ORDER BY tier, NOT is_good, chance, storage_id) AS turn FROM held),
    placed AS (
        SELECT *, row_number() OVER (PARTITION BY did_id ORDER BY turn > 1, tier, NOT is_good, chance, storage_id) AS place FROM ordered),
    judged AS (
        SELECT *, bool_and(is_good AND turn = 1) FILTER (WHERE place <= %(copies)s) OVER (PARTITION BY did_id) AS is_due FROM placed)"""


def release_files(
    tx: Tx, rule_id: int, copies: int, tiers: Sequence[tuple[int, int, str]], after: int, limit: int
) -> Sequence[Row[Any]]:
    """Release surplus locks of a rule of grouping none, of its next files beyond `after` that have any; one statement.

    A file's locks go when those that stay are verified. First a row of storage 0: how many `locks` are surplus, of how many
    `files`, and the `last` of these. Then by storage (storage_id, locks, bytes, promised_bytes) what was released. Locks
    that another holds stay for a later call.
    """
    return tx.rows(
        f"""WITH {_RANKED},
            doomed AS (
                SELECT l.did_id, l.storage_id, l.rule_id, l.size_bytes, l.promised_bytes
                  FROM judged j JOIN lock l ON l.did_id = j.did_id AND l.storage_id = j.storage_id AND l.rule_id = %(rule)s
                 WHERE j.place > %(copies)s AND j.is_due AND NOT l.is_released
                 ORDER BY l.did_id, l.storage_id FOR UPDATE OF l SKIP LOCKED),
            done AS (
                UPDATE lock l SET is_released = true, fill_after = 0, promised_bytes = 0 FROM doomed d
                 WHERE l.did_id = d.did_id AND l.storage_id = d.storage_id AND l.rule_id = d.rule_id
                RETURNING l.storage_id, d.size_bytes, d.promised_bytes)
            SELECT storage_id, count(*) AS locks, sum(size_bytes)::bigint AS bytes, sum(promised_bytes)::bigint AS promised_bytes,
                   NULL::bigint AS files, NULL::bigint AS last
              FROM done GROUP BY 1
             UNION ALL SELECT 0, (SELECT count(*) FROM judged WHERE place > %(copies)s), 0, 0, count(*), max(did_id) FROM next
             ORDER BY 1""",
        rule=rule_id,
        copies=copies,
        storages=[each[0] for each in tiers],
        tiers=[each[1] for each in tiers],
        domains=[each[2] for each in tiers],
        after=after,
        limit=limit,
    )


def set_cursors(tx: Tx, cursors: Sequence[tuple[int, int | None]]) -> None:
    """Write from which file on rules hold surplus (None: they hold none any more); the caller has locked them; one statement."""
    tx.run(
        """UPDATE rule r SET surplus_after = nullif(n.after, -1)
             FROM unnest(%(ids)s::bigint[], %(afters)s::bigint[]) AS n (id, after) WHERE r.id = n.id""",
        ids=[rule_id for rule_id, _ in cursors],
        afters=[-1 if after is None else after for _, after in cursors],
    )
