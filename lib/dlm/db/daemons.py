"""When each daemon process was last seen: for people and `doctor`, never for claiming work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Row

from dlm.db.engine import Tx, json


def seen(tx: Tx, name: str, host: str, pid: int, counts: Mapping[str, int]) -> None:
    """Note that the process finished a pass; one statement."""
    tx.run(
        """INSERT INTO daemon (name, host, pid, started_at, seen_at, counts)
           VALUES (%(name)s, %(host)s, %(pid)s, %(now)s, %(now)s, %(counts)s)
           ON CONFLICT (name, host, pid) DO UPDATE SET seen_at = excluded.seen_at, counts = excluded.counts""",
        name=name,
        host=host,
        pid=pid,
        counts=json(dict(counts)),
    )


def forget(tx: Tx, names: Sequence[str], host: str, pid: int) -> None:
    """Take away what was seen of the process's daemons, which end in order; one statement."""
    tx.run(
        "DELETE FROM daemon WHERE name = ANY (%(names)s::text[]) AND host = %(host)s AND pid = %(pid)s",
        names=list(names),
        host=host,
        pid=pid,
    )


def list_all(tx: Tx) -> Sequence[Row[Any]]:
    """Every daemon process seen in the last day, newest first; one statement."""
    return tx.rows(
        """SELECT name, host, pid, started_at, seen_at, counts FROM daemon
            WHERE seen_at > %(now)s - interval '1 day' ORDER BY name, seen_at DESC"""
    )
