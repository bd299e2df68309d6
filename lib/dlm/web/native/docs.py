"""The description of the API, a page to browse it, what the problem types mean. All of it comes from this server."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from flask import Response, current_app, redirect, send_from_directory

from dlm.errors import NotFound
from dlm.web.access import public
from dlm.web.blueprint import Blueprint
from dlm.web.problem import KINDS

blp = Blueprint("docs", __name__, description="This page, and the document behind it")
problems = Blueprint("problems", __name__, url_prefix="/problems", description="What the types of problems mean")

STATIC = str(files("dlm.web") / "static")
# Swagger UI draws with inline styles and data: images; scripts come from here only.
CONTENT_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"


@blp.route("/openapi.json")
@public
@blp.alt_response(200, schema={"type": "object"}, success=True)
def openapi() -> Response:
    """The OpenAPI 3.1 document of this API"""
    return Response(current_app.extensions["dlm.openapi"], mimetype="application/json")


@blp.route("/docs")
@public
@blp.alt_response(200, schema={"type": "string"}, content_type="text/html", success=True)
def page() -> Response:
    """A page to read and try the API"""
    response = Response(Path(STATIC, "docs.html").read_bytes(), mimetype="text/html")
    response.headers["Content-Security-Policy"] = CONTENT_POLICY
    return response


def start() -> Response:
    """Whoever opens the bare address in a browser is sent to the page."""
    return redirect("/api/v1/docs")  # type: ignore[return-value]


@blp.route("/docs/<path:file>")
@public
@blp.alt_response(200, schema={"type": "string"}, content_type="*/*", success=True)
def asset(file: str) -> Response:
    """A script or style of that page"""
    return send_from_directory(STATIC, file, max_age=3600)


@problems.route("/<slug>")
@public
@problems.alt_response(200, schema={"type": "object"}, success=True)
def problem(slug: str) -> dict[str, Any]:
    """What a problem's `type` means"""
    kind = KINDS.get(slug)
    if kind is None:
        raise NotFound(f"there is no problem type {slug!r}", hint=f"there are: {', '.join(sorted(KINDS))}")
    return {"type": f"/problems/{slug}", "title": kind.title, "status": kind.status, "meaning": kind.meaning}
