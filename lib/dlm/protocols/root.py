"""XRootD: `root://host:port//path`, the path from the server's root. gfal2 speaks, in processes of their own.

What XRootD cannot do shows here: nothing is flushed, a rename takes the place of what is there, and links are followed
on the server's side. Directories are made by the server where a file is opened for writing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from dlm import effects
from dlm.errors import StorageError, Unsupported
from dlm.gfal import extension, speech
from dlm.gfal.workers import GfalError, Worker, Workers, translating
from dlm.protocols.interface import Chunks, Entry, Space, Stat
from dlm.protocols.network import root_url
from dlm.protocols.remote import RemoteProtocol, Storing, blocks_of, not_a_file, require_depth, require_file_names
from dlm.rooted import MARKER, MARKER_LIMIT_BYTES, TEMPORARIES, shown, split
from dlm.types import Checksums, ErrorClass, ProtocolRef

DEFAULT_PORT = 1094
READ_BYTES = 2 << 20
WRITE_BYTES = 4 << 20
LIST_ENTRIES = 500
DIGEST_BYTES_PER_S = 20 << 20  # what a server is given the time for, while it reads a file for its digest
_TRIES = 5  # against others who remove the directories that we have just made
_REFUSED = re.compile(r"[\x00-\x1f\x7f?]|(?:^|/)%2e%2e", re.IGNORECASE)


class RootProtocol(RemoteProtocol):
    """Temporaries stand in a directory of their own; a look, and a rename, name them."""

    def __init__(self, ref: ProtocolRef) -> None:
        self._workers = Workers(speech.to_root(ref.secret or {}))
        super().__init__(ref)
        extension.found()
        self._base: str | None = None
        self._gives_digests = True

    def close(self) -> None:
        self._workers.close()

    # -- speaking -----------------------------------------------------------------------------------------------

    def _url(self, path: str) -> str:
        if self._base is None:
            parts = root_url(self.ref, plain=False)
            below = [part for part in unquote(parts.path, errors="surrogateescape").split("/") if part]
            host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
            self._base = f"root://{host}:{parts.port or DEFAULT_PORT}/" + "".join(f"/{part}" for part in below)
        return f"{self._base}/{path}" if path else self._base + "/"

    def url(self, path: str) -> str:
        return self._url(self._named(path))

    def _call(self, name: str, path: str, *arguments: str) -> Any:
        return self._workers.call(name, self._url(path), *arguments, limit_s=self.timeout_s)

    def _checked(self, path: str) -> str:
        return super()._checked(self._named(path))

    def _named(self, path: str) -> str:
        """The path, once it is proven to be one that XRootD takes."""
        try:
            path.encode()
        except UnicodeEncodeError:
            split(path)
            raise _refused(path, "it is not UTF-8") from None
        split(path)
        if _REFUSED.search(path):  # '?' begins what is said beside the path; lists are lines, without escapes
            raise _refused(path, "XRootD takes no control characters, no '?', and no '%2e%2e'")
        require_file_names(path)
        return path

    # -- looking ------------------------------------------------------------------------------------------------

    def _attributes(self, path: str) -> tuple[Stat, int] | None:
        """Size, time and mode; None where nothing is."""
        try:
            size, moment, mode = self._call("stat", path)
        except GfalError as error:
            judged = error.judged("stat", path or self.ref.prefix)
            if judged.error_class == ErrorClass.SOURCE_MISSING or self._is_below_a_file(path, judged):
                return None
            raise judged from error
        with translating("stat", path or self.ref.prefix):
            return Stat(size, datetime.fromtimestamp(moment, UTC)), mode

    def _is_below_a_file(self, path: str, judged: StorageError) -> bool:
        """True when a part above the path is a file: servers call that a failure like any other."""
        above = path.rpartition("/")[0]
        if judged.error_class != ErrorClass.IO or not above:
            return False
        there = self._attributes(above)
        return there is None or not stat.S_ISDIR(there[1])

    def _stat(self, path: str) -> Stat | None:
        there = self._attributes(path)
        return there[0] if there is not None and stat.S_ISREG(there[1]) else None

    def _open(self, path: str, offset: int = 0, length: int | None = None) -> Chunks:
        if self._stat(path) is None:
            raise StorageError(ErrorClass.SOURCE_MISSING, f"{shown(path)} is not there")
        held = contextlib.ExitStack()
        try:
            worker = held.enter_context(self._workers.one())
            with translating("read", path):
                worker.call("open", self._url(path), "r", limit_s=self.timeout_s)
        except BaseException:
            held.close()
            raise
        return Chunks(self._blocks(worker, path, offset, length), lambda: self._closed(held, worker))

    def _blocks(self, worker: Worker, path: str, offset: int, length: int | None) -> Iterator[bytes]:
        left = length
        while left is None or left > 0:
            size = READ_BYTES if left is None else min(READ_BYTES, left)
            with translating("read", path):
                block = worker.call("read", offset, size, limit_s=self.timeout_s)
            if not block:
                return
            yield block
            offset += len(block)
            left = None if left is None else left - len(block)

    def _closed(self, held: contextlib.ExitStack, worker: Worker) -> None:
        with held, contextlib.suppress(GfalError):
            if not worker.is_dead:
                worker.call("close", limit_s=self.timeout_s)

    def _list(self, prefix: str) -> Iterator[Entry]:
        left = [prefix]
        while left:
            directory = left.pop()
            with contextlib.closing(self._entries(directory)) as entries:
                for name, size, moment, is_directory in entries:
                    path = f"{directory}/{name}" if directory else name
                    if not is_directory:
                        with translating("list", path):
                            entry = Entry(path, size, datetime.fromtimestamp(moment, UTC))
                        yield entry
                    elif path != TEMPORARIES:
                        require_depth(path)
                        left.append(path)

    def _entries(self, directory: str) -> Generator[tuple[str, int, int, bool], None, None]:
        """What stands in a directory: name, size, time, is it a directory. Nothing if it is none."""
        there = self._attributes(directory)
        if there is None or not stat.S_ISDIR(there[1]):
            return
        doing, where = "list", directory or self.ref.prefix
        with self._workers.one() as worker:
            try:
                with translating(doing, where):
                    worker.call("open_directory", self._url(directory), limit_s=self.timeout_s)
                while True:
                    with translating(doing, where):
                        found = worker.call("entries", LIST_ENTRIES, limit_s=self.timeout_s)
                    if not found:
                        return
                    yield from found
            except StorageError as error:
                if error.error_class != ErrorClass.SOURCE_MISSING:  # it went meanwhile
                    raise
            finally:
                with contextlib.suppress(GfalError):
                    if not worker.is_dead:
                        worker.call("close", limit_s=self.timeout_s)

    def space(self) -> Space:
        self._require_root()
        with translating("measure", self.ref.prefix):
            told = dict(json.loads(str(self._call("attribute", "", "spacetoken"))))
            total = int(told.get("totalsize", 0))
            if total > 0:
                return Space(int(told["usedsize"]), int(told["unusedsize"]), total)
        raise Unsupported("this server does not say how much space it has")

    def _told_digests(self, path: str, algorithms: Collection[str]) -> Checksums | None:
        if not self._gives_digests:
            return None
        there = self._stat(path)
        limit_s = self.timeout_s + (there.size_bytes / DIGEST_BYTES_PER_S if there else 0)
        told: dict[str, str] = {}
        for name in algorithms:
            try:
                digest = self._workers.call("checksum", self._url(path), name.upper(), limit_s=limit_s)
            except GfalError as error:
                judged = error.judged("digest", path)
                if judged.error_class != ErrorClass.IO:
                    raise judged from error
                self._gives_digests = name != "adler32"  # the others are asked for seldom
                return None
            told[name] = str(digest).lower().zfill(8)
        return Checksums(**told)

    # -- writing ------------------------------------------------------------------------------------------------

    def _store(self, path: str, chunks: Iterable[bytes], storing: Storing) -> bool:
        if storing.replace and (there := self._attributes(path)) is not None and not stat.S_ISREG(there[1]):
            raise not_a_file(path)
        staged = f"{TEMPORARIES}/{storing.temporary}"
        try:
            if storing.fill is None:
                self._pour(staged, chunks)
            else:
                self._have_filled(staged, storing.fill)
            storing.prove(staged)
            if self._publish(staged, path, storing.replace):
                return True
            self._require_same_as(staged, path)
            self._remove(staged)
            return False
        except BaseException:  # whatever ends it, also a signal: the temporary goes
            with contextlib.suppress(StorageError):
                self._remove(staged)
            raise

    def _have_filled(self, staged: str, fill: Callable[[str], None]) -> None:
        self._remove(staged)
        with translating("write", staged, writing=True):
            self._call("make_directories", TEMPORARIES)
        fill(self._url(staged))

    def _pour(self, path: str, chunks: Iterable[bytes]) -> None:
        """Write a new file. What the server has of it at the end is looked at: closing tells nothing."""
        self._remove(path)  # written over, it would keep the digest that the server remembers
        size_bytes = 0
        with self._workers.one() as worker:
            try:
                with translating("write", path, writing=True):
                    worker.call("open", self._url(path), "w", limit_s=self.timeout_s)
                effects.point("root.write:before")
                for block in blocks_of(chunks, WRITE_BYTES):  # what the producer raises is the caller's
                    with translating("write", path, writing=True):
                        worker.call("write", limit_s=self.timeout_s, body=block)
                    size_bytes += len(block)
            finally:
                if not worker.is_dead:
                    with translating("close", path, writing=True):
                        worker.call("close", limit_s=self.timeout_s)
        effects.point("root.write:after")
        there = self._stat(path)
        if there is None or there.size_bytes != size_bytes:
            stands = "nothing" if there is None else f"{there.size_bytes} bytes"
            raise StorageError(ErrorClass.IO, f"wrote {size_bytes} bytes to {shown(path)}, and there is {stands}")

    def _publish(self, staged: str, path: str, replace: bool) -> bool:
        """True once the temporary has its name; False if something has it and is not to be replaced."""
        effects.point("root.rename:before")
        if not replace and self._attributes(path) is not None:
            return False
        for is_last in (False,) * (_TRIES - 1) + (True,):
            try:
                self._call("rename", staged, self._url(path))
                break
            except GfalError as error:
                judged = error.judged("write", path)
                if is_last or judged.error_class != ErrorClass.SOURCE_MISSING:
                    raise error.judged("write", path, writing=True) from error
            with translating("write", path, writing=True):
                self._call("make_directories", path.rpartition("/")[0])
        effects.point("root.rename:after")
        return True

    # -- deleting -----------------------------------------------------------------------------------------------

    def _delete(self, path: str) -> bool:
        if self._stat(path) is None:
            return False
        effects.point("root.remove:before")
        is_gone = self._remove(path)
        effects.point("root.remove:after")
        self._prune(path)
        return is_gone

    def _remove(self, path: str) -> bool:
        try:
            self._call("unlink", path)
        except GfalError as error:
            judged = error.judged("delete", path)
            if judged.error_class == ErrorClass.SOURCE_MISSING:
                return False
            raise judged from error
        return True

    def _prune(self, path: str) -> None:
        """Remove the directories above that are empty now; the server refuses for those that are not."""
        above = path.split("/")[:-1]
        with contextlib.suppress(GfalError):
            while above:
                self._call("remove_directory", "/".join(above))
                above.pop()

    def remove_temporaries(self, *attempts: str) -> int:
        self._require_root()
        names = [name for name, *_ in self._entries(TEMPORARIES)]
        return sum(self._remove(f"{TEMPORARIES}/{name}") for name in names if name.rpartition("~")[0] in attempts)

    # -- the root -----------------------------------------------------------------------------------------------

    def _read_marker(self) -> bytes | None:
        if self._stat(MARKER) is not None:
            with self._open(MARKER, 0, MARKER_LIMIT_BYTES) as chunks:
                return b"".join(chunks)
        there = self._attributes("")
        if there is None or not stat.S_ISDIR(there[1]):
            hint = "does the path of the prefix stand on that server?"
            raise StorageError(ErrorClass.UNAVAILABLE, f"root {shown(self.ref.prefix)} is not there", hint=hint)
        return None

    def _write_marker(self, text: bytes) -> None:
        staged = f"{TEMPORARIES}/{MARKER}~{os.getpid()}"
        self._pour(staged, [text])
        if not self._publish(staged, MARKER, False):
            self._remove(staged)

    def _make_root(self) -> None:
        if self._attributes("") is None:
            with translating("create root", self.ref.prefix, writing=True):
                self._call("make_directories", "")


def _refused(path: str, reason: str) -> StorageError:
    return StorageError(ErrorClass.INVALID_PATH, f"path {shown(path)} refused: {reason}", field="path")
