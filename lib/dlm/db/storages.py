"""Sites, storages and how to speak to them: the snapshot that planners work on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Row

from dlm.db.engine import Tx, json
from dlm.types import ProtocolRef, Storage

_COLUMNS = """s.id, s.uuid, s.name, t.name AS site, t.country, s.type, s.phase, s.capacity_bytes, s.min_free_bytes,
              s.can_read, s.can_write, s.can_delete, s.switch_reason, s.is_available, s.unavailable_reason, s.looked_at,
              s.reap, s.undo_window_s, s.attributes, s.created_at, s.deleted_at"""
_FROM = "storage s JOIN site t ON t.id = s.site_id"


def snapshot(tx: Tx) -> list[Storage]:
    """Every storage that is not deleted, by id, as one consistent set; one statement."""
    return [
        Storage(
            id=row.id,
            name=row.name,
            site=row.site,
            country=row.country,
            type=row.type,
            phase=row.phase,
            free_bytes=row.free_bytes,
            can_read=row.can_read,
            can_write=row.can_write,
            can_delete=row.can_delete,
            is_available=row.is_available,
            attributes=row.attributes,
            reason=row.unavailable_reason or row.switch_reason,
        )
        for row in tx.rows(
            """SELECT s.id, s.name, t.name AS site, t.country, s.type, s.phase, s.can_read, s.can_write, s.can_delete,
                      s.is_available, s.attributes, s.unavailable_reason, s.switch_reason,
                      s.capacity_bytes - s.min_free_bytes - u.used_bytes - u.reserved_bytes AS free_bytes
                 FROM storage s JOIN site t ON t.id = s.site_id JOIN storage_usage u ON u.storage_id = s.id
                WHERE s.deleted_at IS NULL ORDER BY s.id"""
        )
    ]


def protocols(tx: Tx, storage_ids: Iterable[int] | None = None) -> dict[int, ProtocolRef]:
    """The preferred protocol of each storage, by storage id; without ids of all that are not retired; one statement.

    Its `storage_uuid` is what the root must show: the storage's uuid, or the seal of a root without a marker.
    """
    ids = None if storage_ids is None else sorted(set(storage_ids))
    rows = tx.rows(
        """SELECT DISTINCT ON (s.id) s.id AS storage_id, s.name AS storage_name,
                  coalesce(p.marker, s.uuid::text) AS storage_uuid,
                  p.scheme, p.prefix, p.credentials, p.options
             FROM storage s JOIN protocol p ON p.storage_id = s.id
            WHERE CASE WHEN %(ids)s::int[] IS NULL THEN s.deleted_at IS NULL ELSE s.id = ANY (%(ids)s::int[]) END
            ORDER BY s.id, p.priority DESC, p.id""",
        ids=ids,
    )
    return {row.storage_id: ProtocolRef(**row._asdict()) for row in rows}


def set_available(tx: Tx, storage_id: int, reason: str | None) -> bool:
    """Record whether the storage's marker was seen (reason None) and say whether that changed; one statement."""
    changed = tx.run(
        """UPDATE storage
              SET is_available = %(reason)s::text IS NULL, unavailable_reason = %(reason)s, looked_at = %(now)s
            WHERE id = %(id)s AND (is_available IS DISTINCT FROM (%(reason)s::text IS NULL))""",
        id=storage_id,
        reason=reason,
    )
    return changed.rowcount > 0


def look_again(tx: Tx, names: Iterable[str]) -> None:
    """Have the auditor look at these storages at its next pass, but for those being changed by others; one statement."""
    tx.run(
        """WITH due AS (SELECT id FROM storage WHERE name = ANY (%(names)s::text[]) AND deleted_at IS NULL
                         ORDER BY id FOR UPDATE SKIP LOCKED)
           UPDATE storage s SET looked_at = NULL FROM due WHERE s.id = due.id""",
        names=list(names),
    )


# ------------------------------------------------------------------------------------- for administrators


def get(tx: Tx, name: str) -> Row[Any] | None:
    """The storage of that name that is not deleted; one statement."""
    return tx.one(f"SELECT {_COLUMNS} FROM {_FROM} WHERE s.name = %(name)s AND s.deleted_at IS NULL", name=name)


def list_page(tx: Tx, after: str = "", limit: int = 100) -> Sequence[Row[Any]]:
    """At most `limit` storages that are not deleted by name, after the name `after`; one statement."""
    return tx.rows(
        f"""SELECT {_COLUMNS} FROM {_FROM} WHERE s.name > %(after)s AND s.deleted_at IS NULL
             ORDER BY s.name LIMIT %(limit)s""",
        after=after,
        limit=limit,
    )


def hold(tx: Tx, name: str) -> Row[Any] | None:
    """The storage of that name that is not deleted, its row locked; one statement."""
    return tx.one(
        f"SELECT {_COLUMNS} FROM {_FROM} WHERE s.name = %(name)s AND s.deleted_at IS NULL FOR UPDATE OF s", name=name
    )


