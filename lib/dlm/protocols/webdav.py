"""WebDAV: `davs://host:port/path` over TLS, `dav://` in the open for servers on this host. Needs no package.

Digests come from the server where it answers Want-Digest (RFC 3230) or Want-Repr-Digest (RFC 9530).
"""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from urllib.parse import quote, unquote

from dlm import effects
from dlm.errors import StorageError, Unsupported
from dlm.protocols import multistatus
from dlm.protocols.http import Answer, Request, Server, refused
from dlm.protocols.interface import Chunks, Entry, Space, Stat
from dlm.protocols.multistatus import QUESTION, QUOTA_QUESTION, Resource
from dlm.protocols.network import root_url, tls_context
from dlm.protocols.remote import RemoteProtocol, Storing, beginning, not_a_file, require_depth, require_file_names
from dlm.rooted import MARKER, MARKER_LIMIT_BYTES, TEMPORARIES, shown, split
from dlm.types import Checksums, ErrorClass, ProtocolRef

PLAIN = ("dav",)
IN_MEMORY_BYTES = 1 << 20  # bodies up to here are sent with their length, and again after a redirect
LOCKED_TRIES, LOCKED_WAIT_S = 40, 0.05
_BENT = "?;#%"
DECODED, CUT, LITERAL = "decoded", "cut", "literal"  # how a server understands where a file is to be moved
_DIGEST_NAMES = {"adler32": "adler32", "adler": "adler32", "md5": "md5", "sha-256": "sha256", "sha256": "sha256"}
_HEX_LENGTHS = {"adler32": 8, "md5": 32, "sha256": 64}


