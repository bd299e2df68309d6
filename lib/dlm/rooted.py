"""A directory tree below a marked root, in which every path is proven to stay.

The posix protocol and the local transfertool both stand on this; `staging` adds temporaries and publication.

No symbolic link below the root is ever followed: each component is opened with O_NOFOLLOW relative to the one
above it, so a link planted while we walk is refused like one that stood there before. (The root itself may be
reached through links: that is the administrator's word.) Names that are not UTF-8 are carried as `os.fsdecode` does.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable
from types import TracebackType

from dlm import effects
from dlm.errors import StorageError
from dlm.types import ErrorClass

MARKER = ".dlm-storage"
SEAL = "root:"  # begins the identity of a root without a marker
TEMPORARIES = ".dlm-tmp"  # a directory in the root
SIBLING = ".dlm-tmp~"  # the beginning of a temporary's name in a directory on another file system
PATH_LIMIT_BYTES = 4095  # what other programs can still open
_OPEN_DIRECTORIES = 32  # per root; a few roots times threads stay below the usual limit of 1024 descriptors
MARKER_LIMIT_BYTES = 4096

_WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: a FIFO in a file's place must not hang us before fstat tells what it is.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_CLASSES = {
    errno.ENOENT: ErrorClass.SOURCE_MISSING,
    errno.ENOTDIR: ErrorClass.SOURCE_MISSING,
    errno.EEXIST: ErrorClass.DESTINATION_EXISTS,
    errno.EISDIR: ErrorClass.DESTINATION_EXISTS,
    errno.ENOTEMPTY: ErrorClass.DESTINATION_EXISTS,
    errno.EACCES: ErrorClass.PERMISSION,
    errno.EPERM: ErrorClass.PERMISSION,
    errno.EROFS: ErrorClass.PERMISSION,
    errno.ENOSPC: ErrorClass.NO_SPACE,
    errno.EDQUOT: ErrorClass.NO_SPACE,
    errno.EFBIG: ErrorClass.NO_SPACE,
    errno.ENAMETOOLONG: ErrorClass.INVALID_PATH,
    errno.ELOOP: ErrorClass.INVALID_PATH,
    errno.EILSEQ: ErrorClass.INVALID_PATH,
    errno.EINVAL: ErrorClass.INVALID_PATH,
    errno.ETIMEDOUT: ErrorClass.TIMEOUT,
    errno.ESTALE: ErrorClass.UNAVAILABLE,
    errno.ENODEV: ErrorClass.UNAVAILABLE,
    errno.ENXIO: ErrorClass.UNAVAILABLE,
    errno.ENOTCONN: ErrorClass.UNAVAILABLE,
    errno.EHOSTDOWN: ErrorClass.UNAVAILABLE,
    errno.EHOSTUNREACH: ErrorClass.UNAVAILABLE,
}
# The same errno means something else where we write: nothing of ours is "missing" there.
_CLASSES_WRITING = _CLASSES | {errno.ENOENT: ErrorClass.IO, errno.ENOTDIR: ErrorClass.INVALID_PATH}

_libc = ctypes.CDLL(None, use_errno=True)


class translating:  # noqa: N801  reads as a statement: `with translating("read", path):`
    """Turns an OSError inside the block into a StorageError by the tables above.

    `side` ('source' or 'destination') becomes one of its facts, and of a StorageError that does not say.
    """

    __slots__ = ("doing", "path", "side")

    def __init__(self, doing: str, path: str, side: str = "source") -> None:
        self.doing, self.path, self.side = doing, path, side

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, OSError):
            raise from_os_error(error, self.doing, self.path, self.side) from error
        if isinstance(error, StorageError):
            error.facts.setdefault("side", self.side)


def from_os_error(error: OSError, doing: str, path: str, side: str = "source") -> StorageError:
    """The StorageError for an OSError met while `doing` something to `path`."""
    table = _CLASSES_WRITING if side == "destination" else _CLASSES
    error_class = table.get(error.errno or 0, ErrorClass.IO)
    return StorageError(error_class, f"cannot {doing} {shown(path)}: {error.strerror or error}", side=side)


def shown(path: str) -> str:
    """The path as it may stand in a message: control characters and undecodable bytes escaped, shortened."""
    text = path.encode("unicode_escape", "surrogatepass").decode("ascii") if not path.isprintable() else path
    return text if len(text) <= 200 else f"{text[:120]}…{text[-60:]}"


def split(path: str) -> tuple[tuple[str, ...], str]:
    """The directories and the name of a relative path; StorageError INVALID_PATH where it could lead elsewhere."""
    parts = tuple(path.split("/"))
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise _refused(path, "it must be relative, without empty parts, '.', '..' or NUL")
    if parts[0] in (MARKER, TEMPORARIES) or any(part.startswith(SIBLING) for part in parts):
        raise _refused(path, "the name is reserved for dlm")
    try:
        size_bytes = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise _refused(path, "it is not Unicode text") from None
    if size_bytes > PATH_LIMIT_BYTES:
        raise _refused(path, f"{size_bytes} bytes are too long (limit {PATH_LIMIT_BYTES})")
    return parts[:-1], parts[-1]


def _refused(path: str, reason: str) -> StorageError:
    return StorageError(ErrorClass.INVALID_PATH, f"path {shown(path)} refused: {reason}", field="path")


def parsed_marker(text: bytes, prefix: str) -> dict[str, str]:
    """What a marker's text says (`id`, `name`); UNAVAILABLE if it cannot be understood."""
    try:
        return {"id": str(json.loads(text)["id"]), "name": str(json.loads(text).get("name", ""))}
    except (ValueError, TypeError, KeyError, AttributeError):
        detail = f"the marker {MARKER} in {shown(prefix)} is damaged"
        raise StorageError(ErrorClass.UNAVAILABLE, detail) from None


