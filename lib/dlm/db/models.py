"""The schema. Comments say what a row promises; db/migrations/ brings a database here, and a test compares the two.

Hot tables (attachment, replica, lock, request) hold keys, sizes and states only, and no foreign keys: what they refer
to is never removed, and 10^9 inserts need not prove it each time (docs/adr/0002). `dlm-admin verify` looks for orphans.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, ForeignKey, Index, Integer, Table, Text
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSONB, TIMESTAMP, UUID

from dlm.db.schema import change_kind, did_kind, grouping, metadata, phase, reap, replica_state, request_state, rule_state

_empty_object = sa.text("'{}'::jsonb")
_empty_texts = sa.text("'{}'::text[]")
_zero = sa.text("0")
_false = sa.text("false")
_true = sa.text("true")


def _id(type_: type = BigInteger) -> Column:
    return Column("id", type_, sa.Identity(always=False), primary_key=True)


def _uuid() -> Column:
    return Column("uuid", UUID(as_uuid=False), nullable=False, unique=True, server_default=sa.text("gen_random_uuid()"))


def _at(name: str, nullable: bool = True) -> Column:
    return Column(name, TIMESTAMP(timezone=True), nullable=nullable)


def _json(name: str) -> Column:
    return Column(name, JSONB(none_as_null=True), nullable=False, server_default=_empty_object)


def _bytes(name: str) -> Column:
    return Column(name, BigInteger, nullable=False, server_default=_zero)


# --- who ---------------------------------------------------------------------------------------------------------

account = Table(
    "account",
    metadata,
    _id(Integer),
    Column("name", Text, nullable=False, unique=True),
    Column("kind", Text, CheckConstraint("kind IN ('person', 'group', 'service')", name="kind"), nullable=False),
    Column("email", Text),
    Column("roles", ARRAY(Text), nullable=False, server_default=_empty_texts),
    _at("created_at", nullable=False),
    _at("closed_at"),
)

# A bearer token is kept as the SHA-256 of its text; the text is shown once.
token = Table(
    "token",
    metadata,
    _id(Integer),
    Column("account_id", Integer, ForeignKey("account.id"), nullable=False),
    Column("hash", BYTEA, nullable=False, unique=True),
    Column("label", Text, nullable=False, server_default=""),
    _at("created_at", nullable=False),
    _at("expires_at"),
    _at("revoked_at"),
)

scope = Table(
    "scope",
    metadata,
    _id(Integer),
    Column("name", Text, nullable=False, unique=True),
    Column("account_id", Integer, ForeignKey("account.id"), nullable=False),
    _at("created_at", nullable=False),
)

# --- where -------------------------------------------------------------------------------------------------------

site = Table(
    "site",
    metadata,
    _id(Integer),
    _uuid(),
    Column("name", Text, nullable=False, unique=True),
    Column("country", Text),
    Column("city", Text),
    Column("latitude", sa.Double, CheckConstraint("latitude BETWEEN -90 AND 90", name="latitude")),
    Column("longitude", sa.Double, CheckConstraint("longitude BETWEEN -180 AND 180", name="longitude")),
    _at("created_at", nullable=False),
    _at("deleted_at"),
)

storage = Table(
    "storage",
    metadata,
    _id(Integer),
    _uuid(),
    Column("name", Text, nullable=False, unique=True),
    Column("site_id", Integer, ForeignKey("site.id"), nullable=False),
    Column("type", Text, nullable=False, server_default="disk"),
    Column("phase", phase, nullable=False, server_default="gas"),
    Column("capacity_bytes", BigInteger, CheckConstraint("capacity_bytes >= 0", name="capacity")),
    Column("min_free_bytes", BigInteger, CheckConstraint("min_free_bytes >= 0", name="min_free"), nullable=False, server_default=_zero),
    *[Column(name, Boolean, nullable=False, server_default=_true) for name in ("can_read", "can_write", "can_delete")],
    Column("switch_reason", Text),  # why a switch is off; whoever turns it says so
    Column("is_available", Boolean, nullable=False, server_default=_true),  # the marker was seen at the last look
    Column("unavailable_reason", Text),
    _at("looked_at"),
    Column("reap", reap, nullable=False, server_default="eager"),
    Column("undo_window_s", Integer, CheckConstraint("undo_window_s >= 0", name="undo_window")),  # null: the setting
    _json("attributes"),  # free, text to text
    _at("created_at", nullable=False),
    _at("deleted_at"),
    Column("is_coming", Boolean, nullable=False, server_default=_false),  # an intent: its root is being taken, nobody sees it
    CheckConstraint("NOT is_coming OR deleted_at IS NOT NULL", name="coming"),
)

protocol = Table(
    "protocol",
    metadata,
    _id(Integer),
    Column("storage_id", Integer, ForeignKey("storage.id"), nullable=False),
    Column("scheme", Text, nullable=False),
    Column("prefix", Text, nullable=False),
    Column("credentials", Text),  # the name of a secret
    _json("options"),  # what the protocol needs to know besides, text to text; nothing secret
    Column("marker", Text),  # how the root of a storage that dlm never writes to is known; null: by a file with the uuid
    Column("priority", sa.SmallInteger, nullable=False, server_default=_zero),
    sa.UniqueConstraint("storage_id", "scheme"),
)

# What a protocol's credentials name: the values, encrypted under the key `key_id` with the name as associated data.
secret = Table(
    "secret",
    metadata,
    _id(Integer),
    Column("name", Text, nullable=False, unique=True),
    Column("account_id", Integer, ForeignKey("account.id")),  # whose it is; null: of who rules the host
    Column("keys", ARRAY(Text), nullable=False),  # what its values are called
    Column("version", Integer, nullable=False),  # of the values; the next one when they are set anew
    Column("key_id", Text, nullable=False),
    Column("ciphertext", BYTEA, nullable=False),
    *[_at(name, nullable=False) for name in ("created_at", "set_at")],
    _at("rotated_at"),  # when it was encrypted anew under another key, the values as they were
)

# reserved = bytes of replicas still copying + bytes promised by locks whose replicas do not exist yet
# used     = bytes of replicas that are (or may be) on the storage: available, unverified, bad, deleting
storage_usage = Table(
    "storage_usage",
    metadata,
    Column("storage_id", Integer, ForeignKey("storage.id"), primary_key=True, autoincrement=False),
    *map(_bytes, ("reserved_bytes", "used_bytes", "used_files")),
)

# charged = sum of the sizes of the account's live locks at this storage; limit null = no limit
account_usage = Table(
    "account_usage",
    metadata,
    Column("account_id", Integer, ForeignKey("account.id"), primary_key=True, autoincrement=False),
    Column("storage_id", Integer, ForeignKey("storage.id"), primary_key=True, autoincrement=False),
    *map(_bytes, ("charged_bytes", "charged_files")),
    Column("limit_bytes", BigInteger),
)

# --- what --------------------------------------------------------------------------------------------------------

# size_bytes and files of a dataset are kept by attach and detach; of a container they stay 0.
did = Table(
    "did",
    metadata,
    _id(),
    Column("scope_id", Integer, nullable=False),  # no foreign key: it would cost a third of each file's insert
    Column("kind", did_kind, nullable=False),
    Column("name", Text, nullable=False),
    Column("account_id", Integer, nullable=False),
    _bytes("size_bytes"),
    Column("files", BigInteger, nullable=False, server_default=_zero),
    *[Column(name, Text) for name in ("adler32", "md5", "sha256")],
    Column("is_open", Boolean, nullable=False, server_default=_true),
    Column("is_monotonic", Boolean, nullable=False, server_default=_false),
    Column("metadata", JSONB(none_as_null=True)),
    _at("created_at", nullable=False),
    _at("expires_at"),
    _at("deleted_at"),
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
    _bytes("size_bytes"),
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
    _at("created_at", nullable=False),
    *map(_at, ("verified_at", "next_check_at", "tombstone_at", "claimed_until", "quiet_until")),
    Column("fence", Integer, nullable=False, server_default=_zero),
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

# --- promises ----------------------------------------------------------------------------------------------------

# Each distinct expression stands once, with the storages it matched at the last evaluation.
expression = Table(
    "expression",
    metadata,
    _id(Integer),
    Column("canonical", Text, nullable=False, unique=True),
    Column("storage_ids", ARRAY(Integer), nullable=False, server_default=sa.text("'{}'::integer[]")),
    _at("evaluated_at"),
)

rule = Table(
    "rule",
    metadata,
    _id(),
    _uuid(),
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
    *[Column(name, Boolean, nullable=False, server_default=_false) for name in ("is_locked", "is_suspended")],
    Column("idempotency_key", Text),
    Column("wish_digest", BYTEA),  # with a key: SHA-256 of all that was asked with it
    _at("created_at", nullable=False),
    _at("state_since", nullable=False),
    _at("starts_at"),  # while `declared` and before that it holds nothing, and nothing wakes it
    _at("expires_at"),
    _at("next_judge_at"),  # null: nothing to do until a change or the resync says so; only `ok`, `suspended`, `gone` may rest
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
    *map(_bytes, ("size_bytes", "promised_bytes")),
    *[Column(name, Integer, nullable=False, server_default=_zero) for name in ("files_ok", "files_stuck")],
    Column("fill_after", BigInteger, server_default=_zero),
    Column("is_released", Boolean, nullable=False, server_default=_false),
    _at("created_at", nullable=False),
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
    _id(),
    *[Column(name, BigInteger, nullable=False) for name in ("rule_id", "first_id", "last_id")],
    Column("locks", Integer, nullable=False),
    Column("storage_ids", ARRAY(Integer), nullable=False),
    Column("promised_bytes", ARRAY(BigInteger), nullable=False),  # at each of the storages
    Column("has_copies", Boolean, nullable=False),  # the planner saw some of what is locked there already, or coming
    _at("created_at", nullable=False),
    Index("ix_parcel_rule_id", "rule_id"),
)

# One wish to create one replica; serves every lock on it. Deleted when done (the attempt rows stay).
request = Table(
    "request",
    metadata,
    _id(),
    Column("did_id", BigInteger, nullable=False),
    Column("storage_id", Integer, nullable=False),
    Column("state", request_state, nullable=False, server_default="queued"),
    Column("size_bytes", BigInteger, nullable=False),
    _at("created_at", nullable=False),
    _at("next_attempt_at", nullable=False),
    _at("claimed_until"),
    Column("source_storage_id", Integer),
    Column("fence", Integer, nullable=False, server_default=_zero),
    Column("priority", sa.SmallInteger, CheckConstraint("priority BETWEEN 1 AND 5", name="priority"), nullable=False),
    Column("attempts", sa.SmallInteger, nullable=False, server_default=_zero),
    Column("is_cancelled", Boolean, nullable=False, server_default=_false),  # the owner honours it
    Column("is_repair", Boolean, nullable=False, server_default=_false),  # may replace what stands at the path
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
    _id(),
    Column("kind", change_kind, nullable=False),
    Column("did_id", BigInteger),
    Column("storage_id", Integer),
    Column("file_ids", ARRAY(BigInteger)),
    _at("created_at", nullable=False),
)

# --- deleting safely ---------------------------------------------------------------------------------------------

# Open (closed_at null): this kind of act stops on this storage (null: on all) until a person closes it.
breaker = Table(
    "breaker",
    metadata,
    _id(Integer),
    Column("storage_id", Integer, ForeignKey("storage.id")),
    Column("act", Text, CheckConstraint("act IN ('delete', 'loss')", name="act"), nullable=False),
    Column("reason", Text, nullable=False),
    _json("facts"),
    _at("opened_at", nullable=False),
    Column("opened_by", Text, nullable=False),
    _at("closed_at"),
    Column("closed_by", Text),
    Index("uq_breaker_open", sa.text("coalesce(storage_id, 0)"), "act", unique=True, postgresql_where=sa.text("closed_at IS NULL")),
)

# What was deleted or declared lost on a storage, per batch: the breaker sums over its window.
harm = Table(
    "harm",
    metadata,
    _id(),
    Column("storage_id", Integer, nullable=False),
    Column("act", Text, nullable=False),
    Column("files", Integer, nullable=False),
    _at("at", nullable=False),
    Index("ix_harm_storage_id_act_at", "storage_id", "act", "at"),
)

# One look through a storage (`storage check`): goes by did id, gathers findings, then declares them or stops.
audit = Table(
    "audit",
    metadata,
    _id(Integer),
    Column("storage_id", Integer, ForeignKey("storage.id"), nullable=False),
    Column("state", Text, CheckConstraint("state IN ('running', 'done', 'stopped', 'unavailable')", name="state"), nullable=False),
    Column("with_checksum", Boolean, nullable=False, server_default=_true),
    Column("confirm_lost", Boolean, nullable=False, server_default=_false),
    Column("after_did_id", BigInteger, nullable=False, server_default=_zero),
    # proven: of those missing or corrupt, how many had been good once; the breaker counts only them
    *[Column(name, Integer, nullable=False, server_default=_zero) for name in ("files", "missing", "corrupt", "proven")],
    Column("message", Text),
    Column("asked_by", Text, nullable=False),
    _at("created_at", nullable=False),
    _at("next_attempt_at"),
    _at("claimed_until"),
    Column("fence", Integer, nullable=False, server_default=_zero),
    _at("ended_at"),
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
    _at("found_at", nullable=False),
)

# --- what happened -----------------------------------------------------------------------------------------------

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
    _at("started_at", nullable=False),
    _at("seen_at", nullable=False),
    _json("counts"),
)

PARTITIONED = {"event": "at", "attempt": "ended_at", "proof": "made_at"}
