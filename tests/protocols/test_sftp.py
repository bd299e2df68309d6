"""SFTP against OpenSSH and rclone's server: conformance, and what a network can do to it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dlm import effects
from dlm.errors import StorageError
from dlm.protocols import StorageProtocol, open_protocol
from dlm.types import ErrorClass
from protocols.conformance import STORAGE_ID, ProtocolConformance, get, put, refusal
from protocols.counting import OTHERS, counting
from protocols.faults import NetworkFaults, read_only
from protocols.filesystems import killed_at, mounted, needs_root
from protocols.servers import Place, claimed, cutting, port_of, program, rclone_serves, sshd, through

asyncssh = pytest.importorskip("asyncssh", reason="asyncssh is not installed: pip install 'dlm[sftp]'")
from dlm.protocols.ssh import LOOP  # noqa: E402  needs asyncssh

pytestmark = pytest.mark.protocols
COUNT = itertools.count(1)


@pytest.fixture(scope="module")
def openssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with sshd(tmp_path_factory.mktemp("openssh")) as place:
        yield place


@pytest.fixture(scope="module")
def rclone_sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with rclone_serves("sftp", tmp_path_factory.mktemp("rclone")) as place:
        yield place


@pytest.fixture(scope="module")
def plain_sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server that knows the protocol, and nothing that OpenSSH added to it."""
    with sshd(tmp_path_factory.mktemp("plain"), without="posix-rename,hardlink,fsync,statvfs") as place:
        yield place


class TestOpenSsh(ProtocolConformance):
    @pytest.fixture
    def storage(self, openssh: Place) -> Iterator[StorageProtocol]:
        with claimed(openssh, COUNT) as storage:
            yield storage


class TestPlainSftp(ProtocolConformance):
    tells_space = False

    @pytest.fixture
    def storage(self, plain_sftp: Place) -> Iterator[StorageProtocol]:
        with claimed(plain_sftp, COUNT) as storage:
            yield storage


class TestReplacingWithoutPosixRename:
    """A rename that cannot take a file's place: what is there is put aside, and removed once the new one is there."""

    @pytest.fixture
    def storage(self, plain_sftp: Place) -> Iterator[StorageProtocol]:
        with claimed(plain_sftp, COUNT) as storage:
            put(storage, "d/f", b"bad")
            yield storage
        effects.install(None)

    def test_what_was_there_goes(self, storage: StorageProtocol) -> None:
        put(storage, "d/f", b"good", replace=True)
        put(storage, "e/f", b"good", replace=True)
        assert (get(storage, "d/f"), get(storage, "e/f")) == (b"good", b"good")
        assert storage.remove_temporaries("1.1") == 0

    def test_an_attempt_whose_time_is_over_harms_no_later_one(self, storage: StorageProtocol) -> None:
        def overtake(point: str) -> None:
            if point == "sftp.rename:before":
                effects.install(None)
                with open_protocol(storage.ref) as later:
                    assert later.remove_temporaries("1.1") == 1
                    put(later, "d/f", b"good", attempt="1.2", replace=True)

        effects.install(overtake)
        with pytest.raises(StorageError):
            put(storage, "d/f", b"good", replace=True)
        assert get(storage, "d/f") == b"good" and storage.remove_temporaries("1.1", "1.2") == 0

    def test_what_cannot_be_replaced_comes_back(self, storage: StorageProtocol, plain_sftp: Place) -> None:
        def remove(point: str) -> None:
            if point == "sftp.aside:after":
                [staged] = [file for file in temporaries.iterdir() if file.read_bytes() == b"good"]
                staged.unlink()

        temporaries = plain_sftp.directory / storage.ref.prefix.rpartition("/")[2] / ".dlm-tmp"
        effects.install(remove)
        with pytest.raises(StorageError):
            put(storage, "d/f", b"good", replace=True)
        assert get(storage, "d/f") == b"bad" and storage.remove_temporaries("1.1") == 0

    def test_killed_on_the_way_the_next_attempt_does_it(self, storage: StorageProtocol) -> None:
        def write() -> None:
            with open_protocol(storage.ref) as own:
                put(own, "d/f", b"good", replace=True)

        assert killed_at("sftp.aside:after", write)
        assert storage.stat("d/f") is None and storage.remove_temporaries("1.1") == 2
        put(storage, "d/f", b"good", attempt="1.2", replace=True)
        assert get(storage, "d/f") == b"good"


