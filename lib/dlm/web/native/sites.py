"""Sites: where storages stand."""

from __future__ import annotations

from typing import Any

from flask import Response
from marshmallow import Schema, fields

from dlm.core import sites
from dlm.web.access import permission
from dlm.web.blueprint import Answer, Blueprint, PageQuery, page_of, paged
from dlm.web.context import begin, listed
from dlm.web.fields import Number, Words

blp = Blueprint("sites", __name__, url_prefix="/sites", description="Where storages stand: the failure domains")


class SiteChange(Schema):
    country = Words(500, allow_none=True, metadata={"example": "AU"})
    city = Words(500, allow_none=True)
    latitude = Number(-90, 90, allow_none=True)
    longitude = Number(-180, 180, allow_none=True)


class SiteBody(SiteChange):
    name = Words(64, required=True, metadata={"example": "perth"})


class Site(Answer):
    uuid = fields.UUID(required=True)
    name = fields.String(required=True)
    country = fields.String(required=True, allow_none=True)
    city = fields.String(required=True, allow_none=True)
    latitude = fields.Float(required=True, allow_none=True)
    longitude = fields.Float(required=True, allow_none=True)
    created_at = fields.AwareDateTime(required=True)


def _site(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Site._declared_fields}


@blp.route("")
@permission("site.list")
@blp.arguments(PageQuery, location="query")
@blp.answers(paged(Site, "SitePage"), streams=True)
def list_sites(query: dict[str, Any]) -> Any:
    """Sites by name"""
    return listed("site.list", sites.list_sites, page_of(query), _site)


@blp.route("", methods=["POST"])
@permission("site.add")
@blp.arguments(SiteBody)
@blp.answers(Site, 201)
def add_site(body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Make a site"""
    name = body.pop("name")
    with begin("site.add") as tx:
        return _site(sites.add_site(tx, name, body)), 201


@blp.route("/<site>")
@permission("site.list")
@blp.answers(Site)
def show_site(site: str) -> dict[str, Any]:
    """One site"""
    with begin("site.show") as tx:
        return _site(sites.get_site(tx, site))


@blp.route("/<site>", methods=["PATCH"])
@permission("site.set")
@blp.arguments(SiteChange)
@blp.answers(Site)
def set_site(body: dict[str, Any], site: str) -> dict[str, Any]:
    """Change what is known of a site; rules look again when its country changes"""
    with begin("site.set") as tx:
        return _site(sites.update_site(tx, site, body))


@blp.route("/<site>", methods=["DELETE"])
@permission("site.delete")
@blp.empties
def delete_site(site: str) -> Response:
    """Delete a site at which no storage stands"""
    with begin("site.delete") as tx:
        sites.delete_site(tx, site)
    return Response(status=204)
