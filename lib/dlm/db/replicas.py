"""Replicas: registering them in bulk, listing them, and what people say about them.

Registration writes in one order for everybody (DIDs by name, replicas, attachments, the dataset, usage), so that calls
which overlap wait for each other and never deadlock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Row

from dlm.db import arrays, query
from dlm.db.engine import Tx, json
from dlm.types import ReplicaState

_LISTED = """d.id AS did_id, c.name AS scope, d.name, s.name AS storage, r.storage_id, r.state, r.size_bytes,
             d.adler32, d.md5, d.sha256, r.path, r.created_at, r.verified_at, r.next_check_at, r.tombstone_at"""
_JOINED = """replica r JOIN did d ON d.id = r.did_id JOIN scope c ON c.id = d.scope_id
             JOIN storage s ON s.id = r.storage_id"""
_ARRAYS = """unnest(%(scope_ids)s::int[], %(names)s::text[], %(sizes)s::bigint[],
                    %(adler32)s::text[], %(md5)s::text[], %(sha256)s::text[])"""


@dataclass(frozen=True, slots=True)
class FileColumns:
    """Files as parallel array literals, made once and sent to several statements."""

    scope_ids: str
    names: str
    sizes: str
    adler32: str
    md5: str
    sha256: str

    def values(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in self.__slots__}


# --------------------------------------------------------------------------------------------------- registering


@dataclass(frozen=True, slots=True)
class Added:
    """DIDs, and bytes, of rows that were added."""

    ids: Sequence[int]
    size_bytes: int

    def __add__(self, other: Added) -> Added:
        return Added([*self.ids, *other.ids], self.size_bytes + other.size_bytes)


NOTHING = Added((), 0)


@dataclass(frozen=True, slots=True)
class Landing:
    """Where registered files stand: their storage, what is believed of them there, and the dataset they are put into."""

    storage_id: int
    state: ReplicaState
    verified_at: datetime | None
    next_check_at: datetime
    dataset_id: int | None

    def values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def insert_new(
    tx: Tx,
    files: FileColumns,
    paths: Sequence[str | None] | None,
    metadata: Sequence[Mapping[str, Any] | None] | None,
    landing: Landing,
    account_id: int | None,
) -> Added:
    """The files whose names are new, in the order of their names: DIDs, replicas and attachments; one statement.

    Nobody else can see a new DID, so what hangs on it cannot be there already, and no order of locks is to be kept.
    Without an account the files belong to the owner of their scope.
    """
    values: dict[str, Any] = {}
    columns, arrays_ = "scope_id, name, size_bytes, adler32, md5, sha256", _ARRAYS[:-1]
    said, returned = "", "id, scope_id, name, size_bytes"
    if metadata is not None:
        columns, arrays_ = f"{columns}, metadata", f"{arrays_}, %(metadata)s::jsonb[]"
        said, returned = f", said AS ({query.insert_entries('new')})", f"{returned}, metadata"
        values["metadata"] = [json(None if value is None else dict(value)) for value in metadata]
    path, joined = "NULL", ""
    if paths is not None:
        path = "p.path"
        joined = """JOIN unnest(%(scope_ids)s::int[], %(names)s::text[], %(paths)s::text[])
                         AS p (scope_id, name, path) USING (scope_id, name)"""
        values["paths"] = arrays.texts(paths)
    row = tx.one(
        f"""WITH new AS (
               INSERT INTO did (scope_id, kind, name, account_id, size_bytes, files,
                                adler32, md5, sha256, is_open, metadata, created_at)
               SELECT f.scope_id, 'file', f.name, coalesce(%(account_id)s, c.account_id), f.size_bytes, 1,
                      f.adler32, f.md5, f.sha256, false, {"NULL" if metadata is None else "f.metadata"}, %(now)s
                 FROM {arrays_}) AS f ({columns}) JOIN scope c ON c.id = f.scope_id
                ORDER BY f.scope_id, f.name COLLATE "C"
               ON CONFLICT (scope_id, name) DO NOTHING RETURNING {returned}),
            stands AS (
               INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at, verified_at, next_check_at, path)
               SELECT new.id, %(storage_id)s, %(state)s::replica_state, new.size_bytes, %(now)s, %(verified_at)s,
                      %(next_check_at)s, {path} FROM new {joined}),
            belongs AS (
               INSERT INTO attachment (parent_id, child_id, size_bytes)
               SELECT %(dataset_id)s, id, size_bytes FROM new WHERE %(dataset_id)s::bigint IS NOT NULL){said}
            SELECT array_agg(id) AS ids, coalesce(sum(size_bytes), 0)::bigint AS size_bytes FROM new""",
        account_id=account_id,
        **files.values(),
        **landing.values(),
        **values,
    )
    assert row is not None
    return Added(row.ids or (), row.size_bytes)


def match_files(tx: Tx, files: FileColumns) -> tuple[list[int], int | None]:
    """(the DID of each file, in order; the index of the first that the catalogue knows otherwise); one statement.

    Otherwise: it is no file, it has ended, its size differs, or a checksum known to both does.
    """
    row = tx.one(
        f"""SELECT array_agg(d.id ORDER BY f.ordinal) AS ids,
                   min(f.ordinal) FILTER (
                       WHERE d.kind <> 'file' OR d.deleted_at IS NOT NULL OR d.size_bytes <> f.size_bytes
                          OR d.adler32 <> f.adler32 OR d.md5 <> f.md5 OR d.sha256 <> f.sha256) AS wrong
              FROM {_ARRAYS} WITH ORDINALITY AS f (scope_id, name, size_bytes, adler32, md5, sha256, ordinal)
              JOIN did d ON d.scope_id = f.scope_id AND d.name = f.name""",
        **files.values(),
    )
    assert row is not None
    return row.ids, None if row.wrong is None else row.wrong - 1


def path_owner(tx: Tx, storage_id: int, files: FileColumns, paths: Sequence[str | None]) -> Row[Any] | None:
    """(ordinal, scope, name) of the first path that another DID's replica has there, ordinals from 0; one statement."""
    return tx.one(
        """SELECT f.ordinal - 1 AS ordinal, c.name AS scope, d.name
             FROM unnest(%(scope_ids)s::int[], %(names)s::text[], %(paths)s::text[])
                  WITH ORDINALITY AS f (scope_id, name, path, ordinal)
             JOIN replica r ON r.storage_id = %(storage_id)s AND r.path = f.path
             JOIN did d ON d.id = r.did_id JOIN scope c ON c.id = d.scope_id
            WHERE f.path IS NOT NULL AND (d.scope_id, d.name) <> (f.scope_id, f.name) ORDER BY f.ordinal LIMIT 1""",
        storage_id=storage_id,
        scope_ids=files.scope_ids,
        names=files.names,
        paths=arrays.texts(paths),
    )