class TestRclone(ProtocolConformance):
    excludes_writers = False  # its rename takes the place of what is there

    @pytest.fixture
    def storage(self, rclone_sftp: Place) -> Iterator[StorageProtocol]:
        with claimed(rclone_sftp, COUNT) as storage:
            yield storage


class TestFaults(NetworkFaults):
    half_written = ("sftp.write:before", "sftp.write:after", "sftp.rename:before")

    @pytest.fixture
    def place(self, openssh: Place) -> Place:
        return openssh

    @pytest.fixture
    def storage(self, place: Place) -> Iterator[StorageProtocol]:
        with claimed(place, COUNT) as storage:
            yield storage


class TestServer:
    def test_a_password_lets_in(self, rclone_sftp: Place) -> None:
        assert "password" in rclone_sftp.secret
        with claimed(rclone_sftp, COUNT) as storage:
            put(storage, "f", b"x")

    def test_a_key_with_a_passphrase_lets_in(self, openssh: Place) -> None:
        key = asyncssh.import_private_key(openssh.secret["private_key"])
        locked = key.export_private_key(passphrase="open sesame").decode()
        secret = {**openssh.secret, "private_key": locked, "passphrase": "open sesame"}
        with claimed(replace(openssh, secret=secret), COUNT) as storage:
            put(storage, "f", b"x")
        for wrong in ({**secret, "passphrase": "sesame"}, {**secret, "private_key": "no key"}):
            with replace(openssh, secret=wrong).storage() as storage:
                assert refusal(lambda: storage.stat("f")) == ErrorClass.PERMISSION

    def test_who_runs_dlm_is_not_who_dlm_is_to_a_storage(
        self, openssh: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept = tmp_path / ".ssh"
        kept.mkdir()
        (kept / "id_ed25519").write_text(openssh.secret["private_key"])
        (kept / "config").write_text(f"IdentityFile {kept}/id_ed25519\n")
        (kept / "id_ed25519").chmod(0o600)
        monkeypatch.setenv("HOME", str(tmp_path))
        agent = subprocess.run([program("ssh-agent", "openssh-client"), "-s"], check=True, capture_output=True)
        socket, process_id = re.findall(r"=([^;]+);", agent.stdout.decode())
        try:
            monkeypatch.setenv("SSH_AUTH_SOCK", socket)
            subprocess.run(["ssh-add", "-q", str(kept / "id_ed25519")], check=True)
            for secret in ({"username": openssh.secret["username"]}, {**openssh.secret, "private_key": other_key()}):
                with openssh.storage(secret=secret) as nobody:
                    assert refusal(lambda: nobody.stat("f")) == ErrorClass.PERMISSION
        finally:
            os.kill(int(process_id), signal.SIGTERM)

    @pytest.mark.parametrize("host_key", [None, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPlCJ", "SHA256:abc"])
    def test_a_host_that_is_not_known_is_not_spoken_to(self, openssh: Place, host_key: str | None) -> None:
        options = {} if host_key is None else {"host_key": host_key}
        with openssh.storage(options=options) as storage, pytest.raises(StorageError) as caught:
            storage.stat("f")
        assert caught.value.error_class == ErrorClass.UNAVAILABLE and "host_key" in str(caught.value.hint)

    def test_a_fingerprint_is_enough_to_know_a_host(self, openssh: Place) -> None:
        key = asyncssh.import_public_key(openssh.options["host_key"])
        with claimed(replace(openssh, options={"host_key": key.get_fingerprint()}), COUNT) as storage:
            put(storage, "f", b"x")

    def test_a_connection_that_broke_is_made_again(self, openssh: Place) -> None:
        with claimed(openssh, COUNT) as storage, cutting(port_of(openssh)) as proxy:
            put(storage, "f", b"x")
            below = storage.ref.prefix.removeprefix(openssh.prefix + "/")
            with through(openssh, proxy.port).storage(below) as proxied:
                assert get(proxied, "f") == b"x"
                proxy.cut()
                outcomes = {outcome_of(lambda: get(proxied, "f")) for _ in range(2)}
                assert get(proxied, "f") == b"x"
                assert outcomes <= {"ok", ErrorClass.IO, ErrorClass.UNAVAILABLE}

    def test_a_link_is_no_file_and_is_never_written_through(self, openssh: Place, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        victim.write_bytes(b"untouched")
        with claimed(openssh, COUNT) as storage:
            root = openssh.directory / storage.ref.prefix.rpartition("/")[2]
            (root / "link").symlink_to(victim)
            assert storage.stat("link") is None and list(storage.list()) == []
            assert refusal(lambda: storage.read("link")) == ErrorClass.SOURCE_MISSING
            assert refusal(lambda: put(storage, "link", b"evil")) == ErrorClass.DESTINATION_EXISTS
            put(storage, "link", b"good", replace=True)
            assert get(storage, "link") == b"good" and victim.read_bytes() == b"untouched"

    def test_a_link_in_a_directorys_place_leads_nowhere(self, openssh: Place, tmp_path: Path) -> None:
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "f").write_bytes(b"untouched")
        with claimed(openssh, COUNT) as storage:
            root = openssh.directory / storage.ref.prefix.rpartition("/")[2]
            (root / "d").symlink_to(tmp_path / "outside")
            for act in (
                lambda: storage.read("d/f"),
                lambda: put(storage, "d/g", b"evil"),
                lambda: storage.delete("d/f"),
            ):
                assert refusal(act) == ErrorClass.INVALID_PATH
            assert list(storage.list()) == []
        assert [path.name for path in (tmp_path / "outside").iterdir()] == ["f"]

    def test_nothing_is_made_beyond_a_link_that_was_planted(self, openssh: Place, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        with claimed(openssh, COUNT) as storage:
            root = openssh.directory / storage.ref.prefix.rpartition("/")[2]
            (root / "scope").symlink_to(outside)
            for act in (lambda: put(storage, "scope/a/b/f", b"evil"), lambda: storage.stat("scope/a/b/f")):
                assert refusal(act) == ErrorClass.INVALID_PATH
        assert list(outside.iterdir()) == []

    @pytest.mark.parametrize("path", ["late/f", "late/a/f", "late/a/b/f"])
    @pytest.mark.parametrize("point", ["sftp.rename:before", "sftp.mkdir:after"])
    def test_a_link_that_is_planted_while_we_write_is_noticed(
        self, openssh: Place, tmp_path: Path, path: str, point: str
    ) -> None:
        def plant(reached: str) -> None:
            if reached == point:
                shutil.rmtree(root / "late", ignore_errors=True)
                (root / "late").symlink_to(outside)

        outside = tmp_path / "outside"
        (outside / "a" / "b").mkdir(parents=True)
        with claimed(openssh, COUNT) as storage:
            root = openssh.directory / storage.ref.prefix.rpartition("/")[2]
            effects.install(plant)
            try:
                assert refusal(lambda: put(storage, path, b"evil")) == ErrorClass.INVALID_PATH
            finally:
                effects.install(None)
            assert storage.remove_temporaries("1.1") == 0
        assert [file for file in outside.rglob("*") if file.is_file()] == []

    def test_temporaries_are_not_written_through_a_link_and_not_removed_through_one(
        self, openssh: Place, tmp_path: Path
    ) -> None:
        theirs = tmp_path / "1.1~theirs"
        theirs.write_bytes(b"untouched")
        with claimed(openssh, COUNT) as storage:
            temporaries = openssh.directory / storage.ref.prefix.rpartition("/")[2] / ".dlm-tmp"
            temporaries.rmdir()
            temporaries.symlink_to(tmp_path)
            for act in (lambda: put(storage, "f", b"x"), lambda: storage.remove_temporaries("1.1")):
                assert refusal(act) == ErrorClass.INVALID_PATH
        assert theirs.read_bytes() == b"untouched"

    def test_of_a_marker_only_the_beginning_is_read(self, openssh: Place) -> None:
        with claimed(openssh, COUNT) as storage, counting(port_of(openssh)) as proxy:
            root = openssh.directory / storage.ref.prefix.rpartition("/")[2]
            os.truncate(root / ".dlm-storage", 200 << 20)
            below = storage.ref.prefix.removeprefix(openssh.prefix + "/")
            with through(openssh, proxy.port).storage(below) as proxied:
                assert refusal(proxied.identify) == ErrorClass.UNAVAILABLE
            assert proxy.bytes[OTHERS] < 1 << 20

    def test_a_marker_that_comes_byte_by_byte_costs_the_timeout(self, tmp_path: Path) -> None:
        (tmp_path / ".dlm-storage").write_bytes(b"x" * 5000)
        with dripping(tmp_path) as place, place.storage(options={**place.options, "timeout_s": "0.5"}) as storage:
            started = time.monotonic()
            assert refusal(storage.identify) == ErrorClass.TIMEOUT
            assert time.monotonic() - started < 3

    def test_empty_directories_go_with_their_last_file(self, openssh: Place) -> None:
        with claimed(openssh, COUNT) as storage:
            root = openssh.directory / storage.ref.prefix.rpartition("/")[2]
            put(storage, "a/b/c/f", b"")
            put(storage, "a/g", b"")
            storage.delete("a/b/c/f")
            assert [path.name for path in (root / "a").iterdir()] == ["g"]
            storage.delete("a/g")
            assert not (root / "a").exists() and root.exists()

    def test_a_directory_closed_to_us_is_a_matter_of_permission(self, tmp_path: Path) -> None:
        with rclone_serves("sftp", tmp_path / "one") as place, claimed(place, COUNT) as storage:
            put(storage, "f", b"x")
            below = storage.ref.prefix.removeprefix(place.prefix + "/")
            locked = rclone_serves(
                "sftp", tmp_path / "two", "--read-only", secret=place.secret, serving=place.directory
            )
            with locked as export, export.storage(below) as reader:
                read_only(storage, reader)


@needs_root
def test_a_full_disk_is_told_and_the_part_removed(tmp_path: Path) -> None:
    small = mounted(tmp_path / "server" / "data" / "storage-full", "size=3m")
    with small, sshd(tmp_path / "server") as place, place.storage("storage-full") as storage:
        storage.claim(STORAGE_ID)
        assert refusal(lambda: put(storage, "d/f", os.urandom(5 << 20))) == ErrorClass.NO_SPACE
        assert list(storage.list()) == [] and storage.remove_temporaries("1.1") == 0
        put(storage, "d/f", b"x")


class Dripping(asyncssh.SFTPServer):
    """Gives a byte for each time that it is asked, after a while that is no timeout."""

    async def read(self, file_obj: object, offset: int, size: int) -> bytes:
        await asyncio.sleep(0.1)
        return b"x"


class LettingIn(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False


@contextlib.contextmanager
def dripping(directory: Path) -> Iterator[Place]:
    key = asyncssh.generate_private_key("ssh-ed25519")
    listening = asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=[key], server_factory=LettingIn, sftp_factory=Dripping
    )
    server = LOOP.run(listening, 10)
    try:
        prefix, known = f"sftp://127.0.0.1:{server.get_port()}{directory}", key.export_public_key().decode().strip()
        yield Place("sftp", prefix, {"username": "u", "password": "p"}, directory, {"host_key": known})
    finally:
        LOOP.later(server.close)


def other_key() -> str:
    """A private key that no server knows."""
    return asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()


def outcome_of(act: Callable[[], object]) -> str:
    try:
        act()
    except StorageError as error:
        return error.error_class
    return "ok"
