"""The posix protocol: a directory tree on a mounted file system; the prefix is its root's absolute path."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from dlm import effects, staging
from dlm.digest import Digest, aligned_buffer, digest_stored
from dlm.errors import StorageError
from dlm.protocols.interface import Chunks, Entry, ReadBack, Space, Stat, StorageProtocol, Written, nothing
from dlm.rooted import MARKER, SIBLING, TEMPORARIES, Root, open_to_list, shown, split, sync_directory, translating
from dlm.types import Checksums, ErrorClass

BLOCK_BYTES = 1 << 20
LEAST_SHARED = 200  # from so many files on two threads delete: one works while the other waits for the journal
_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

Deleted = dict[str, bool | StorageError]

class PosixProtocol(StorageProtocol):
    """Each call opens the root anew and proves the marker on what it opened, so a mount that went is noticed."""

    @contextlib.contextmanager
    def _marked_root(self, *, durable_mkdir: bool = True) -> Iterator[Root]:
        with Root(self.ref.prefix, durable_mkdir=durable_mkdir) as root:
            root.require_marker(self.ref.storage_uuid)
            yield root

    def stat(self, path: str) -> Stat | None:
        with self._marked_root() as root, translating("stat", path):
            status = root.stat(path)
        return None if status is None else Stat(status.st_size, _moment(status))

    def read(self, path: str, offset: int = 0, length: int | None = None) -> Chunks:
        with self._marked_root() as root:
            fd = root.open_file(path)
        return Chunks(_blocks(fd, path, offset, length), lambda: os.close(fd))

    def write(
        self,
        path: str,
        chunks: Iterable[bytes],
        *,
        attempt: str,
        replace: bool = False,
        algorithms: Collection[str] = ("adler32",),
        size_bytes: int | None = None,
        prove: Callable[[ReadBack], None] | None = None,
    ) -> Written:
        digest = Digest(algorithms)
        with self._marked_root() as root:
            with translating("write", path, "destination"):
                staged = staging.create(root, path, attempt)
            try:
                for chunk in chunks:  # what the producer raises is the caller's, and not translated
                    digest.update(chunk)
                    with translating("write", path, "destination"):
                        write_all(staged.fd, chunk)
                with translating("write", path, "destination"):
                    _sync(staged)
                    if prove is not None:
                        prove(partial(_digests, staged.fd, path))
                    adopted = not _publish_durably(root, staged, replace)
            finally:
                staging.discard(root, staged)
        return Written(digest.size_bytes, Checksums(**digest.hexdigests()), adopted)

    def delete(self, path: str) -> bool:
        outcome = self.delete_many([path])[path]
        if isinstance(outcome, StorageError):
            raise outcome
        return outcome

    def delete_many(self, paths: Iterable[str], is_over: Callable[[], bool] = lambda: False) -> Deleted:
        ordered = sorted(paths)  # so that files of one directory come together and it is walked to once
        with self._marked_root() as root:
            outcomes = _side_by_side(lambda share: self._delete_share(share, is_over), ordered)
            if True in outcomes.values():
                with translating("delete in", self.ref.prefix, "destination"):
                    root.sync_all()
        return outcomes

    def _delete_share(self, paths: Sequence[str], is_over: Callable[[], bool]) -> Deleted:
        """What became of these paths, and their directories removed where they are empty now; nothing durable yet."""
        outcomes: Deleted = {}
        emptied: set[tuple[str, ...]] = set()
        with self._marked_root() as root:
            for path in paths:
                if is_over():
                    break
                outcomes[path] = _unlink(root, path, emptied)
            root.prune(emptied)
        return outcomes

    def list(self, prefix: str = "") -> Iterator[Entry]:
        with self._marked_root() as root:
            yield from _walk(root, prefix)

    def checksum(
        self, path: str, algorithms: Collection[str] = ("adler32",), between: Callable[[], None] = nothing
    ) -> Checksums:
        with self._marked_root() as root:
            fd = root.open_file(path)
        try:
            return _digests(fd, path, algorithms, between)
        finally:
            os.close(fd)

    def space(self) -> Space:
        with Root(self.ref.prefix) as root, translating("measure", self.ref.prefix):
            status = os.fstatvfs(root.fd)
        unit = status.f_frsize
        used = (status.f_blocks - status.f_bfree) * unit
        return Space(used_bytes=used, free_bytes=status.f_bavail * unit, total_bytes=status.f_blocks * unit)

    def identify(self) -> str | None:
        with Root(self.ref.prefix) as root:
            marker = root.marker()
        return None if marker is None else marker["id"]

    def seal(self) -> str:
        with Root(self.ref.prefix) as root, translating("look at root", self.ref.prefix):
            return root.seal()

    def marked_above(self) -> str | None:
        above = Path(os.path.realpath(self.ref.prefix)).parents
        return next((str(directory) for directory in above if os.path.lexists(directory / MARKER)), None)

    def claim(self, storage_uuid: str, create_root: bool = False) -> None:
        if create_root:
            with translating("create root", self.ref.prefix, "destination"):
                os.makedirs(self.ref.prefix, exist_ok=True)
        with Root(self.ref.prefix) as root:
            marker = root.marker()
            if marker is None:
                marker = _write_marker(root, storage_uuid, self.ref.storage_name)
        if marker["id"] != storage_uuid:
            detail = f"root {shown(self.ref.prefix)} belongs to storage {marker['name']} ({marker['id']}) already"
            raise StorageError(ErrorClass.DESTINATION_EXISTS, detail, hint="give each storage a root of its own")

    def require_marker(self, storage_uuid: str) -> None:
        with Root(self.ref.prefix) as root:
            root.require_marker(storage_uuid)

    def remove_temporaries(self, *attempts: str) -> int:
        with self._marked_root() as root, translating("remove temporaries in", self.ref.prefix, "destination"):
            return staging.remove(root, frozenset(attempts))


def write_all(fd: int, data: bytes) -> None:
    """Write all of the data, however the system cuts it; OSError."""
    effects.point("posix.write:before")
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
    effects.point("posix.write:after")


def _moment(status: os.stat_result) -> datetime:
    return datetime.fromtimestamp(status.st_mtime, UTC)


def _blocks(fd: int, path: str, offset: int, length: int | None) -> Iterator[bytes]:
    left = length
    while left is None or left > 0:
        with translating("read", path):
            block = os.pread(fd, BLOCK_BYTES if left is None else min(BLOCK_BYTES, left), offset)
        if not block:
            return
        yield block
        offset += len(block)
        left = None if left is None else left - len(block)


def _digests(fd: int, path: str, algorithms: Collection[str], between: Callable[[], None] = nothing) -> Checksums:
    """The digests of what the disk holds."""
    with translating("read", path):
        digest = digest_stored(fd, algorithms, aligned_buffer(), between)
    return Checksums(**digest.hexdigests())


def _sync(staged: staging.Staged) -> None:
    effects.point("posix.fsync:before")
    os.fsync(staged.fd)
    effects.point("posix.fsync:after")


def _publish_durably(root: Root, staged: staging.Staged, replace: bool) -> bool:
    """True once the staged file has its name; False when the same content has it already; both durable."""
    published = staging.publish(root, staged, replace=replace)
    if not published:
        _require_same(root, staged)
    sync_directory(root.parent(staged.path)[0])
    return published


def _require_same(root: Root, staged: staging.Staged) -> None:
    """StorageError DESTINATION_EXISTS unless the file there has the staged content; that one made durable."""
    try:
        there = root.open_file(staged.path)
    except StorageError as error:
        raise StorageError(ErrorClass.DESTINATION_EXISTS, f"{shown(staged.path)} is there: {error}") from error
    try:
        if not staging.same_bytes(staged.fd, there):
            raise StorageError(ErrorClass.DESTINATION_EXISTS, f"{shown(staged.path)} is there with other content")
        os.fsync(there)
    finally:
        os.close(there)


def _side_by_side(delete: Callable[[Sequence[str]], Deleted], paths: Sequence[str]) -> Deleted:
    """What `delete` tells of the paths: of many of them, half in a thread of their own.

    Both have ended when this returns or raises: nothing is deleted any more while the outcomes are written.
    """
    if len(paths) < LEAST_SHARED:
        return delete(paths)
    middle = len(paths) // 2
    first: Future[Deleted] = Future()
    # No pool: a thread that a storage holds must not hold the end of the process.
    thread = threading.Thread(target=_settle, args=(first, lambda: delete(paths[:middle])), daemon=True)
    thread.start()
    try:
        rest = delete(paths[middle:])
    finally:
        thread.join()
    return first.result() | rest


def _settle(future: Future[Deleted], work: Callable[[], Deleted]) -> None:
    try:
        future.set_result(work())
    except BaseException as failure:  # noqa: BLE001 - a thread's boundary: raised again where the result is asked for
        future.set_exception(failure)


def _unlink(root: Root, path: str, emptied: set[tuple[str, ...]]) -> bool | StorageError:
    try:
        parts, name = split(path)
        with translating("delete", path):
            effects.point("posix.unlink:before")
            os.unlink(name, dir_fd=root.directory(parts))
            effects.point("posix.unlink:after")
    except StorageError as error:
        # No file is there (nothing, no directory, or a directory in its place): that is an answer.
        return False if isinstance(error.__cause__, _NO_FILE) else error
    emptied.add(parts)
    return True


def _write_marker(root: Root, storage_uuid: str, name: str) -> dict[str, str]:
    """Write the marker, exclusively and durably; what it says then (another's, if that one was faster)."""
    text = json.dumps({"id": storage_uuid, "name": name}) + "\n"
    temporary = f"{MARKER}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with translating("write marker into", root.prefix, "destination"):
        fd = os.open(temporary, flags, 0o644, dir_fd=root.fd)
        try:
            write_all(fd, text.encode())
            os.fsync(fd)
            staging.name_if_free(temporary, root.fd, MARKER, root.fd)
        finally:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=root.fd)
        os.fsync(root.fd)
    return root.marker() or {"id": "", "name": ""}