def insert(
    tx: Tx, did_ids: Sequence[int], sizes: str, paths: Sequence[str | None] | None, landing: Landing
) -> Added:
    """The replicas that were not there yet; one statement. `sizes` is an array literal."""
    row = tx.one(
        """WITH new AS (
               INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at, verified_at, next_check_at, path)
               SELECT f.did_id, %(storage_id)s, %(state)s::replica_state, f.size_bytes, %(now)s, %(verified_at)s,
                      %(next_check_at)s, f.path
                 FROM unnest(%(ids)s::bigint[], %(sizes)s::bigint[], %(paths)s::text[]) AS f (did_id, size_bytes, path)
                ORDER BY f.did_id
               ON CONFLICT (did_id, storage_id) DO NOTHING RETURNING did_id, size_bytes)
           SELECT array_agg(did_id) AS ids, coalesce(sum(size_bytes), 0)::bigint AS size_bytes FROM new""",
        ids=arrays.integers(did_ids),
        sizes=sizes,
        paths="{}" if paths is None else arrays.texts(paths),
        **landing.values(),
    )
    assert row is not None
    return Added(row.ids or (), row.size_bytes)


def first_in_the_way(
    tx: Tx, storage_id: int, did_ids: Sequence[int], paths: Sequence[str | None] | None
) -> Row[Any] | None:
    """(ordinal, state, path) of the first replica that cannot be registered again, ordinals from 0; one statement.

    It is being copied or deleted, its path still rests after a deletion, or it stands at another path.
    """
    return tx.one(
        """SELECT f.ordinal - 1 AS ordinal, r.state, r.path
             FROM unnest(%(ids)s::bigint[], %(paths)s::text[]) WITH ORDINALITY AS f (did_id, path, ordinal)
             JOIN replica r ON r.did_id = f.did_id AND r.storage_id = %(storage_id)s
            WHERE r.state IN ('copying', 'deleting', 'deleted') OR r.path IS DISTINCT FROM f.path
            ORDER BY f.ordinal LIMIT 1""",
        storage_id=storage_id,
        ids=arrays.integers(did_ids),
        paths="{}" if paths is None else arrays.texts(paths),
    )


