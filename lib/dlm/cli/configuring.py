"""The settings in force, and the file that shows them all."""

from __future__ import annotations

from typing import Any

import click
import sqlalchemy as sa

from dlm import config as declared
from dlm.cli.output import Column
from dlm.cli.session import Noun, Session, pass_session
from dlm.errors import InvalidInput

HIDDEN = "…"
COLUMNS = (
    Column("SETTING", "setting"),
    Column("VALUE", lambda item: str(item["value"]) if item["value"] != "" else "-"),
    Column("UNIT", "unit"),
    Column("CHANGED", lambda item: "" if item["is_default"] else "yes"),
)


@click.group(cls=Noun)
def config() -> None:
    """The settings."""


@config.command("show")
@click.argument("section", required=False)
@pass_session
def show(session: Session, section: str | None) -> None:
    """The settings in force, secrets left out."""
    items = [item(session, name) for name in declared.DECLARED]
    chosen = [entry for entry in items if section in (None, entry["setting"].partition(".")[0])]
    if not chosen:
        sections = dict.fromkeys(entry["setting"].partition(".")[0] for entry in items)
        raise InvalidInput(f"there is no section {section!r}", field="section", hint=f"one of {', '.join(sections)}")
    session.out.table(chosen, COLUMNS)


def item(session: Session, name: str) -> dict[str, Any]:
    """One setting, as it is shown."""
    value, facts = getattr(session.settings, name), declared.DECLARED[name]
    section, key = declared.section_and_key(name)
    is_default = value == facts.default
    return {
        "setting": f"{section}.{key}",
        "value": without_secret(name, value),
        "unit": facts.metadata["unit"],
        "is_default": is_default,
        "help": facts.metadata["help"],
    }


def without_secret(name: str, value: Any) -> Any:
    """The value, or as much of it as others may see."""
    if name == "database_dsn" and value:
        try:
            return sa.make_url(value).render_as_string(hide_password=True)
        except sa.exc.ArgumentError:
            return HIDDEN
    return HIDDEN if declared.DECLARED[name].metadata["is_secret"] and value else value


@config.command("example")
@pass_session
def example(session: Session) -> None:
    """A configuration file with every setting and its default, commented out."""
    session.out.said(declared.example().rstrip("\n"), {"text": declared.example()})


@config.command("check")
@pass_session
def check(session: Session) -> None:
    """Read file, environment and flags as every program does; exit status 2 when something is wrong."""
    items = [item(session, name) for name in declared.DECLARED]
    changed = [f"{entry['setting']}={entry['value']}" for entry in items if not entry["is_default"]]
    what = "   ".join(changed) if changed else "all settings have their defaults"
    session.out.said(f"valid   {what}", {"valid": True, "changed": changed})
