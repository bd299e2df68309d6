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
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType

from promise import Promise, live_rules
from said import done, failed, say
from survey import Survey, differences, record, survey

from dlm.cli.client import Client, at
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
STORAGES = ("perth-disk", "perth-vault", "bern-disk", "bern-vault")
BATCH = 10_000
GENERATIONS = 1000

CONFIG = """
[database]
embedded_dir = {var}/db

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
# A day by default. Here nobody should have to wait for the end of the story.
undo_window_s = 5

[auditor]
interval_s = 2

[breaker]
# By default deleting more than half of a storage waits for a person. The tour lets all go that it made, on purpose,
# and however much; and tours that follow each other must not add up.
delete_share = 1
delete_files = 1000000000
window_s = 60
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
    dataset, storage = register(place, client, found)
    say()
    promise = Promise(client, place.admin, place.storages, f"{SCOPE}:{dataset}", len(found.files))
    promise.keep()
    promise.break_and_mend()
    promise.explain(STORAGES)
    promise.let_go(STORAGES)
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
        if not is_there(client, "storages", name):
            site, kind = name.split("-")
            where = ("--site", site, "--type", kind, "--path", str(place.storages / name))
            run(place, "storages", "storage", "add", name, *where)
    done("storages", "perth-disk perth-vault (site perth) · bern-disk bern-vault (site bern)")


def is_there(client: Client, noun: str, name: str) -> bool:
    return any(item["name"] == name for item in client.items(f"/{noun}"))


def run(place: Place, step: str, *words: str) -> str:
    """What the dlm-admin command printed; Failed with its own words when it did not succeed."""
    ended = subprocess.run(place.admin(*words), capture_output=True, text=True)
    if ended.returncode:
        raise Failed(step, f"dlm-admin {' '.join(words)}: {ended.stderr.strip() or ended.stdout.strip()}")
    return ended.stdout


# ------------------------------------------------------------------------------------------------------- your data


def register(place: Place, client: Client, found: Survey) -> tuple[str, str]:
    """(dataset, storage) as which the directory's files are registered in place; what is there already is reused."""
    began = time.monotonic()
    dataset, storage = home_of(place, client, found)
    if not is_there(client, "storages", storage):
        reason = "your own files: the tour changes nothing here"
        off = ("--write", "off", "--delete", "off", "--reason", reason)
        where = ("--site", "here", "--type", "original", "--path", str(place.data))
        run(place, "your data", "storage", "add", storage, *where, *off)
    if not has_did(client, dataset):
        run(place, "your data", "did", "add", f"{SCOPE}:{dataset}")
    for start_at in range(0, len(found.files), BATCH):
        files = [
            {"name": f"{dataset}/{file.name}", "size_bytes": file.size_bytes, "path": file.path}
            for file in found.files[start_at : start_at + BATCH]
        ]
        client.post("/replicas", {"storage": storage, "scope": SCOPE, "dataset": f"{SCOPE}:{dataset}", "files": files})
    much = f"{counted(len(found.files), 'file')}, {shown_size(found.size_bytes)} in {place.data}"
    text = f"{much}, registered in place as {SCOPE}:{dataset} (read-only; nothing there will change)"
    done("your data", text, time.monotonic() - began)
    for reason, number in found.skipped.most_common():
        say(f"   left out: {number:,} × {reason}, e.g. {ascii(found.examples[reason])}")
    return dataset, storage


def home_of(place: Place, client: Client, found: Survey) -> tuple[str, str]:
    """(dataset, storage) for the directory. Files that changed since an earlier tour come under names of their own.

    A file's content never changes under its name; so when one did, all are registered anew as `pictures-2`.
    """
    name = unicodedata.normalize("NFC", place.data.name)
    if not re.fullmatch(r"\w[\w .-]*", name) or name != name.strip():
        name = "data"
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:48] or "data"
    known = {item["name"] for item in client.items("/storages")}
    for number in range(1, GENERATIONS):
        suffix = f"-{number}" if number > 1 else ""
        dataset, storage = f"{name}{suffix}", f"{plain}{suffix}"
        if storage not in known and not has_did(client, dataset):
            return dataset, storage
        if storage in known and root_of(client, storage) == str(place.data):
            if still_holds(client, storage, found):
                return dataset, storage
            end_rules(client, f"{SCOPE}:{dataset}")
    raise Failed("your data", f"{place.data} was registered {GENERATIONS} times; remove {place.var} and start afresh")


def end_rules(client: Client, did: str) -> None:
    """Cancel what a tour that was interrupted left on names that no later tour uses."""
    for rule in live_rules(client, did):
        client.delete(f"/rules/{rule['id']}")


def has_did(client: Client, dataset: str) -> bool:
    try:
        client.get(at("dids", f"{SCOPE}:{dataset}"))
    except NotFound:
        return False
    return True


def root_of(client: Client, storage: str) -> str:
    return str(client.get(f"/storages/{storage}")["protocols"][0]["prefix"])


def still_holds(client: Client, storage: str, found: Survey) -> bool:
    """True when every file that was registered there is as it was then: there, of its size, not written since."""
    files = {file.path: file for file in found.files}
    for replica in client.items("/replicas", storage=storage):
        file = files.get(replica["path"])
        if file is None or file.size_bytes != replica["size_bytes"] or replica["state"] in ("bad", "lost"):
            return False
        if file.mtime_ns / 1e9 > moment_s(replica["created_at"]):
            return False
    return True


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