def begin(tx: Tx, site_id: int, values: Mapping[str, Any]) -> Row[Any] | None:
    """(id, uuid) of a storage that is coming, with its usage row and without protocols; one statement.

    One of this name that has not come yet is begun anew, with its uuid; None when the name was ever used.
    """
    return tx.one(
        """WITH made AS (
               INSERT INTO storage AS s (name, site_id, type, phase, capacity_bytes, min_free_bytes,
                                    can_read, can_write, can_delete, switch_reason,
                                    reap, undo_window_s, attributes, is_coming, created_at, deleted_at)
               VALUES (%(name)s, %(site_id)s, %(type)s, %(phase)s, %(capacity_bytes)s, %(min_free_bytes)s,
                       %(can_read)s, %(can_write)s, %(can_delete)s, %(switch_reason)s,
                       %(reap)s, %(undo_window_s)s, %(attributes)s, true, %(now)s, %(now)s)
               ON CONFLICT (name) DO UPDATE
                  SET site_id = excluded.site_id, type = excluded.type, phase = excluded.phase,
                      capacity_bytes = excluded.capacity_bytes, min_free_bytes = excluded.min_free_bytes,
                      can_read = excluded.can_read, can_write = excluded.can_write, can_delete = excluded.can_delete,
                      switch_reason = excluded.switch_reason, reap = excluded.reap,
                      undo_window_s = excluded.undo_window_s, attributes = excluded.attributes,
                      created_at = excluded.created_at, deleted_at = excluded.deleted_at
                WHERE s.is_coming
               RETURNING id, uuid),
                counted AS (INSERT INTO storage_usage (storage_id) SELECT id FROM made ON CONFLICT DO NOTHING),
                spoken AS (DELETE FROM protocol p USING made WHERE p.storage_id = made.id)
           SELECT id, uuid FROM made""",
        site_id=site_id,
        **{**values, "attributes": json(dict(values["attributes"]))},
    )


def finish(tx: Tx, storage_id: int, begun_at: datetime) -> bool:
    """Let everybody see the storage; False if it came, or was begun anew, meanwhile; one statement."""
    came = tx.run(
        """UPDATE storage SET is_coming = false, deleted_at = NULL
            WHERE id = %(id)s AND is_coming AND created_at = %(begun_at)s""",
        id=storage_id,
        begun_at=begun_at,
    )
    return came.rowcount > 0


def update(tx: Tx, storage_id: int, values: Mapping[str, Any]) -> None:
    """Set everything about a storage that may change; one statement."""
    tx.run(
        """UPDATE storage
              SET type = %(type)s, phase = %(phase)s,
                  capacity_bytes = %(capacity_bytes)s, min_free_bytes = %(min_free_bytes)s,
                  can_read = %(can_read)s, can_write = %(can_write)s, can_delete = %(can_delete)s,
                  switch_reason = %(switch_reason)s, reap = %(reap)s, undo_window_s = %(undo_window_s)s,
                  attributes = %(attributes)s
            WHERE id = %(id)s""",
        id=storage_id,
        **{**values, "attributes": json(dict(values["attributes"]))},
    )


def insert_protocol(tx: Tx, storage_id: int, values: Mapping[str, Any]) -> None:
    """Add a way (scheme, prefix, credentials, options, priority) to speak to the storage; one statement."""
    tx.run(
        """INSERT INTO protocol (storage_id, scheme, prefix, credentials, options, priority)
           VALUES (%(storage_id)s, %(scheme)s, %(prefix)s, %(credentials)s, %(options)s, %(priority)s)""",
        storage_id=storage_id,
        **{**values, "options": json(dict(values["options"]))},
    )


def update_protocol(
    tx: Tx, storage_id: int, scheme: str, credentials: str | None, options: Mapping[str, str]
) -> None:
    """Set what the protocol is spoken with; one statement."""
    tx.run(
        """UPDATE protocol SET credentials = %(credentials)s, options = %(options)s
            WHERE storage_id = %(storage_id)s AND scheme = %(scheme)s""",
        storage_id=storage_id,
        scheme=scheme,
        credentials=credentials,
        options=json(dict(options)),
    )


def list_protocols(tx: Tx, storage_id: int) -> Sequence[Row[Any]]:
    """The storage's protocols, the preferred one first; one statement."""
    return tx.rows(
        """SELECT scheme, prefix, credentials, options, priority, marker FROM protocol
            WHERE storage_id = %(storage_id)s ORDER BY priority DESC, id""",
        storage_id=storage_id,
    )


def set_marker(tx: Tx, storage_id: int, marker: str | None) -> None:
    """Note how the storage's root is known: by this seal, or (None) by the marker in it; one statement."""
    tx.run("UPDATE protocol SET marker = %(marker)s WHERE storage_id = %(id)s", id=storage_id, marker=marker)


def hold_usage(tx: Tx, storage_id: int) -> None:
    """Lock the storage's usage row, which whoever adds replicas writes last; one statement."""
    tx.run("SELECT FROM storage_usage WHERE storage_id = %(id)s FOR UPDATE", id=storage_id)


def holds_anything(tx: Tx, storage_id: int) -> bool:
    """True while the storage has a replica, in whatever state, or a lock; one statement."""
    return bool(
        tx.scalar(
            """SELECT EXISTS (SELECT FROM replica WHERE storage_id = %(id)s)
                   OR EXISTS (SELECT FROM lock WHERE storage_id = %(id)s AND NOT is_released)""",
            id=storage_id,
        )
    )


def delete(tx: Tx, storage_id: int) -> None:
    """Mark the storage as deleted; one statement. The row stays: events and attempts name it."""
    tx.run("UPDATE storage SET deleted_at = %(now)s WHERE id = %(id)s", id=storage_id)


def fill(tx: Tx, storage_id: int) -> Row[Any]:
    """What the storage holds and can hold (is_live, used_bytes, capacity_bytes); one statement."""
    row = tx.one(
        """SELECT s.deleted_at IS NULL AS is_live, u.used_bytes, s.capacity_bytes
             FROM storage s JOIN storage_usage u ON u.storage_id = s.id WHERE s.id = %(id)s""",
        id=storage_id,
    )
    assert row is not None
    return row