class WebDavProtocol(RemoteProtocol):
    """Temporaries stand in a collection of their own; MOVE names them. A collection is never deleted: on most
    servers that takes with it what another writer has just put there, so empty ones stay."""

    _server: Server | None = None
    _base = ""  # the quoted path of the root on the server
    _has_temporaries = False
    _gives_digests = True
    _naming: str | None = None
    _replaces_anyway = False  # XRootD's MOVE heeds no `Overwrite: F`

    def __init__(self, ref: ProtocolRef) -> None:
        super().__init__(ref)
        self._connecting = threading.Lock()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def hang_up(self) -> None:
        if self._server is not None:
            self._server.hang_up()

    # -- speaking -----------------------------------------------------------------------------------------------

    def _connected(self) -> Server:
        with self._connecting:
            if self._server is None:
                self._server = self._made()
        return self._server

    def _made(self) -> Server:
        is_plain = self.ref.scheme in PLAIN
        root, secret = root_url(self.ref, is_plain), self.ref.secret or {}
        root = root._replace(scheme="http" if is_plain else "https")
        trusted = self.ref.trusted_hosts()
        context = None if is_plain else tls_context(secret)
        self._base = quote(unquote(root.path.rstrip("/"), errors="surrogateescape"), errors="surrogateescape")
        return Server(root, context, self.timeout_s, secret, trusted)

    def _request(self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Request:
        self._connected()
        return Request(method, self._target(path), path or self.ref.prefix, headers or {}, body)

    def _target(self, path: str, end: str = "") -> str:
        parts = [quote(part, safe="", errors="surrogateescape") for part in path.split("/") if part]
        return "/".join([self._base, *parts]) + ("/" if not parts and not end else end)

    def url(self, path: str) -> str:
        root = self._connected().root
        return f"{'dav' if self.ref.scheme in PLAIN else 'davs'}://{root.netloc}{self._target(path)}"

    def _ask(self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Answer:
        return self._connected().ask(self._request(method, path, headers, body))

    def _change(self, request: Request) -> Answer:
        """The answer to a request that changes names; another writer may hold a lock on them for a moment.

        All tries together may take what one may: later, the names may be somebody else's.
        """
        until = time.monotonic() + self.timeout_s
        for number in range(1, LOCKED_TRIES + 1):
            answer = self._connected().ask(request)
            if answer.status != 423 or number == LOCKED_TRIES or time.monotonic() >= until:
                return answer
            answer.close()
            time.sleep(LOCKED_WAIT_S)
        raise AssertionError("not reached")

    def _propfind(self, path: str, depth: int, question: bytes = QUESTION) -> Iterator[Resource]:
        """What the server tells of a path, its children too with depth 1; nothing where nothing is."""
        headers = {"Depth": str(depth), "Content-Type": "application/xml; charset=utf-8"}
        request = self._request("PROPFIND", path, headers, question)
        if depth:
            request = Request("PROPFIND", self._target(path, "/"), request.path, headers, question)
        with self._connected().ask(request) as answer:
            if answer.status in (404, 410) or (answer.status == 500 and self._is_below_a_file(path)):
                return
            if answer.status != 207:
                raise refused(answer, request)
            blocks = answer.blocks("list" if depth else "stat", request.path, multistatus.BLOCK_BYTES)
            yield from multistatus.resources(blocks, None if depth else multistatus.RESPONSE_LIMIT_BYTES)

    def _is_below_a_file(self, path: str) -> bool:
        """True when a part above the path is a file: XRootD calls that a failure like any other."""
        above = path.rpartition("/")[0]
        there = self._resource(above) if above else None
        return bool(above) and (there is None or not there.is_collection)

    def _checked(self, path: str) -> str:
        if any(character < " " or character == "\x7f" for character in path):
            # Some servers drop them: the file would stand under another name than the one it was given.
            detail = f"path {shown(path)} refused: WebDAV takes no control characters"
            raise StorageError(ErrorClass.INVALID_PATH, detail, field="path")
        split(path)
        require_file_names(path)
        return super()._checked(path)

    # -- looking ------------------------------------------------------------------------------------------------

    def _resource(self, path: str) -> Resource | None:
        return next(iter(list(self._propfind(path, 0))), None)

    def _stat(self, path: str) -> Stat | None:
        there = self._resource(path)
        return None if there is None or there.is_collection else Stat(there.size(), there.modified_at)

    def _open(self, path: str, offset: int = 0, length: int | None = None) -> Chunks:
        there = self._stat(path)  # a GET of a collection is answered too, with a page
        if there is None:
            raise StorageError(ErrorClass.SOURCE_MISSING, f"{shown(path)} is not there")
        if length == 0 or offset >= there.size_bytes:
            return Chunks(iter(()), lambda: None)
        end = there.size_bytes - 1 if length is None else min(there.size_bytes, offset + length) - 1
        headers = {"Range": f"bytes={offset}-{end}"} if offset or length is not None else {}
        request = self._request("GET", path, headers)
        answer = self._connected().ask(request)
        if answer.status not in (200, 206) or answer.headers.get("Content-Encoding", "identity") != "identity":
            with answer:
                raise refused(answer, request)
        blocks = answer.blocks("read", path)
        if answer.status == 200 and headers:  # a server that knows no ranges sends all
            blocks = _part(blocks, offset, length)
        blocks = _at_most(blocks, end + 1 - offset, path)
        return Chunks(blocks, answer.close)

    def _list(self, prefix: str) -> Iterator[Entry]:
        left = [prefix]
        while left:
            directory = left.pop()
            whole = self._whole(directory)
            for found in self._propfind(directory, 1):
                if found.path == whole:
                    if not found.is_collection:
                        break  # a file: nothing is below it
                    continue
                name = found.path.removeprefix(whole + "/")
                if not name or "/" in name or found.path == name:
                    raise StorageError(ErrorClass.IO, f"asked for {shown(whole)}, the server lists {shown(found.path)}")
                path = f"{directory}/{name}" if directory else name
                if not found.is_collection:
                    yield Entry(path, found.size(), found.modified_at)
                elif path != TEMPORARIES:
                    require_depth(path)
                    left.append(path)

    def _whole(self, path: str) -> str:
        """The unquoted path on the server."""
        self._connected()
        base = unquote(self._base, errors="surrogateescape")
        return f"{base}/{path}" if path else base

    def _told_digests(self, path: str, algorithms: Collection[str]) -> Checksums | None:
        if not self._gives_digests:
            return None
        names = ["sha-256" if name == "sha256" else name for name in algorithms]
        wanted = ", ".join("adler=5" if name == "adler32" else f"{name}=5" for name in names)
        told: dict[str, str] = {}
        for asked in [",".join(names), *(names[1:] and names)]:  # some servers are asked one at a time
            with self._ask("HEAD", path, {"Want-Digest": asked, "Want-Repr-Digest": wanted}) as answer:
                if answer.status != 200:
                    return None  # reading says what is wrong
                found = digests(answer.headers.get("Digest", ""), answer.headers.get("Repr-Digest", ""))
            told |= found
            if not found:
                self._gives_digests = False
                return None
            if set(told) >= set(algorithms):
                return Checksums(**{name: told[name] for name in algorithms})
        return None

    def space(self) -> Space:
        root = next(iter(list(self._propfind("", 0, QUOTA_QUESTION))), None)
        if root is None or root.free_bytes is None or root.used_bytes is None:
            raise Unsupported("this server does not say how much space it has")
        return Space(root.used_bytes, root.free_bytes, root.used_bytes + root.free_bytes)

    # -- writing ------------------------------------------------------------------------------------------------

    def _store(self, path: str, chunks: Iterable[bytes], storing: Storing) -> bool:
        if storing.replace and (there := self._resource(path)) is not None and there.is_collection:
            raise not_a_file(path)  # it would be deleted with all that is in it
        staged = f"{TEMPORARIES}/{storing.temporary}"
        self._make_temporaries()
        self._require_movable(path, storing.temporary)
        try:
            effects.point("dav.put:before")
            if storing.fill is None:
                self._put(staged, chunks, storing.size_bytes)
            else:
                storing.fill(self.url(staged))
            effects.point("dav.put:after")
            storing.prove(staged)
            if self._move(staged, path, storing.replace):
                return True
            self._require_same_as(staged, path)
            self._delete(staged)
            return False
        except BaseException:  # whatever ends it, also a signal: the temporary goes
            with contextlib.suppress(StorageError):
                self._delete(staged)
            raise

    def _require_movable(self, path: str, temporary: str) -> None:
        """INVALID_PATH for a path that this server would move a file to another name than.

        WsgiDAV 4 cuts the decoded name at '?' and ';'. XRootD 5.5 decodes nothing, cuts at '?', and lists '#', '%' and
        blanks at an end so that they are misunderstood. Found out with an empty file of our own: one of somebody's
        would be where nobody looks for it.
        """
        if "%" not in self._target(path):
            return
        if self._naming is None:
            straight, wanted = f"{TEMPORARIES}/{temporary}", f"{TEMPORARIES}/{temporary}-{_BENT}"
            self._put(straight, [], 0)
            self._move(straight, wanted, True)
            if self._delete(wanted):
                self._naming = DECODED
            else:
                is_literal = self._delete(f"{straight}-{quote(_BENT, safe='')}")
                self._naming = LITERAL if is_literal else CUT
                self._delete(f"{straight}-")
        refused_here = {DECODED: "", CUT: _BENT, LITERAL: "?#%"}[self._naming]
        is_cut = self._naming == LITERAL and any(part.endswith(" ") for part in path.split("/"))
        if is_cut or any(character in refused_here for character in path):
            what = "no blank at the end" if is_cut else f"none of {refused_here} in the name"
            detail = f"path {shown(path)} refused: this server takes {what} of a moved file"
            raise StorageError(ErrorClass.INVALID_PATH, detail, field="path")

    def _moved_to(self, path: str) -> str:
        """What names the destination of a move."""
        root, target = self._connected().root, self._target(path)
        if self._naming == LITERAL:
            target = unquote(target, errors="surrogateescape").encode("utf-8", "surrogateescape").decode("latin-1")
            target += "?is=whole"  # what is cut off; without it, blanks at the end are, and letters beyond ASCII
        return f"{root.scheme}://{root.netloc}{target}"

    def _put(self, path: str, chunks: Iterable[bytes], size_bytes: int | None) -> None:
        first, rest = _gathered(chunks, IN_MEMORY_BYTES)
        if rest is None:
            request = self._request("PUT", path, {}, first)
            answer = self._connected().ask(request)
        else:
            request = self._request("PUT", path)
            body = rest if size_bytes is None else _exactly(rest, size_bytes, path)
            answer = self._connected().send(request, body, size_bytes)
        with answer:
            if answer.status not in (200, 201, 202, 204):
                raise refused(answer, request, writing=True)

    def _move(self, staged: str, path: str, replace: bool) -> bool:
        """True once the temporary has its name; False if something has it and is not to be replaced."""
        if self._replaces_anyway and not replace and self._resource(path) is not None:
            return False
        headers = {"Destination": self._moved_to(path), "Overwrite": "T" if replace else "F"}
        request = self._request("MOVE", staged, headers)
        for is_last in (False, True):
            effects.point("dav.move:before")
            with self._change(request) as answer:
                effects.point("dav.move:after")
                if answer.status in (200, 201, 204):
                    return True
                if answer.status == 412:
                    return False
                if is_last or answer.status not in (403, 404, 409, 500, 502):
                    raise refused(answer, request, writing=True)
            self._make_collections(path.split("/")[:-1])  # servers differ in how they say that there is none
        raise AssertionError("not reached")

    def _make_temporaries(self) -> None:
        if not self._has_temporaries:
            self._make_collections([TEMPORARIES])
            self._has_temporaries = True

    def _make_collections(self, parts: list[str]) -> None:
        """Make a collection and those above it; one that is there already is fine."""
        if not parts:
            return
        path = "/".join(parts)
        request = self._request("MKCOL", path)
        for is_last in (False, True):
            with self._change(request) as answer:
                if answer.status in (200, 201, 405) or 300 <= answer.status < 400:
                    return
                if is_last or answer.status not in (404, 409):
                    there = self._resource(path)  # another writer may have made it at the same moment
                    if there is None or not there.is_collection:
                        raise refused(answer, request, writing=True)
                    return
            self._make_collections(parts[:-1])

    # -- deleting -----------------------------------------------------------------------------------------------

    def _delete(self, path: str) -> bool:
        if self._stat(path) is None:  # a DELETE of a collection would take all that is in it
            return False
        effects.point("dav.delete:before")
        request = self._request("DELETE", path)
        with self._change(request) as answer:
            effects.point("dav.delete:after")
            if answer.status in (404, 410):
                return False
            if answer.status not in (200, 202, 204):
                raise refused(answer, request, writing=True)
        return True

    def remove_temporaries(self, *attempts: str) -> int:
        self._require_root()
        names = [found.path.rpartition("/")[2] for found in self._propfind(TEMPORARIES, 1) if not found.is_collection]
        mine = [name for name in names if name.rpartition("~")[0] in attempts]
        return sum(self._delete(f"{TEMPORARIES}/{name}") for name in mine)

    # -- the root -----------------------------------------------------------------------------------------------

    def _read_marker(self) -> bytes | None:
        request = self._request("GET", MARKER)
        with self._connected().ask(request) as answer:
            self._replaces_anyway = answer.headers.get("Server", "").startswith("XrootD")
            if answer.status == 200:
                blocks = answer.blocks("read", MARKER, MARKER_LIMIT_BYTES)
                return beginning(Chunks(blocks, answer.close), MARKER_LIMIT_BYTES)
            if answer.status not in (404, 410):
                raise refused(answer, request)
        if self._resource("") is None:
            hint = "does the path of the prefix stand on that server?"
            raise StorageError(ErrorClass.UNAVAILABLE, f"root {shown(self.ref.prefix)} is not there", hint=hint)
        return None

    def _write_marker(self, text: bytes) -> None:
        self._make_temporaries()
        staged = f"{TEMPORARIES}/{MARKER}"
        self._put(staged, [text], len(text))
        if not self._move(staged, MARKER, False):
            self._delete(staged)

    def _make_root(self) -> None:
        if self._resource("") is not None:
            return
        base, self._base = self._base, ""
        try:
            self._make_collections([unquote(part, errors="surrogateescape") for part in base.split("/") if part])
        finally:
            self._base = base


def digests(digest: str, repr_digest: str) -> dict[str, str]:
    """The digests of both headers in hexadecimal, by dlm's names; what cannot be understood is left out."""
    found: dict[str, str] = {}
    for text in (digest, repr_digest):
        for pair in text.split(","):
            name, _, value = pair.strip().partition("=")
            known = _DIGEST_NAMES.get(name.strip().lower())
            if known is None:
                continue
            number = _hexadecimal(value.split(";")[0].strip().strip(":"), _HEX_LENGTHS[known])
            if number is not None:
                found[known] = number
    return found


def _hexadecimal(value: str, length: int) -> str | None:
    """The digest as so many hexadecimal digits; servers write adler32 and md5 in hexadecimal or in base64."""
    with contextlib.suppress(ValueError):
        if len(value) <= length and (length == 8 or len(value) == length):
            return f"{int(value, 16):0{length}x}"
    with contextlib.suppress(ValueError):
        number = base64.b64decode(value, validate=True).hex()
        return number if len(number) == length else None
    return None


def _gathered(chunks: Iterable[bytes], limit: int) -> tuple[bytes, Iterator[bytes] | None]:
    """All bytes if they are few; else nothing, and an iterator over all of them."""
    first: list[bytes] = []
    size = 0
    rest = iter(chunks)
    for chunk in rest:
        first.append(chunk)
        size += len(chunk)
        if size > limit:
            return b"", _chained(first, rest)
    return b"".join(first), None


def _chained(first: list[bytes], rest: Iterator[bytes]) -> Iterator[bytes]:
    while first:
        yield first.pop(0)
    yield from rest


def _exactly(chunks: Iterable[bytes], size_bytes: int, path: str) -> Iterator[bytes]:
    """The chunks; SOURCE_CHANGED if they are not so many bytes as were announced."""
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > size_bytes:
            break
        yield chunk
    if size != size_bytes:
        detail = f"{shown(path)}: {size_bytes} bytes were announced, and {size} came"
        raise StorageError(ErrorClass.SOURCE_CHANGED, detail, side="source")


def _at_most(blocks: Iterator[bytes], size_bytes: int, path: str) -> Iterator[bytes]:
    """The blocks; IO if they are more bytes than the server said before: there may be no end to them."""
    for block in blocks:
        size_bytes -= len(block)
        if size_bytes < 0:
            raise StorageError(ErrorClass.IO, f"cannot read {shown(path)}: more comes than the server said")
        yield block


def _part(blocks: Iterator[bytes], offset: int, length: int | None) -> Iterator[bytes]:
    """Those bytes of the blocks."""
    position, end = 0, None if length is None else offset + length
    for block in blocks:
        begin = max(0, offset - position)
        stop = len(block) if end is None else min(len(block), end - position)
        position += len(block)
        if begin < stop:
            yield block[begin:stop]
        if end is not None and position >= end:
            return