def _walk(root: Root, prefix: str) -> Iterator[Entry]:
    """The files below a directory, depth first with one open directory per level."""
    above, name = split(prefix) if prefix else ((), "")
    top = (*above, name) if prefix else ()
    levels = [(top, _scan(root, top))]
    while levels:
        parts, scan = levels[-1]
        entry = next(scan, None)
        if entry is None:
            levels.pop()
        elif _is_ours(parts, entry.name):
            continue
        elif entry.is_dir(follow_symlinks=False):
            below = (*parts, entry.name)
            levels.append((below, _scan(root, below)))
        elif (found := _described(parts, entry)) is not None:
            yield found


def _scan(root: Root, parts: tuple[str, ...]) -> Iterator[os.DirEntry[str]]:
    """The directory's entries; none if it vanished. Kept open until the end: entries are looked at through it."""
    with translating("list", "/".join(parts)):
        try:
            fd = open_to_list(root.directory(parts))
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            with os.scandir(fd) as entries:
                yield from entries
        finally:
            os.close(fd)


def _is_ours(parts: tuple[str, ...], name: str) -> bool:
    return name.startswith(SIBLING) or (not parts and (name == TEMPORARIES or name.startswith(MARKER)))


def _described(parts: tuple[str, ...], entry: os.DirEntry[str]) -> Entry | None:
    """The entry if it is a regular file; None for links, devices, and what vanished meanwhile."""
    path = "/".join((*parts, entry.name))
    with translating("stat", path):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
    return Entry(path, status.st_size, _moment(status)) if stat.S_ISREG(status.st_mode) else None
