"""Files that are on a storage already: found, read for their checksums side by side, registered in place."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import click

from dlm import did as codec
from dlm.cli.client import Client, at, named
from dlm.cli.progress import Look, Rate, display, measured
from dlm.cli.session import Session, Verb, pass_session
from dlm.cli.units import DID, counted, shown_seconds, shown_size
from dlm.digest import Digest
from dlm.errors import Conflict, InvalidInput, NotFound

BATCH = 5000  # files in one call
BLOCK = 1 << 20
LOCAL = ("posix", "file")
OWN = ".dlm-"  # dlm's own files begin so
SHOWN_NAMES = 10
FILES_ASKED, BYTES_ASKED = 100_000, 10 * 1000**3


@dataclass(frozen=True, slots=True)
class Found:
    """A file below the storage's root."""

    path: Path
    relative: str  # below the root
    size_bytes: int


@dataclass(slots=True)
class Tally:
    """What was registered so far."""

    files: int = 0
    size_bytes: int = 0
    new_dids: int = 0
    new_replicas: int = 0
    attached: int = 0
    left_out: list[str] = field(default_factory=list)
    bad_names: list[str] = field(default_factory=list)


@click.command("register", cls=Verb)
@click.argument("place", metavar="DIR|FILE…", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--storage", required=True, help="The storage on which they are.")
@click.option("--dataset", type=DID, help="Put them into this dataset, which is made if it is not there.")
@click.option("--scope", help="Of the files; default: the dataset's.")
@click.option("--prefix", default="", help="Names begin with this, e.g. 2026/.")
@click.option("--no-checksum", is_flag=True, help="Sizes only; the auditor reads the bytes later.")
@click.option("--jobs", type=click.IntRange(1, 64), help="Read so many at once; default: one a processor, at most 8.")
@click.option("--skip-bad-names", is_flag=True, help="Leave out files whose names dlm cannot take.")
@click.option("--yes", is_flag=True, help="Do not ask, however much it is.")
@pass_session
def register(session: Session, place: Sequence[Path], storage: str, dataset: str | None, **given: Any) -> None:
    """Register files in place: directories and files below a storage's root that this host can read.

    Nothing is moved or changed. A file's name is its path below the directory given. A second run
    registers what is new.
    """
    scope = given["scope"] or (dataset.partition(":")[0] if dataset else None)
    if scope is None:
        raise InvalidInput("no scope is given", field="scope", hint="--dataset SCOPE:NAME, or --scope SCOPE")
    codec.check_scope(scope)
    root = root_of(session.client, storage)
    tally = Tally()
    files = list(found(place, root, tally))
    if not files:
        raise NotFound(f"no files in {' '.join(map(str, place))}", field="place")
    chosen = [(file, given["prefix"] + name) for file, name in names(files, place)]
    wrong = wrong_names(chosen)
    if wrong and not given["skip_bad_names"]:
        raise _refused(wrong, len(chosen))
    tally.bad_names = [codec.shown(file.relative) for file, _ in wrong]
    bad = {file.path for file, _ in wrong}
    chosen = [(file, name) for file, name in chosen if file.path not in bad]
    if not chosen:
        raise _refused(wrong, len(files))
    ask(session, [file for file, _ in chosen], given["yes"])
    facts = {"storage": storage, "scope": scope, **({"dataset": dataset} if dataset else {})}
    started = time.monotonic()
    _register(
        session, chosen, facts, tally, 0 if given["no_checksum"] else given["jobs"] or min(8, os.cpu_count() or 1)
    )
    _tell(session, tally, storage, dataset, time.monotonic() - started)


def root_of(client: Client, storage: str) -> Path:
    """The storage's root on this host; Conflict when it is not reached by paths of this host."""
    ways = client.get(named("storages", storage))["protocols"]
    prefix = next((way["prefix"] for way in ways if way["scheme"] in LOCAL), None)
    if prefix is None or not Path(prefix).is_dir():
        detail = f"the root of {storage} is not a directory of this host"
        raise Conflict(
            detail, field="storage", hint="run it where the root is, or register through the API: POST /replicas"
        )
    return Path(prefix).resolve()


def found(places: Sequence[Path], root: Path, tally: Tally) -> Iterator[Found]:
    """The regular files below the places, by path; links and what is no file are left out and counted."""
    for place in places:
        top = place.resolve()
        if top != root and root not in top.parents:
            raise InvalidInput(
                f"{place} is not below {root}", field="place", hint="a storage's files are below its root"
            )
        for path in _walk(top) if top.is_dir() else [top]:
            if path.name.startswith(OWN):
                continue
            if path.is_symlink() or not path.is_file():
                tally.left_out.append(str(path))
                continue
            yield Found(path, path.relative_to(root).as_posix(), path.stat().st_size)


def _walk(top: Path) -> Iterator[Path]:
    for directory, below, files in os.walk(top):
        below.sort()
        for name in sorted(files):
            yield Path(directory, name)


def names(files: Iterable[Found], places: Sequence[Path]) -> list[tuple[Found, str]]:
    """Each file with its name: the path below the directory that was given, or its own name."""
    tops = [place.resolve() for place in places if place.is_dir()]
    named_files = []
    for file in files:
        top = next((top for top in tops if top in file.path.parents), file.path.parent)
        named_files.append((file, file.path.relative_to(top).as_posix()))
    return named_files


def wrong_names(files: Iterable[tuple[Found, str]]) -> list[tuple[Found, str]]:
    """The files that cannot be registered under their name or path, each with what is wrong; a name twice, too."""
    wrong, seen = [], set()
    for file, name in files:
        try:
            codec.check_name(name)
            codec.check_path(file.relative)
            if name in seen:
                raise InvalidInput("another file comes to the same name")
            seen.add(name)
        except InvalidInput as error:
            wrong.append((file, error.detail))
    return wrong


def _refused(wrong: Sequence[tuple[Found, str]], total: int) -> InvalidInput:
    """The error for names that cannot be registered: the first of them are shown, each on its own line."""
    for file, detail in wrong[:SHOWN_NAMES]:
        click.echo(f" {codec.shown(file.relative)}: {detail}", err=True)
    if len(wrong) > SHOWN_NAMES:
        click.echo(f" and {len(wrong) - SHOWN_NAMES:,} more", err=True)
    detail = (
        f"{len(wrong):,} of {counted(total, 'file')} cannot be registered under their names; nothing was registered"
    )
    hint = "rename them, or leave them out: --skip-bad-names registers the rest"
    return InvalidInput(
        detail, field="place", hint=hint, files=[codec.shown(file.relative) for file, _ in wrong[:SHOWN_NAMES]]
    )


def ask(session: Session, files: Sequence[Found], is_sure: bool) -> None:
    """Ask before much is read; without a terminal to answer, much needs --yes."""
    size = sum(file.size_bytes for file in files)
    session.out.line(f"{counted(len(files), 'file')}, {shown_size(size)}")
    if is_sure or (len(files) <= FILES_ASKED and size <= BYTES_ASKED):
        return
    if session.as_json or not sys.stdin.isatty():
        raise InvalidInput(f"{counted(len(files), 'file')}, {shown_size(size)} is much", field="place", hint="--yes")
    click.confirm("register them?", abort=True)


def ensure_dataset(client: Client, dataset: str) -> None:
    """Make the dataset, and its scope, where they are not there."""
    try:
        client.get(at("dids", dataset))
        return
    except NotFound:
        pass
    scope = dataset.partition(":")[0]
    try:
        client.get(named("scopes", scope))
    except NotFound:
        client.post("/scopes", {"name": scope})
    client.post("/dids", {"did": dataset})


def _register(
    session: Session, files: Sequence[tuple[Found, str]], facts: dict[str, Any], tally: Tally, jobs: int
) -> None:
    look = Look("registering", 0, len(files), done_bytes=0, total_bytes=sum(file.size_bytes for file, _ in files))
    rate = Rate()

    def seen(file: Found) -> None:
        look.done += 1
        look.done_bytes = (look.done_bytes or 0) + file.size_bytes
        if look.done % 50 == 0 or file.size_bytes > BLOCK:
            shown.show(look, measured(look, rate.note(time.monotonic(), look.done_bytes)))

    with display(session.as_json) as shown:
        items = described(files, jobs, seen)
        while batch := list(islice(items, BATCH)):
            if facts.get("dataset") and not tally.files:
                ensure_dataset(session.client, facts["dataset"])  # so late: what fails before leaves no empty one
            done = session.client.post("/replicas", {**facts, "files": batch})
            tally.files += len(batch)
            tally.size_bytes += sum(item["size_bytes"] for item in batch)
            tally.new_dids += done["new_dids"]
            tally.new_replicas += done["new_replicas"]
            tally.attached += done["attached"]


def described(files: Sequence[tuple[Found, str]], jobs: int, seen: Callable[[Found], None]) -> Iterator[dict[str, Any]]:
    """What the API wants to know of each file, in order; `jobs` are read side by side, none when it is 0."""
    if not jobs:
        for file, name in files:
            seen(file)
            yield {"name": name, "size_bytes": file.size_bytes, "path": file.relative}
        return
    waiting: deque[tuple[Found, str, Future[Digest]]] = deque()
    left = iter(files)
    with ThreadPoolExecutor(jobs) as pool:
        while True:
            for file, name in islice(left, max(0, 4 * jobs - len(waiting))):
                waiting.append((file, name, pool.submit(digest_of, file.path)))
            if not waiting:
                return
            file, name, reading = waiting.popleft()
            read = reading.result()
            seen(file)
            yield {"name": name, "size_bytes": read.size_bytes, "path": file.relative, **read.hexdigests()}


def digest_of(path: Path) -> Digest:
    """Size and adler32 of the file's bytes."""
    digest = Digest()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest


def _tell(session: Session, tally: Tally, storage: str, dataset: str | None, spent_s: float) -> None:
    item = {name: getattr(tally, name) for name in Tally.__slots__} | {"storage": storage, "dataset": dataset}
    session.out.object(item)
    into = f" as {dataset}" if dataset else ""
    known = tally.files - tally.new_replicas
    session.out.line(
        f"{counted(tally.files, 'file')}, {shown_size(tally.size_bytes)} at {storage}, registered in place{into}"
        f"{f' ({known:,} were known)' if known else ''}   {shown_seconds(round(spent_s, 1))}"
    )
    if tally.left_out:
        noun = "link or special file" if len(tally.left_out) == 1 else "links or special files"
        session.out.line(f"{len(tally.left_out):,} {noun} left out, e.g. {codec.shown(tally.left_out[0])}")
    if tally.bad_names:
        number = counted(len(tally.bad_names), "file")
        session.out.line(f"{number} left out for a name that dlm cannot take, e.g. {tally.bad_names[0]}")
