"""Speaking SSH: one event loop for all storages, host keys, and what the errors of asyncssh mean."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable
from typing import Any
from urllib.parse import unquote

import asyncssh
from asyncssh import constants
from asyncssh import sftp as protocol

from dlm.errors import StorageError
from dlm.protocols.network import from_network_error, root_url
from dlm.rooted import shown
from dlm.types import ErrorClass, ProtocolRef
from dlm.unforeseen import ODD

_HOST_KEY_HINT = "set the option host_key to what `ssh-keyscan HOST` says, once you know that it is true"

_CLASSES: dict[int, ErrorClass] = {
    constants.FX_NO_SUCH_FILE: ErrorClass.SOURCE_MISSING,
    constants.FX_NO_SUCH_PATH: ErrorClass.SOURCE_MISSING,
    constants.FX_NOT_A_DIRECTORY: ErrorClass.SOURCE_MISSING,
    constants.FX_PERMISSION_DENIED: ErrorClass.PERMISSION,
    constants.FX_WRITE_PROTECT: ErrorClass.PERMISSION,
    constants.FX_NO_CONNECTION: ErrorClass.UNAVAILABLE,
    constants.FX_CONNECTION_LOST: ErrorClass.IO,
    constants.FX_FILE_ALREADY_EXISTS: ErrorClass.DESTINATION_EXISTS,
    constants.FX_DIR_NOT_EMPTY: ErrorClass.DESTINATION_EXISTS,
    constants.FX_FILE_IS_A_DIRECTORY: ErrorClass.DESTINATION_EXISTS,
    constants.FX_NO_SPACE_ON_FILESYSTEM: ErrorClass.NO_SPACE,
    constants.FX_QUOTA_EXCEEDED: ErrorClass.NO_SPACE,
    constants.FX_INVALID_FILENAME: ErrorClass.INVALID_PATH,
}


class Loop:
    """The event loop of this process for all storages, in a thread that ends with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def run(self, work: Awaitable[Any], timeout_s: float) -> Any:
        """What the coroutine returns or raises; TimeoutError, once it is cancelled."""
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, timeout_s), self._started()).result()

    def later(self, work: Any) -> None:
        """Have a function called on the loop, if there is one."""
        if self._loop is not None and self._pid == os.getpid() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(work)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():  # a forked child has the loop and not its thread
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=self._loop.run_forever, name="dlm-sftp", daemon=True).start()
            return self._loop


LOOP = Loop()


def root_of(ref: ProtocolRef) -> str:
    """The root's path on the server, without a slash at the end."""
    return unquote(root_url(ref, plain=False).path, errors="surrogateescape").rstrip("/")


async def connected(ref: ProtocolRef, timeout_s: float) -> tuple[asyncssh.SSHClientConnection, asyncssh.SFTPClient]:
    """A connection to the storage's host, let in by its secret, and SFTP on it.

    By nothing else: asyncssh takes the keys in ~/.ssh where it is given (), and none for None; so with agents and files.
    """
    root, secret = root_url(ref, plain=False), ref.secret or {}
    keys = [_private_key(secret["private_key"], secret.get("passphrase"))] if "private_key" in secret else None
    connection = await asyncssh.connect(
        root.hostname or "", root.port or 22, config=None, known_hosts=((), (), ()), agent_path=None,
        client_factory=lambda: _HostKey(ref.options.get("host_key", "")), client_keys=keys,
        username=secret.get("username", ""), password=secret.get("password"), gss_host=None,
        connect_timeout=timeout_s, login_timeout=timeout_s, keepalive_interval=timeout_s,
        encryption_algs="^aes256-gcm@openssh.com",  # a third less work than the usual first choice
    )  # fmt: skip
    try:
        return connection, await connection.start_sftp_client(path_errors="surrogateescape")
    except BaseException:
        connection.close()
        raise


def _private_key(text: str, passphrase: str | None) -> asyncssh.SSHKey:
    try:
        return asyncssh.import_private_key(text, passphrase)
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        # The error's text may quote what it could not read; its type does not.
        detail = f"the secret's private_key cannot be used ({type(error).__name__})"
        raise StorageError(ErrorClass.PERMISSION, detail, hint="a PEM text, and its passphrase if it has one") from None


class _HostKey(asyncssh.SSHClient):
    """Lets in the host whose key, or whose key's fingerprint, is among the lines of the option."""

    def __init__(self, known: str) -> None:
        self._known = {" ".join(line.split()[:2]) for line in known.replace(",", "\n").splitlines() if line.strip()}

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        shown_key = " ".join(key.export_public_key().decode().split()[:2])
        return bool({shown_key, key.get_fingerprint()} & self._known)


class translating:  # noqa: N801  reads as a statement
    """Turns what asyncssh, sockets and odd answers raise inside the block into a StorageError, by the table above."""

    __slots__ = ("doing", "path", "writing")

    def __init__(self, doing: str, path: str, writing: bool = False) -> None:
        self.doing, self.path, self.writing = doing, path, writing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (*ODD, asyncssh.Error)):
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> StorageError:
        what = f"cannot {self.doing} {shown(self.path)}"
        if isinstance(error, protocol.SFTPError):
            error_class = _CLASSES.get(error.code, ErrorClass.IO)
            if self.writing and error_class == ErrorClass.SOURCE_MISSING:
                error_class = ErrorClass.IO  # where we write, nothing of ours is missing
            return StorageError(error_class, f"{what}: the server says {shown(error.reason)}")
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            return StorageError(ErrorClass.UNAVAILABLE, f"{what}: the host shows another key", hint=_HOST_KEY_HINT)
        if isinstance(error, asyncssh.PermissionDenied | asyncssh.KeyImportError | asyncssh.KeyEncryptionError):
            hint = "the secret is wrong, or not (any more) allowed in"
            return StorageError(ErrorClass.PERMISSION, f"{what}: the server does not let us in", hint=hint)
        if isinstance(error, asyncssh.Error):
            return StorageError(ErrorClass.IO, f"{what}: {shown(error.reason)}")
        if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.EINVAL):
            return StorageError(ErrorClass.IO, f"{what}: {shown(str(error))}")
        return from_network_error(error, self.doing, self.path)
