"""What tables are made with: the naming of constraints, the types of states, and columns that many have."""

from __future__ import annotations

from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy import BigInteger, Column
from sqlalchemy.dialects.postgresql import ENUM, JSONB, TIMESTAMP, UUID

from dlm import types

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _enum(name: str, values: type[StrEnum]) -> ENUM:
    return ENUM(*[member.value for member in values], name=name, metadata=metadata)


did_kind = _enum("did_kind", types.DidKind)
phase = _enum("phase", types.Phase)
replica_state = _enum("replica_state", types.ReplicaState)
request_state = _enum("request_state", types.RequestState)
rule_state = _enum("rule_state", types.RuleState)
grouping = _enum("rule_grouping", types.Grouping)
change_kind = _enum("change_kind", types.ChangeKind)
reap = _enum("reap", types.Reap)

empty_object = sa.text("'{}'::jsonb")
empty_texts = sa.text("'{}'::text[]")
zero = sa.text("0")
false = sa.text("false")
true = sa.text("true")


def key(type_: type = BigInteger) -> Column:
    return Column("id", type_, sa.Identity(always=False), primary_key=True)


def public_id() -> Column:
    return Column("uuid", UUID(as_uuid=False), nullable=False, unique=True, server_default=sa.text("gen_random_uuid()"))


def moment(name: str, nullable: bool = True) -> Column:
    return Column(name, TIMESTAMP(timezone=True), nullable=nullable)


def document(name: str) -> Column:
    return Column(name, JSONB(none_as_null=True), nullable=False, server_default=empty_object)


def size(name: str) -> Column:
    return Column(name, BigInteger, nullable=False, server_default=zero)
