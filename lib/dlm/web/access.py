"""Who asks, and may they: one hook before every view. A view without a named permission is not served.

401 comes before anything is read from the body, 403 before anything is read from the database about the object.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar

from flask import Flask, Response, current_app, g, json, request

from dlm.core import accounts
from dlm.core.authorize import authorize, in_force
from dlm.db.engine import SYSTEM
from dlm.errors import InvalidInput, Unauthenticated
from dlm.types import Identity
from dlm.web.context import web

log = logging.getLogger("dlm.web.access")

PUBLIC = "public"
View = TypeVar("View", bound=Callable[..., Any])

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_BEARER = re.compile(r"[Bb]earer +([A-Za-z0-9._~+/=-]{8,512})")
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")
_NOBODY = Identity(account_id=None, account="anonymous", roles=frozenset())


def permission(name: str) -> Callable[[View], View]:
    """Name the permission that the route needs. It stands directly below `route`."""

    def mark(view: View) -> View:
        @wraps(view)
        def marked(*args: Any, **kwargs: Any) -> Any:
            return view(*args, **kwargs)

        marked.permission = name  # type: ignore[attr-defined]
        documented = {"x-permission": name, "security": [] if name == PUBLIC else [{"bearer": []}]}
        marked._apidoc = {**getattr(view, "_apidoc", {})}  # type: ignore[attr-defined]
        marked._apidoc["manual_doc"] = {**marked._apidoc.get("manual_doc", {}), **documented}  # type: ignore[attr-defined]
        return marked  # type: ignore[return-value]

    return mark


def public(view: View) -> View:
    """Serve the route without a token."""
    return permission(PUBLIC)(view)


def register(app: Flask) -> None:
    """Put the hooks around every request."""
    app.before_request(name_request)
    app.before_request(check_address)
    app.before_request(check_access)
    app.after_request(finish)


def name_request() -> None:
    """Take the caller's request id when it is a sane one, else make one."""
    given = request.headers.get("X-Request-Id", "")
    g.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    g.started = time.monotonic()
    g.identity = _NOBODY
    g.must_own = False


def check_address() -> None:
    """Refuse an address or query that is not UTF-8, or that holds characters no row can hold."""
    path = request.environ.get("PATH_INFO", "").encode("latin-1")
    texts = [*request.args.keys(), *request.args.values(), *request.headers.getlist("Idempotency-Key")]
    if path != path.decode("utf-8", errors="replace").encode() or any(map(_UNSTORABLE.search, [request.path, *texts])):
        raise InvalidInput("the address is not UTF-8 text", field="path", hint="percent-encode the bytes of UTF-8")


def check_access() -> None:
    """Find out who asks, and let the policy decide on the route's permission."""
    if request.url_rule is None:
        return  # no such address, or not with this method: Flask answers
    name = getattr(current_app.view_functions[request.url_rule.endpoint], "permission", None)
    if name == PUBLIC:
        return
    g.identity = _identify()
    g.permission = name
    if name is not None and in_force().allows_own(g.identity, name) and not in_force().allows(g.identity, name):
        g.must_own = True  # granted for what is owned; the view says whose it is
        return
    authorize(g.identity, name or "(none)")


def _identify() -> Identity:
    header = request.headers.get("Authorization", "")
    if not header:
        raise Unauthenticated("no token was sent", hint="send it as Authorization: Bearer <token>")
    match = _BEARER.fullmatch(header.strip())
    if not match:
        raise Unauthenticated("the token is not valid")
    database, token = web().database, match[1]

    def carry_out(calls: Sequence[object]) -> list[Identity]:
        with database.begin("web.identify", SYSTEM) as tx:
            return [accounts.identify(tx, token)] * len(calls)

    # Who came before the look shares it: a token that was revoked before the request came is of no use.
    found: Identity = web().identities.ask(token, None, carry_out)
    return replace(found, request_id=g.request_id)


def finish(response: Response) -> Response:
    """Say which request this was, keep answers out of caches, and write the access log."""
    response.headers["X-Request-Id"] = g.request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    if not log.isEnabledFor(logging.INFO):
        return response
    log.info(
        json.dumps(
            {
                "request_id": g.request_id,
                "account": g.identity.account,
                "address": request.remote_addr,
                "method": request.method,
                "path": request.path,  # not the query: someone will put a token there one day
                "status": response.status_code,
                "bytes": response.content_length,
                "duration_ms": round((time.monotonic() - g.started) * 1000, 1),
            }
        )
    )
    return response
