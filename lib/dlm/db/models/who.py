"""Accounts, their tokens, and the scopes they own."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, ForeignKey, Integer, Table, Text
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA

from dlm.db.models.schema import empty_texts, key, metadata, moment

account = Table(
    "account",
    metadata,
    key(Integer),
    Column("name", Text, nullable=False, unique=True),
    Column("kind", Text, CheckConstraint("kind IN ('person', 'group', 'service')", name="kind"), nullable=False),
    Column("email", Text),
    Column("roles", ARRAY(Text), nullable=False, server_default=empty_texts),
    moment("created_at", nullable=False),
    moment("closed_at"),
)

# A bearer token is kept as the SHA-256 of its text; the text is shown once.
token = Table(
    "token",
    metadata,
    key(Integer),
    Column("account_id", Integer, ForeignKey("account.id"), nullable=False),
    Column("hash", BYTEA, nullable=False, unique=True),
    Column("label", Text, nullable=False, server_default=""),
    moment("created_at", nullable=False),
    moment("expires_at"),
    moment("revoked_at"),
)

scope = Table(
    "scope",
    metadata,
    key(Integer),
    Column("name", Text, nullable=False, unique=True),
    Column("account_id", Integer, ForeignKey("account.id"), nullable=False),
    moment("created_at", nullable=False),
)
