"""What stops a deletion, counts what was harmed, and looks through storages."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, ForeignKey, Index, Integer, Table, Text

from dlm.db.models.schema import document, false, key, metadata, moment, replica_state, true, zero

# Open (closed_at null): this kind of act stops on this storage (null: on all) until a person closes it.
breaker = Table(
    "breaker",
    metadata,
    key(Integer),
    Column("storage_id", Integer, ForeignKey("storage.id")),
    Column("act", Text, CheckConstraint("act IN ('delete', 'loss')", name="act"), nullable=False),
    Column("reason", Text, nullable=False),
    document("facts"),
    moment("opened_at", nullable=False),
    Column("opened_by", Text, nullable=False),
    moment("closed_at"),
    Column("closed_by", Text),
    Index("uq_breaker_open", sa.text("coalesce(storage_id, 0)"), "act", unique=True, postgresql_where=sa.text("closed_at IS NULL")),
)

# What was deleted or declared lost on a storage, per batch: the breaker sums over its window.
harm = Table(
    "harm",
    metadata,
    key(),
    Column("storage_id", Integer, nullable=False),
    Column("act", Text, nullable=False),
    Column("files", Integer, nullable=False),
    moment("at", nullable=False),
    Index("ix_harm_storage_id_act_at", "storage_id", "act", "at"),
)

# One look through a storage (`storage check`): goes by did id, gathers findings, then declares them or stops.
audit = Table(
    "audit",
    metadata,
    key(Integer),
    Column("storage_id", Integer, ForeignKey("storage.id"), nullable=False),
    Column("state", Text, CheckConstraint("state IN ('running', 'done', 'stopped', 'unavailable')", name="state"), nullable=False),
    Column("with_checksum", Boolean, nullable=False, server_default=true),
    Column("confirm_lost", Boolean, nullable=False, server_default=false),
    Column("after_did_id", BigInteger, nullable=False, server_default=zero),
    # proven: of those missing or corrupt, how many had been good once; the breaker counts only them
    *[Column(name, Integer, nullable=False, server_default=zero) for name in ("files", "missing", "corrupt", "proven")],
    Column("message", Text),
    Column("asked_by", Text, nullable=False),
    moment("created_at", nullable=False),
    moment("next_attempt_at"),
    moment("claimed_until"),
    Column("fence", Integer, nullable=False, server_default=zero),
    moment("ended_at"),
    Index("ix_audit_next_attempt_at", "next_attempt_at", postgresql_where=sa.text("next_attempt_at IS NOT NULL")),
)

finding = Table(
    "finding",
    metadata,
    Column("storage_id", Integer, primary_key=True, autoincrement=False),
    Column("did_id", BigInteger, primary_key=True, autoincrement=False),
    Column("audit_id", Integer),
    Column("state", replica_state, nullable=False),  # bad or lost
    Column("probes", sa.SmallInteger, nullable=False, server_default=sa.text("1")),
    Column("detail", Text),
    moment("found_at", nullable=False),
)
