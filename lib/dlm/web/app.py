"""The app factory: hooks, problems, and the blueprints of the native API."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from flask import Flask
from flask.json.provider import DefaultJSONProvider

import dlm
from dlm.config import Settings
from dlm.core import authorize
from dlm.db.engine import Database
from dlm.web import access, native, problem
from dlm.web.blueprint import Api
from dlm.web.context import Web
from dlm.web.native import docs

DESCRIPTION = """dlm keeps the promises people make about data.

Names of DIDs stand in the address as they are, slashes included: `/dids/{scope}/{name}`. Lists come as pages
(`limit`, `after`) or, with `Accept: application/x-ndjson`, whole, one object a line. Errors are problem documents."""


class Json(DefaultJSONProvider):
    """JSON as the API writes it: keys in the order the core gave them, moments in UTC with a Z."""

    sort_keys = False

    @staticmethod
    def default(value: Any) -> Any:
        if isinstance(value, datetime):
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        if isinstance(value, Decimal):
            return int(value) if value == value.to_integral_value() else float(value)
        if isinstance(value, date | UUID):
            return str(value)
        if isinstance(value, frozenset | set):
            return sorted(value)
        raise TypeError(f"{type(value).__name__} is no JSON value")


def create_app(database: Database, settings: Settings) -> Flask:
    """The WSGI app over `database`. The database need not be up: requests answer 503 until it is."""
    app = Flask("dlm.web", static_folder=None, template_folder=None)
    app.json = Json(app)
    app.url_map.merge_slashes = False  # a name with '//' is refused, not taken for another name
    app.config.update(
        MAX_CONTENT_LENGTH=settings.web_max_body_bytes,
        PROVIDE_AUTOMATIC_OPTIONS=False,
        API_TITLE="dlm",
        API_VERSION=dlm.__version__,
        OPENAPI_VERSION="3.1.0",
    )
    authorize.put_in_force(authorize.load(Path(settings.web_policy_file)) if settings.web_policy_file else None)
    app.extensions["dlm"] = Web(database, settings)
    problem.register(app)
    access.register(app)
    api = Api(app, spec_kwargs={"info": {"description": DESCRIPTION}, "servers": [{"url": "/"}]})
    api.spec.components.security_scheme("bearer", _BEARER)
    for blueprint in native.BLUEPRINTS:
        api.register_blueprint(blueprint, url_prefix=native.PREFIX + (blueprint.url_prefix or ""))
    api.register_blueprint(docs.problems)
    app.add_url_rule("/", "docs.start", access.public(docs.start), methods=["GET"])
    problem.register(app)  # flask-smorest registers a handler of its own for HTTP errors
    app.extensions["dlm.openapi"] = app.json.dumps(api.spec.to_dict())
    return app


_BEARER: Mapping[str, str] = {"type": "http", "scheme": "bearer", "description": "a token of `dlm-admin token add`"}
