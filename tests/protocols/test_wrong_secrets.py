"""A secret that is wrong, or that a library cannot even read, ends as a StorageError that shows nothing of it."""

from __future__ import annotations

import logging
import socket
import threading
import traceback
from collections.abc import Callable, Iterator

import pytest

from dlm import logs
from dlm.config import Settings
from dlm.errors import StorageError
from dlm.gfal import extension
from dlm.protocols import StorageProtocol, open_protocol
from dlm.types import ProtocolRef, Secret

pytestmark = pytest.mark.protocols

PEM = "-----BEGIN PRIVATE KEY-----\nSEEDEDpemSEEDED=\n-----END PRIVATE KEY-----\n"
REFUSAL = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 6\r\nConnection: close\r\n\r\ndenied"
SECRETS: tuple[tuple[str, dict[str, str]], ...] = (
    ("dav", {"token": "SEEDED"}),
    ("dav", {"token": "SEEDED\r\nX-Other: SEEDED"}),
    ("dav", {"token": "SEEDEDł"}),
    ("dav", {"username": "SEEDEDł", "password": "SEEDEDł"}),
    ("dav", {"username": "SEEDED\n", "password": "SEEDED"}),
    ("davs", {"token": "SEEDED"}),
    ("davs", {"token": "SEEDED", "ca": "SEEDED"}),
    ("davs", {"token": "SEEDED", "ca": PEM}),
    ("davs", {"certificate": PEM, "key": PEM}),
    ("s3", {"access_key": "SEEDED", "secret_key": "SEEDED"}),
    ("s3", {"access_key": "SEEDED", "secret_key": "SEEDED", "session_token": "SEEDED"}),
    ("s3", {"access_key": "SEEDED\n", "secret_key": "SEEDED"}),
    ("s3", {"access_key": "SEEDEDł", "secret_key": "SEEDED"}),
    ("s3", {"access_key": "SEEDED", "secret_key": "SEEDED", "ca": "SEEDED"}),
    ("sftp", {"username": "SEEDED", "password": "SEEDED"}),
    ("sftp", {"username": "SEEDED\n", "password": "SEEDED"}),
    ("sftp", {"username": "SEEDED", "private_key": PEM}),
    ("sftp", {"username": "SEEDED", "private_key": "SEEDED", "passphrase": "SEEDED"}),
    *(
        ("root", secret)
        for secret in (
            {"token": "SEEDED"},
            {"token": "SEEDED", "ca": "SEEDED"},
            {"token": "SEEDED", "ca": "-----BEGIN CERTIFICATE-----\nSEEDED\n-----END CERTIFICATE-----\n"},
            {"certificate": PEM, "key": PEM},
        )
        if extension.is_there()
    ),
)
ACTS: tuple[Callable[[StorageProtocol], object], ...] = (
    lambda storage: storage.require_marker("id"),
    lambda storage: storage.claim("id", create_root=True),
    lambda storage: storage.write("a/b", [b"bytes"], attempt="1.1"),
    lambda storage: list(storage.list()),
    lambda storage: storage.delete("a/b"),
)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a server that lets nobody in, and does not speak TLS or SSH."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:

        def answer() -> None:
            try:
                while True:
                    near, _ = listener.accept()
                    with near:
                        near.settimeout(5)
                        near.recv(1 << 16)
                        near.sendall(REFUSAL)
            except OSError:
                return  # the listener is closed; a client that went is the next one's business

        threading.Thread(target=answer, daemon=True).start()
        yield int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("scheme", "secret"), SECRETS, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_an_error_shows_nothing_of_the_secret(
    scheme: str, secret: dict[str, str], port: int, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = f"{'http' if scheme == 's3' else scheme}://127.0.0.1:{port}/below"
    ref = ProtocolRef(1, "perth", "id", scheme, prefix, "mine", {"timeout_s": "2"}, Secret(secret))
    levels = {name: logging.getLogger(name).level for name in logs.TALKATIVE}
    caplog.set_level(logging.DEBUG)
    for name in logs.TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)  # as logs.configure does
    try:
        for act in ACTS:
            with pytest.raises(StorageError) as caught, open_protocol(ref) as storage:
                act(storage)
            told = "".join(traceback.format_exception(caught.value)) + str(caught.value.__dict__)
            assert "SEEDED" not in told
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    assert "SEEDED" not in caplog.text


def test_libraries_that_log_whole_requests_are_kept_quiet_even_at_debug() -> None:
    root, levels = logging.getLogger(), {name: logging.getLogger(name).level for name in (*logs.QUIET, *logs.TALKATIVE)}
    before, level = root.handlers[:], root.level
    try:
        logs.configure(Settings(log_level="debug"))
        assert all(not logging.getLogger(name).isEnabledFor(logging.DEBUG) for name in logs.TALKATIVE)
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        for name, was in levels.items():
            logging.getLogger(name).setLevel(was)
