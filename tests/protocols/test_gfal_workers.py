"""The processes that speak gfal2 end when a call hangs or crashes, and with their parent; they tell no secret."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dlm.errors import Unsupported
from dlm.gfal import extension, worker
from dlm.gfal.speech import Speech, between, to_root
from dlm.gfal.workers import GfalError, Kept, Worker, Workers
from dlm.types import ProtocolRef, Secret
from protocols.filesystems import needs_root
from protocols.planted import Asking, plant
from protocols.servers import certificate, free_port, silent
from protocols.xrootd import certified, needs_gfal

pytestmark = pytest.mark.protocols
SEEDED = "SEEDED-in-no-list"


@pytest.fixture
def speaking() -> Iterator[Worker]:
    made = Worker(Speech({"BEARER_TOKEN_FILE": SEEDED}))
    yield made
    made.kill()


def is_there(process_id: int) -> bool:
    """False once the process is gone, or only its exit status is left of it."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone_within(process_id: int, limit_s: float) -> bool:
    limit = time.monotonic() + limit_s
    while is_there(process_id) and time.monotonic() < limit:
        threading.Event().wait(0.02)
    return not is_there(process_id)


@needs_gfal
def test_a_call_that_hangs_costs_its_limit_and_its_worker(speaking: Worker) -> None:
    with silent() as port:
        started = time.monotonic()
        with pytest.raises(GfalError) as caught:
            speaking.call("stat", f"root://127.0.0.1:{port}//f", limit_s=0.3)
    assert caught.value.code == errno.ETIMEDOUT and time.monotonic() - started < 5
    assert speaking.is_dead and not is_there(speaking.process_id)


@needs_gfal
def test_a_caller_who_changes_their_mind_is_heard(speaking: Worker) -> None:
    with silent() as port, pytest.raises(GfalError) as caught:
        speaking.call("stat", f"root://127.0.0.1:{port}//f", limit_s=60, is_over=lambda: True)
    assert caught.value.code == errno.ECANCELED and speaking.is_dead


@needs_gfal
def test_a_library_that_crashes_costs_its_worker_only() -> None:
    workers = Workers(Speech())
    with workers.one() as first:
        os.kill(first.process_id, signal.SIGKILL)
        with pytest.raises(GfalError) as caught:
            first.call("stat", f"root://127.0.0.1:{free_port()}//f", limit_s=10)
    assert caught.value.code == worker.DIED
    with pytest.raises(GfalError) as caught:
        workers.call("stat", f"root://127.0.0.1:{free_port()}//f", limit_s=30)
    assert caught.value.code == errno.ECONNREFUSED
    workers.close()


@needs_gfal
def test_a_worker_waits_for_the_next_who_is_the_same_and_ends_when_none_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    def used(speech: Speech) -> Worker:
        workers = Workers(speech)
        with contextlib.closing(workers), workers.one() as found:
            return found

    monkeypatch.setattr("dlm.gfal.workers._KEPT", kept := Kept())
    first = used(Speech({"BEARER_TOKEN_FILE": "1"}))
    assert used(Speech({"BEARER_TOKEN_FILE": "1"})) is first
    other = used(Speech({"BEARER_TOKEN_FILE": "2"}))
    assert other is not first and is_there(first.process_id)
    third = used(Speech())
    assert first.is_dead and is_there(other.process_id), "no more than two wait"
    monkeypatch.setattr("dlm.gfal.workers.KEPT_S", 0.1)
    assert used(Speech({"BEARER_TOKEN_FILE": "2"})) is other
    assert gone_within(other.process_id, 10) and is_there(third.process_id)
    assert used(Speech({"BEARER_TOKEN_FILE": "2"})) is not other
    kept.close()
    assert third.is_dead


@needs_gfal
def test_a_worker_ends_with_its_parent_also_in_the_middle_of_a_call() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, (ours, theirs) = listener.getsockname()[1], os.pipe()
        parent = os.fork()
        if parent == 0:
            made = Worker(Speech())
            os.write(theirs, str(made.process_id).encode())
            made.call("stat", f"root://127.0.0.1:{port}//f", limit_s=300)
            os._exit(0)
        process_id = int(os.read(ours, 100))
        far, _ = listener.accept()  # the call is under way
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        assert gone_within(process_id, 10)
        far.close()
    os.close(ours)
    os.close(theirs)


