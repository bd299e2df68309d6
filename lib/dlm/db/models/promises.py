"""Rules, the locks by which they hold data, and what is still to be done for them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, ForeignKey, Index, Integer, Table, Text
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA

from dlm.db.models.schema import (
    change_kind,
    false,
    grouping,
    key,
    metadata,
    moment,
    public_id,
    request_state,
    rule_state,
    size,
    zero,
)

# Each distinct expression stands once, with the storages it matched at the last evaluation.
expression = Table(
    "expression",
    metadata,
    key(Integer),
    Column("canonical", Text, nullable=False, unique=True),
    Column("storage_ids", ARRAY(Integer), nullable=False, server_default=sa.text("'{}'::integer[]")),
    moment("evaluated_at"),
)

rule = Table(
    "rule",
    metadata,
    key(),
    public_id(),
    Column("did_id", BigInteger, ForeignKey("did.id"), nullable=False),
    Column("account_id", Integer, ForeignKey("account.id"), nullable=False),
    Column("copies", Integer, CheckConstraint("copies > 0", name="copies")),  # null: all that match
    Column("expression_id", Integer, ForeignKey("expression.id"), nullable=False),
    Column("source_expression_id", Integer, ForeignKey("expression.id")),
    Column("grouping", grouping, nullable=False, server_default="dataset"),
    *[Column(name, Text) for name in ("spread", "weight")],
    Column("state", rule_state, nullable=False, server_default="declared"),
    Column("reason", Text),
    Column("priority", sa.SmallInteger, CheckConstraint("priority BETWEEN 1 AND 5", name="priority"), nullable=False, server_default=sa.text("3")),
    Column("activity", Text, nullable=False, server_default="default"),
    Column("comment", Text),
    *[Column(name, Boolean, nullable=False, server_default=false) for name in ("is_locked", "is_suspended")],
    Column("idempotency_key", Text),
    Column("wish_digest", BYTEA),  # with a key: SHA-256 of all that was asked with it
    moment("created_at", nullable=False),
    moment("state_since", nullable=False),
    moment("starts_at"),  # while `declared` and before that it holds nothing, and nothing wakes it
    moment("expires_at"),
    moment("next_judge_at"),  # null: nothing to do until a change or the resync says so; only `ok`, `suspended`, `gone` may rest
    Column("place_after", BigInteger),  # grouping none: files up to this id have their locks (null: all have)
    Column("surplus_after", BigInteger),  # locks beyond `copies` are to be released, of files beyond this id (null: none are)
    Column("successor_id", BigInteger, ForeignKey("rule.id")),  # let go when that is ok; of a rule that ended: what it was moved to
    Index("ix_rule_successor_id", "successor_id", postgresql_where=sa.text("successor_id IS NOT NULL AND state NOT IN ('letting_go', 'gone')")),
    Index("ix_rule_next_judge_at", "next_judge_at", "id", postgresql_where=sa.text("next_judge_at IS NOT NULL")),
    Index("ix_rule_expires_at", "expires_at", postgresql_where=sa.text("expires_at IS NOT NULL AND state NOT IN ('letting_go', 'gone')")),
    Index("ix_rule_did_id", "did_id", postgresql_where=sa.text("state <> 'gone'")),
    Index("ix_rule_expression_id", "expression_id", postgresql_where=sa.text("state <> 'gone'")),
    Index(
        "uq_rule_live",
        *("did_id", "account_id", "expression_id", sa.text("coalesce(copies, 0)")),
        unique=True,
        postgresql_where=sa.text("state NOT IN ('letting_go', 'gone')"),
    ),
    Index("uq_rule_idempotency_key", "account_id", "idempotency_key", unique=True, postgresql_where=sa.text("idempotency_key IS NOT NULL")),
)

# A rule's hold on a file or a whole dataset at a storage. What a lock holds is never deleted.
# fill_after: replicas exist for files up to this id (null: all). promised_bytes: reserved, not yet created. files_*: hints.
lock = Table(
    "lock",
    metadata,
    Column("did_id", BigInteger, primary_key=True, autoincrement=False),
    Column("storage_id", Integer, primary_key=True, autoincrement=False),
    Column("rule_id", BigInteger, primary_key=True, autoincrement=False),
    Column("files", Integer, nullable=False),
    *map(size, ("size_bytes", "promised_bytes")),
    *[Column(name, Integer, nullable=False, server_default=zero) for name in ("files_ok", "files_stuck")],
    Column("fill_after", BigInteger, server_default=zero),
    Column("is_released", Boolean, nullable=False, server_default=false),
    moment("created_at", nullable=False),
    CheckConstraint("promised_bytes >= 0", name="promised"),
    Index("ix_lock_rule_id", "rule_id", "did_id", "storage_id"),
    Index("ix_lock_to_fill", "rule_id", "did_id", "storage_id", postgresql_where=sa.text("fill_after IS NOT NULL")),
    Index("ix_lock_large", "rule_id", "fill_after", postgresql_where=sa.text("fill_after IS NOT NULL AND files > 1000")),
)

# Locks of one rule on files from first_id to last_id, placed at one time, whose replicas do not exist yet: instead of a
# fill_after in each of them. What they promise is reserved by the whole until then (docs/adr/0008).
parcel = Table(
    "parcel",
    metadata,
    key(),
    *[Column(name, BigInteger, nullable=False) for name in ("rule_id", "first_id", "last_id")],
    Column("locks", Integer, nullable=False),
    Column("storage_ids", ARRAY(Integer), nullable=False),
    Column("promised_bytes", ARRAY(BigInteger), nullable=False),  # at each of the storages
    Column("has_copies", Boolean, nullable=False),  # the planner saw some of what is locked there already, or coming
    moment("created_at", nullable=False),
    Index("ix_parcel_rule_id", "rule_id"),
)

# One wish to create one replica; serves every lock on it. Deleted when done (the attempt rows stay).
request = Table(
    "request",
    metadata,
    key(),
    Column("did_id", BigInteger, nullable=False),
    Column("storage_id", Integer, nullable=False),
    Column("state", request_state, nullable=False, server_default="queued"),
    Column("size_bytes", BigInteger, nullable=False),
    moment("created_at", nullable=False),
    moment("next_attempt_at", nullable=False),
    moment("claimed_until"),
    Column("source_storage_id", Integer),
    Column("fence", Integer, nullable=False, server_default=zero),
    Column("priority", sa.SmallInteger, CheckConstraint("priority BETWEEN 1 AND 5", name="priority"), nullable=False),
    Column("attempts", sa.SmallInteger, nullable=False, server_default=zero),
    Column("is_cancelled", Boolean, nullable=False, server_default=false),  # the owner honours it
    Column("is_repair", Boolean, nullable=False, server_default=false),  # may replace what stands at the path
    Column("activity", Text, nullable=False, server_default="default"),
    Column("error_class", Text),
    Column("error", Text),
    sa.UniqueConstraint("did_id", "storage_id"),
    Index("ix_request_lane", "storage_id", "priority", "next_attempt_at", "id", postgresql_where=sa.text("state = 'queued'")),
    Index("ix_request_claimed", "claimed_until", postgresql_where=sa.text("state = 'active'")),
    Index("ix_request_cancelled", "id", postgresql_where=sa.text("is_cancelled AND state = 'queued'")),
    Index("ix_request_parked", "next_attempt_at", postgresql_where=sa.text("state = 'parked'")),
)

# Why the judge must look again. Claimed and deleted; never read by "id greater than the last seen".
change = Table(
    "change",
    metadata,
    key(),
    Column("kind", change_kind, nullable=False),
    Column("did_id", BigInteger),
    Column("storage_id", Integer),
    Column("file_ids", ARRAY(BigInteger)),
    moment("created_at", nullable=False),
)