def revive(tx: Tx, storage_id: int, did_ids: Sequence[int]) -> Sequence[Row[Any]]:
    """Take bad and lost replicas for registered anew, to be verified; (did_id, size_bytes, was_lost); one statement.

    Not before the path has rested: until then a paused worker may still delete what stands there.
    """
    return tx.rows(
        """WITH held AS (
               SELECT did_id, state FROM replica
                WHERE storage_id = %(storage_id)s AND did_id = ANY (%(ids)s::bigint[]) AND state IN ('bad', 'lost')
                ORDER BY did_id FOR UPDATE)
           UPDATE replica r SET state = 'unverified', verified_at = NULL,
                  next_check_at = greatest(%(now)s, r.quiet_until)
             FROM held WHERE r.did_id = held.did_id AND r.storage_id = %(storage_id)s
           RETURNING r.did_id, r.size_bytes, held.state = 'lost' AS was_lost""",
        storage_id=storage_id,
        ids=arrays.integers(did_ids),
    )


# --------------------------------------------------------------------------------------------------- listing


def list_of_files(tx: Tx, did_ids: Iterable[int]) -> Iterator[Row[Any]]:
    """Every replica of these files, by file and storage, streamed; one statement."""
    return tx.stream(
        f"SELECT {_LISTED} FROM {_JOINED} WHERE r.did_id = ANY (%(ids)s::bigint[]) ORDER BY r.did_id, r.storage_id",
        ids=arrays.integers(did_ids),
    )


def list_of_dataset(tx: Tx, dataset_id: int) -> Iterator[Row[Any]]:
    """Every replica of the dataset's files, by file and storage, streamed; one statement."""
    return tx.stream(
        f"""SELECT {_LISTED} FROM attachment t JOIN ({_JOINED}) ON r.did_id = t.child_id
             WHERE t.parent_id = %(id)s ORDER BY t.child_id, r.storage_id""",
        id=dataset_id,
    )


def list_of_datasets(tx: Tx, dataset_ids: Iterable[int]) -> Iterator[Row[Any]]:
    """Every replica of the datasets' files, each once, by file and storage, streamed; one statement."""
    return tx.stream(
        f"""SELECT {_LISTED}
              FROM (SELECT DISTINCT child_id FROM attachment WHERE parent_id = ANY (%(ids)s::bigint[])) t
              JOIN ({_JOINED}) ON r.did_id = t.child_id
             ORDER BY t.child_id, r.storage_id""",
        ids=arrays.integers(dataset_ids),
    )


