"""The invariants as queries. All run in one statement, so that one snapshot answers for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Row

from dlm.db import query
from dlm.db.engine import Tx

# A change that the judge has not looked at yet explains what it concerns. The queue is read once: it may be a large
# file with few rows in it.
_PENDING = """EXISTS (SELECT FROM pending c WHERE (c.did_id IS NULL OR c.did_id = l.did_id)
                         AND (c.storage_id IS NULL OR c.storage_id = l.storage_id))"""

# The files that a lock holds, and where. Locks being filled or let go are the judge's unfinished work. What a change
# explains is found for each lock, not for each of its files.
_HELD = f"""pending AS MATERIALIZED (SELECT DISTINCT did_id, storage_id FROM change),
    standing AS MATERIALIZED (
    SELECT l.rule_id, l.did_id, l.storage_id, {_PENDING} AS is_pending
      FROM lock l WHERE NOT l.is_released AND l.fill_after IS NULL
       AND NOT EXISTS (SELECT FROM parcel p WHERE p.rule_id = l.rule_id AND l.did_id BETWEEN p.first_id AND p.last_id)),
    held AS (
    SELECT l.rule_id, l.storage_id, a.child_id AS file_id, l.is_pending
      FROM standing l JOIN attachment a ON a.parent_id = l.did_id
     UNION ALL
    SELECT l.rule_id, l.storage_id, l.did_id, l.is_pending FROM standing l JOIN did d ON d.id = l.did_id AND d.kind = 'file')"""

# invariant, what it is about, and a query of (object, detail); an object reads `kind id`.
CHECKS: tuple[tuple[str, str], ...] = (
    (
        "I2 a surplus deletion had its witnesses",
        """SELECT 'replica ' || did_id || ' at ' || storage_id,
                  'proof of ' || made_at || ': ' || cause || ', wanted ' || wanted || ', witnesses ' || witnesses::text
             FROM proof
            WHERE (cause = 'surplus' AND (cardinality(witnesses) < wanted OR storage_id = ANY (witnesses)))
               OR (cause = 'unwanted' AND wanted > 0) OR cause NOT IN ('surplus', 'unwanted')""",
    ),
    (
        "I3 every row belongs to rows that are there",
        """SELECT 'replica ' || r.did_id || ' at ' || r.storage_id, 'no such file or storage' FROM replica r
            WHERE NOT EXISTS (SELECT FROM did d WHERE d.id = r.did_id AND d.kind = 'file')
               OR NOT EXISTS (SELECT FROM storage s WHERE s.id = r.storage_id)
            UNION ALL
           SELECT 'attachment ' || a.parent_id || ' ' || a.child_id, 'no such collection or child' FROM attachment a
            WHERE NOT EXISTS (SELECT FROM did d WHERE d.id = a.parent_id AND d.kind <> 'file')
               OR NOT EXISTS (SELECT FROM did d WHERE d.id = a.child_id)
            UNION ALL
           SELECT 'lock ' || l.did_id || ' at ' || l.storage_id || ' of rule ' || l.rule_id,
                  'no such DID, storage or rule'
             FROM lock l
            WHERE NOT EXISTS (SELECT FROM did d WHERE d.id = l.did_id AND d.kind <> 'container')
               OR NOT EXISTS (SELECT FROM storage s WHERE s.id = l.storage_id)
               OR NOT EXISTS (SELECT FROM rule r WHERE r.id = l.rule_id)
            UNION ALL
           SELECT 'finding ' || f.did_id || ' at ' || f.storage_id, 'no such replica' FROM finding f
            WHERE NOT EXISTS (SELECT FROM replica r WHERE r.did_id = f.did_id AND r.storage_id = f.storage_id)
            UNION ALL
           SELECT 'storage ' || s.id, 'has no usage row' FROM storage s
            WHERE NOT EXISTS (SELECT FROM storage_usage u WHERE u.storage_id = s.id)""",
    ),
    (
        "I3 a copy is being made exactly where a request says so",
        """SELECT 'replica ' || r.did_id || ' at ' || r.storage_id, 'copying without a request' FROM replica r
            WHERE r.state = 'copying'
              AND NOT EXISTS (SELECT FROM request q WHERE q.did_id = r.did_id AND q.storage_id = r.storage_id)
            UNION ALL
           SELECT 'request ' || q.id, 'its replica is ' || coalesce(r.state::text, 'not there')
             FROM request q LEFT JOIN replica r ON r.did_id = q.did_id AND r.storage_id = q.storage_id
            WHERE r.state IS DISTINCT FROM 'copying'""",
    ),
    (
        "I3 what is locked has a replica",
        """SELECT 'file ' || h.file_id || ' at ' || h.storage_id,
                  'locked by rule ' || h.rule_id || ', and there is no replica'
             FROM held h WHERE NOT h.is_pending AND NOT EXISTS (
                      SELECT FROM replica r WHERE r.did_id = h.file_id AND r.storage_id = h.storage_id)""",
    ),
    (
        "I4 a verified copy says when, and when next",
        """SELECT 'replica ' || did_id || ' at ' || storage_id, state || ' without the time of a verification'
             FROM replica
            WHERE (state = 'available' AND (verified_at IS NULL OR next_check_at IS NULL))
               OR (state = 'unverified' AND next_check_at IS NULL)""",
    ),
    (
        "I5 what a storage holds is the sum over its replicas",
        """SELECT 'storage ' || u.storage_id, format(
                      'reserved %%s B (rows: %%s), used %%s B (rows: %%s), used files %%s (rows: %%s)',
                      u.reserved_bytes, coalesce(r.reserved, 0) + coalesce(l.promised, 0),
                      u.used_bytes, coalesce(r.used, 0), u.used_files, coalesce(r.files, 0))
             FROM storage_usage u
             LEFT JOIN (SELECT storage_id,
                               sum(size_bytes) FILTER (WHERE state = 'copying') AS reserved,
                               sum(size_bytes) FILTER (WHERE state NOT IN ('copying', 'lost', 'deleted')) AS used,
                               count(*) FILTER (WHERE state NOT IN ('copying', 'lost', 'deleted')) AS files
                          FROM replica GROUP BY storage_id) r USING (storage_id)
             LEFT JOIN (SELECT storage_id, sum(promised_bytes) AS promised
                          FROM (SELECT storage_id, promised_bytes FROM lock
                                 UNION ALL SELECT unnest(storage_ids), unnest(promised_bytes) FROM parcel) p
                         GROUP BY storage_id) l USING (storage_id)
            WHERE (u.reserved_bytes, u.used_bytes, u.used_files) IS DISTINCT FROM
                  (coalesce(r.reserved, 0) + coalesce(l.promised, 0), coalesce(r.used, 0), coalesce(r.files, 0))""",
    ),
    (
        "I5 what an account is charged is the sum over its locks",
        """SELECT 'account ' || account_id || ' at ' || storage_id, format(
                      'charged %%s B (rows: %%s), %%s files (rows: %%s)', coalesce(u.charged_bytes, 0),
                      coalesce(l.bytes, 0), coalesce(u.charged_files, 0), coalesce(l.files, 0))
             FROM account_usage u
             FULL JOIN (SELECT r.account_id, l.storage_id, sum(l.size_bytes) AS bytes, sum(l.files) AS files
                          FROM lock l JOIN rule r ON r.id = l.rule_id WHERE NOT l.is_released
                         GROUP BY 1, 2) l USING (account_id, storage_id)
            WHERE coalesce(u.charged_bytes, 0) <> coalesce(l.bytes, 0)
               OR coalesce(u.charged_files, 0) <> coalesce(l.files, 0)""",
    ),
    (
        "I5 a lock is as large as what it holds",
        f"""SELECT 'lock ' || l.did_id || ' at ' || l.storage_id || ' of rule ' || l.rule_id,
                   format('%%s files, %%s B; the DID has %%s, %%s B', l.files, l.size_bytes,
                          CASE WHEN d.kind = 'file' THEN 1 ELSE d.files END, d.size_bytes)
              FROM lock l JOIN did d ON d.id = l.did_id
             WHERE NOT l.is_released AND NOT {_PENDING}
               AND (l.size_bytes <> d.size_bytes OR l.files <> CASE WHEN d.kind = 'file' THEN 1 ELSE d.files END)""",
    ),
    (
        "I5 a dataset is as large as its files",
        """SELECT 'dataset ' || d.id, format('%%s files, %%s B; attached are %%s, %%s B', d.files, d.size_bytes,
                      count(a.child_id), coalesce(sum(a.size_bytes), 0))
             FROM did d LEFT JOIN attachment a ON a.parent_id = d.id WHERE d.kind = 'dataset'
            GROUP BY d.id HAVING d.files <> count(a.child_id) OR d.size_bytes <> coalesce(sum(a.size_bytes), 0)
            UNION ALL
           SELECT 'attachment ' || a.parent_id || ' ' || a.child_id,
                  format('%%s B, the file has %%s B', a.size_bytes, c.size_bytes)
             FROM attachment a JOIN did c ON c.id = a.child_id AND c.kind = 'file' WHERE a.size_bytes <> c.size_bytes
            UNION ALL
           SELECT 'replica ' || r.did_id || ' at ' || r.storage_id,
                  format('%%s B, the file has %%s B', r.size_bytes, d.size_bytes)
             FROM replica r JOIN did d ON d.id = r.did_id WHERE r.size_bytes <> d.size_bytes""",
    ),
    (
        "I6 what is not final has a next action",
        """SELECT 'request ' || id, 'active without a lease' FROM request
            WHERE state = 'active' AND claimed_until IS NULL
            UNION ALL
           SELECT 'replica ' || did_id || ' at ' || storage_id, state || ' without an end' FROM replica
            WHERE (state = 'deleting' AND claimed_until IS NULL) OR (state = 'deleted' AND quiet_until IS NULL)
            UNION ALL
           SELECT 'check ' || id, 'running without a next time' FROM audit
            WHERE state = 'running' AND next_attempt_at IS NULL
            UNION ALL
           SELECT 'lock ' || l.did_id || ' at ' || l.storage_id || ' of rule ' || l.rule_id,
                  CASE WHEN l.is_released THEN 'released and not being let go' ELSE 'held for a rule that is gone' END
             FROM lock l JOIN rule r ON r.id = l.rule_id
            WHERE (l.is_released AND l.fill_after IS NULL) OR (r.state = 'gone' AND NOT l.is_released)
            UNION ALL
           SELECT 'rule ' || r.id, r.state || ' and nothing will judge it' FROM rule r
            WHERE r.state NOT IN ('ok', 'suspended', 'gone', 'waiting_approval') AND r.next_judge_at IS NULL
              AND NOT EXISTS (SELECT FROM change)
              AND NOT EXISTS (SELECT FROM lock l WHERE l.rule_id = r.id AND l.fill_after IS NOT NULL)
              AND NOT EXISTS (SELECT FROM parcel p WHERE p.rule_id = r.id)
              AND NOT EXISTS (
                      SELECT FROM lock l JOIN request q ON q.did_id = l.did_id AND q.storage_id = l.storage_id
                       WHERE l.rule_id = r.id
                      UNION ALL
                      SELECT FROM lock l JOIN attachment a ON a.parent_id = l.did_id
                        JOIN request q ON q.did_id = a.child_id AND q.storage_id = l.storage_id
                       WHERE l.rule_id = r.id)""",
    ),
    (
        "I8 a rule is ok only when all its copies are there",
        """SELECT 'rule ' || r.id, 'ok, and file ' || h.file_id || ' at ' || h.storage_id || ' is '
                      || coalesce(p.state::text, 'not there')
             FROM rule r JOIN held h ON h.rule_id = r.id
             LEFT JOIN replica p ON p.did_id = h.file_id AND p.storage_id = h.storage_id
            WHERE r.state = 'ok' AND coalesce(p.state NOT IN ('available', 'unverified'), true) AND NOT h.is_pending""",
    ),
    (
        "I8 a rule is ok only when every file has the copies it asks for",
        """SELECT 'rule ' || t.rule_id, format('ok, and file %%s has %%s of %%s locks', t.file_id, t.locks, t.copies)
             FROM (SELECT b.rule_id, b.file_id, b.copies, count(DISTINCT h.storage_id) AS locks
                     FROM below b LEFT JOIN held h ON h.rule_id = b.rule_id AND h.file_id = b.file_id
                    GROUP BY 1, 2, 3) t
            WHERE t.locks < t.copies AND NOT EXISTS (SELECT FROM change)""",
    ),
    (
        "I3 what filters find is what the metadata says",
        f"""SELECT 'did ' || coalesce(s.did_id, m.did_id), 'its metadata and what filters find differ in '
                       || coalesce(s.key, m.key)
              FROM ({query.entries("did")}) AS s (did_id, key, scope_id, number, text)
              FULL JOIN metadatum m USING (did_id, key)
             WHERE s.did_id IS NULL OR m.did_id IS NULL
                OR (s.scope_id, s.number, s.text) IS DISTINCT FROM (m.scope_id, m.number, m.text)""",
    ),
    (
        "I10 names have their one written form",
        """SELECT 'did ' || id, 'its name is not in NFC' FROM did WHERE name IS NOT NFC NORMALIZED
            UNION ALL
           SELECT 'did ' || id, 'its name has ' || octet_length(name) || ' bytes' FROM did
            WHERE octet_length(name) > 1000""",
    ),
)

_WITH = f"""WITH RECURSIVE {_HELD},
    tree (rule_id, copies, did_id) AS (
        SELECT id, copies, did_id FROM rule WHERE state = 'ok' AND copies IS NOT NULL
         UNION
        SELECT t.rule_id, t.copies, a.child_id
          FROM tree t JOIN did d ON d.id = t.did_id AND d.kind <> 'file' JOIN attachment a ON a.parent_id = t.did_id),
    below AS (SELECT t.rule_id, t.copies, t.did_id AS file_id
                FROM tree t JOIN did d ON d.id = t.did_id AND d.kind = 'file')"""


def broken(tx: Tx, sample: int) -> Sequence[Row[Any]]:
    """(invariant, object, detail, number) of what breaks one: up to `sample` rows of each, and how many in all.

    Two statements: the first lets the second take half an hour.
    """
    branches = " UNION ALL ".join(
        f"(SELECT '{invariant}' AS invariant, object, detail, count(*) OVER () AS number"
        f" FROM ({query}) AS f (object, detail) LIMIT %(sample)s)"
        for invariant, query in CHECKS
    )
    tx.run("SET LOCAL statement_timeout = '30min'")
    return tx.rows(f"{_WITH} {branches}", sample=sample)


def storages_to_compare(tx: Tx, storage_ids: Sequence[int] | None) -> Sequence[Row[Any]]:
    """(id, name, can_write) of the storages that are there, by id; one statement."""
    return tx.rows(
        """SELECT id, name, can_write FROM storage
            WHERE deleted_at IS NULL AND is_available AND (%(ids)s::int[] IS NULL OR id = ANY (%(ids)s::int[]))
            ORDER BY id""",
        ids=None if storage_ids is None else list(storage_ids),
    )


def owned(tx: Tx, storage_id: int, paths: Sequence[str], scopes: Sequence[str], names: Sequence[str]) -> set[str]:
    """Which paths on a storage a replica row owns; scope and name are what a path derives from; one statement."""
    rows = tx.rows(
        """SELECT p.path FROM unnest(%(paths)s::text[]) AS p (path)
             JOIN replica r ON r.storage_id = %(id)s AND r.path = p.path
            WHERE r.state <> 'deleted'
            UNION ALL
           SELECT p.path FROM unnest(%(paths)s::text[], %(scopes)s::text[], %(names)s::text[]) AS p (path, scope, name)
             JOIN scope s ON s.name = p.scope JOIN did d ON d.scope_id = s.id AND d.name = p.name
             JOIN replica r ON r.storage_id = %(id)s AND r.did_id = d.id AND r.path IS NULL
            WHERE r.state <> 'deleted'""",
        id=storage_id,
        paths=list(paths),
        scopes=list(scopes),
        names=list(names),
    )
    return {row.path for row in rows}
