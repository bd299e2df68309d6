"""A user's own bytes in and out: `did put` and `did get`, each verified at both ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import click

from dlm import did as codec
from dlm.cli.client import Client, at, named
from dlm.cli.output import Item
from dlm.cli.progress import Look, Rate, display, measured
from dlm.cli.registering import digest_of, ensure_dataset
from dlm.cli.session import Session, Verb, pass_session
from dlm.cli.units import DID, shown_size
from dlm.digest import ALGORITHMS, Digest
from dlm.errors import CannotPlace, Conflict, InvalidInput, NotFound, Transient

BLOCK = 1 << 20
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("put", cls=Verb)
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="FILE…")
@click.option("--storage", help="Where to.")
@click.option(
    "--on", "expression", metavar="EXPR", help="Or to one of the storages that match: the one with most room."
)
@click.option("--dataset", type=DID, help="Put them into this dataset, which is made if it is not there.")
@click.option("--scope", help="Of the files; default: the dataset's.")
@click.option("--name", help="Of a single file; default: its own.")
@click.option("--prefix", default="", help="Names begin with this, e.g. 2026/.")
@pass_session
def put(session: Session, files: Sequence[Path], dataset: str | None, name: str | None, **given: Any) -> None:
    """Store files: each is read back from the storage and compared before it counts.

    For much data on a disk that is a storage, or can become one, `did register` leaves it where it is.
    """
    scope = given["scope"] or (dataset.partition(":")[0] if dataset else None)
    if scope is None:
        raise InvalidInput("no scope is given", field="scope", hint="--dataset SCOPE:NAME, or --scope SCOPE")
    if name is not None and len(files) != 1:
        raise InvalidInput("--name is for one file", field="name", hint="--prefix is for several")
    names = [f"{scope}:{given['prefix']}{name or file.name}" for file in files]
    for text in names:
        codec.parse(text)
    storage = destination(session.client, given["storage"], given["expression"])
    if dataset is not None:
        ensure_dataset(session.client, dataset)
    with working(session, "sending", [file.stat().st_size for file in files]) as seen:
        for file, text in zip(files, names, strict=True):
            item = send(session.client, file, text, {"storage": storage, "dataset": dataset}, seen)
            session.out.said(f"{text}  {shown_size(item['size_bytes'])} at {item['storage']}, verified", item)


def destination(client: Client, storage: str | None, expression: str | None) -> str:
    """The storage that was named, or the one with most room among those that match."""
    if (storage is None) == (expression is None):
        raise InvalidInput("where to?", field="storage", hint="--storage NAME, or --on EXPR")
    if storage is not None:
        return storage
    matched = client.post("/expressions", {"storages": expression})
    usable = [item for name in matched["storages"] if (item := client.get(named("storages", name))) and _takes(item)]
    if not usable:
        why = "; ".join(matched["hints"]) or "none of those that match takes data now"
        raise CannotPlace(
            f"no storage to write to: {why}", field="storages", hint=f"dlm-admin expression show '{expression}'"
        )
    usage = {item["storage"]: item for item in client.get("/usage/storages")["items"]}
    return str(max(usable, key=lambda item: _room(usage[item["name"]]))["name"])


def _takes(item: Item) -> bool:
    return bool(item["can_write"] and item["is_available"])


def _room(usage: Item) -> float:
    if usage["capacity_bytes"] is None:
        return float("inf")
    taken = usage["used_bytes"] + usage["reserved_bytes"] + usage["min_free_bytes"]
    return float(usage["capacity_bytes"] - taken)


def send(client: Client, file: Path, name: str, query: Item, seen: Callable[[int], None]) -> Any:
    """Send one file with its checksum; the server compares, stores, reads back and compares again."""
    digest = digest_of(file)
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        facts = {**query, **digest.hexdigests()}
        with client.open("PUT", at("bytes", name), _blocks(opened, seen), query=facts, headers=headers) as response:
            return client.read_json(response)


def _blocks(opened: BinaryIO, seen: Callable[[int], None]) -> Iterator[bytes]:
    while block := opened.read(BLOCK):
        yield block
        seen(len(block))


@click.command("get", cls=Verb)
@click.argument("names", nargs=-1, required=True, type=DID, metavar="DID…")
@click.option("--to", "directory", default=".", type=click.Path(file_okay=False, path_type=Path), help="Default: here.")
@click.option("--replace", is_flag=True, help="Replace files that are there and differ.")
@pass_session
def get(session: Session, names: Sequence[str], directory: Path, replace: bool) -> None:
    """Fetch files, or all files of datasets and containers, each from its best replica and compared.

    A file that is there already with the right bytes is left. Names with slashes become directories.
    """
    files = [item for name in names for item in files_below(session.client, session.client.get(at("dids", name)))]
    if not files:
        raise NotFound(f"{' '.join(names)} holds no files", field="did")
    with working(session, "fetching", [item["size_bytes"] for item in files]) as seen:
        for item in files:
            path = directory.joinpath(*item["name"].split("/"))
            storage = fetch(session.client, item, path, seen, may_replace=replace)
            where = "was there" if storage is None else f"from {storage}"
            facts = {"did": item["did"], "path": str(path), "size_bytes": item["size_bytes"], "storage": storage}
            session.out.said(f"{path}  {shown_size(item['size_bytes'])} {where}, verified", facts)


def files_below(client: Client, item: Item) -> Iterator[Item]:
    """The files of a DID, those of collections below it included; each collection is read once."""
    waiting, met = [item], set()
    while waiting:
        one = waiting.pop()
        if one["kind"] == "file":
            yield one
        elif one["did"] not in met:
            met.add(one["did"])
            waiting.extend(client.items(at("contents", one["did"])))


def fetch(
    client: Client, item: Item, path: Path, seen: Callable[[int], None], *, may_replace: bool = False
) -> str | None:
    """Fetch one file; the storage it came from, None when it was there. Nothing wrong ever has the file's name."""
    known = {name: item[name] for name in ALGORITHMS if item[name]}
    if path.exists():
        if is_same(path, item, known):
            seen(item["size_bytes"])
            return None
        if not may_replace:
            raise Conflict(f"{path} is there with other content", field="to", hint="--replace, or another --to")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name[:200]}.{os.getpid()}.part")
    try:
        with client.open("GET", at("bytes", item["did"])) as response, draft.open("wb") as file:
            digest = _receive(response, file, known, seen)
            storage = response.headers["X-Storage"]
        if digest.size_bytes != item["size_bytes"] or digest.hexdigests() != known:
            hint = f"tell a storage administrator: dlm-admin storage check {storage}"
            raise Transient(f"{item['did']} came from {storage} with other content", hint=hint)
        draft.replace(path)
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()
    return str(storage)


def _receive(response: Any, file: BinaryIO, known: Item, seen: Callable[[int], None]) -> Digest:
    digest = Digest(known)
    while block := response.read(BLOCK):
        digest.update(block)
        file.write(block)
        seen(len(block))
    file.flush()
    os.fsync(file.fileno())
    return digest


def is_same(path: Path, item: Item, known: Item) -> bool:
    """Whether the file has the size, and the digests that are known."""
    if path.is_dir() or path.stat().st_size != item["size_bytes"] or not known:
        return False
    digest = Digest(known)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigests() == known


@contextmanager
def working(session: Session, word: str, sizes: Sequence[int]) -> Iterator[Callable[[int], None]]:
    """Show bytes on their way; gives the function that is told how many came."""
    total, rate = sum(sizes), Rate()
    done = 0

    def seen(number: int) -> None:
        nonlocal done
        done += number
        look = Look(word, done, total, "bytes", done_bytes=done, total_bytes=total)
        shown.show(look, measured(look, rate.note(time.monotonic(), done)))

    with display(session.as_json) as shown:
        yield seen
