"""A process that speaks gfal2 for dlm, one call after another, on the socket that is its standard input.

It is run alone (`python -I -S worker.py`) and imports nothing of dlm. It ends with its parent, and by itself when a
call takes longer than it may: no call of gfal2 can be interrupted. Secrets come over the socket, and stand in memory
only: what a library wants to read from a file is in one without a name.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import re
import resource
import shutil
import signal
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any, NoReturn

FRAME = struct.Struct("!II")  # the lengths of a header and of the bytes that follow it
_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)
_LEFT: list[str] = []  # directories to remove
DIED = -1  # the code of an error that is not the library's
Frame = tuple[dict[str, Any], bytes]


def send(channel: socket.socket, header: Mapping[str, Any], body: bytes = b"") -> None:
    """Send a header, and bytes."""
    text = json.dumps(header).encode()
    channel.sendall(FRAME.pack(len(text), len(body)) + text)
    if body:
        channel.sendall(body)


def receive(channel: socket.socket) -> Frame:
    """The next header, and the bytes with it; EOFError when the other side is gone."""
    text_size, body_size = FRAME.unpack(_exactly(channel, FRAME.size))
    header = json.loads(_exactly(channel, text_size))
    return header, _exactly(channel, body_size)


def _exactly(channel: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    view, filled = memoryview(buffer), 0
    while filled < size:
        count = channel.recv_into(view[filled:])
        if not count:
            raise EOFError
        filled += count
    return bytes(buffer)


class Speaker:
    """The calls. Each method that has no underscore is one; it gives a value, or bytes.

    At most one file and one directory are open: a worker serves one user at a time.
    """

    def __init__(self) -> None:
        self.context: Any = None
        self.secrets: list[str] = []
        self.file: Any = None
        self.directory: Any = None

    def begin(self, extension: str, settings: list[Any], told: dict[str, Any]) -> None:
        """Load the library. Of what is told, `files` become variables that name files, `bearers` are tokens by URL.

        XRootD's client cannot be told to show no proxy in TLS. It looks in /tmp; what it would find there is whoever
        runs dlm, and the `stand_in` is shown in place of it.
        """
        if told["stand_in"] and os.path.lexists(f"/tmp/x509up_u{os.getuid()}"):
            os.environ["X509_USER_PROXY"] = _unnamed(told["stand_in"])
        for variable, text in told["files"].items():
            os.environ[variable] = _unnamed(text)
        if told["authorities"]:
            os.environ["X509_CERT_DIR"] = told["directory"]
            _trust(told["authorities"], told["directory"])
        loader = ExtensionFileLoader("gfal2", extension)
        spec = spec_from_file_location("gfal2", extension, loader=loader)
        assert spec is not None
        gfal2 = module_from_spec(spec)
        loader.exec_module(gfal2)
        self.context = gfal2.creat_context()
        for group, key, value in settings:
            kind = {bool: "boolean", int: "integer"}.get(type(value), "string")
            getattr(self.context, f"set_opt_{kind}")(group, key, value)
        for url, token in told["bearers"]:
            self.context.cred_set(url, self.context.cred_new("BEARER", token))
        secrets = [*told["files"].values(), *(token for _, token in told["bearers"])]
        self.secrets = [text for text in secrets if text]

    def stat(self, url: str) -> list[int]:
        """Size, time, mode."""
        told = self.context.stat(url)
        return [told.st_size, told.st_mtime, told.st_mode]

    def unlink(self, url: str) -> None:
        self.context.unlink(url)

    def rename(self, url: str, new: str) -> None:
        self.context.rename(url, new)

    def make_directories(self, url: str) -> None:
        self.context.mkdir_rec(url, 0o755)

    def remove_directory(self, url: str) -> None:
        self.context.rmdir(url)

    def checksum(self, url: str, algorithm: str) -> str:
        return str(self.context.checksum(url, algorithm))

    def attribute(self, url: str, name: str) -> str:
        return str(self.context.getxattr(url, name))

    def open(self, url: str, mode: str) -> None:
        self.file = self.context.open(url, mode)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.file.pread_bytes(offset, size))

    def write(self, body: bytes) -> int:
        return int(self.file.write(body))  # the binding takes bytes where it says str

    def close(self) -> None:
        self.file = self.directory = None  # the binding closes with the object, and tells no error

    def rest(self) -> None:
        """Nobody speaks at the moment."""
        self.close()

    def open_directory(self, url: str) -> None:
        self.directory = self.context.opendir(url)

    def entries(self, count: int) -> list[list[Any]]:
        """The next entries: name, size, time, is it a directory. None at the end."""
        found: list[list[Any]] = []
        while len(found) < count:
            entry, told = self.directory.readpp()
            if entry is None:
                break
            with contextlib.suppress(UnicodeDecodeError):  # the binding cannot tell a name that is not UTF-8
                found.append([entry.d_name, told.st_size, told.st_mtime, stat.S_ISDIR(told.st_mode)])
        return found

    def copy(self, source: str, destination: str, timeout_s: int, stall_s: float) -> None:
        """Have the storages copy between themselves. The destination must not be there.

        The process ends when nothing comes for `stall_s`: servers that cannot reach each other may try for hours.
        """
        farthest = [0]

        def come(_source: str, _destination: str, _average: int, _now: int, size_bytes: int, _elapsed: int) -> None:
            if size_bytes > farthest[0]:
                farthest[0] = size_bytes
                signal.setitimer(signal.ITIMER_REAL, stall_s)

        parameters = self.context.transfer_parameters()
        parameters.overwrite = False  # it would delete what is there before it opens the source
        parameters.create_parent = True
        parameters.strict_copy = True  # no looks of its own before and after
        parameters.timeout = timeout_s
        parameters.monitor_callback = come
        signal.setitimer(signal.ITIMER_REAL, stall_s)
        try:
            self.context.filecopy(parameters, source, destination)
        finally:
            farthest[0] = sys.maxsize  # what is told late winds up no timer that nobody stops

    def told(self, error: Exception) -> dict[str, Any]:
        """What goes back for an error: its code and text, without what is secret."""
        text = str(error)
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return {"code": getattr(error, "code", DIED), "text": text[:1000]}


def _unnamed(text: str) -> str:
    """The name by which this process, and no other, may open a file in memory with that text."""
    fd = os.memfd_create("dlm")  # kept open as long as the process lives
    os.fchmod(fd, 0o600)
    os.write(fd, text.encode())
    return f"/proc/self/fd/{fd}"


def _trust(pem: str, directory: str) -> None:
    """Put these authorities into the directory, named as OpenSSL looks for them. Nothing in it is secret.

    The parent removes it with this process, or this process when the parent is gone.
    """
    _LEFT.append(directory)
    crypto = ctypes.CDLL("libcrypto.so.3")
    for name in ("BIO_new_mem_buf", "PEM_read_bio_X509"):
        getattr(crypto, name).restype = ctypes.c_void_p
    crypto.X509_subject_name_hash.restype = ctypes.c_ulong
    for number, one in enumerate(_CERTIFICATE.findall(pem)):
        text = one.encode()
        bio = ctypes.c_void_p(crypto.BIO_new_mem_buf(text, len(text)))
        certificate = ctypes.c_void_p(crypto.PEM_read_bio_X509(bio, None, None, None))
        if certificate.value is None:
            raise ValueError("the secret's ca cannot be read")
        with open(f"{directory}/{crypto.X509_subject_name_hash(certificate):08x}.{number}", "w") as file:
            file.write(one)


def _end() -> NoReturn:
    for directory in _LEFT:
        shutil.rmtree(directory, ignore_errors=True)
    os._exit(0)


def _until_the_end(channel: socket.socket, frames: queue.SimpleQueue[Frame]) -> None:
    """Take in what is sent; end the process with its parent, also in the middle of a call."""
    try:
        while True:
            frames.put(receive(channel))
    except (EOFError, OSError):
        _end()


def main() -> None:
    """Serve calls until the other side is gone."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold the secrets
    channel = socket.socket(fileno=0)
    frames: queue.SimpleQueue[Frame] = queue.SimpleQueue()
    threading.Thread(target=_until_the_end, args=(channel, frames), daemon=True).start()
    speaker = Speaker()
    idle_s: float | None = None
    while True:
        try:
            header, body = frames.get(timeout=idle_s)
        except queue.Empty:
            _end()  # nobody came back
        idle_s = header.get("idle_s")
        signal.setitimer(signal.ITIMER_REAL, header["limit_s"])  # SIGALRM ends the process, whatever the call does
        call: Callable[..., Any] = getattr(speaker, header["call"])
        try:
            value = call(*header["arguments"], *([body] if header["call"] == "write" else ()))
        except Exception as error:  # noqa: BLE001  the boundary: whatever it is, the parent is told
            answer: Frame = (speaker.told(error), b"")
        else:
            answer = ({}, value) if isinstance(value, bytes) else ({"value": value}, b"")
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(channel, *answer)


if __name__ == "__main__":
    main()
