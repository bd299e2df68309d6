"""DIDs: datasets, containers, files; what they hold and what is said about them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any

import click

from dlm.cli.accounts import LIMIT
from dlm.cli.client import Client, at
from dlm.cli.output import Column, Item
from dlm.cli.session import Noun, Session, pass_session
from dlm.cli.units import DID, DURATION, KEY_VALUE, MOMENT, counted, moment, shown_moment, shown_size
from dlm.errors import InvalidInput

BATCH = 10_000
COLUMNS = (
    Column("DID", "did"),
    Column("KIND", "kind"),
    Column("FILES", lambda item: "" if item["kind"] == "file" else f"{item['files']:,}", is_right=True),
    Column("SIZE", lambda item: shown_size(item["size_bytes"]), is_right=True),
    Column("STATE", lambda item: state(item)),
)
REPLICA_COLUMNS = (
    Column("DID", "did"),
    Column("STORAGE", "storage"),
    Column("STATE", "state"),
    Column("SIZE", lambda item: shown_size(item["size_bytes"]), is_right=True),
    Column("VERIFIED", lambda item: shown_moment(item.get("verified_at"))),
    Column("PATH", "path"),
)


def state(item: Item) -> str:
    """'open', 'closed', 'ended', and whether it is monotonic."""
    if item["deleted_at"] is not None:
        return "ended"
    if item["kind"] == "file":
        return "-"
    return ("open" if item["is_open"] else "closed") + (", monotonic" if item["is_monotonic"] else "")


@click.group(cls=Noun)
def did() -> None:
    """The data by name: files, datasets, containers."""


@did.command("add")
@click.argument("names", nargs=-1, required=True, type=DID, metavar="DID…")
@click.option(
    "--container", is_flag=True, help="Holds datasets and containers; without it a dataset, which holds files."
)
@click.option("--dataset", is_flag=True, help="The default.")
@click.option("--monotonic", is_flag=True, help="Nothing is ever taken out of it.")
@click.option("--meta", type=KEY_VALUE, multiple=True, help="Metadata; may be repeated.")
@click.option("--expires", type=MOMENT, help="When it ends and its rules let go.")
@pass_session
def add_did(session: Session, names: Sequence[str], container: bool, dataset: bool, **given: Any) -> None:
    """Make datasets or containers, all or none. Files come with `did register` or `did put`."""
    if container and dataset:
        raise InvalidInput("--container and --dataset exclude each other", field="kind")
    facts = {
        "kind": "container" if container else "dataset",
        "is_monotonic": given["monotonic"],
        "metadata": {key: value_of(text) for key, text in given["meta"]} or None,
        "expires_at": given["expires"],
    }
    item = session.client.post("/dids/many", {"dids": [{"did": name, **facts} for name in names]})
    session.out.said(f"{facts['kind']} {' '.join(names)}", item)


def value_of(text: str) -> Any:
    """JSON where the text is JSON (5, true, "a"), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


@did.command("list")
@click.argument("pattern", metavar="SCOPE[:PATTERN]")
@click.option("--kind", help="file, dataset or container.")
@click.option("--where", metavar="FILTER", help="Only those of which this is said, e.g. 'run>5, type=raw*; note'.")
@LIMIT
@pass_session
def list_dids(session: Session, pattern: str, kind: str | None, where: str | None, limit: int | None) -> None:
    """The DIDs of a scope; in a pattern '*' stands for any text."""
    scope, _, name = pattern.partition(":")
    items = session.client.items("/dids", limit, scope=scope, name=name or None, kind=kind, filter=where)
    session.out.table(items, COLUMNS, "nothing of this name")


@did.command("show")
@click.argument("name", type=DID, metavar="DID")
@pass_session
def show_did(session: Session, name: str) -> None:
    """One DID: what it is, where its copies are, what is promised for it."""
    item = session.client.get(at("dids", name))
    rules = list(session.client.items("/rules", 100, did=name))
    copies = list(session.client.items(at("replicas", name), 100)) if item["kind"] == "file" else None
    labels = [
        (item["kind"], name),
        (
            "holds",
            None if item["kind"] == "file" else f"{counted(item['files'], 'file')}, {shown_size(item['size_bytes'])}",
        ),
        ("size", f"{item['size_bytes']:,} bytes" if item["kind"] == "file" else None),
        *((digest, item[digest]) for digest in ("adler32", "md5", "sha256")),
        ("state", None if state(item) == "-" else state(item)),
        ("account", item["account"]),
        ("metadata", json.dumps(item["metadata"], ensure_ascii=False) if item["metadata"] else None),
        ("created", shown_moment(item["created_at"])),
        ("expires", item["expires_at"] and shown_moment(item["expires_at"])),
        *(("replica", f"{copy['storage']}  {copy['state']}  {copy['path']}") for copy in copies or ()),
        *(("rule", f"{rule['id']}  {rule['state']}  {rule['copies']} × {rule['storages']}") for rule in rules),
    ]
    session.out.facts(item | {"rules": [rule["id"] for rule in rules], "replicas": copies}, labels)


