"""DIDs and what contains what. Collections end, and are never removed; a name is used once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Row

from dlm.db import arrays, query
from dlm.db.engine import Tx, json
from dlm.types import DidKind, Query

CONTAINER_LOCK = 0x646C6D01  # advisory: two attaches of collections could each pass a cycle check alone

_COLUMNS = """d.id, s.name AS scope, d.name, d.kind, a.name AS account, d.size_bytes, d.files,
              d.adler32, d.md5, d.sha256, d.is_open, d.is_monotonic, d.metadata,
              d.created_at, d.expires_at, d.deleted_at"""
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


def totals_below(tx: Tx, container_ids: Iterable[int]) -> dict[int, tuple[int, int]]:
    """(files, bytes) of the datasets below each container, each dataset once; one statement that reads no file."""
    rows = tx.rows(
        """WITH RECURSIVE below (root_id, did_id, kind) AS (
               SELECT id, id, 'container'::did_kind FROM unnest(%(ids)s::bigint[]) AS r (id)
                UNION
               SELECT b.root_id, d.id, d.kind
                 FROM below b JOIN attachment a ON a.parent_id = b.did_id AND b.kind = 'container' JOIN did d ON d.id = a.child_id)
           SELECT b.root_id, coalesce(sum(d.files), 0)::bigint AS files, coalesce(sum(d.size_bytes), 0)::bigint AS size_bytes
             FROM below b LEFT JOIN did d ON d.id = b.did_id AND d.kind = 'dataset' GROUP BY 1""",
        ids=arrays.integers(container_ids),
    )
    return {row.root_id: (row.files, row.size_bytes) for row in rows}


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


# --------------------------------------------------------------------------------------------------- finding


def get(tx: Tx, scope: str, name: str) -> Row[Any] | None:
    """The DID of that name, ended or not; one statement."""
    return tx.one(
        f"SELECT {_COLUMNS} FROM {_FROM} WHERE s.name = %(scope)s AND d.name = %(name)s",
        scope=scope,
        name=name,
    )


def near(tx: Tx, scope: str, name: str) -> list[str]:
    """The names before and after the name in its scope, those that have not ended; one statement, bounded."""
    rows = tx.rows(
        """WITH s AS (SELECT id FROM scope WHERE name = %(scope)s)
           (SELECT d.name FROM did d, s WHERE d.scope_id = s.id AND d.name >= %(name)s AND d.deleted_at IS NULL
             ORDER BY d.name LIMIT 20)
           UNION ALL
           (SELECT d.name FROM did d, s WHERE d.scope_id = s.id AND d.name < %(name)s AND d.deleted_at IS NULL
             ORDER BY d.name DESC LIMIT 20)""",
        scope=scope,
        name=name,
    )
    return [row.name for row in rows]


def resolve(tx: Tx, scopes: Sequence[str], names: Sequence[str]) -> Sequence[Row[Any]]:
    """(id, kind, size_bytes, files, adler32, md5, sha256, is_ended) per (scope, name), in order; id null where there
    is none; one statement."""
    return tx.rows(
        """SELECT d.id, d.kind, d.size_bytes, d.files, d.adler32, d.md5, d.sha256, d.deleted_at IS NOT NULL AS is_ended
             FROM unnest(%(scopes)s::text[], %(names)s::text[]) WITH ORDINALITY AS r (scope, name, ordinal)
             LEFT JOIN scope s ON s.name = r.scope
             LEFT JOIN did d ON d.scope_id = s.id AND d.name = r.name
            ORDER BY r.ordinal""",
        scopes=arrays.texts(scopes),
        names=arrays.texts(names),
    )


ANY = Query(((),))  # one alternative that asks for nothing


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which DIDs to list: `like` is a LIKE pattern with backslash escapes, `query` asks what is said about them."""

    like: str | None = None
    kind: DidKind | None = None
    query: Query | None = None


def list_in_scope(tx: Tx, scope_id: int, wanted: Wanted, after: str = "", limit: int = 100) -> Sequence[Row[Any]]:
    """At most `limit` DIDs of the scope that have not ended, by name, after the name `after`.

    One statement; with a pattern or query two, the first for plans that know the values.
    """
    values: dict[str, Any] = {}

    def bind(value: Any) -> str:
        values[f"v{len(values)}"] = value
        return f"%(v{len(values) - 1})s"

    if wanted.like is not None or wanted.query is not None:
        tx.run("SELECT set_config('plan_cache_mode', 'force_custom_plan', true) AS plans, set_config('jit', 'off', true) AS jit")
    base = "d.scope_id = %(scope_id)s AND d.name > %(after)s AND d.deleted_at IS NULL"
    if wanted.like is not None:
        base += f" AND d.name LIKE {bind(wanted.like)}"
    if wanted.kind is not None:
        base += f" AND d.kind = {bind(str(wanted.kind))}::did_kind"
    found = query.first_found(wanted.query or ANY, base, bind)
    return tx.rows(
        f"SELECT {_COLUMNS} FROM ({found}) AS found JOIN ({_FROM}) ON d.id = found.id ORDER BY d.name",
        scope_id=scope_id,
        after=after,
        limit=limit,
        **values,
    )


