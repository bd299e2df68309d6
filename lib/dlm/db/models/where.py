"""Sites, storages, how they are spoken to, and what is used of them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, ForeignKey, Integer, Table, Text
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA

from dlm.db.models.schema import document, false, key, metadata, moment, phase, public_id, reap, size, true, zero

site = Table(
    "site",
    metadata,
    key(Integer),
    public_id(),
    Column("name", Text, nullable=False, unique=True),
    Column("country", Text),
    Column("city", Text),
    Column("latitude", sa.Double, CheckConstraint("latitude BETWEEN -90 AND 90", name="latitude")),
    Column("longitude", sa.Double, CheckConstraint("longitude BETWEEN -180 AND 180", name="longitude")),
    moment("created_at", nullable=False),
    moment("deleted_at"),
)

storage = Table(
    "storage",
    metadata,
    key(Integer),
    public_id(),
    Column("name", Text, nullable=False, unique=True),
    Column("site_id", Integer, ForeignKey("site.id"), nullable=False),
    Column("type", Text, nullable=False, server_default="disk"),
    Column("phase", phase, nullable=False, server_default="gas"),
    Column("capacity_bytes", BigInteger, CheckConstraint("capacity_bytes >= 0", name="capacity")),
    Column("min_free_bytes", BigInteger, CheckConstraint("min_free_bytes >= 0", name="min_free"), nullable=False, server_default=zero),
    *[Column(name, Boolean, nullable=False, server_default=true) for name in ("can_read", "can_write", "can_delete")],
    Column("switch_reason", Text),  # why a switch is off; whoever turns it says so
    Column("is_available", Boolean, nullable=False, server_default=true),  # the marker was seen at the last look
    Column("unavailable_reason", Text),
    moment("looked_at"),
    Column("reap", reap, nullable=False, server_default="eager"),
    Column("undo_window_s", Integer, CheckConstraint("undo_window_s >= 0", name="undo_window")),  # null: the setting
    document("attributes"),  # free, text to text
    moment("created_at", nullable=False),
    moment("deleted_at"),
    Column("is_coming", Boolean, nullable=False, server_default=false),  # an intent: its root is being taken, nobody sees it
    CheckConstraint("NOT is_coming OR deleted_at IS NOT NULL", name="coming"),
)

protocol = Table(
    "protocol",
    metadata,
    key(Integer),
    Column("storage_id", Integer, ForeignKey("storage.id"), nullable=False),
    Column("scheme", Text, nullable=False),
    Column("prefix", Text, nullable=False),
    Column("credentials", Text),  # the name of a secret
    document("options"),  # what the protocol needs to know besides, text to text; nothing secret
    Column("marker", Text),  # how the root of a storage that dlm never writes to is known; null: by a file with the uuid
    Column("priority", sa.SmallInteger, nullable=False, server_default=zero),
    sa.UniqueConstraint("storage_id", "scheme"),
)

# What a protocol's credentials name: the values, encrypted under the key `key_id` with the name as associated data.
secret = Table(
    "secret",
    metadata,
    key(Integer),
    Column("name", Text, nullable=False, unique=True),
    Column("account_id", Integer, ForeignKey("account.id")),  # whose it is; null: of who rules the host
    Column("keys", ARRAY(Text), nullable=False),  # what its values are called
    Column("version", Integer, nullable=False),  # of the values; the next one when they are set anew
    Column("key_id", Text, nullable=False),
    Column("ciphertext", BYTEA, nullable=False),
    *[moment(name, nullable=False) for name in ("created_at", "set_at")],
    moment("rotated_at"),  # when it was encrypted anew under another key, the values as they were
)

# reserved = bytes of replicas still copying + bytes promised by locks whose replicas do not exist yet
# used     = bytes of replicas that are (or may be) on the storage: available, unverified, bad, deleting
storage_usage = Table(
    "storage_usage",
    metadata,
    Column("storage_id", Integer, ForeignKey("storage.id"), primary_key=True, autoincrement=False),
    *map(size, ("reserved_bytes", "used_bytes", "used_files")),
)

# charged = sum of the sizes of the account's live locks at this storage; limit null = no limit
account_usage = Table(
    "account_usage",
    metadata,
    Column("account_id", Integer, ForeignKey("account.id"), primary_key=True, autoincrement=False),
    Column("storage_id", Integer, ForeignKey("storage.id"), primary_key=True, autoincrement=False),
    *map(size, ("charged_bytes", "charged_files")),
    Column("limit_bytes", BigInteger),
)
