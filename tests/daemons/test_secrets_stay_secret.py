"""Secrets are seeded, everything that can go wrong with them is made to, and then they are looked for everywhere."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dlm.db.engine import Database
from dlm.errors import DlmError
from processes import Service, serving
from protocols.servers import Place, free_port, rclone_serves, silent

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

SETTINGS = {
    "log.level": "debug",
    "conveyor.interval_s": 0.2,
    "conveyor.backoff_base_s": 0.1,
    "conveyor.backoff_max_s": 0.3,
    "auditor.interval_s": 0.2,
    "judge.interval_s": 0.2,
}
PEM = "-----BEGIN PRIVATE KEY-----\nSEEDEDpemSEEDEDpemSEEDEDpem\n-----END PRIVATE KEY-----\n"
# What each wrong secret is for, and its values; every value that is looked for has SEEDED in it.
WRONG: dict[str, tuple[str, dict[str, str]]] = {
    "wrong-password": ("dav", {"username": "SEEDEDuser", "password": "SEEDEDpassword"}),
    "wrong-token": ("dav", {"token": "SEEDEDtoken"}),
    "no-pem": ("dav", {"certificate": PEM, "key": PEM, "ca": "SEEDEDca"}),
    "no-authority": ("davs", {"token": "SEEDEDtls", "ca": PEM}),
    "no-certificate": ("davs", {"certificate": PEM, "key": PEM}),
    "wrong-keys": ("s3", {"access_key": "SEEDEDaccess", "secret_key": "SEEDEDs3", "session_token": "SEEDEDsession"}),
    "no-private-key": ("sftp", {"username": "SEEDEDsftp", "private_key": PEM, "passphrase": "SEEDEDpassphrase"}),
    "wrong-sftp": ("sftp", {"username": "SEEDEDsftp", "password": "SEEDEDsftppassword"}),
    "wrong-root": ("root", {"token": "SEEDEDroot", "ca": PEM}),
    "no-root-key": ("root", {"certificate": PEM, "key": PEM}),
}
# What cannot be sent, and is refused at once.
UNFIT: tuple[dict[str, str], ...] = (
    {"token": "SEEDEDfirst\r\nX-Other: SEEDEDsecond"},
    {"token": "SEEDEDłtoken"},
    {"username": "SEEDEDu\nser", "password": "SEEDEDpass\nword"},
    {"access_key": "SEEDED\naccess", "secret_key": "SEEDEDs3\n"},
    {"SEEDED key": "SEEDED"},
)


class Processes(threading.Thread):
    """Reads the command lines of all processes of this host, as `ps` does, over and over."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[str] = set()
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.005):
            for entry in os.scandir("/proc"):
                if entry.name.isdigit():
                    self._look(Path(entry.path, "cmdline"))

    def _look(self, path: Path) -> None:
        try:
            self.seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            return  # it has ended


@pytest.fixture(scope="module")
def service(pytestconfig: pytest.Config) -> Iterator[Service]:
    with serving("secrets", pytestconfig.getoption("--pg-bin"), SETTINGS) as service:
        yield service


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    secret = {"username": "right", "password": "SEEDEDright"}
    with rclone_serves("webdav", tmp_path_factory.mktemp("dav"), secret=secret) as place:
        yield place


@contextmanager
def told(service: Service) -> Iterator[None]:
    """What goes wrong inside is kept with all that was said."""
    try:
        yield
    except DlmError as error:
        facts = {key: str(value) for key, value in error.facts.items()}
        service.said.append(json.dumps([str(error), error.hint, error.field, facts]))


def store(service: Service, storage: str, name: str) -> None:
    """Put a file there, and fetch it: whatever comes of it."""
    with (
        told(service),
        service.client.open("PUT", f"/bytes/test/{name}", b"bytes", query={"storage": storage}) as answer,
    ):
        service.said.append(answer.read().decode())
    with told(service), service.client.open("GET", f"/bytes/test/{name}") as answer:
        service.said.append(answer.read().decode())


def ask(service: Service, storage: str) -> None:
    """All that people can ask about a storage."""
    for path in (f"/storages/{storage}", f"/why/storages/{storage}", "/status", "/requests", "/events?limit=1000"):
        with told(service):
            service.said.append(json.dumps(service.client.get(path)))


def seed(service: Service, place: Place) -> None:
    """A storage that works, and what does not work beside it."""
    service.client.post("/sites", {"name": "perth"})
    service.client.post("/scopes", {"name": "test"})
    disk = {"scheme": "posix", "prefix": str(service.directory / "disk")}
    service.client.post("/storages", {"name": "disk", "site": "perth", "protocols": [disk]})
    service.admin("secret", "add", "right", "username", "password", given="right\nSEEDEDright\n")
    service.admin("secret", "add", "unfit", "--file", "-", given=json.dumps(UNFIT[0]), status=2)
    for name, (_, values) in WRONG.items():
        service.client.post("/secrets", {"name": name, "values": values})
    for values in UNFIT:
        with told(service):
            service.client.post("/secrets", {"name": "unfit", "values": values})
    way = f"{place.scheme}={place.prefix}/data"
    service.admin("storage", "add", "dav", "--site", "perth", "--protocol", way, "--credentials", "right")


