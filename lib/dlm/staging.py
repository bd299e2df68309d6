"""Temporaries of one attempt below a root, and their publication under the final name.

A temporary's name carries the attempt, so that the next owner removes what a dead worker left and nothing else.
They live in `<root>/.dlm-tmp`; where the destination's directory is on another file system (a mount inside the
root), the temporary stands beside the destination, and a note in `.dlm-tmp` written first says where.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

from dlm import effects
from dlm.errors import StorageError
from dlm.rooted import SIBLING, TEMPORARIES, Root, open_to_list, split
from dlm.types import ErrorClass

_ATTEMPT = re.compile(r"[A-Za-z0-9._:-]{1,100}")
_NOTE = ".at"  # ends the name of a note
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TRIES = 5  # against others who remove the directories that we have just made
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
COMPARE_BYTES = 1 << 20

Result = TypeVar("Result")


@dataclass(slots=True)
class Staged:
    """A temporary file on its way to `path`; `fd` is -1 once closed."""

    path: str
    name: str
    is_sibling: bool
    fd: int

    def directory(self) -> tuple[str, ...]:
        """The directory that the temporary stands in."""
        return split(self.path)[0] if self.is_sibling else (TEMPORARIES,)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def create(root: Root, path: str, attempt: str) -> Staged:
    """A new, empty temporary for `path`, opened for writing; directories are made. OSError, StorageError."""
    return _while_directories_vanish(root, lambda: _create(root, path, attempt))


def _create(root: Root, path: str, attempt: str) -> Staged:
    target, _ = root.parent(path, create=True)
    name = temporary_name(attempt, path)
    if os.fstat(target).st_dev == root.device:
        return Staged(path, name, False, _create_anew(root, (TEMPORARIES,), name))
    note = _create_anew(root, (TEMPORARIES,), name + _NOTE)
    with open(note, "wb") as file:
        file.write(os.fsencode("/".join(split(path)[0])))
    return Staged(path, SIBLING + name, True, _create_anew(root, split(path)[0], SIBLING + name))


def temporary_name(attempt: str, path: str) -> str:
    """`<attempt>~<hash of the path>`: short whatever the path, and different for each file of one attempt."""
    if not _ATTEMPT.fullmatch(attempt):
        detail = f"attempt {attempt!r} cannot be part of a file name"
        raise StorageError(ErrorClass.INVALID_PATH, detail, field="attempt")
    return f"{attempt}~{hashlib.blake2b(os.fsencode(path), digest_size=10).hexdigest()}"


def _create_anew(root: Root, parts: tuple[str, ...], name: str) -> int:
    directory = root.directory(parts, create=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)  # an attempt has one worker: this is what its own last try left
    return os.open(name, _CREATE, 0o666, dir_fd=directory)


def publish(root: Root, staged: Staged, *, replace: bool) -> bool:
    """Give the temporary its final name, atomically; False if something stands there and `replace` is not set."""
    effects.point("posix.rename:before")
    published = _while_directories_vanish(root, lambda: _move(root, staged, replace))
    effects.point("posix.rename:after")
    return published


def _while_directories_vanish(root: Root, act: Callable[[], Result]) -> Result:
    """What `act` returns, tried again a few times where a directory that it made is not there.

    1. We make the directory, 2. a reaper, or a copy that failed, sees it empty and removes it, 3. opening or linking
    in it fails.
    """
    for _ in range(_TRIES - 1):
        try:
            return act()
        except FileNotFoundError:
            root.forget()
    return act()


def _move(root: Root, staged: Staged, replace: bool) -> bool:
    target, name = root.parent(staged.path, create=True)
    source = root.directory(staged.directory())
    if replace:
        os.rename(staged.name, name, src_dir_fd=source, dst_dir_fd=target)
        return True
    return name_if_free(staged.name, source, name, target)


def name_if_free(temporary: str, source: int, name: str, target: int) -> bool:
    """Move a file from one open directory to a free name in another; False if the name is taken. OSError.

    Atomic with a hard link, which fails where a name exists; a rename would silently replace it.
    """
    try:
        os.link(temporary, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _rename_if_free(temporary, source, name, target)
    effects.point("posix.link:after")
    os.unlink(temporary, dir_fd=source)
    return True


def _rename_if_free(temporary: str, source: int, name: str, target: int) -> bool:
    """Where there are no hard links: look, then rename. Only dlm's own lease guards the moment between."""
    with contextlib.suppress(FileNotFoundError):
        os.lstat(name, dir_fd=target)
        return False
    os.rename(temporary, name, src_dir_fd=source, dst_dir_fd=target)
    return True


def discard(root: Root, staged: Staged) -> None:
    """Close and remove what is left of a temporary, and directories made for it in vain.

    After a publication nothing is left but perhaps a note. What cannot be removed is `remove`'s later.
    """
    staged.close()
    with contextlib.suppress(OSError, StorageError):
        os.unlink(staged.name, dir_fd=root.directory(staged.directory()))
        root.prune([split(staged.path)[0]])
    if staged.is_sibling:
        with contextlib.suppress(OSError):
            os.unlink(staged.name.removeprefix(SIBLING) + _NOTE, dir_fd=root.directory((TEMPORARIES,)))


def remove(root: Root, attempts: Collection[str]) -> int:
    """How many temporaries of these attempts were there, and are removed now; one scan for all of them."""
    try:
        listing = open_to_list(root.directory((TEMPORARIES,)))
    except FileNotFoundError:
        return 0
    try:
        with os.scandir(listing) as entries:
            names = [entry.name for entry in entries if entry.name.rpartition("~")[0] in attempts]
        return sum(_remove_one(root, listing, name) for name in names)
    finally:
        os.close(listing)


def _remove_one(root: Root, listing: int, name: str) -> bool:
    effects.point("posix.unlink:before")
    if name.endswith(_NOTE):
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=listing), "rb") as file:
            above, last = split(os.fsdecode(file.read()))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(SIBLING + name.removesuffix(_NOTE), dir_fd=root.directory((*above, last)))
    try:
        os.unlink(name, dir_fd=listing)
    except FileNotFoundError:
        return False
    return True


def same_bytes(left: int, right: int) -> bool:
    """True when two open files have the same content."""
    if os.fstat(left).st_size != os.fstat(right).st_size or not stat.S_ISREG(os.fstat(right).st_mode):
        return False
    position = 0
    while True:
        block = os.pread(left, COMPARE_BYTES, position)
        if block != os.pread(right, COMPARE_BYTES, position):
            return False
        if not block:
            return True
        position += len(block)
