"""What tools/quickstart shows, once there is an environment: a service, a promise, a loss, a repair, letting go.

What a person could type is run as they would type it, with `dlm-admin`; what is only looked at is asked over REST.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from promise import MADE_BY, STORAGES, Promise, live_rules
from said import done, failed, say
from survey import Survey, differences, record, survey

from dlm.cli.client import Client, at
from dlm.cli.host import services
from dlm.cli.session import Session
from dlm.cli.units import counted, shown_size
from dlm.config import load
from dlm.errors import DlmError, NotFound, Transient

CHECKOUT = Path(__file__).resolve().parent.parent
SCOPE = "demo"
HEAD = "# Made by tools/quickstart, which does not write it again: it is yours to edit.\n"
SITES = {
    "perth": ("--country", "AU", "--city", "Perth", "--latitude", "-31.95", "--longitude", "115.86"),
    "bern": ("--country", "CH", "--city", "Bern", "--latitude", "46.95", "--longitude", "7.45"),
    "here": (),
}
ORIGINAL = "your own files: the tour changes nothing here"
UNDO_S = 5  # of the tour's storages only: nobody should have to wait for the end of the story
# By default deleting more than half of a storage waits for a person. The tour lets all go that it made, on purpose and
# however much; so the daemons run with these while it does, and with the usual ones again afterwards.
GENEROUS = {"DLM_BREAKER_DELETE_SHARE": "1", "DLM_BREAKER_DELETE_FILES": "1000000000"}
BATCH = 10_000
GENERATIONS = 1000

CONFIG = """
[database]
embedded_dir = {var}/db

[secrets]
key_file = {var}/secrets.key

[run]
dir = {var}

[web]
port = {port}

[client]
url = http://127.0.0.1:{port}
token_file = {var}/token

[judge]
interval_s = 1

[conveyor]
interval_s = 1

[reaper]
interval_s = 1

[auditor]
interval_s = 2
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tour happens: the files it shows, dlm's own directory, and the configuration in it."""

    data: Path
    var: Path

    @property
    def config(self) -> Path:
        return self.var / "dlm.cfg"

    @property
    def storages(self) -> Path:
        return self.var / "storages"

    def admin(self, *words: str) -> list[str]:
        """The command line that runs dlm-admin here."""
        return [str(Path(sys.executable).parent / "dlm-admin"), "--config", str(self.config), *words]

    def client(self) -> Client:
        return Session(str(self.config)).client


class Failed(Exception):
    """A step did not do what it is for: its name, and what came out."""

    def __init__(self, step: str, text: str) -> None:
        super().__init__(text)
        self.step = step


def main() -> int:
    arguments = parsed()
    signal.signal(signal.SIGTERM, interrupted)
    place = Place(Path(arguments.dir), Path(arguments.directory))
    try:
        tour(place, arguments.environment_s)
    except KeyboardInterrupt:
        goes_on = "" if arguments.check else "; dlm goes on by itself.  look: dlm-admin status   stop: dlm-admin down"
        say(f"\n not watching any more{goes_on}")
        return end(place, arguments.check, 130)
    except BrokenPipeError:  # whoever read along has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return end(place, arguments.check, 1)
    except (Failed, DlmError) as error:
        failed(getattr(error, "step", "tour"), str(error), getattr(error, "hint", None), place.var)
        return end(place, arguments.check, 75 if isinstance(error, Transient) else 1)
    if arguments.check:
        return end(place, True, 0)
    farewell(place)
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("dir")
    parser.add_argument("--directory", required=True)
    parser.add_argument("--environment-s", type=float, default=0.0)
    parser.add_argument("--check", action="store_true")
    return parser.parse_args()