def refuse_to_add(service: Service, place: Place, port: int) -> None:
    """Storages that cannot be added: wrong secrets, at a server that answers, at one that never does, at none."""
    where = place.prefix.partition("://")[2]
    for name, (scheme, _) in WRONG.items():
        for host in (where, f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}"):
            prefix = f"https://{host}/bucket" if scheme == "s3" else f"{scheme}://{host}/below"
            way = {"scheme": scheme, "prefix": prefix, "credentials": name, "options": {"timeout_s": "0.5"}}
            with told(service):
                body = {"name": f"no-{name}-{len(service.said)}", "site": "perth", "protocols": [way]}
                service.said.append(json.dumps(service.client.post("/storages", body)))
    for prefix in ("dav://user:SEEDEDurl@127.0.0.1/x", "https://127.0.0.1/b?X-Amz-Signature=SEEDEDsignature"):
        way = {"scheme": "dav", "prefix": prefix, "credentials": "right"}
        with told(service):
            service.client.post("/storages", {"name": "url", "site": "perth", "protocols": [way]})


def go_wrong(service: Service, place: Place) -> None:
    """A storage in use, given one wrong secret after the other; each is noticed, and told as its reason."""
    dids = {"scope": "test", "files": [{"name": "wanted", "size_bytes": 5}], "storage": "disk"}
    (service.directory / "disk" / "test").mkdir(exist_ok=True)
    with told(service):
        service.client.post("/replicas", dids)
        service.client.post("/rules", {"did": "test:wanted", "copies": 2, "storages": "*"})
    for name, (scheme, _) in WRONG.items():
        if scheme != place.scheme:
            continue
        service.client.patch("/storages/dav/protocols/dav", {"credentials": name})
        service.until(f"{name} to be noticed", lambda: not service.client.get("/storages/dav")["is_available"])
        service.said.append(str(service.client.get("/storages/dav")["unavailable_reason"]))
        store(service, "dav", f"with-{name}")
        ask(service, "dav")
        service.client.patch("/storages/dav/protocols/dav", {"credentials": "right"})
        service.until("it to go on", lambda: service.client.get("/storages/dav")["is_available"])


def lose_the_key(service: Service) -> None:
    """The key goes away and comes back; the daemons go on all the while."""
    key = service.directory / "secrets.key"
    key.rename(key.with_suffix(".away"))
    service.client.patch("/storages/dav/protocols/dav", {"options": {"timeout_s": "5"}})  # it is looked at soon
    service.until("the key to be missed", lambda: not service.client.get("/storages/dav")["is_available"])
    assert "is encrypted under key" in service.client.get("/storages/dav")["unavailable_reason"]
    ask(service, "dav")
    service.admin("doctor", status=1)
    with told(service):
        service.client.post("/secrets", {"name": "late", "values": {"token": "SEEDEDlate"}})
    key.with_suffix(".away").rename(key)
    service.client.patch("/storages/dav/protocols/dav", {"options": {"timeout_s": "6"}})
    service.until("it to go on", lambda: service.client.get("/storages/dav")["is_available"])


def everything_kept(service: Service) -> Iterable[tuple[str, str]]:
    """(where, text) of all logs, all rows of all tables, all that was said, and whatever else was written."""
    database = Database(service.server.dsn())
    with database.begin("dump") as tx:
        tables = tx.rows("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
        for table in tables:
            rows: list[Any] = list(tx.rows(f"SELECT to_jsonb(t)::text AS row FROM {table.relname} t"))
            yield f"table {table.relname}", "\n".join(row.row for row in rows)
    database.dispose()
    for path in service.directory.rglob("*"):
        if path.is_file() and "db" not in path.relative_to(service.directory).parts[:1] and path.suffix != ".key":
            yield str(path), path.read_text(errors="replace")
    for path in (service.directory / "db").rglob("*.log"):
        yield str(path), path.read_text(errors="replace")
    yield "dlm-admin and REST", "\n".join(service.said)


def spellings(text: str) -> set[str]:
    """How a text may stand somewhere: as it is, in hexadecimal, in base64 wherever it begins in the bytes."""
    data, found = text.encode(), {text, text.encode().hex()}
    for before in range(3):
        begin, end = -(-before * 8 // 6), (before + len(data)) * 8 // 6  # the characters that are made of it alone
        found.add(base64.b64encode(b"x" * before + data).decode()[begin:end])
    return found


def test_a_secret_stands_in_no_log_table_answer_or_process_list(service: Service, place: Place) -> None:
    processes = Processes()
    processes.start()
    with silent() as port:
        seed(service, place)
        store(service, "dav", "good")
        refuse_to_add(service, place, port)
    go_wrong(service, place)
    lose_the_key(service)
    done = service.admin("secret", "rotate", "--drop-old")
    assert done["secrets"] == len(WRONG) + 1 and len(done["dropped"]) == 1
    store(service, "dav", "after")
    assert service.client.get("/storages/dav")["is_available"]
    processes.stop.set()
    processes.join()
    keys = (service.directory / "secrets.key").read_text().split()[-1]
    looked_for = {spelling for text in ("SEEDED", keys) for spelling in spellings(text)}
    places = [*everything_kept(service), ("the process list", "\n".join(processes.seen))]
    assert len(places) > 30 and any("unavailable" in text for _, text in places)
    for where, text in places:
        for secret in looked_for:
            at = text.find(secret)
            assert at < 0, f"{secret} stands in {where}: …{text[max(0, at - 300) : at + 100]}…"
