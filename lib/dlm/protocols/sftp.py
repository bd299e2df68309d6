"""SFTP: `sftp://host:port/path`, the path from the server's root. asyncssh speaks, on one event loop in a thread.

A storage is spoken to over one connection, which many threads share; each request has its timeout. What OpenSSH adds
to the protocol (hard links, posix-rename, fsync, statvfs) is used where the server has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import asyncssh
from asyncssh import sftp as protocol

from dlm import effects
from dlm.errors import StorageError, Unsupported
from dlm.protocols.interface import Chunks, Entry, Space, Stat
from dlm.protocols.remote import (
    MARKER_REMEMBERED_S,
    RemoteProtocol,
    Storing,
    blocks_of,
    not_a_file,
    require_depth,
    require_file_names,
)
from dlm.protocols.ssh import LOOP, connected, root_of, translating
from dlm.rooted import MARKER, MARKER_LIMIT_BYTES, TEMPORARIES, shown, split
from dlm.types import ErrorClass, ProtocolRef

READ_BYTES = 2 << 20
WRITE_BYTES = 2 << 20
LIST_ENTRIES = 200
DIRECTORIES_REMEMBERED = 1000
_MISSING = (protocol.SFTPNoSuchFile, protocol.SFTPNoSuchPath, protocol.SFTPNotADirectory)


class SftpProtocol(RemoteProtocol):
    """Temporaries stand in a directory of their own; a hard link names them, which fails where a name exists."""

    _connection: asyncssh.SSHClientConnection | None = None
    _client: asyncssh.SFTPClient | None = None
    _root = ""

    def __init__(self, ref: ProtocolRef) -> None:
        super().__init__(ref)
        self._connecting = threading.Lock()
        self._straight: dict[str, float] = {}  # directories without links above them, until when

    # -- speaking -----------------------------------------------------------------------------------------------

    def _connected(self) -> asyncssh.SFTPClient:
        with self._connecting:
            if self._client is None or self._connection is None or self._connection.is_closed():
                with translating("speak to", self.ref.prefix):
                    self._root = root_of(self.ref)
                    self._connection, self._client = self._run(connected(self.ref, self.timeout_s))
            return self._client

    def _run(self, work: Awaitable[Any]) -> Any:
        return LOOP.run(work, self.timeout_s)

    def close(self) -> None:
        connection, self._connection, self._client = self._connection, None, None
        if connection is not None:
            LOOP.later(connection.close)

    def _at(self, path: str) -> str:
        """The path on the server."""
        self._connected()
        return f"{self._root}/{path}" if path else self._root or "/"

    def _checked(self, path: str) -> str:
        parts, _ = split(path)
        require_file_names(path)
        super()._checked(path)
        self._require_no_links(parts)
        return path

    def _require_no_links(self, parts: Sequence[str]) -> None:
        """INVALID_PATH if the directory is reached through a link below the root; looked at again after seconds.

        Of one that is not there, the nearest above that is. The server follows links, and has no way not to: one that
        is planted in between is not noticed.
        """
        now = time.monotonic()
        for end in range(len(parts), 0, -1):
            directory = "/".join(parts[:end])
            if self._straight.get(directory, 0.0) > now:
                return
            root, whole, is_there = self._whole(directory)
            if whole is None:
                continue
            if whole != f"{root.rstrip('/')}/{directory}":
                detail = f"path {shown(directory)} refused: it leads through a symbolic link"
                raise StorageError(ErrorClass.INVALID_PATH, detail, field="path")
            if len(self._straight) >= DIRECTORIES_REMEMBERED:
                self._straight.clear()
            if is_there:
                self._straight[directory] = now + MARKER_REMEMBERED_S
            return

    def _whole(self, directory: str) -> tuple[str, str | None, bool]:
        """What the server makes of the root, and of the directory in it, links followed; is it there.

        Servers say it also of what is missing in a directory that is there, and fail (None) below that.
        """
        client = self._connected()
        with translating("look at", directory):
            root, whole, there = self._run(_resolved(client, self._at(""), self._at(directory)))
            if isinstance(root, _MISSING):
                raise StorageError(ErrorClass.UNAVAILABLE, f"root {shown(self.ref.prefix)} is not there")
            for told in (root, whole, there):
                if isinstance(told, BaseException) and (told is root or not isinstance(told, protocol.SFTPError)):
                    raise told
        is_there = not isinstance(there, BaseException)
        return str(root), None if isinstance(whole, BaseException) else str(whole), is_there

    # -- looking ------------------------------------------------------------------------------------------------

    def _attributes(self, path: str) -> asyncssh.SFTPAttrs | None:
        client = self._connected()
        with translating("stat", path):
            try:
                return self._run(client.lstat(self._at(path)))
            except _MISSING:
                return None

    def _stat(self, path: str) -> Stat | None:
        there = self._attributes(path)
        if there is None or not _is_file(there):
            return None
        return Stat(there.size or 0, _moment(there))

    def _open(self, path: str, offset: int = 0, length: int | None = None) -> Chunks:
        there = self._stat(path)
        if there is None:
            raise StorageError(ErrorClass.SOURCE_MISSING, f"{shown(path)} is not there")
        client = self._connected()
        with translating("read", path):
            file = self._run(client.open(self._at(path), asyncssh.FXF_READ, encoding=None))
        return Chunks(self._blocks(file, path, offset, length), lambda: LOOP.later(lambda: _ended(file)))

    def _blocks(self, file: asyncssh.SFTPClientFile, path: str, offset: int, length: int | None) -> Iterator[bytes]:
        left = length
        while left is None or left > 0:
            with translating("read", path):
                block = self._run(file.read(READ_BYTES if left is None else min(READ_BYTES, left), offset))
            if not block:
                return
            yield block
            offset += len(block)
            left = None if left is None else left - len(block)

    def _list(self, prefix: str) -> Iterator[Entry]:
        left = [prefix]
        while left:
            directory = left.pop()
            for name in self._names(directory):
                own = os.fsdecode(name.filename)
                path = f"{directory}/{own}" if directory else own
                if _is_file(name.attrs):
                    yield Entry(path, name.attrs.size or 0, _moment(name.attrs))
                elif stat.S_ISDIR(name.attrs.permissions or 0) and path != TEMPORARIES:
                    require_depth(path)
                    left.append(path)

    def _names(self, directory: str) -> Iterator[asyncssh.SFTPName]:
        """The entries of a directory, some at a time; none if it is not there."""
        client = self._connected()
        scan = cast("AsyncGenerator[asyncssh.SFTPName, None]", client.scandir(self._at(directory)))
        try:
            while True:
                with translating("list", directory or self.ref.prefix):
                    try:
                        names = self._run(_some(scan))
                    except _MISSING:
                        return
                if not names:
                    return
                yield from (name for name in names if name.filename not in (".", ".."))
        finally:
            with contextlib.suppress(Exception):  # noqa: BLE001  the directory's handle, on a connection that may be gone
                self._run(scan.aclose())

    def space(self) -> Space:
        client = self._connected()
        with translating("measure", self.ref.prefix):
            try:
                told = self._run(client.statvfs(self._at("")))
            except protocol.SFTPOpUnsupported:
                raise Unsupported("this server does not say how much space it has") from None
        unit = told.frsize or told.bsize
        return Space((told.blocks - told.bfree) * unit, told.bavail * unit, told.blocks * unit)

    # -- writing ------------------------------------------------------------------------------------------------

    def _store(self, path: str, chunks: Iterable[bytes], storing: Storing) -> bool:
        there = self._attributes(path) if storing.replace else None
        if there is not None and not (_is_file(there) or stat.S_ISLNK(there.permissions or 0)):
            raise not_a_file(path)
        staged = f"{TEMPORARIES}/{storing.temporary}"
        self._require_no_links([TEMPORARIES])
        try:
            self._pour(staged, chunks)
            storing.prove(staged)
            if self._publish(staged, path, storing.replace):
                return True
            self._require_same_as(staged, path)
            self._remove(staged)
            return False
        except BaseException as error:  # whatever ends it, also a signal: the temporary goes
            is_full = isinstance(error, StorageError) and error.error_class == ErrorClass.IO and self._is_full()
            with contextlib.suppress(StorageError):
                self._remove(staged)
            if is_full:
                raise StorageError(ErrorClass.NO_SPACE, f"cannot write {shown(path)}: no space is left") from error
            raise

    def _is_full(self) -> bool:
        """True when the server has no space left, which it calls a failure like any other."""
        try:
            return self.space().free_bytes < WRITE_BYTES
        except (StorageError, Unsupported):
            return False

    def _pour(self, path: str, chunks: Iterable[bytes]) -> None:
        client = self._connected()
        with translating("write", path, writing=True):
            file = self._run(self._created(client, path))
        try:
            effects.point("sftp.write:before")
            offset = 0
            for block in blocks_of(chunks, WRITE_BYTES):  # what the producer raises is the caller's
                with translating("write", path, writing=True):
                    self._run(file.write(block, offset))
                offset += len(block)
            effects.point("sftp.write:after")
            with translating("flush", path, writing=True), contextlib.suppress(protocol.SFTPOpUnsupported):
                self._run(file.fsync())
        finally:
            with translating("close", path, writing=True):
                self._run(file.close())

    async def _created(self, client: asyncssh.SFTPClient, path: str) -> asyncssh.SFTPClientFile:
        """A new, empty file; directories are made. An older one is what this attempt's own last try left."""
        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_EXCL
        for _ in range(2):
            try:
                return await client.open(self._root + "/" + path, flags, encoding=None)
            except _MISSING:
                await self._make_directories(client, path.split("/")[:-1])
            except (protocol.SFTPFailure, protocol.SFTPFileAlreadyExists):
                await client.remove(self._root + "/" + path)
        return await client.open(self._root + "/" + path, flags, encoding=None)

    async def _make_directories(self, client: asyncssh.SFTPClient, parts: list[str]) -> None:
        for end in range(1, len(parts) + 1):
            with contextlib.suppress(protocol.SFTPFailure, protocol.SFTPFileAlreadyExists):  # it is there
                await client.mkdir("/".join([self._root, *parts[:end]]))

    def _publish(self, staged: str, path: str, replace: bool) -> bool:
        """True once the temporary has its name; False if something has it and is not to be replaced."""
        client, above = self._connected(), path.split("/")[:-1]
        effects.point("sftp.rename:before")
        self._require_no_links(above)
        with translating("write", path, writing=True):
            try:
                published = self._named(client, staged, path, replace)
            except _MISSING:
                self._run(self._make_directories(client, above))
                effects.point("sftp.mkdir:after")
                self._require_no_links(above)
                published = self._named(client, staged, path, replace)
        effects.point("sftp.rename:after")
        return published

    def _named(self, client: asyncssh.SFTPClient, staged: str, path: str, replace: bool) -> bool:
        old, new = f"{self._root}/{staged}", f"{self._root}/{path}"
        if not replace:
            return bool(self._run(self._linked_if_free(client, old, new)))
        try:
            self._run(client.posix_rename(old, new))
        except protocol.SFTPOpUnsupported:
            self._exchange(client, old, new)
        return True

    def _exchange(self, client: asyncssh.SFTPClient, old: str, new: str) -> None:
        """Rename over what is there, by a server that cannot: it is put aside before, and never removed before.

        1. We pause here, our lease ends; 2. another attempt removes our temporary, and stores the file; 3. we go on:
        our temporary is not there to take the place, so what was there, which may be theirs, has to be there still.
        """
        aside = f"{old}-before"  # goes with the attempt's other temporaries
        self._run(client.lstat(old))
        is_aside = self._put_aside(client, new, aside)
        effects.point("sftp.aside:after")
        try:
            self._run(client.rename(old, new))
        except BaseException:  # whatever ends it, also a signal: what was there comes back
            if is_aside:
                with contextlib.suppress(asyncssh.Error, OSError):
                    self._run(client.rename(aside, new))
            raise
        if is_aside:
            with contextlib.suppress(*_MISSING):
                self._run(client.remove(aside))

    def _put_aside(self, client: asyncssh.SFTPClient, path: str, aside: str) -> bool:
        """False when nothing is there. What an earlier try of this attempt put aside is older than what is there."""
        for is_last in (False, True):
            try:
                self._run(client.rename(path, aside))
                return True
            except _MISSING:
                return False
            except (protocol.SFTPFailure, protocol.SFTPFileAlreadyExists):
                if is_last:
                    raise
            with contextlib.suppress(*_MISSING):
                self._run(client.remove(aside))
        return False

    async def _linked_if_free(self, client: asyncssh.SFTPClient, old: str, new: str) -> bool:
        """True once it has the name; False if something else has it."""
        try:
            await client.link(old, new)
        except protocol.SFTPOpUnsupported:
            return await self._renamed_if_free(client, old, new)
        except protocol.SFTPFailure:
            if await _exists(client, new):
                return False
            return await self._renamed_if_free(client, old, new)  # a file system without hard links
        await client.remove(old)
        return True

    async def _renamed_if_free(self, client: asyncssh.SFTPClient, old: str, new: str) -> bool:
        """Look, then rename, which most servers refuse where a name exists; on others dlm's lease is the guard."""
        if await _exists(client, new):
            return False
        try:
            await client.rename(old, new)
        except protocol.SFTPError:
            if await _exists(client, new) and await _exists(client, old):
                return False
            raise
        return True

    # -- deleting -----------------------------------------------------------------------------------------------

    def _delete(self, path: str) -> bool:
        if self._stat(path) is None:
            return False
        effects.point("sftp.remove:before")
        is_gone = self._remove(path)
        effects.point("sftp.remove:after")
        with contextlib.suppress(StorageError), translating("delete", path):
            self._run(self._prune(path))
        return is_gone

    def _remove(self, path: str) -> bool:
        client = self._connected()
        with translating("delete", path, writing=True):
            try:
                self._run(client.remove(self._at(path)))
            except _MISSING:
                return False
        return True

    async def _prune(self, path: str) -> None:
        """Remove the directories above that are empty now; the server refuses for those that are not."""
        client, above = self._client, path.split("/")[:-1]
        with contextlib.suppress(protocol.SFTPError):
            while above and client is not None:
                await client.rmdir("/".join([self._root, *above]))
                above.pop()

    def remove_temporaries(self, *attempts: str) -> int:
        self._require_root()
        self._require_no_links([TEMPORARIES])
        names = [os.fsdecode(name.filename) for name in self._names(TEMPORARIES)]
        return sum(self._remove(f"{TEMPORARIES}/{name}") for name in names if name.rpartition("~")[0] in attempts)

    # -- the root -----------------------------------------------------------------------------------------------

    def _read_marker(self) -> bytes | None:
        root = self._attributes_followed("")
        if root is None or not stat.S_ISDIR(root.permissions or stat.S_IFDIR):
            raise StorageError(
                ErrorClass.UNAVAILABLE, f"root {shown(self.ref.prefix)} is not there", hint="is it mounted there?"
            )
        try:
            return self._marker_text()
        except StorageError as error:
            if error.error_class == ErrorClass.SOURCE_MISSING:
                return None
            raise

    def _marker_text(self) -> bytes:
        """The first bytes of the marker, all of them within the time of one request: a server may give few at once."""
        text, until = bytearray(), time.monotonic() + self.timeout_s
        with self._open(MARKER, 0, MARKER_LIMIT_BYTES) as chunks:
            for block in chunks:
                text += block
                if time.monotonic() > until:
                    raise StorageError(ErrorClass.TIMEOUT, f"the marker does not come within {self.timeout_s:g} s")
        return bytes(text[:MARKER_LIMIT_BYTES])

    def _attributes_followed(self, path: str) -> asyncssh.SFTPAttrs | None:
        client = self._connected()
        with translating("stat", path or self.ref.prefix):
            try:
                return self._run(client.stat(self._at(path)))
            except _MISSING:
                return None

    def _write_marker(self, text: bytes) -> None:
        staged = f"{TEMPORARIES}/{MARKER}~{os.getpid()}"
        self._require_no_links([TEMPORARIES])
        self._pour(staged, [text])
        self._publish(staged, MARKER, False)
        self._remove(staged)

    def _make_root(self) -> None:
        client = self._connected()
        if self._attributes_followed("") is None:
            with translating("create root", self.ref.prefix, writing=True):
                self._run(client.makedirs(self._at(""), exist_ok=True))


