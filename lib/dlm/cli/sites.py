"""Sites: where storages stand."""

from __future__ import annotations

from typing import Any

import click

from dlm.cli.accounts import LIMIT
from dlm.cli.client import named
from dlm.cli.output import Column, Item
from dlm.cli.session import Noun, Session, pass_session
from dlm.cli.units import shown_moment
from dlm.errors import InvalidInput

COLUMNS = (
    Column("SITE", "name"),
    Column("COUNTRY", "country"),
    Column("CITY", "city"),
    Column("PLACE", lambda item: place(item) or "-"),
)


def place(item: Item) -> str | None:
    """The coordinates, when they are known."""
    if item["latitude"] is None or item["longitude"] is None:
        return None
    return f"{item['latitude']:g} {item['longitude']:g}"


@click.group(cls=Noun)
def site() -> None:
    """Where storages stand: the failure domains."""


@site.command("list")
@LIMIT
@pass_session
def list_sites(session: Session, limit: int | None) -> None:
    """Sites by name."""
    session.out.table(session.client.items("/sites", limit), COLUMNS, "no sites   add one: dlm-admin site add NAME")


@site.command("show")
@click.argument("name")
@pass_session
def show_site(session: Session, name: str) -> None:
    """One site."""
    _show(session, session.client.get(named("sites", name)))


def _show(session: Session, item: Item) -> None:
    labels = [
        ("site", item["name"]),
        ("uuid", item["uuid"]),
        ("country", item["country"]),
        ("city", item["city"]),
        ("place", place(item)),
        ("created", shown_moment(item["created_at"])),
    ]
    session.out.facts(item, labels)


def _facts(given: dict[str, Any]) -> dict[str, Any]:
    """The body of what was given; an empty text takes a fact away."""
    return {key: (value if value != "" else None) for key, value in given.items() if value is not None}


@site.command("add")
@click.argument("name")
@click.option("--country", help="e.g. AU.")
@click.option("--city")
@click.option("--latitude", type=float)
@click.option("--longitude", type=float)
@pass_session
def add_site(session: Session, name: str, **given: Any) -> None:
    """Make a site."""
    item = session.client.post("/sites", {"name": name, **_facts(given)})
    session.out.said(
        f"site {name}   storages come to it with: dlm-admin storage add NAME --site {name} --path DIR", item
    )


@site.command("set")
@click.argument("name")
@click.option("--country", help="'' takes it away.")
@click.option("--city", help="'' takes it away.")
@click.option("--latitude", type=float)
@click.option("--longitude", type=float)
@pass_session
def set_site(session: Session, name: str, **given: Any) -> None:
    """Change what is known of a site; rules look again when its country changes."""
    if not (body := _facts(given)):
        raise InvalidInput("nothing to change is named", hint="--country, --city, --latitude, --longitude")
    _show(session, session.client.patch(named("sites", name), body))


@site.command("delete")
@click.argument("name")
@pass_session
def delete_site(session: Session, name: str) -> None:
    """Delete a site at which no storage stands."""
    session.client.delete(named("sites", name))
    session.out.said(f"site {name} is gone", {"name": name})