def require_owner(marker: dict[str, str] | None, storage_uuid: str, prefix: str, hint: str = "is it mounted?") -> None:
    """StorageError UNAVAILABLE unless the root's marker is there and names that storage."""
    if marker is None:
        raise StorageError(ErrorClass.UNAVAILABLE, f"root {shown(prefix)} carries no marker {MARKER}", hint=hint)
    if marker["id"] != storage_uuid:
        owner = f"{marker['name']} ({marker['id']})"
        detail = f"root {shown(prefix)} belongs to storage {owner}, not {storage_uuid}"
        raise StorageError(ErrorClass.UNAVAILABLE, detail)


class Root:
    """An open root and the directories walked so far. For one thread and a short time: directories may be replaced.

    A directory descriptor it returns stays open for the next few calls only; ask again rather than keep it.
    `durable_mkdir=False` leaves new directories to a later `sync_all`.
    """

    def __init__(self, prefix: str, *, durable_mkdir: bool = True) -> None:
        self.prefix = prefix
        self.durable_mkdir = durable_mkdir
        self._walked: OrderedDict[tuple[str, ...], int] = OrderedDict()
        try:
            self.fd = os.open(prefix, _LIST)
        except (FileNotFoundError, NotADirectoryError) as error:
            detail = f"root {shown(prefix)} is not there: {error.strerror}"
            raise StorageError(ErrorClass.UNAVAILABLE, detail, hint="is it mounted?") from error
        except OSError as error:
            raise from_os_error(error, "open root", prefix) from error
        self.device = os.fstat(self.fd).st_dev

    def __enter__(self) -> Root:
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()
        os.close(self.fd)

    def forget(self) -> None:
        """Close all walked directories, so that the next walk looks anew."""
        while self._walked:
            os.close(self._walked.popitem()[1])

    # -- the marker ---------------------------------------------------------------------------------------------

    def marker(self) -> dict[str, str] | None:
        """What the marker says (`id`, `name`), None without one; UNAVAILABLE if it cannot be understood."""
        try:
            fd = os.open(MARKER, _READ, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise from_os_error(error, "read marker", MARKER) from error
        with translating("read marker", MARKER), open(fd, "rb") as file:
            text = file.read(MARKER_LIMIT_BYTES)
        return parsed_marker(text, self.prefix)

    def require_marker(self, storage_uuid: str) -> None:
        """StorageError UNAVAILABLE unless this root carries the marker with that id.

        An empty id, or a seal, stands for a root that dlm may not write to, marker included; there, an empty directory
        is taken for what it most likely is: a mount point with nothing mounted. (A directory that was made again can
        have the old one's inode, so that a seal alone would not tell.)
        """
        if not storage_uuid or storage_uuid.startswith(SEAL):
            self._require_seal(storage_uuid)
            self._require_content()
            return
        require_owner(self.marker(), storage_uuid, self.prefix)

    def seal(self) -> str:
        """The root's identity as the kernel tells it: file system and inode, the same after a remount and a reboot."""
        return f"{SEAL}{os.fstatvfs(self.fd).f_fsid:x}:{os.fstat(self.fd).st_ino}"

    def _require_seal(self, seal: str) -> None:
        if seal and seal != self.seal():
            detail = f"root {shown(self.prefix)} is another directory than the one that was added"
            raise StorageError(ErrorClass.UNAVAILABLE, detail, hint="is it mounted?")

    def _require_content(self) -> None:
        with translating("list root", self.prefix), os.scandir(self.fd) as entries:
            if next(entries, None) is None:
                raise StorageError(ErrorClass.UNAVAILABLE, f"root {shown(self.prefix)} is empty", hint="is it mounted?")

    # -- walking ------------------------------------------------------------------------------------------------

    def directory(self, parts: tuple[str, ...], *, create: bool = False) -> int:
        """A descriptor (O_PATH) of that directory. OSError ENOENT or ENOTDIR, StorageError for a symbolic link."""
        known = len(parts)
        while known and parts[:known] not in self._walked:
            known -= 1
        if known:
            self._walked.move_to_end(parts[:known])
        fd = self._walked[parts[:known]] if known else self.fd
        for end in range(known + 1, len(parts) + 1):
            fd = self._enter(fd, parts[:end], create)
            self._remember(parts[:end], fd)
        return fd

    def parent(self, path: str, *, create: bool = False) -> tuple[int, str]:
        """The descriptor of the path's directory, and the name in it."""
        parts, name = split(path)
        return self.directory(parts, create=create), name

    def _enter(self, above: int, parts: tuple[str, ...], create: bool) -> int:
        name = parts[-1]
        try:
            return os.open(name, _WALK, dir_fd=above)
        except FileNotFoundError:
            if not create:
                raise
            self._make_directory(above, name)
            return os.open(name, _WALK, dir_fd=above)
        except NotADirectoryError:
            if stat.S_ISLNK(os.lstat(name, dir_fd=above).st_mode):
                raise _refused("/".join(parts), "it leads through a symbolic link") from None
            raise

    def _make_directory(self, above: int, name: str) -> None:
        try:
            os.mkdir(name, dir_fd=above)
        except FileExistsError:
            return  # another writer was faster
        effects.point("posix.mkdir:after")
        if self.durable_mkdir:
            sync_directory(above)

    def _remember(self, parts: tuple[str, ...], fd: int) -> None:
        self._walked[parts] = fd
        if len(self._walked) > _OPEN_DIRECTORIES:
            os.close(self._walked.popitem(last=False)[1])

    # -- files --------------------------------------------------------------------------------------------------

    def stat(self, path: str) -> os.stat_result | None:
        """The file's status, None where no regular file is; StorageError for a symbolic link."""
        try:
            fd, name = self.parent(path)
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(status.st_mode):
            raise _refused(path, "it is a symbolic link")
        return status if stat.S_ISREG(status.st_mode) else None

    def open_file(self, path: str, side: str = "source") -> int:
        """A descriptor to read a regular file; StorageError SOURCE_MISSING where none is."""
        with translating("open", path, side):
            try:
                return self._open_file(path)
            except FileNotFoundError:
                if not self._walked:
                    raise
                self.forget()  # a directory we remember may have been removed and made again: look once more
                return self._open_file(path)

    def _open_file(self, path: str) -> int:
        directory, name = self.parent(path)
        return _regular(os.open(name, _READ, dir_fd=directory), path)

    def prune(self, directories: Iterable[tuple[str, ...]]) -> None:
        """Remove those directories, and the ones above them, that are empty; never the root.

        One that stays is no error: it is not empty, somebody is filling it, or cleaning is not allowed.
        """
        candidates = {parts[:end] for parts in directories for end in range(1, len(parts) + 1)}
        for parts in sorted(candidates, key=lambda parts: (-len(parts), parts)):  # each walked to once
            try:
                os.rmdir(parts[-1], dir_fd=self.directory(parts[:-1]))
            except (OSError, StorageError):
                continue
        self.forget()

    def sync_all(self) -> None:
        """Make everything written to the root's file system durable; OSError if some write-back failed.

        syncfs reports failures since this root was opened, so open one root per thread, before writing.
        """
        effects.point("posix.flush:before")
        if _libc.syncfs(self.fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        effects.point("posix.flush:after")


def _regular(fd: int, path: str) -> int:
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise StorageError(ErrorClass.SOURCE_MISSING, f"{shown(path)} is not a file")


def open_to_list(directory: int) -> int:
    """A descriptor that lists and syncs the directory which the (O_PATH) descriptor names."""
    return os.open(".", _LIST, dir_fd=directory)


def sync_directory(directory: int) -> None:
    """Make the names in a directory durable."""
    fd = open_to_list(directory)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
