"""Whether large rules are kept, told by what is out of order at their storages instead of by every file.

Exact while three things hold, and each is looked at: the locks are filled, so that every file they mean has a replica row
at their storage; they have their datasets' present size; no change waits in the queue that says otherwise (files attached
or detached, replicas gone or harmed). Where one does not hold the answer is not `sure`, and `judging.count_copies` counts.
The resync counts every file in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Row

from dlm.db.engine import Tx

_LOCKS = """
    l AS MATERIALIZED (
        SELECT k.rule_id, k.did_id, k.storage_id, k.files, k.fill_after IS NULL AS is_filled, d.kind,
               k.files = d.files AND k.size_bytes = d.size_bytes
               AND k.did_id NOT IN (SELECT did_id FROM change WHERE did_id IS NOT NULL)
               AND k.storage_id NOT IN (SELECT storage_id FROM change WHERE kind IN ('gone', 'harmed') AND storage_id IS NOT NULL)
               AS is_sure
          FROM lock k JOIN did d ON d.id = k.did_id
         WHERE k.rule_id = ANY (%(ids)s::bigint[]) AND NOT k.is_released)"""


def count_by_exceptions(tx: Tx, rule_ids: Sequence[int], states: Sequence[str]) -> Sequence[Row[Any]]:
    """As `judging.count_copies`, for rules with locks on datasets, and `is_sure`; one statement.

    Its cost is that of the replicas at the storages that are not available, whatever the size of the datasets and the
    number of rules on them.
    """
    return tx.rows(
        f"""WITH {_LOCKS},
                 odd AS MATERIALIZED (
                     SELECT a.parent_id AS did_id, r.storage_id, r.state, q.state = 'parked' AS is_parked
                       FROM (SELECT DISTINCT storage_id FROM l) s
                       JOIN replica r ON r.storage_id = s.storage_id AND r.state <> 'available'
                       JOIN attachment a ON a.child_id = r.did_id AND a.parent_id IN (SELECT did_id FROM l)
                       LEFT JOIN request q ON q.did_id = r.did_id AND q.storage_id = r.storage_id AND r.state = 'copying'),
                 summed AS (SELECT did_id, storage_id, count(*) FILTER (WHERE state <> ALL (%(states)s::replica_state[])) AS missing,
                                   count(*) FILTER (WHERE state IN ('bad', 'lost')) AS harmed,
                                   count(*) FILTER (WHERE is_parked) AS parked,
                                   count(*) FILTER (WHERE state = 'unverified') AS unverified
                              FROM odd GROUP BY 1, 2)
            SELECT l.rule_id, l.storage_id, sum(l.files)::bigint AS files,
                   (sum(l.files) - coalesce(sum(s.missing), 0))::bigint AS ok, coalesce(sum(s.harmed), 0)::bigint AS harmed,
                   coalesce(sum(s.parked), 0)::bigint AS parked, coalesce(sum(s.unverified), 0)::bigint AS unverified,
                   bool_and(l.is_filled) AS is_filled, bool_and(l.is_sure AND l.kind = 'dataset') AS is_sure
              FROM l LEFT JOIN summed s USING (did_id, storage_id)
             GROUP BY 1, 2 ORDER BY 1, 2""",
        ids=list(rule_ids),
        states=list(states),
    )
