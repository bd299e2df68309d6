"""dlm's own API, one file a noun."""

from __future__ import annotations

from dlm.web.blueprint import Blueprint
from dlm.web.native import accounts, breakers, docs, expressions, service

PREFIX = "/api/v1"

BLUEPRINTS: tuple[Blueprint, ...] = (
    accounts.blp,
    accounts.tokens,
    accounts.scopes,
    expressions.blp,
    breakers.blp,
    service.blp,
    docs.blp,
)
