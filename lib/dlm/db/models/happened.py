"""Events, attempts, proofs and the daemons' last sign of life."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import BigInteger, Column, Index, Integer, Table, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP

from dlm.db.models.schema import document, metadata, moment

event = Table(
    "event",
    metadata,
    Column("id", BigInteger, sa.Identity(always=False), primary_key=True),
    Column("at", TIMESTAMP(timezone=True), primary_key=True),
    Column("object", Text, nullable=False),  # account, scope, site, storage, secret, did, replica, rule, request …
    Column("object_id", BigInteger, nullable=False),
    Column("action", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("request_id", Text),  # of the HTTP request that caused it
    Column("cause", Text),
    *[Column(name, JSONB(none_as_null=True)) for name in ("before", "after")],
    Index("ix_event_object_id", "object", "object_id", "at"),
    postgresql_partition_by="RANGE (at)",
)

attempt = Table(
    "attempt",
    metadata,
    Column("did_id", BigInteger, nullable=False),
    Column("storage_id", Integer, nullable=False),
    Column("ended_at", TIMESTAMP(timezone=True), nullable=False),
    Column("request_id", BigInteger, nullable=False),
    Column("number", sa.SmallInteger, nullable=False),
    Column("source_storage_id", Integer),
    Column("outcome", Text, nullable=False),  # done, retry, parked, cancelled
    Column("size_bytes", BigInteger),
    Column("duration_s", sa.REAL),
    Column("error_class", Text),
    Column("error", Text),
    Index("ix_attempt_did_id", "did_id", "storage_id", "ended_at"),
    postgresql_partition_by="RANGE (ended_at)",
)

# The evidence on which one replica was deleted: which verified copies stayed, or that nothing wanted the file.
proof = Table(
    "proof",
    metadata,
    Column("did_id", BigInteger, nullable=False),
    Column("storage_id", Integer, nullable=False),
    Column("made_at", TIMESTAMP(timezone=True), nullable=False),
    Column("wanted", sa.SmallInteger, nullable=False),
    Column("witnesses", ARRAY(Integer), nullable=False),  # storages with a verified copy that stays
    Column("cause", Text, nullable=False),
    Column("fence", Integer, nullable=False),
    Index("ix_proof_did_id", "did_id", "storage_id", "made_at"),
    postgresql_partition_by="RANGE (made_at)",
)

# The last time each daemon process finished a pass; for people and `doctor`, never for claiming work.
daemon = Table(
    "daemon",
    metadata,
    Column("name", Text, primary_key=True),
    Column("host", Text, primary_key=True),
    Column("pid", Integer, primary_key=True, autoincrement=False),
    moment("started_at", nullable=False),
    moment("seen_at", nullable=False),
    document("counts"),
)

PARTITIONED = {"event": "at", "attempt": "ended_at", "proof": "made_at"}