def page_of_files(
    tx: Tx, file_ids: Sequence[int], dataset_ids: Sequence[int], after: tuple[int, int], limit: int
) -> Sequence[Row[Any]]:
    """At most `limit` replicas of these files and of the datasets' files, after (did_id, storage_id); one statement.

    Each dataset gives its own first `limit` by index order, so a page costs the same wherever in a large one it stands.
    """
    return tx.rows(
        f"""WITH page AS (
                SELECT r.did_id, r.storage_id
                  FROM unnest(%(files)s::bigint[]) AS f (id) JOIN replica r ON r.did_id = f.id
                 WHERE (r.did_id, r.storage_id) > (%(did_id)s::bigint, %(storage_id)s::int)
                 UNION
                SELECT first.did_id, first.storage_id
                  FROM unnest(%(datasets)s::bigint[]) AS p (id)
                 CROSS JOIN LATERAL (
                       SELECT r.did_id, r.storage_id FROM attachment t JOIN replica r ON r.did_id = t.child_id
                        WHERE t.parent_id = p.id AND t.child_id >= %(did_id)s::bigint
                          AND (r.did_id, r.storage_id) > (%(did_id)s::bigint, %(storage_id)s::int)
                        ORDER BY t.child_id, r.storage_id LIMIT %(limit)s) AS first
                 ORDER BY did_id, storage_id LIMIT %(limit)s)
            SELECT {_LISTED} FROM page JOIN ({_JOINED}) ON r.did_id = page.did_id AND r.storage_id = page.storage_id
             ORDER BY r.did_id, r.storage_id""",
        did_id=after[0],
        storage_id=after[1],
        files=arrays.integers(file_ids),
        datasets=arrays.integers(dataset_ids),
        limit=limit,
    )


def page_of_storage(
    tx: Tx, storage_id: int, state: ReplicaState | None, after_did_id: int, limit: int
) -> Sequence[Row[Any]]:
    """At most `limit` replicas at the storage, in that state if one is named, after the DID; one statement."""
    return tx.rows(
        f"""SELECT {_LISTED} FROM {_JOINED}
             WHERE r.storage_id = %(storage_id)s AND r.did_id > %(after)s
               AND (%(state)s::replica_state IS NULL OR r.state = %(state)s::replica_state)
             ORDER BY r.did_id LIMIT %(limit)s""",
        storage_id=storage_id,
        state=None if state is None else str(state),
        after=after_did_id,
        limit=limit,
    )


def readable(tx: Tx, did_id: int) -> Sequence[Row[Any]]:
    """The replicas that can be read now, the best first: verified and staying before others; one statement."""
    return tx.rows(
        f"""SELECT {_LISTED} FROM {_JOINED}
             WHERE r.did_id = %(did_id)s AND r.state IN ('available', 'unverified') AND s.can_read AND s.is_available
             ORDER BY r.state = 'available' DESC, r.tombstone_at IS NULL DESC,
                      r.verified_at DESC NULLS LAST, r.storage_id""",
        did_id=did_id,
    )


# --------------------------------------------------------------------------------------------------- found wrong


def hold_files(tx: Tx, did_ids: Iterable[int]) -> Sequence[Row[Any]]:
    """Lock every replica of these files, in key order: (did_id, storage_id, state); one statement.

    Whoever demotes a replica first holds its fellows. Otherwise two of them each take the other's for what stays.
    """
    return tx.rows(
        """SELECT did_id, storage_id, state FROM replica WHERE did_id = ANY (%(ids)s::bigint[])
            ORDER BY did_id, storage_id FOR UPDATE""",
        ids=arrays.integers(sorted(set(did_ids))),
    )


def mark_bad(tx: Tx, replicas: Sequence[tuple[int, int]]) -> None:
    """Mark replicas (did_id, storage_id) as bad, whose rows are held; one statement. Their bytes stay counted."""
    tx.run(
        """UPDATE replica r SET state = 'bad', next_check_at = NULL
             FROM unnest(%(dids)s::bigint[], %(storages)s::int[]) AS b (did_id, storage_id)
            WHERE r.did_id = b.did_id AND r.storage_id = b.storage_id AND r.state IN ('available', 'unverified')""",
        dids=arrays.integers(did for did, _ in replicas),
        storages=arrays.integers(storage for _, storage in replicas),
    )
