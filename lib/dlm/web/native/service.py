"""The service itself: is it well, which version, what is going on."""

from __future__ import annotations

from typing import Any

from marshmallow import fields

import dlm
from dlm.core import status as core_status
from dlm.db import daemons as daemon_rows
from dlm.web.access import permission, public
from dlm.web.blueprint import Answer, Blueprint, many
from dlm.web.context import begin, web

blp = Blueprint("service", __name__, description="Is it well, which version, what is going on")


class Health(Answer):
    status = fields.String(required=True, metadata={"example": "ok"})
    at = fields.AwareDateTime(required=True, metadata={"description": "the database's time"})


class Version(Answer):
    name = fields.String(required=True)
    version = fields.String(required=True)
    api = fields.String(required=True)


class Daemon(Answer):
    name = fields.String(required=True)
    host = fields.String(required=True)
    pid = fields.Integer(required=True)
    started_at = fields.AwareDateTime(required=True)
    seen_at = fields.AwareDateTime(required=True)
    seen_s_ago = fields.Float(required=True)
    counts = fields.Dict(required=True, metadata={"description": "what its last pass did"})


@blp.route("/health")
@public
@blp.answers(Health)
def health() -> dict[str, Any]:
    """200 while the database answers, else 503"""
    with web().database.begin("web.health") as tx:
        return {"status": "ok", "at": tx.now}


@blp.route("/version")
@public
@blp.answers(Version)
def version() -> dict[str, Any]:
    """The version of the service and of its API"""
    return {"name": "dlm", "version": dlm.__version__, "api": "v1"}


@blp.route("/daemons")
@permission("daemon.list")
@blp.answers(many(Daemon, "Daemons"))
def list_daemons() -> dict[str, Any]:
    """Every daemon process seen in the last day"""
    with begin("daemon.list") as tx:
        rows = [row._asdict() for row in daemon_rows.list_all(tx)]
        return {"items": [{**row, "seen_s_ago": (tx.now - row["seen_at"]).total_seconds()} for row in rows]}


@blp.route("/status")
@permission("status.show")
@blp.alt_response(200, schema={"type": "object"}, success=True)
def show_status() -> dict[str, Any]:
    """One look: promises by state, queues, storages, daemons, breakers"""
    with begin("status.show") as tx:
        return core_status.overview(tx)
