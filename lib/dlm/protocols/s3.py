"""S3: `https://host:port/bucket/below`; botocore speaks, and signs. A PUT is atomic by itself, so only uploads in
parts leave something unfinished; a note of each stands in the root until it is complete.

Digests of dlm are not what an ETag is, so a checksum is a full read. There is no capacity to ask for.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dlm import effects
from dlm.errors import StorageError, Unsupported
from dlm.protocols.interface import Chunks, Entry, Space, Stat
from dlm.protocols.network import readable
from dlm.protocols.remote import RemoteProtocol, Storing, beginning, other_content, require_same
from dlm.protocols.s3_client import CODES, bucket_of, made_client, translating
from dlm.protocols.s3_parts import Upload, chained, md5_of, parts_of
from dlm.rooted import MARKER, MARKER_LIMIT_BYTES, TEMPORARIES, shown
from dlm.types import ErrorClass, ProtocolRef

PARTS_IN_FLIGHT = 2
BLOCK_BYTES = 1 << 20
KEY_LIMIT_BYTES = 1024
NOTE_LIMIT_BYTES = 16 * KEY_LIMIT_BYTES
BULK_FILES = 1000
ATTEMPT = "dlm-attempt"  # in a file's metadata: the attempt that wrote it
_NOT_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # no bulk request can name these


@dataclass(frozen=True, slots=True)
class Head:
    """What the server tells of a file; two that are equal are the same write, as far as it tells that."""

    size_bytes: int
    modified_at: datetime
    etag: str
    version_id: str | None = None
    written_by: str | None = None  # the attempt

    def stat(self) -> Stat:
        return Stat(self.size_bytes, self.modified_at, self.written_by)


class S3Protocol(RemoteProtocol):
    """One client, which is safe to share between threads, made when first needed."""

    _client: Any = None
    _bucket = ""
    _below = ""

    def __init__(self, ref: ProtocolRef) -> None:
        super().__init__(ref)
        self._connecting = threading.Lock()

    # -- speaking -----------------------------------------------------------------------------------------------

    def _connected(self) -> Any:
        with self._connecting:
            if self._client is None:
                self._bucket, self._below = bucket_of(self.ref)
                ca = (self.ref.secret or {}).get("ca")
                with contextlib.ExitStack() as kept:
                    self._client = made_client(self.ref, self.timeout_s, ca and kept.enter_context(readable(ca)))
                    # It reads the file for each connection, and a thread may be at that when the storage is closed.
                    weakref.finalize(self._client, kept.pop_all().close)
        return self._client

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _place(self, path: str) -> dict[str, str]:
        """Bucket and key of a path."""
        self._connected()
        return {"Bucket": self._bucket, "Key": self._below + path}

    def _checked(self, path: str) -> str:
        self._connected()
        try:
            is_key = len((self._below + path).encode()) <= KEY_LIMIT_BYTES
        except UnicodeEncodeError:
            is_key = False
        if not is_key:
            detail = f"path {shown(path)} refused: a key is Unicode text of at most {KEY_LIMIT_BYTES} bytes"
            raise StorageError(ErrorClass.INVALID_PATH, detail, field="path")
        return super()._checked(path)

    # -- looking ------------------------------------------------------------------------------------------------

    def _head(self, path: str) -> Head | None:
        client = self._connected()
        try:
            with translating("stat", path):
                return _described(client.head_object(**self._place(path)))
        except StorageError as error:
            if error.error_class == ErrorClass.SOURCE_MISSING:
                return None
            raise

    def _stat(self, path: str) -> Stat | None:
        head = self._head(path)
        return None if head is None else head.stat()

    def _open(self, path: str, offset: int = 0, length: int | None = None) -> Chunks:
        if length == 0 or offset:
            there = self._stat(path)
            if there is None:
                raise StorageError(ErrorClass.SOURCE_MISSING, f"{shown(path)} is not there")
            if length == 0 or offset >= there.size_bytes:
                return Chunks(iter(()), lambda: None)
        return self._got(path, offset, length)

    def _got(self, path: str, offset: int = 0, length: int | None = None) -> Chunks:
        end = "" if length is None else str(offset + length - 1)
        part = {"Range": f"bytes={offset}-{end}"} if offset or length is not None else {}
        client = self._connected()
        try:
            with translating("read", path):
                body = client.get_object(**self._place(path), **part)["Body"]
        except StorageError as error:
            if error.facts.get("code") == "InvalidRange":
                return Chunks(iter(()), lambda: None)  # a part of an empty file
            raise
        return Chunks(_blocks(body, path), body.close)

    def _list(self, prefix: str) -> Iterator[Entry]:
        client = self._connected()
        below = self._below + (f"{prefix}/" if prefix else "")
        pages = iter(client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=below))
        while True:
            with translating("list", prefix or self.ref.prefix):
                page = next(pages, None)
            if page is None:
                return
            for found in page.get("Contents", ()):
                with translating("list", prefix or self.ref.prefix):
                    entry = Entry(found["Key"][len(self._below) :], found["Size"], found["LastModified"])
                if not entry.path.endswith("/"):  # what some tools leave in a directory's place
                    yield entry

    def space(self) -> Space:
        raise Unsupported("S3 does not say how much space it has")

    def presigned(self, path: str, method: str = "get_object", expires_s: int = 3600) -> str:
        """A URL that lets whoever has it do that to the file (`get_object`, `put_object`), for a time."""
        client = self._connected()
        place = self._place(self._checked(path))
        with translating("sign", path):
            return str(client.generate_presigned_url(method, Params=place, ExpiresIn=expires_s))

    # -- writing ------------------------------------------------------------------------------------------------

    def _store(self, path: str, chunks: Iterable[bytes], storing: Storing) -> bool:
        parts = parts_of(chunks, storing.size_bytes)
        first = next(parts, b"")
        second = next(parts, None)
        if second is None:
            is_new = self._put(path, first, storing.replace, storing.attempt())
        else:
            is_new = self._put_in_parts(path, chained(first, second, parts), storing)
        if is_new:
            self._require_proof(path, storing.prove)
        return is_new

    def _require_proof(self, path: str, prove: Callable[..., None]) -> None:
        """Remove the file if it proves wrong twice and is the same both times, and raise what it proved to be.

        Once is not enough: 1. we read wrong bytes and pause, 2. our lease ends, another attempt replaces the file,
        3. we wake up, and would delete a good copy. Its bytes, and so its ETag, are those that we sent, too; its time
        and the attempt that it carries are not. The last look is a part of the second proof, which raises something
        else when time is over: nothing but the comparison comes between that and the removal. What cannot be read now
        stays, and is the next attempt's to look at.
        """
        if _fault(path, prove) is None:
            return
        seen, now = self._head(path), list[Head | None]()
        fault = _fault(path, prove, lambda: now.append(self._head(path)))
        if fault is None:
            return
        if seen is not None and seen == (now[0] if now else self._head(path)):
            self._delete_key(path)
        raise fault

    def _put_in_parts(self, path: str, parts: Iterable[bytes], storing: Storing) -> bool:
        upload = self._begun(path, f"{TEMPORARIES}/{storing.temporary}", storing.attempt())
        try:
            self._send_parts(upload, parts)
            return self._completed(upload, path, storing.replace)
        except BaseException:  # whatever ends it, also a signal: nothing of the parts stays
            with contextlib.suppress(StorageError):
                self._abort(upload)
            raise

    def _put(self, path: str, content: bytes, replace: bool, attempt: str | None = None) -> bool:
        effects.point("s3.put:before")
        client = self._connected()
        try:
            with translating("write", path, writing=True):
                client.put_object(
                    **self._place(path), Body=content, ContentMD5=md5_of(content)[1], **_unless_there(replace),
                    **_by(attempt),
                )  # fmt: skip
        except StorageError as error:
            if error.error_class != ErrorClass.DESTINATION_EXISTS:
                raise
            with self._open(path) as stored:
                require_same([content], stored, path)
            return False
        effects.point("s3.put:after")
        return True

    def _begun(self, path: str, note: str, attempt: str) -> Upload:
        """An upload in parts; a note says of which key, so that a later attempt can end it, and then its id."""
        client, key = self._connected(), self._below + path
        with translating("write", path, writing=True):
            self._put(note, json.dumps({"key": key}).encode(), True)
            effects.point("s3.create:before")
            upload_id = client.create_multipart_upload(**self._place(path), **_by(attempt))["UploadId"]
            effects.point("s3.create:after")
            self._put(note, json.dumps({"key": key, "upload": upload_id}).encode(), True)
        return Upload(key, upload_id, note)

    def _send_parts(self, upload: Upload, parts: Iterable[bytes]) -> None:
        """Send each part while the next is being read."""
        with ThreadPoolExecutor(PARTS_IN_FLIGHT, thread_name_prefix="dlm-s3") as pool:
            sending: deque[Future[dict[str, Any]]] = deque()
            for number, part in enumerate(parts, 1):
                if len(sending) >= PARTS_IN_FLIGHT:
                    upload.parts.append(sending.popleft().result())
                digest, text = md5_of(part)
                upload.digests.append((len(part), digest))
                sending.append(pool.submit(self._send_part, upload, number, part, text))
            upload.parts += [future.result() for future in sending]

    def _send_part(self, upload: Upload, number: int, part: bytes, md5: str) -> dict[str, Any]:
        with translating("write", upload.key, writing=True):
            answer = self._connected().upload_part(
                Bucket=self._bucket, Key=upload.key, UploadId=upload.upload_id, PartNumber=number, Body=part,
                ContentMD5=md5,
            )  # fmt: skip
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def _completed(self, upload: Upload, path: str, replace: bool) -> bool:
        """True once the parts are a file; False when the same one came there meanwhile."""
        client = self._connected()
        if not replace and self._head(path) is not None:  # for servers that do not know the condition
            self._require_same_parts(upload, path)
            self._abort(upload)
            return False
        effects.point("s3.complete:before")
        try:
            with translating("write", path, writing=True):
                client.complete_multipart_upload(
                    Bucket=self._bucket, Key=upload.key, UploadId=upload.upload_id,
                    MultipartUpload={"Parts": upload.parts}, **_unless_there(replace),
                )  # fmt: skip
        except StorageError as error:
            if error.error_class != ErrorClass.DESTINATION_EXISTS:
                raise
            self._require_same_parts(upload, path)
            self._abort(upload)
            return False
        effects.point("s3.complete:after")
        self._delete_key(upload.note)
        return True

    def _require_same_parts(self, upload: Upload, path: str) -> None:
        """DESTINATION_EXISTS unless the file there has what was sent, told by the digest of each part."""
        with self._open(path) as stored:
            rest = bytearray()
            for size, digest in upload.digests:
                while len(rest) < size and (block := next(stored, b"")):
                    rest += block
                if md5_of(bytes(rest[:size]))[0] != digest:
                    raise other_content(path)
                del rest[:size]
            if rest or next(stored, b""):
                raise other_content(path)

    def _abort(self, upload: Upload) -> None:
        with contextlib.suppress(StorageError):
            self._abort_one(upload.key, upload.upload_id)
        self._delete_key(upload.note)

    def _abort_one(self, key: str, upload_id: str) -> None:
        with translating("remove parts of", key, writing=True):
            self._connected().abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)

    def remove_temporaries(self, *attempts: str) -> int:
        self._require_root()
        count = 0
        for attempt in attempts:
            for entry in list(self._listed(f"{TEMPORARIES}/{attempt}~")):
                self._end_noted(entry)
                count += self._delete_key(entry)
        return count

    def _listed(self, beginning: str) -> Iterator[str]:
        """The paths that begin so."""
        client = self._connected()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._below + beginning)
        with translating("list", beginning):
            for page in pages:
                yield from (found["Key"][len(self._below) :] for found in page.get("Contents", ()))

    def _end_noted(self, note: str) -> None:
        """Abort the upload that the note tells of; if it has no id yet, all of that key that this account began."""
        text = beginning(self._got(note), NOTE_LIMIT_BYTES)
        try:
            told = json.loads(text)
            key, upload_id = str(told["key"]), told.get("upload")
        except (ValueError, TypeError, KeyError, AttributeError):
            return
        ids = [str(upload_id)] if upload_id else self._uploads(key)
        for one in ids:
            with contextlib.suppress(StorageError):  # completed, or aborted before
                self._abort_one(key, one)

    def _uploads(self, key: str) -> list[str]:
        with translating("list parts of", key):
            found = self._connected().list_multipart_uploads(Bucket=self._bucket, Prefix=key)
            return [upload["UploadId"] for upload in found.get("Uploads", ()) if upload["Key"] == key]

    # -- deleting -----------------------------------------------------------------------------------------------

    def _delete(self, path: str) -> bool:
        return self._head(path) is not None and self._delete_key(path)

    def _delete_key(self, path: str) -> bool:
        effects.point("s3.delete:before")
        with translating("delete", path, writing=True):
            self._connected().delete_object(**self._place(path))
        effects.point("s3.delete:after")
        return True

    def delete_many(
        self, paths: Iterable[str], is_over: Callable[[], bool] = lambda: False
    ) -> dict[str, bool | StorageError]:
        self._require_root()
        outcomes: dict[str, bool | StorageError] = {}
        batch: list[str] = []
        for path in sorted(paths):
            if is_over():
                return outcomes  # what was gathered is not sent any more
            try:
                if _NOT_IN_XML.search(self._checked(path)):
                    outcomes[path] = self._delete(path)
                else:
                    batch.append(path)
            except StorageError as error:
                outcomes[path] = error
            if len(batch) == BULK_FILES:
                outcomes |= self._delete_batch(batch, is_over)
                batch = []
        return outcomes | self._delete_batch(batch, is_over)

    def _delete_batch(self, paths: list[str], is_over: Callable[[], bool]) -> dict[str, bool | StorageError]:
        """Delete in one call, unless time is over; what was there is told by a listing, as S3 does not say it.

        That listing may take long, so the last question is asked after it: later, the files may be somebody else's.
        """
        if not paths:
            return {}
        client = self._connected()
        try:
            present = self._present(paths, is_over)
            keys = [{"Key": self._below + path} for path in paths]
            effects.point("s3.delete:before")
            if is_over():
                return {}
            with translating("delete", paths[0], writing=True):
                answer = client.delete_objects(Bucket=self._bucket, Delete={"Objects": keys, "Quiet": True})
            effects.point("s3.delete:after")
        except StorageError as error:
            return dict.fromkeys(paths, error)
        outcomes: dict[str, bool | StorageError] = {path: path in present for path in paths}
        for failed in answer.get("Errors", ()):
            path, code = str(failed.get("Key", ""))[len(self._below) :], str(failed.get("Code", ""))
            error_class = CODES.get(code, ErrorClass.PERMISSION if code == "AccessDenied" else ErrorClass.IO)
            outcomes[path] = StorageError(error_class, f"cannot delete {shown(path)}: the server says {shown(code)}")
        return outcomes

    def _present(self, paths: Collection[str], is_over: Callable[[], bool]) -> set[str]:
        """Which of the sorted paths are there: a page of the listing from each that the last page did not reach.

        Not all of them, once time is over.
        """
        present: set[str] = set()
        wanted = set(paths)
        reached = ""
        for path in paths:
            if path <= reached:
                continue
            if is_over():
                break
            if self._head(path) is not None:
                present.add(path)
            found, is_last = self._page_after(path)
            present |= wanted.intersection(found)
            if is_last:
                return present
            reached = found[-1]
        return present

    def _page_after(self, path: str) -> tuple[list[str], bool]:
        """Up to a thousand paths that come after this one, and whether they are the last."""
        client = self._connected()
        with translating("list", path):
            page = client.list_objects_v2(Bucket=self._bucket, Prefix=self._below, StartAfter=self._below + path)
            found = [entry["Key"][len(self._below) :] for entry in page.get("Contents", ())]
        return found, not found or not page.get("IsTruncated", False)

    # -- the root -----------------------------------------------------------------------------------------------

    def _read_marker(self) -> bytes | None:
        try:
            return beginning(self._got(MARKER), MARKER_LIMIT_BYTES)
        except StorageError as error:
            if error.error_class == ErrorClass.SOURCE_MISSING:
                return None
            raise

    def _write_marker(self, text: bytes) -> None:
        try:
            self._put(MARKER, text, False)
        except StorageError as error:
            if error.error_class != ErrorClass.DESTINATION_EXISTS:
                raise  # else it is another one's: the caller looks whose

    def _make_root(self) -> None:
        """Nothing to make: a bucket is somebody's decision, and below it there are no directories."""


def _described(told: Mapping[str, Any]) -> Head:
    """The file that botocore tells of."""
    attempt = told.get("Metadata", {}).get(ATTEMPT)
    return Head(told["ContentLength"], told["LastModified"], told.get("ETag", ""), told.get("VersionId"), attempt)


def _fault(path: str, prove: Callable[..., None], then: Callable[[], None] = lambda: None) -> StorageError | None:
    """What the stored bytes proved to be, None if they are right; raises what leaves that open.

    `then` is done when they have been read, before they are judged.
    """
    try:
        prove(path, then)
    except StorageError as error:
        if error.error_class != ErrorClass.CHECKSUM_MISMATCH:
            raise
        return error
    return None


def _by(attempt: str | None) -> dict[str, Any]:
    return {} if attempt is None else {"Metadata": {ATTEMPT: attempt}}


def _unless_there(replace: bool) -> dict[str, str]:
    return {} if replace else {"IfNoneMatch": "*"}


def _blocks(body: Any, path: str) -> Iterator[bytes]:
    while True:
        with translating("read", path):
            block = body.read(BLOCK_BYTES)
        if not block:
            return
        yield block