@needs_gfal
def test_a_secret_is_in_no_list_of_processes_and_in_no_error(speaking: Worker) -> None:
    about = Path(f"/proc/{speaking.process_id}")
    for name in ("cmdline", "environ"):
        assert SEEDED.encode() not in (about / name).read_bytes()
    with pytest.raises(GfalError) as caught:
        speaking.call("make_directories", f"root://127.0.0.1:{free_port()}//{SEEDED}", limit_s=30)
    assert SEEDED not in str(caught.value) and "***" in str(caught.value)
    assert SEEDED not in repr(Speech({"x": SEEDED}, (("davs://host", SEEDED),), (SEEDED, SEEDED), SEEDED))


@needs_gfal
def test_who_stands_in_the_environment_is_not_who_dlm_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("X509_USER_PROXY", "BEARER_TOKEN", "DLM_TOKEN"):
        monkeypatch.setenv(variable, SEEDED)
    made = Worker(Speech())
    environment = Path(f"/proc/{made.process_id}/environ").read_bytes()
    made.kill()
    assert SEEDED.encode() not in environment and b"XRD_CONNECTIONRETRY=1" in environment


@needs_gfal
@needs_root
@pytest.mark.parametrize("scheme", ["davs", "root"])
def test_certificates_that_stand_around_are_shown_to_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheme: str
) -> None:
    theirs, their_key = certified("who runs dlm", None)
    files = certificate(tmp_path / "tls")
    with files as (crt, key, ca), contextlib.closing(Asking(crt, key, is_xrootd=scheme == "root")) as host:
        host.trust(theirs)
        plant(tmp_path, monkeypatch, certificate=theirs, key=their_key)
        made = Worker(to_root({"ca": ca}) if scheme == "root" else Speech({"SSL_CERT_FILE": ca}))
        with pytest.raises(GfalError):
            made.call("stat", f"{scheme}://127.0.0.1:{host.port}//f", limit_s=20)
        made.kill()
    assert host.asked and host.shown == []


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(Unsupported, match="gfal2 for Python") as caught:
        extension.found(())
    assert str(caught.value.hint).startswith("apt-get install python3-gfal2")


def test_one_process_speaks_for_two_storages_only_if_it_can_be_who_it_should_be_to_both() -> None:
    def ref(url: str, **secret: str) -> ProtocolRef:
        return ProtocolRef(1, "s", "id", url.partition(":")[0], url, secret=Secret(secret) if secret else None)

    one, other = ref("davs://a/x", token="1", ca="C"), ref("davs://b:1/y", token="2", ca="C")
    trusting = replace(one, options={"trusted_hosts": "x.org, b"})
    told = between(trusting, other)
    assert told is not None and told.bearers == (("davs://a", "1"), ("davs://b:1", "2"))
    assert told.files == {"SSL_CERT_FILE": "C"}
    assert between(trusting, ref("davs://a/y", token="2")) is None
    assert between(trusting, ref("davs://b/y", username="u", password="p")) is None
    assert between(ref("root://a//", token="1"), ref("root://b//", token="2")) is None
    assert between(ref("root://a//", token="1"), ref("root://b//", token="1")) is not None


def test_a_token_is_told_only_to_whom_its_storage_trusts_with_it() -> None:
    def ref(url: str, credentials: str | None, **options: str) -> ProtocolRef:
        secret = Secret({"token": "1"}) if credentials else None
        return ProtocolRef(1, "s", "id", "davs", url, credentials, options, secret)

    destination = ref("davs://b.example.org/y", "theirs")
    for hosts, is_told in (
        ("", False), ("example.org", False), ("ample.org", False), (".example.org", True), ("x, b.example.org", True),
        ("B.Example.ORG", True), (", ,", False),
    ):  # fmt: skip
        source = ref("davs://a/x", "ours", **({"trusted_hosts": hosts} if hosts else {}))
        assert (between(source, destination) is not None) is is_told, hosts
    assert between(ref("davs://a/x", "theirs"), destination) is not None, "the same secret is known there"
    assert between(ref("davs://a/x", None), destination) is not None, "there is nothing to tell"