def contents(tx: Tx, parent_id: int, after_id: int = 0, limit: int = 100) -> Sequence[Row[Any]]:
    """At most `limit` children of a collection, by id, after the id `after_id`; one statement."""
    return tx.rows(
        f"""SELECT {_COLUMNS} FROM attachment t JOIN ({_FROM}) ON d.id = t.child_id
             WHERE t.parent_id = %(parent_id)s AND t.child_id > %(after_id)s
             ORDER BY t.child_id LIMIT %(limit)s""",
        parent_id=parent_id,
        after_id=after_id,
        limit=limit,
    )


def parents(tx: Tx, child_id: int, after_id: int = 0, limit: int = 100) -> Sequence[Row[Any]]:
    """At most `limit` collections that hold the DID directly, by id, after the id `after_id`; one statement."""
    return tx.rows(
        f"""SELECT {_COLUMNS} FROM attachment t JOIN ({_FROM}) ON d.id = t.parent_id
             WHERE t.child_id = %(child_id)s AND t.parent_id > %(after_id)s
             ORDER BY t.parent_id LIMIT %(limit)s""",
        child_id=child_id,
        after_id=after_id,
        limit=limit,
    )


def child_kinds(tx: Tx, parent_id: int, besides: Sequence[int] = ()) -> frozenset[str]:
    """The kinds of what the collection holds now; one statement."""
    rows = tx.rows(
        """SELECT DISTINCT d.kind FROM attachment t JOIN did d ON d.id = t.child_id
            WHERE t.parent_id = %(parent_id)s AND t.child_id <> ALL (%(besides)s::bigint[])""",
        parent_id=parent_id,
        besides=arrays.integers(besides),
    )
    return frozenset(row.kind for row in rows)


def live_parent(tx: Tx, did_id: int) -> Row[Any] | None:
    """Some collection that holds the DID and has not ended: (scope, name); one statement."""
    return tx.one(
        """SELECT s.name AS scope, d.name
             FROM attachment t JOIN did d ON d.id = t.parent_id JOIN scope s ON s.id = d.scope_id
            WHERE t.child_id = %(did_id)s AND d.deleted_at IS NULL ORDER BY d.id LIMIT 1""",
        did_id=did_id,
    )


def has_locked_rule(tx: Tx, did_id: int) -> bool:
    """True when a rule on the DID may not be cancelled; one statement."""
    return bool(
        tx.scalar(
            """SELECT EXISTS (SELECT FROM rule WHERE did_id = %(did_id)s AND is_locked
                                AND state NOT IN ('letting_go', 'gone'))""",
            did_id=did_id,
        )
    )


# --------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True, slots=True)
class NewRow:
    """A collection to insert."""

    scope_id: int
    name: str
    kind: DidKind
    is_monotonic: bool
    metadata: Mapping[str, Any] | None
    expires_at: datetime | None


def insert_collections(tx: Tx, new: Sequence[NewRow], account_id: int | None) -> Sequence[Row[Any]]:
    """(ordinal, id) of the collections made, ordinals from 1; those whose name exists are left out; one statement.

    Without an account they belong to the owner of their scope.
    """
    return tx.rows(
        f"""WITH new AS (
               SELECT * FROM unnest(%(scope_ids)s::int[], %(names)s::text[], %(kinds)s::did_kind[],
                                    %(monotonic)s::bool[], %(metadata)s::jsonb[], %(expiries)s::timestamptz[])
                    WITH ORDINALITY AS c (scope_id, name, kind, is_monotonic, metadata, expires_at, ordinal)),
                made AS (
               INSERT INTO did (scope_id, name, kind, is_monotonic, metadata, expires_at, account_id, created_at)
               SELECT scope_id, new.name, kind, is_monotonic, metadata, expires_at,
                      coalesce(%(account_id)s, s.account_id), %(now)s
                 FROM new JOIN scope s ON s.id = scope_id ORDER BY scope_id, new.name
               ON CONFLICT (scope_id, name) DO NOTHING RETURNING id, scope_id, name, metadata),
                said AS ({query.insert_entries("made")})
           SELECT new.ordinal::int, made.id FROM made JOIN new USING (scope_id, name) ORDER BY 1""",
        scope_ids=arrays.integers(row.scope_id for row in new),
        names=arrays.texts([row.name for row in new]),
        kinds=[str(row.kind) for row in new],
        monotonic=[row.is_monotonic for row in new],
        metadata=[json(row.metadata and dict(row.metadata)) for row in new],
        expiries=[row.expires_at for row in new],
        account_id=account_id,
    )


