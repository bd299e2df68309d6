"""dlm's own API, one file a noun."""

from __future__ import annotations

from dlm.web.blueprint import Blueprint
from dlm.web.native import (
    accounts,
    breakers,
    bytes,
    checks,
    dids,
    docs,
    events,
    expressions,
    replicas,
    requests,
    rules,
    secrets,
    service,
    sites,
    storages,
    usage,
    why,
)

PREFIX = "/api/v1"

BLUEPRINTS: tuple[Blueprint, ...] = (
    accounts.blp,
    accounts.tokens,
    accounts.scopes,
    sites.blp,
    secrets.blp,
    storages.blp,
    checks.blp,
    expressions.blp,
    dids.blp,
    replicas.blp,
    bytes.blp,
    rules.blp,
    requests.blp,
    why.blp,
    events.blp,
    usage.blp,
    breakers.blp,
    service.blp,
    docs.blp,
)
