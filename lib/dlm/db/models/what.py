"""DIDs, what they hold, and their replicas."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Index, Integer, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

from dlm.db.models.schema import did_kind, false, key, metadata, moment, replica_state, size, true, zero

# size_bytes and files of a dataset are kept by attach and detach; of a container they stay 0.
did = Table(
    "did",
    metadata,
    key(),
    Column("scope_id", Integer, nullable=False),  # no foreign key: it would cost a third of each file's insert
    Column("kind", did_kind, nullable=False),
    Column("name", Text, nullable=False),
    Column("account_id", Integer, nullable=False),
    size("size_bytes"),
    Column("files", BigInteger, nullable=False, server_default=zero),
    *[Column(name, Text) for name in ("adler32", "md5", "sha256")],
    Column("is_open", Boolean, nullable=False, server_default=true),
    Column("is_monotonic", Boolean, nullable=False, server_default=false),
    Column("metadata", JSONB(none_as_null=True)),
    moment("created_at", nullable=False),
    moment("expires_at"),
    moment("deleted_at"),
    sa.UniqueConstraint("scope_id", "name"),
    CheckConstraint("size_bytes >= 0", name="size"),
    Index("ix_did_expires_at", "expires_at", postgresql_where=sa.text("expires_at IS NOT NULL AND deleted_at IS NULL")),
)

metadatum = Table(  # what filters ask of metadata, one row per top-level key; db/query.py tells
    "metadatum",
    metadata,
    Column("did_id", BigInteger, primary_key=True, autoincrement=False),
    Column("key", Text(collation="C"), primary_key=True),
    Column("scope_id", Integer, nullable=False),
    Column("number", sa.Numeric),
    Column("text", Text(collation="C")),  # true and false are texts here
    Index("ix_metadatum_text", "scope_id", "key", "text", "did_id"),
    Index("ix_metadatum_number", "scope_id", "key", "number", "did_id", postgresql_where=sa.text("number IS NOT NULL")),
)

attachment = Table(
    "attachment",
    metadata,
    Column("parent_id", BigInteger, primary_key=True, autoincrement=False),
    Column("child_id", BigInteger, primary_key=True, autoincrement=False),
    size("size_bytes"),
    Index("ix_attachment_child_id_parent_id", "child_id", "parent_id"),
)

# fence counts claims; quiet_until: the path may not be written again before (a paused earlier worker may still act).
# tombstone_at null = kept. path null = derived from the DID.
replica = Table(
    "replica",
    metadata,
    Column("did_id", BigInteger, primary_key=True, autoincrement=False),
    Column("storage_id", Integer, primary_key=True, autoincrement=False),
    Column("state", replica_state, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    moment("created_at", nullable=False),
    *map(moment, ("verified_at", "next_check_at", "tombstone_at", "claimed_until", "quiet_until")),
    Column("fence", Integer, nullable=False, server_default=zero),
    Column("path", Text),
    CheckConstraint("state <> 'available' OR (verified_at IS NOT NULL AND next_check_at IS NOT NULL)", name="available_is_verified"),
    CheckConstraint("state <> 'deleting' OR claimed_until IS NOT NULL", name="deleting_has_lease"),
    Index("ix_replica_storage_id_did_id", "storage_id", "did_id"),
    Index("ix_replica_odd", "storage_id", "did_id", postgresql_where=sa.text("state <> 'available'")),
    Index("ix_replica_due_check", "next_check_at", postgresql_where=sa.text("next_check_at IS NOT NULL")),
    Index("ix_replica_tombstone", "storage_id", "tombstone_at", postgresql_where=sa.text("tombstone_at IS NOT NULL")),
    Index("ix_replica_claimed", "claimed_until", postgresql_where=sa.text("claimed_until IS NOT NULL")),
    Index("ix_replica_quiet", "quiet_until", postgresql_where=sa.text("state = 'deleted'")),
    Index("uq_replica_storage_id_path", "storage_id", "path", unique=True, postgresql_where=sa.text("path IS NOT NULL")),
)