@did.command("ls")
@click.argument("name", type=DID, metavar="DID")
@LIMIT
@pass_session
def list_contents(session: Session, name: str, limit: int | None) -> None:
    """What a dataset or container holds directly."""
    session.out.table(session.client.items(at("contents", name), limit), COLUMNS, "it holds nothing")


@did.command("parents")
@click.argument("name", type=DID, metavar="DID")
@LIMIT
@pass_session
def list_parents(session: Session, name: str, limit: int | None) -> None:
    """The collections that hold a DID directly."""
    session.out.table(session.client.items(at("parents", name), limit), COLUMNS, "nothing holds it")


@did.command("replicas")
@click.argument("name", type=DID, metavar="DID")
@LIMIT
@pass_session
def list_replicas(session: Session, name: str, limit: int | None) -> None:
    """The replicas of a file, or of every file below a collection."""
    session.out.table(session.client.items(at("replicas", name), limit), REPLICA_COLUMNS, "no replicas")


def batches(names: Sequence[str], size: int = BATCH) -> Iterator[list[str]]:
    """The names in lists of at most `size`."""
    left = iter(names)
    while batch := list(islice(left, size)):
        yield batch


@did.command("attach")
@click.argument("parent", type=DID, metavar="COLLECTION")
@click.argument("children", nargs=-1, required=True, type=DID, metavar="DID…")
@pass_session
def attach(session: Session, parent: str, children: Sequence[str]) -> None:
    """Put files into a dataset, or collections into a container; rules on it follow."""
    done = {"added": 0, "existing": 0}
    for batch in batches(children):
        part = session.client.post(at("contents", parent), {"children": batch})
        done = {key: done[key] + part[key] for key in done}
    there = f", {done['existing']:,} were there" if done["existing"] else ""
    session.out.said(f"{parent}: {done['added']:,} attached{there}", done)


@did.command("detach")
@click.argument("parent", type=DID, metavar="COLLECTION")
@click.argument("children", nargs=-1, required=True, type=DID, metavar="DID…")
@pass_session
def detach(session: Session, parent: str, children: Sequence[str]) -> None:
    """Take children out of a collection; rules on it let go of them."""
    removed = sum(
        session.client.delete(at("contents", parent), {"children": part})["removed"] for part in batches(children)
    )
    session.out.said(f"{parent}: {removed:,} detached", {"removed": removed})


@did.command("close")
@click.argument("name", type=DID, metavar="DID")
@pass_session
def close_did(session: Session, name: str) -> None:
    """Close a collection: nothing is attached or detached any more."""
    session.out.said(f"{name} is closed", _set(session.client, name, is_open=False))


@did.command("open")
@click.argument("name", type=DID, metavar="DID")
@pass_session
def open_did(session: Session, name: str) -> None:
    """Open a closed collection again."""
    session.out.said(f"{name} is open", _set(session.client, name, is_open=True))


def _set(client: Client, name: str, **facts: Any) -> Any:
    return client.patch(at("dids", name), facts)


@did.command("set")
@click.argument("name", type=DID, metavar="DID")
@click.option("--meta", type=KEY_VALUE, multiple=True, help="Set metadata; may be repeated.")
@click.option("--unset-meta", multiple=True, metavar="KEY", help="Take metadata away; may be repeated.")
@click.option("--expires", help="When it ends and its rules let go: a moment, a duration from now, or never.")
@pass_session
def set_did(session: Session, name: str, meta: Any, unset_meta: Sequence[str], expires: str | None) -> None:
    """Change what is said about a DID, or when it ends."""
    patch = {**{key: value_of(text) for key, text in meta}, **dict.fromkeys(unset_meta)}
    if not patch and expires is None:
        raise InvalidInput("nothing to change is named", hint="--meta KEY=VALUE, --unset-meta KEY, --expires")
    if patch:
        session.client.patch(at("metadata", name), patch)
    if expires is not None:
        _set(session.client, name, expires_at=_end(session.client, expires))
    item = session.client.get(at("dids", name))
    ends = f"   ends {shown_moment(item['expires_at'])}" if item["expires_at"] else ""
    session.out.said(f"{name}   {json.dumps(item['metadata'], ensure_ascii=False)}{ends}", item)


def _end(client: Client, text: str) -> str | None:
    """The moment that the text means; a duration counts from the server's now, which is the one that matters."""
    if text == "never":
        return None
    try:
        after = DURATION.convert(text, None, None)
    except InvalidInput:
        return MOMENT.convert(text, None, None)
    return (moment(client.get("/health")["at"]) + timedelta(seconds=after)).isoformat()


@did.command("delete")
@click.argument("name", type=DID, metavar="DID")
@pass_session
def delete_did(session: Session, name: str) -> None:
    """End a DID: its rules let go, and its name is never used again."""
    session.client.delete(at("dids", name))
    session.out.said(f"{name} has ended; what only its rules held waits in the undo window, then goes", {"did": name})
