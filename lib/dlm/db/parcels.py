"""Parcels: locks of one rule on a run of files, placed at one time, whose replicas do not exist yet (grouping none).

A million single files would be two million locks that are written as "to be filled", and each once more when they are.
A parcel says it once for tens of thousands of them, and holds what they promise. It is written with its locks and goes
with the replicas that they entail: whoever sees a lock of it and not the parcel sees the replicas, too.

What was locked in a parcel may be released at any time, also while another judge fills it. Letting go waits for it:
(1) a judge reads the locks of a parcel to fill it, (2) the rule ends, they are released, and let go, nothing stands there,
(3) the judge commits replicas that nobody holds and nobody reaps. So no lock is let go that a parcel spans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Row

from dlm.db.engine import Tx

# Their locks, each by a walk along the rule's own index: `OFFSET 0` keeps the planner from reading all locks instead,
# which it prefers where it has no idea how many a rule has.
_LOCKS = """
    unnest(%(rules)s::bigint[], %(firsts)s::bigint[], %(lasts)s::bigint[], %(made)s::timestamptz[])
           AS p (rule_id, first_id, last_id, created_at)
    CROSS JOIN LATERAL (SELECT * FROM lock l
                         WHERE l.rule_id = p.rule_id AND l.did_id BETWEEN p.first_id AND p.last_id
                           AND l.created_at = p.created_at AND NOT l.is_released OFFSET 0) l"""

# A wish for `filling.fill_alike`.
WISH = f"SELECT l.did_id, l.storage_id, l.size_bytes FROM {_LOCKS}"

# true when a parcel of its rule spans the lock `lock`
SPANNED = """EXISTS (SELECT FROM parcel p
                      WHERE p.rule_id = lock.rule_id AND lock.did_id BETWEEN p.first_id AND p.last_id)"""


def add(
    tx: Tx, rule_id: int, first_id: int, last_id: int, locks: int, promised: Mapping[int, int], *, has_copies: bool
) -> None:
    """Say that the rule's locks of now on files from `first_id` to `last_id` are to be filled; one statement."""
    tx.run(
        """INSERT INTO parcel (rule_id, first_id, last_id, locks, storage_ids, promised_bytes, has_copies, created_at)
           VALUES (%(rule)s, %(first)s, %(last)s, %(locks)s, %(storages)s::int[], %(promised)s::bigint[], %(copies)s, %(now)s)""",
        rule=rule_id,
        first=first_id,
        last=last_id,
        locks=locks,
        storages=list(promised),
        promised=list(promised.values()),
        copies=has_copies,
    )


def claim(tx: Tx, largest: int, limit: int) -> Sequence[Row[Any]]:
    """The parcels of at most `largest` locks that wait longest, with their rule's priority and activity; one statement."""
    return tx.rows(
        """SELECT p.id, p.rule_id, p.first_id, p.last_id, p.locks AS files, p.storage_ids, p.promised_bytes, p.has_copies, p.created_at,
                  r.priority, r.activity
             FROM parcel p JOIN rule r ON r.id = p.rule_id
            WHERE p.locks <= %(largest)s
            ORDER BY p.id LIMIT %(limit)s FOR UPDATE OF p SKIP LOCKED""",
        largest=largest,
        limit=limit,
    )


def columns(parcels: Sequence[Row[Any]]) -> dict[str, list[Any]]:
    """What `WISH` takes."""
    return {
        "rules": [parcel.rule_id for parcel in parcels],
        "firsts": [parcel.first_id for parcel in parcels],
        "lasts": [parcel.last_id for parcel in parcels],
        "made": [parcel.created_at for parcel in parcels],
    }


def count(tx: Tx, parcels: Sequence[Row[Any]]) -> None:
    """Set `files_ok` of the parcels' locks whose copies are there already; one statement."""
    tx.run(
        f"""WITH held AS (SELECT l.did_id, l.storage_id, l.rule_id
                            FROM {_LOCKS} JOIN replica r ON r.did_id = l.did_id AND r.storage_id = l.storage_id
                           WHERE r.state = 'available' AND l.files_ok = 0),
                 kept AS (SELECT l.did_id, l.storage_id, l.rule_id FROM lock l JOIN held USING (did_id, storage_id, rule_id)
                           ORDER BY 1, 2, 3 FOR UPDATE OF l)
            UPDATE lock l SET files_ok = 1 FROM kept k
             WHERE l.did_id = k.did_id AND l.storage_id = k.storage_id AND l.rule_id = k.rule_id""",
        **columns(parcels),
    )


def remove(tx: Tx, parcels: Sequence[Row[Any]]) -> None:
    """Delete the parcels: their locks are filled; one statement."""
    tx.run("DELETE FROM parcel WHERE id = ANY (%(ids)s::bigint[])", ids=[parcel.id for parcel in parcels])
