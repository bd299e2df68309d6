"""Use case: claimed requests become a batch, each with the planner's view of it, its decision and its places."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from sqlalchemy.engine import Row

from dlm.core import credentials
from dlm.core.conveyor import Action, Cancel, Candidate, Patience, Transfer, Wish, decide
from dlm.db import requests, storages
from dlm.db.attempts import Result
from dlm.db.engine import Tx
from dlm.did import derived_path
from dlm.types import Checksums, ProtocolRef, ReplicaState


@dataclass(frozen=True, slots=True)
class Item:
    """A claimed request, what was decided, and what carrying it out needs."""

    request_id: int
    fence: int
    attempts: int
    did_id: int
    storage_id: int
    size_bytes: int
    is_repair: bool
    is_flagged: bool  # cancelled, as of the claim
    is_taken: bool  # an attempt met a file of another content at the destination, which no attempt wrote
    checksums: Checksums
    path: str
    source_path: str
    wish: Wish
    action: Action

    @property
    def source_id(self) -> int | None:
        return self.action.source_id if isinstance(self.action, Transfer) else None

    @property
    def is_untouched(self) -> bool:
        """True when nothing can stand at the destination: no earlier attempt, and nothing to replace."""
        return self.fence == 1 and not self.is_repair

    def storage_ids(self) -> set[int]:
        """The storages that carrying it out touches."""
        return {self.storage_id} if self.source_id is None else {self.storage_id, self.source_id}

    def changed(self, result: Result, **values: Any) -> Result:
        """The result with these values; one that was flagged as cancelled and is held again loses the flag."""
        is_wanted = self.is_flagged and not isinstance(self.action, Cancel)
        return replace(result, is_wanted=is_wanted, **values)


@dataclass(frozen=True, slots=True)
class Batch:
    """Items by request id, in the order of their claim."""

    items: dict[int, Item] = field(default_factory=dict)
    refs: dict[int, ProtocolRef] = field(default_factory=dict)
    lease_s: float = 0.0

    def transfers(self) -> Iterator[Transfer]:
        return (item.action for item in self.items.values() if isinstance(item.action, Transfer))


def load_batch(tx: Tx, rows: Sequence[Row[Any]], patience: Patience) -> Batch:
    """The claimed requests with what was decided for each; six statements; one more each when some were tried before,
    and when a storage names a secret.
    """
    by_id = {storage.id: storage for storage in storages.snapshot(tx)}
    files = {row.id: row for row in requests.load_files(tx, [row.id for row in rows])}
    replicas: dict[int, list[Row[Any]]] = defaultdict(list)
    for replica in requests.load_replicas(tx, [row.did_id for row in rows]):
        replicas[replica.did_id].append(replica)
    # By the fence, which only grows: people may give a request all its attempts again.
    tried = [row for row in rows if row.fence > 1]
    failures, taken = requests.load_failures(tx, tried) if tried else ({}, set())
    wishes = _wishes(tx, rows, files, replicas, failures)
    items = {}
    for row, wish, action in zip(rows, wishes, decide(wishes, by_id, patience), strict=True):
        items[row.id] = _item(row, files[row.id], replicas[row.did_id], wish, action, row.id in taken)
    lease_s = min((row.claimed_until - tx.now for row in rows), default=timedelta()).total_seconds()
    return Batch(items, credentials.refs(tx), lease_s)


def _wishes(
    tx: Tx,
    rows: Sequence[Row[Any]],
    files: dict[int, Row[Any]],
    replicas: dict[int, list[Row[Any]]],
    failures: dict[tuple[int, int], int],
) -> list[Wish]:
    holds: dict[int, set[int | None]] = defaultdict(set)
    for hold in requests.load_holds(tx, rows):
        holds[hold.id].add(hold.source_expression_id)
    wanted = {expression for found in holds.values() for expression in found if expression is not None}
    matched = requests.load_expressions(tx, wanted)
    return [
        Wish(
            request_id=row.id,
            did_id=row.did_id,
            storage_id=row.storage_id,
            age_s=(tx.now - row.created_at).total_seconds(),
            # Without its replica row a request can promise nothing: it ends, and the judge starts anew.
            is_held=bool(holds[row.id]) and files[row.id].has_replica,
            source_ids=_sources(holds[row.id], matched),
            replicas=tuple(
                Candidate(other.storage_id, ReplicaState(other.state), failures.get((row.id, other.storage_id), 0))
                for other in replicas[row.did_id]
                if other.storage_id != row.storage_id
            ),
        )
        for row in rows
    ]


def _sources(expressions: set[int | None], matched: dict[int, frozenset[int]]) -> frozenset[int] | None:
    """What at least one of the locks allows as a source; None is anywhere."""
    if None in expressions:
        return None
    return frozenset().union(*(matched.get(expression, frozenset()) for expression in expressions if expression))


def _item(
    row: Row[Any], file: Row[Any], replicas: Sequence[Row[Any]], wish: Wish, action: Action, is_taken: bool
) -> Item:
    source_id = action.source_id if isinstance(action, Transfer) else None
    derived = derived_path(file.scope, file.name)
    source_path = next((other.path for other in replicas if other.storage_id == source_id and other.path), derived)
    return Item(
        request_id=row.id,
        fence=row.fence,
        attempts=row.attempts,
        did_id=row.did_id,
        storage_id=row.storage_id,
        size_bytes=row.size_bytes,
        is_repair=row.is_repair,
        is_flagged=row.is_cancelled,
        is_taken=is_taken,
        checksums=Checksums(file.adler32, file.md5, file.sha256),
        path=file.path or derived,
        source_path=source_path,
        wish=wish,
        action=action,
    )