def attach(tx: Tx, parent_id: int, child_ids: Sequence[int], sizes: Sequence[int]) -> Row[Any]:
    """(ids, size_bytes) of the children that were not there yet, `ids` null for none; one statement."""
    row = tx.one(
        """WITH new AS (
               INSERT INTO attachment (parent_id, child_id, size_bytes)
               SELECT %(parent_id)s, child_id, size_bytes
                 FROM unnest(%(ids)s::bigint[], %(sizes)s::bigint[]) AS c (child_id, size_bytes) ORDER BY child_id
               ON CONFLICT DO NOTHING RETURNING child_id, size_bytes)
           SELECT array_agg(child_id) AS ids, coalesce(sum(size_bytes), 0)::bigint AS size_bytes FROM new""",
        parent_id=parent_id,
        ids=arrays.integers(child_ids),
        sizes=arrays.integers(sizes),
    )
    assert row is not None
    return row


def detach(tx: Tx, parent_id: int, child_ids: Sequence[int]) -> Row[Any]:
    """(ids, size_bytes) of the children that were there and are gone now, `ids` null for none; one statement."""
    row = tx.one(
        """WITH held AS (
               SELECT child_id FROM attachment WHERE parent_id = %(parent_id)s AND child_id = ANY (%(ids)s::bigint[])
                ORDER BY child_id FOR UPDATE),
                gone AS (
               DELETE FROM attachment t USING held WHERE t.parent_id = %(parent_id)s AND t.child_id = held.child_id
               RETURNING t.child_id, t.size_bytes)
           SELECT array_agg(child_id) AS ids, coalesce(sum(size_bytes), 0)::bigint AS size_bytes FROM gone""",
        parent_id=parent_id,
        ids=arrays.integers(child_ids),
    )
    assert row is not None
    return row


def change_totals(tx: Tx, did_id: int, files: int, size_bytes: int) -> bool:
    """Add to a collection's totals, if it is open and has not ended; one statement.

    The guard stands on the row itself: a close that commits while an attach runs makes this False, and the attach
    must then roll back. So what a closed collection holds, and its totals, never change.
    """
    done = tx.run(
        """UPDATE did SET files = files + %(files)s, size_bytes = size_bytes + %(size_bytes)s
            WHERE id = %(did_id)s AND is_open AND deleted_at IS NULL""",
        did_id=did_id,
        files=files,
        size_bytes=size_bytes,
    )
    return done.rowcount == 1


def hold(tx: Tx, scope: str, name: str) -> Row[Any] | None:
    """The DID of that name, its row locked; one statement."""
    return tx.one(
        f"SELECT {_COLUMNS} FROM {_FROM} WHERE s.name = %(scope)s AND d.name = %(name)s FOR UPDATE OF d",
        scope=scope,
        name=name,
    )


def set_open(tx: Tx, did_id: int, is_open: bool) -> None:
    """Open or close a collection; one statement."""
    tx.run("UPDATE did SET is_open = %(is_open)s WHERE id = %(did_id)s", did_id=did_id, is_open=is_open)


def set_metadata(tx: Tx, did_id: int, metadata: Mapping[str, Any] | None) -> None:
    """Replace the DID's metadata, and what filters ask of it; its row is held; one statement."""
    tx.run(
        f"""WITH said AS (
               UPDATE did SET metadata = %(value)s WHERE id = %(did_id)s RETURNING id, scope_id, metadata),
            gone AS (
               DELETE FROM metadatum m USING said
                WHERE m.did_id = said.id AND NOT coalesce(said.metadata, '{{}}') ? m.key)
            {query.insert_entries("said")}
            ON CONFLICT (did_id, key) DO UPDATE SET number = excluded.number, text = excluded.text""",
        did_id=did_id,
        value=json(dict(metadata)) if metadata else None,
    )


def set_expiry(tx: Tx, did_id: int, expires_at: datetime | None) -> None:
    """Set or take away the moment at which the DID ends; one statement."""
    tx.run("UPDATE did SET expires_at = %(at)s WHERE id = %(did_id)s", did_id=did_id, at=expires_at)


def end(tx: Tx, did_id: int) -> None:
    """End a DID now; one statement. The row stays: its name is never used again."""
    tx.run("UPDATE did SET deleted_at = %(now)s, is_open = false WHERE id = %(did_id)s", did_id=did_id)


def end_due(tx: Tx, limit: int) -> list[int]:
    """End at most `limit` DIDs whose time has come; their ids, in order; one statement.

    A DID with a rule that may not be cancelled waits until that rule is unlocked.
    """
    rows = tx.rows(
        """UPDATE did SET deleted_at = %(now)s, is_open = false
            WHERE id = ANY (ARRAY(
                SELECT id FROM did d
                 WHERE expires_at <= %(now)s AND deleted_at IS NULL
                   AND NOT EXISTS (SELECT FROM rule r WHERE r.did_id = d.id AND r.is_locked
                                      AND r.state NOT IN ('letting_go', 'gone'))
                 ORDER BY expires_at LIMIT %(limit)s FOR UPDATE OF d SKIP LOCKED))
           RETURNING id""",
        limit=limit,
    )
    return sorted(row.id for row in rows)
