"""Replicas: what is on a storage or of a DID, and saying that one is bad."""

from __future__ import annotations

from collections.abc import Sequence

import click

from dlm.cli.accounts import LIMIT
from dlm.cli.client import at
from dlm.cli.dids import REPLICA_COLUMNS
from dlm.cli.session import Noun, Session, pass_session
from dlm.cli.units import DID, counted
from dlm.errors import InvalidInput


@click.group(cls=Noun)
def replica() -> None:
    """Files on storages, as the catalogue believes."""


@replica.command("list")
@click.argument("did_name", metavar="[DID]", type=DID, required=False)
@click.option("--storage", help="Instead of a DID: what is there.")
@click.option("--state", help="With --storage: e.g. available, bad, lost.")
@LIMIT
@pass_session
def list_replicas(
    session: Session, did_name: str | None, storage: str | None, state: str | None, limit: int | None
) -> None:
    """The replicas of a file, of all files below a collection, or at a storage."""
    if (did_name is None) == (storage is None):
        raise InvalidInput("say whose: a DID, or --storage NAME", field="did")
    if did_name is not None and state is not None:
        raise InvalidInput("--state goes with --storage", field="state")
    path = "/replicas" if did_name is None else at("replicas", did_name)
    items = session.client.items(path, limit, storage=storage, state=state)
    session.out.table(items, REPLICA_COLUMNS, "no replicas")


@replica.command("bad")
@click.argument("names", nargs=-1, required=True, type=DID, metavar="DID…")
@click.option("--storage", required=True, help="Where they are bad.")
@click.option("--reason", required=True, help="How you know.")
@pass_session
def declare_bad(session: Session, names: Sequence[str], storage: str, reason: str) -> None:
    """Declare replicas bad: they are repaired from a good copy, where a rule wants the file."""
    replicas = [{"did": name, "storage": storage} for name in names]
    item = session.client.post("/replicas/bad", {"replicas": replicas, "reason": reason})
    known = f", {len(names) - item['declared']:,} were known as such" if item["declared"] < len(names) else ""
    session.out.said(f"{counted(item['declared'], 'replica')} at {storage} declared bad{known}", item)