async def _some(scan: Any) -> list[asyncssh.SFTPName]:
    """The next entries of a listing, none at its end."""
    names: list[asyncssh.SFTPName] = []
    async for name in scan:
        names.append(name)
        if len(names) == LIST_ENTRIES:
            break
    return names


async def _resolved(client: asyncssh.SFTPClient, root: str, directory: str) -> Sequence[Any]:
    """The root and the directory, links followed, and the directory's attributes; exceptions in place of each."""
    asked = (client.realpath(root), client.realpath(directory), client.lstat(directory))
    return await asyncio.gather(*asked, return_exceptions=True)


async def _exists(client: asyncssh.SFTPClient, path: str) -> bool:
    try:
        await client.lstat(path)
    except _MISSING:
        return False
    return True


def _ended(file: asyncssh.SFTPClientFile) -> None:
    """Close a file on the loop; on a connection that is gone there is nothing left to close."""
    task = asyncio.ensure_future(file.close())
    task.add_done_callback(lambda done: done.cancelled() or done.exception())


def _is_file(attributes: asyncssh.SFTPAttrs) -> bool:
    return stat.S_ISREG(attributes.permissions or 0)


def _moment(attributes: asyncssh.SFTPAttrs) -> datetime:
    return datetime.fromtimestamp(attributes.mtime or 0, UTC)
