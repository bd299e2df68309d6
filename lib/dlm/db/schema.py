"""What the tables of models.py are made with: the naming of constraints, and the types of states."""

from __future__ import annotations

from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ENUM

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