def interrupted(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def end(place: Place, stop: bool, status: int) -> int:
    """The exit status, after everything was stopped where that is asked for."""
    if stop and place.config.exists():
        stopped = subprocess.run(place.admin("down"), capture_output=True, text=True)
        if stopped.returncode:
            failed("services", stopped.stderr.strip() or stopped.stdout.strip(), None, place.var)
            return status or 1
    return status


# ----------------------------------------------------------------------------------------------------------- steps


def tour(place: Place, environment_s: float) -> None:
    """Show everything; Failed or DlmError where something did not happen as it must."""
    before = record(place.data, place.var)
    packages = sum(1 for _ in importlib.metadata.distributions())
    done("environment", f".venv, {packages} packages", environment_s)
    start(place)
    client = place.client()
    prepare(place, client)
    found = survey(place.data, place.var)
    dataset, files = register(place, client, found)
    say()
    promise = Promise(client, place.admin, place.storages, f"{SCOPE}:{dataset}", files)
    promise.keep()
    promise.break_and_mend()
    promise.explain()
    with generous(place):
        promise.let_go()
    unchanged(place, before, len(found.files))


def start(place: Place) -> None:
    """Bring up database, web and daemons, each of them only if it is not up."""
    place.var.mkdir(parents=True, exist_ok=True)
    if not place.config.exists():
        place.config.write_text(HEAD + CONFIG.format(var=place.var, port=free_port()))
    began = time.monotonic()
    run(place, "database", "db", "init")
    settings = load(str(place.config))
    embedded = f"embedded PostgreSQL in {shown_path(Path(settings.database_embedded_dir))}"
    where = "the PostgreSQL that dlm.cfg names" if settings.database_dsn else embedded
    done("database", where, time.monotonic() - began)
    began = time.monotonic()
    run(place, "services", "up")
    daemons = " ".join(sorted({item["name"] for item in place.client().get("/daemons")["items"]}))
    done("services", f"web on {settings.client_url}, daemons: {daemons or 'starting'}", time.monotonic() - began)


@contextmanager
def generous(place: Place) -> Iterator[None]:
    """Daemons that delete without asking how much it is; at the end they run with the settings in dlm.cfg again."""
    restart_daemons(place, GENEROUS)
    try:
        yield
    finally:
        restart_daemons(place, {})


def restart_daemons(place: Place, extra: Mapping[str, str]) -> None:
    settings = load(str(place.config))
    daemons = next(service for service in services(Path(settings.run_dir).absolute()) if service.name == "daemons")
    daemons.stop()
    run(place, "services", "up", extra=extra)


def free_port(first: int = 8410) -> int:
    """The usual port, or any free one when something listens there."""
    for port in (first, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise Failed("services", "no port is free on 127.0.0.1")


def prepare(place: Place, client: Client) -> None:
    """Make the scope, the sites and the four storages that are not there yet."""
    if not is_there(client, "scopes", SCOPE):
        run(place, "storages", "scope", "add", SCOPE)
    for name, facts in SITES.items():
        if not is_there(client, "sites", name):
            run(place, "storages", "site", "add", name, *facts)
    for name in STORAGES:
        root = place.storages / name
        if is_there(client, "storages", name):
            require_own(client, name, root)
            continue
        site, kind = name.split("-")
        where = ("--site", site, "--type", kind, "--path", str(root), "--undo-window", f"{UNDO_S}s")
        run(place, "storages", "storage", "add", name, *where)
    done("storages", "perth-disk perth-vault (site perth) · bern-disk bern-vault (site bern)")


def require_own(client: Client, name: str, root: Path) -> None:
    """Failed when a storage of this name stands elsewhere: then somebody else made it."""
    if root_of(client, name) != str(root):
        where = root_of(client, name)
        raise Failed("storages", f"storage {name} in {where} is yours, not the tour's: name another --directory")


def is_there(client: Client, noun: str, name: str) -> bool:
    return any(item["name"] == name for item in client.items(f"/{noun}"))


def run(place: Place, step: str, *words: str, extra: Mapping[str, str] | None = None) -> str:
    """What the dlm-admin command printed; Failed with its own words when it did not succeed."""
    environment = {**os.environ, **(extra or {})}
    ended = subprocess.run(place.admin(*words), capture_output=True, text=True, env=environment)
    if ended.returncode:
        raise Failed(step, f"dlm-admin {' '.join(words)}: {ended.stderr.strip() or ended.stdout.strip()}")
    return ended.stdout


# ------------------------------------------------------------------------------------------------------- your data


def register(place: Place, client: Client, found: Survey) -> tuple[str, int]:
    """(dataset, number of files) as which the directory is registered in place; what is there already is reused.

    A file's content never changes under its name. So what changed since an earlier tour is left out, and when files
    changed or went, the rest comes as a dataset of its own, `pictures-2`.
    """
    began = time.monotonic()
    name, storage = names_of(place, client)
    if not is_there(client, "storages", storage):
        off = ("--write", "off", "--delete", "off", "--reason", ORIGINAL)
        where = ("--site", "here", "--type", "original", "--path", str(place.data))
        run(place, "your data", "storage", "add", storage, *where, *off)
    known = {replica["path"]: replica for replica in client.items("/replicas", storage=storage)}
    kept = [file for file in found.files if file.path not in known or is_as_it_was(file, known[file.path])]
    if not kept:
        raise Failed("your data", f"every file in {place.data} changed since an earlier tour: name another --directory")
    files = [
        {"name": name_of(known.get(file.path), f"{name}/{file.name}"), "size_bytes": file.size_bytes, "path": file.path}
        for file in kept
    ]
    dataset = dataset_for(place, client, name, {f"{SCOPE}:{file['name']}" for file in files})
    for start_at in range(0, len(files), BATCH):
        some = files[start_at : start_at + BATCH]
        client.post("/replicas", {"storage": storage, "scope": SCOPE, "dataset": f"{SCOPE}:{dataset}", "files": some})
    much = f"{counted(len(kept), 'file')}, {shown_size(sum(file.size_bytes for file in kept))} in {place.data}"
    text = f"{much}, registered in place as {SCOPE}:{dataset} (read-only; nothing there will change)"
    done("your data", text, time.monotonic() - began)
    for reason, number in found.skipped.most_common():
        say(f"   left out: {number:,} × {reason}, e.g. {ascii(found.examples[reason])}")
    if len(kept) < len(found.files):
        say(f"   left out: {len(found.files) - len(kept):,} × changed since an earlier tour: a name keeps its content")
    return dataset, len(kept)


def names_of(place: Place, client: Client) -> tuple[str, str]:
    """(name of the data, storage) for the directory; the storage is a new one, or the one an earlier tour made."""
    name = unicodedata.normalize("NFC", place.data.name)
    if not re.fullmatch(r"\w[\w .-]*", name) or name != name.strip():
        name = "data"
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:48] or "data"
    known = {item["name"] for item in client.items("/storages")}
    for suffix in suffixes(place):
        if f"{plain}{suffix}" not in known or is_original(client, f"{plain}{suffix}", place):
            return f"{name}{suffix}", f"{plain}{suffix}"
    raise AssertionError("suffixes() raises at its end")


def dataset_for(place: Place, client: Client, name: str, files: set[str]) -> str:
    """The dataset for the files: a new one, or that of an earlier tour which holds nothing else."""
    for suffix in suffixes(place):
        dataset = f"{name}{suffix}"
        did = f"{SCOPE}:{dataset}"
        item = found_did(client, did)
        if item is None:
            run(place, "your data", "did", "add", did, "--meta", f"made_by={MADE_BY}")
            return dataset
        if (item["metadata"] or {}).get("made_by") != MADE_BY:
            continue
        if all(child["did"] in files for child in client.items(at("contents", did))):
            return dataset
        end_rules(client, did)
    raise AssertionError("suffixes() raises at its end")


def suffixes(place: Place) -> Iterator[str]:
    """'', '-2', '-3', …; Failed after very many."""
    yield ""
    yield from (f"-{number}" for number in range(2, GENERATIONS))
    raise Failed("your data", f"{place.data} was shown {GENERATIONS} times; remove {place.var} and start afresh")


def name_of(replica: dict[str, Any] | None, new: str) -> str:
    """The name under which the file was registered, else the new one."""
    return new if replica is None else str(replica["did"]).partition(":")[2]


def is_as_it_was(file: Any, replica: dict[str, Any]) -> bool:
    """True for a file as it was when it was registered: of its size, and not written since."""
    if file.size_bytes != replica["size_bytes"] or replica["state"] in ("bad", "lost"):
        return False
    return bool(file.mtime_ns / 1e9 <= moment_s(replica["created_at"]))


def end_rules(client: Client, did: str) -> None:
    """Cancel what a tour that was interrupted left on names that no later tour uses."""
    for rule in live_rules(client, did, is_own=True):
        client.delete(f"/rules/{rule['id']}")


def found_did(client: Client, did: str) -> Any:
    """The DID, None when there is none of this name."""
    try:
        return client.get(at("dids", did))
    except NotFound:
        return None


def is_original(client: Client, storage: str, place: Place) -> bool:
    """True for the storage as which an earlier tour registered the directory; one that the user made is left alone."""
    item = client.get(f"/storages/{storage}")
    return bool(item["switch_reason"] == ORIGINAL and root_of(client, storage) == str(place.data))


def root_of(client: Client, storage: str) -> str:
    return str(client.get(f"/storages/{storage}")["protocols"][0]["prefix"])


def moment_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


# ------------------------------------------------------------------------------------------------------- at the end


def unchanged(place: Place, before: dict[str, tuple[int, int, int]], files: int) -> None:
    """Compare the directory with what it was when the tour began: nothing may have changed."""
    changed = differences(before, record(place.data, place.var))
    if changed:
        names = " ".join(ascii(path) for path in changed[:5])
        what = f"{counted(len(changed), 'file')} changed in {place.data} meanwhile: {names}"
        raise Failed("your data", f"{what}. dlm writes nothing there: who did?")
    say(f" Your files in {place.data}: {files:,}, unchanged.")
    say()


def farewell(place: Place) -> None:
    settings = load(str(place.config))
    token = shown_path(Path(settings.client_token_file))
    admin = shown_path(CHECKOUT / "bin" / "dlm-admin")
    if place.config != Path.cwd() / "var" / "dlm.cfg":  # where it looks by itself
        admin += f" --config {shown_path(place.config)}"
    say(f" dlm is running.  API and docs  {settings.client_url}/api/v1/docs   token  {token}   stop: {admin} down")
    say(f" Try: {admin} status   ·   storage list   ·   did list {SCOPE} --kind dataset   ·   event list rule")
    say(" Next: add your own storage · declare a rule · run it for real      → README.md#next")


def shown_path(path: Path) -> str:
    """The path, from the present directory when it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
