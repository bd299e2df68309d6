"""DIDs and what contains what. Collections end, and are never removed; a name is used once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Row

from dlm.db import arrays
from dlm.db.engine import Tx, json
from dlm.types import DidKind

CONTAINER_LOCK = 0x646C6D01  # advisory: two attaches of collections could each pass a cycle check alone

_COLUMNS = """d.id, s.name AS scope, d.name, d.kind, a.name AS account, d.size_bytes, d.files, d.adler32, d.md5, d.sha256,
              d.is_open, d.is_monotonic, d.metadata, d.created_at, d.expires_at, d.deleted_at"""
_FROM = "did d JOIN scope s ON s.id = d.scope_id JOIN account a ON a.id = d.account_id"


# ------------------------------------------------------------------------------------------- below and above


def datasets_below(tx: Tx, did_ids: Iterable[int]) -> Sequence[Row[Any]]:
    """(root_id, dataset_id) for every dataset below each DID, once however many ways lead there; one statement.

    A dataset is below itself; a file gives nothing. Ended collections count: a promise made for their container
    stands until they are detached.
    """
    return tx.rows(
        """WITH RECURSIVE below (root_id, did_id) AS (
               SELECT id, id FROM unnest(%(ids)s::bigint[]) AS r (id)
                UNION
               SELECT b.root_id, a.child_id
                 FROM below b JOIN did d ON d.id = b.did_id AND d.kind = 'container'
                 JOIN attachment a ON a.parent_id = b.did_id)
           SELECT b.root_id, b.did_id AS dataset_id
             FROM below b JOIN did d ON d.id = b.did_id WHERE d.kind = 'dataset' ORDER BY 1, 2""",
        ids=arrays.integers(did_ids),
    )


def ancestors(tx: Tx, did_ids: Iterable[int]) -> Sequence[Row[Any]]:
    """(did_id, ancestor_id) for every collection that each DID is in, at any depth, and itself; one statement."""
    return tx.rows(
        """WITH RECURSIVE above (did_id, ancestor_id) AS (
               SELECT id, id FROM unnest(%(ids)s::bigint[]) AS r (id)
                UNION
               SELECT b.did_id, a.parent_id FROM above b JOIN attachment a ON a.child_id = b.ancestor_id)
           SELECT did_id, ancestor_id FROM above ORDER BY 1, 2""",
        ids=arrays.integers(did_ids),
    )
