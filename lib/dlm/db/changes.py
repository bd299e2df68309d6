"""The change queue: facts that the judge must look at. Rows are claimed and deleted, and NOTIFY only wakes (architecture 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Row

from dlm.db import arrays
from dlm.db.engine import Tx
from dlm.types import ChangeKind

FOLD_LOCK = 0x646C6D04  # advisory: what changes at once is folded by one judge at a time
CHANNEL = "dlm_{daemon}"  # one NOTIFY channel per daemon


def add(
    tx: Tx,
    kind: ChangeKind,
    *,
    did_id: int | None = None,
    storage_id: int | None = None,
    file_ids: Sequence[int] | None = None,
) -> None:
    """Write one change row and wake the judge at commit; two statements.

    Written in the transaction of the fact, even when no rule seems concerned: a rule that this transaction cannot
    see yet may be committing beside it, and the judge looks under a later snapshot.
    """
    tx.run(
        """INSERT INTO change (kind, did_id, storage_id, file_ids, created_at)
           VALUES (%(kind)s, %(did_id)s, %(storage_id)s, %(file_ids)s::bigint[], %(now)s)""",
        kind=str(kind),
        did_id=did_id,
        storage_id=storage_id,
        file_ids=None if file_ids is None else arrays.integers(sorted(file_ids)),
    )
    wake(tx, "judge")


def add_dids(tx: Tx, kind: ChangeKind, did_ids: Sequence[int]) -> None:
    """Write one change row per DID, and wake the judge; two statements."""
    tx.run(
        """INSERT INTO change (kind, did_id, created_at)
           SELECT %(kind)s::change_kind, id, %(now)s FROM unnest(%(ids)s::bigint[]) AS d (id) ORDER BY id""",
        kind=str(kind),
        ids=list(did_ids),
    )
    wake(tx, "judge")


def add_by_storage(tx: Tx, kind: ChangeKind, files: Sequence[tuple[int, int]]) -> None:
    """Write one change row per storage for (did_id, storage_id) pairs, and wake the judge; two statements."""
    tx.run(
        """INSERT INTO change (kind, storage_id, file_ids, created_at)
           SELECT %(kind)s::change_kind, storage_id, array_agg(did_id ORDER BY did_id), %(now)s
             FROM unnest(%(dids)s::bigint[], %(storages)s::int[]) AS f (did_id, storage_id)
            GROUP BY storage_id""",
        kind=str(kind),
        dids=arrays.integers(did for did, _ in files),
        storages=arrays.integers(storage for _, storage in files),
    )
    wake(tx, "judge")


def claim(tx: Tx, limit: int, files: int) -> Sequence[Row[Any]]:
    """Take change rows out of the queue, oldest first; none while another folds; one statement.

    Up to `limit` rows, and none beyond the one with which they tell of `files` files: what a judge holds in memory is
    bounded, however much was registered while none ran. The rows are deleted in this transaction: if it fails they
    stand again, if it commits their consequences stand.
    """
    return tx.rows(
        """DELETE FROM change WHERE id = ANY (ARRAY(
               SELECT id FROM (
                   SELECT id, sum(coalesce(cardinality(file_ids), 0)) OVER (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING
                                                                              AND 1 PRECEDING) AS before
                     FROM (SELECT id, file_ids FROM change WHERE (SELECT pg_try_advisory_xact_lock(%(key)s))
                            ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED) oldest) counted
                WHERE coalesce(before, 0) < %(files)s))
           RETURNING id, kind, did_id, storage_id, file_ids, created_at""",
        limit=limit,
        files=files,
        key=FOLD_LOCK,
    )


def wake(tx: Tx, daemon: str) -> None:
    """NOTIFY the daemon at commit; one statement. A hint: polling is the safety net."""
    tx.run("SELECT pg_notify(%(channel)s, '')", channel=CHANNEL.format(daemon=daemon))
