"""Sites, storages and how to speak to them: the snapshot that planners work on."""

from __future__ import annotations

from collections.abc import Iterable

from dlm.db.engine import Tx
from dlm.types import ProtocolRef, Storage


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
    """The preferred protocol of each storage, by storage id; one statement.

    Its `storage_uuid` is what the root must show: the storage's uuid, or the seal of a root without a marker.
    """
    ids = None if storage_ids is None else sorted(set(storage_ids))
    rows = tx.rows(
        """SELECT DISTINCT ON (s.id) s.id, s.name, coalesce(p.marker, s.uuid::text) AS uuid, p.scheme, p.prefix, p.credentials
             FROM storage s JOIN protocol p ON p.storage_id = s.id
            WHERE %(ids)s::int[] IS NULL OR s.id = ANY (%(ids)s::int[])
            ORDER BY s.id, p.priority DESC, p.id""",
        ids=ids,
    )
    return {row.id: ProtocolRef(row.id, row.name, row.uuid, row.scheme, row.prefix, row.credentials) for row in rows}


def set_available(tx: Tx, storage_id: int, reason: str | None) -> bool:
    """Record whether the storage's marker was seen (reason None) and say whether that changed; one statement."""
    changed = tx.run(
        """UPDATE storage SET is_available = %(reason)s::text IS NULL, unavailable_reason = %(reason)s, looked_at = %(now)s
            WHERE id = %(id)s AND (is_available IS DISTINCT FROM (%(reason)s::text IS NULL))""",
        id=storage_id,
        reason=reason,
    )
    return changed.rowcount > 0
