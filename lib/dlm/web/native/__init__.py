"""dlm's own API, one file a noun."""

from __future__ import annotations

from dlm.web.blueprint import Blueprint
from dlm.web.native import accounts, breakers, dids, docs, events, expressions, service, sites, storages, usage

PREFIX = "/api/v1"

BLUEPRINTS: tuple[Blueprint, ...] = (
    accounts.blp,
    accounts.tokens,
    accounts.scopes,
    sites.blp,
    storages.blp,
    expressions.blp,
    dids.blp,
    events.blp,
    usage.blp,
    breakers.blp,
    service.blp,
    docs.blp,
)
