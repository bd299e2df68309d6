"""Identities that stand around on a host: where libraries look for them when nobody tells them who they are."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import sys
import threading
from pathlib import Path

import pytest

from protocols.servers import program

VERSION, TLS_FROM_NOW = 0x520, 0xC4000001  # of XRootD's protocol: TLS is here, and begins before the login
HIDDEN = "/dev/shm"  # temporary files of whoever is to be seen by a worker whose /tmp is another


def plant(
    base: Path, monkeypatch: pytest.MonkeyPatch, *, certificate: str = "", key: str = "", token: str = ""
) -> None:
    """Have gfal2's workers find these in their home and in /tmp, which is another one for them. Needs root."""
    home, tmp, runtime, user = base / "home", base / "tmp", base / "runtime", os.getuid()
    files = {
        home / ".globus" / "usercert.pem": certificate, home / ".globus" / "userkey.pem": key,
        tmp / f"x509up_u{user}": certificate + key, tmp / f"bt_u{user}": token, runtime / f"bt_u{user}": token,
    }  # fmt: skip
    for path, text in files.items():
        if text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o600)
    tmp.mkdir(exist_ok=True)
    python, unshare = base / "python", program("unshare", "util-linux")
    inner = f"mount --bind {tmp} /tmp && exec {sys.executable} \"$@\""
    python.write_text(f"#!/bin/sh\nexec {unshare} --mount --propagation private sh -c '{inner}' sh \"$@\"\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    monkeypatch.setattr("tempfile.tempdir", HIDDEN)
    for variable, value in (("HOME", home), ("XDG_RUNTIME_DIR", runtime)):
        monkeypatch.setenv(variable, str(value))
    for variable in ("X509_USER_CERT", "XrdSecGSIUSERCERT"):
        monkeypatch.setenv(variable, str(home / ".globus" / "usercert.pem"))
    for variable in ("X509_USER_KEY", "XrdSecGSIUSERKEY"):
        monkeypatch.setenv(variable, str(home / ".globus" / "userkey.pem"))


class Asking:
    """A host that speaks TLS, asks for certificates, and remembers which it was shown; it says nothing else.

    With `is_xrootd` it begins as XRootD's servers do, which have TLS begun by whoever comes.
    """

    def __init__(self, certificate: Path, key: Path, *, is_xrootd: bool = False) -> None:
        self.is_xrootd = is_xrootd
        self.asked = 0
        self.shown: list[bytes] = []  # those that it trusts
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._context.verify_mode = ssl.CERT_OPTIONAL
        self._context.minimum_version = self._context.maximum_version = ssl.TLSVersion.TLSv1_2  # told in the handshake
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def trust(self, authority: str) -> None:
        self._context.load_verify_locations(cadata=authority)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                with near, contextlib.suppress(OSError):
                    near.settimeout(10)
                    if self.is_xrootd:
                        hello = near.recv(44, socket.MSG_WAITALL)  # who is there, and which protocol
                        near.sendall(struct.pack("!HHiii", 0, 0, 8, VERSION, 1))
                        near.sendall(hello[20:22] + struct.pack("!HiiI", 0, 8, VERSION, TLS_FROM_NOW))
                    self.asked += 1
                    with self._context.wrap_socket(near, server_side=True) as spoken:
                        self.shown += filter(None, [spoken.getpeercert(binary_form=True)])
                        spoken.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(20)
