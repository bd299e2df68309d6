"""A user's own bytes in: an intent row before the first byte, the bytes read back before they count.

1. begin_upload commits: the DID, a copying replica, a request under a lease. 2. store writes, no transaction open.
3. finish_upload records what came of it, where the lease still stands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.engine import Row

from dlm import did as codec
from dlm import effects
from dlm.core import dids, files, mover
from dlm.core.accounts import get_scope
from dlm.core.recording import record_results
from dlm.core.storages import get_storage, root_of
from dlm.db import judging, storages, uploads, usage
from dlm.db.attempts import Result, Verdict
from dlm.db.engine import Tx
from dlm.digest import Digest
from dlm.errors import CannotPlace, Conflict, InvalidInput, QuotaExceeded, StorageError, Transient
from dlm.protocols import open_protocol
from dlm.types import Checksums, DidKind, ErrorClass, ProtocolRef, ReplicaState

ALWAYS = "adler32"


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload under way. `expected` is what the catalogue or the caller knows of the bytes."""

    request_id: int
    fence: int
    did_id: int
    protocol: ProtocolRef
    path: str
    size_bytes: int
    expected: Checksums
    found: Checksums = Checksums()


def begin_upload(
    tx: Tx, scope: str, name: str, storage: str, size_bytes: int, given: Checksums, lease_s: float
) -> Upload:
    """Make the DID, its replica (copying) and its request, the bytes reserved. Nothing is written to the storage yet.

    Conflict when the storage takes nothing, or the catalogue knows the name otherwise; CannotPlace when it is full;
    QuotaExceeded when a rule of the account could not keep the file there. Only rules are charged: a file that none
    keeps is charged to nobody.
    """
    item = {"name": name, "size_bytes": size_bytes}
    files.read([{**item, **given.known()}], scope)
    place = get_storage(tx, storage)
    if not (place.can_write and place.is_available):
        reason = place.switch_reason if place.is_available else place.unavailable_reason
        word = "takes nothing" if place.is_available else "is unavailable"
        raise Conflict(f"{storage} {word}: {reason}", field="storage", hint="name another storage")
    room = next(one.free_bytes for one in storages.snapshot(tx) if one.id == place.id)
    if room is not None and room < size_bytes:
        raise CannotPlace(f"{storage} has {max(0, room):,} bytes free, {size_bytes:,} are needed", field="storage")
    _check_quota(tx, place, size_bytes)
    did_id, known = _file(tx, scope, name, size_bytes, given)
    made = uploads.begin(tx, did_id, place.id, size_bytes, lease_s)
    if made is None:
        hint = "dlm-admin did show tells its state"
        raise Conflict(f"{codec.shown(f'{scope}:{name}')} has a replica at {storage}", field="did", hint=hint)
    delta = usage.StorageDelta()
    delta.add(place.id, reserved_bytes=size_bytes)
    usage.change_storages(tx, delta)
    expected = Checksums(**{**given.known(), **known.known()})
    path = codec.derived_path(scope, name)
    return Upload(made.id, made.fence, did_id, root_of(tx, storage), path, size_bytes, expected)


def _check_quota(tx: Tx, place: Row[Any], size_bytes: int) -> None:
    account_id = tx.actor.account_id
    left = None if account_id is None else judging.quota_left(tx, [account_id]).get((account_id, place.id))
    if left is not None and (left <= 0 or left < size_bytes):
        room = f"the limit of {tx.actor.account} leaves {max(0, left):,} bytes on {place.name}"
        detail = f"{room}, {size_bytes:,} are needed"
        raise QuotaExceeded(detail, field="storage", hint="see: dlm-admin account usage")


def _file(tx: Tx, scope: str, name: str, size_bytes: int, given: Checksums) -> tuple[int, Checksums]:
    """(id, known digests) of the file, made if there is none of this name; Conflict when it is known otherwise.

    What the caller says of the digests is not kept before the bytes are there and prove it.
    """
    get_scope(tx, scope)
    uploads.ensure_file(tx, scope, name, size_bytes, tx.actor.account_id)
    row = dids.get(tx, scope, name)
    shown = codec.shown(f"{scope}:{name}")
    known = Checksums(row.adler32, row.md5, row.sha256)
    if row.kind != DidKind.FILE or row.deleted_at is not None:
        what = "has ended" if row.deleted_at is not None else f"is a {row.kind}"
        raise Conflict(f"{shown} {what}", field="did", hint="names are never used twice")
    if row.size_bytes != size_bytes or known.contradicts(given):
        raise Conflict(
            f"the catalogue knows {shown} with other content", field="did", hint="other content needs another name"
        )
    return row.id, known


def store(upload: Upload, blocks: Iterable[bytes], keep_lease: Callable[[], None]) -> Upload:
    """Write the bytes; the upload with the digests of what was written. No transaction is open.

    InvalidInput when the bytes are not what was announced: then nothing gets the file's name. StorageError otherwise.
    """
    attempt = mover.attempt_name(upload.request_id, upload.fence)
    blocks = _checked(upload, blocks, keep_lease)
    effects.point("upload.write:before")
    written = open_protocol(upload.protocol).write(upload.path, blocks, attempt=attempt, algorithms=_algorithms(upload))
    effects.point("upload.write:after")
    return replace(upload, found=written.checksums)


def read_back(upload: Upload) -> Upload:
    """The upload with the digests that the storage gives back. StorageError when that fails: the file stands there."""
    stored = open_protocol(upload.protocol).checksum(upload.path, _algorithms(upload))
    if stored.contradicts(upload.found):
        raise StorageError(ErrorClass.CHECKSUM_MISMATCH, "what the storage gives back is not what was written")
    return replace(upload, found=stored)


def _algorithms(upload: Upload) -> tuple[str, ...]:
    return tuple(dict.fromkeys((ALWAYS, *upload.expected.known())))


def _checked(upload: Upload, blocks: Iterable[bytes], keep_lease: Callable[[], None]) -> Iterator[bytes]:
    """The blocks; raises at the end, before the file gets its name, when they are not the bytes announced."""
    digest = Digest(upload.expected.known())
    for block in blocks:
        keep_lease()
        digest.update(block)
        yield block
    if digest.size_bytes != upload.size_bytes:
        raise InvalidInput(f"{upload.size_bytes:,} bytes were announced, {digest.size_bytes:,} came", field="body")
    if Checksums(**digest.hexdigests()).contradicts(upload.expected):
        raise InvalidInput("the bytes that came have another checksum", field="body", hint="send them again")


def finish_upload(tx: Tx, upload: Upload, cycle_s: float, dataset: tuple[str, str] | None = None) -> None:
    """Make the replica available, and put the file into the dataset. Transient when the lease was lost meanwhile."""
    uploads.keep(tx, upload.request_id, upload.fence)
    known = uploads.learn(tx, upload.did_id, upload.found)
    if known.contradicts(upload.found):
        raise StorageError(ErrorClass.CHECKSUM_MISMATCH, "the file was registered with other content meanwhile")
    if dataset is not None:
        dids.put_in(tx, require_dataset(tx, dataset), [upload.did_id], [upload.size_bytes])
    result = Result(upload.request_id, upload.fence, Verdict.DONE, checksums=upload.found)
    if record_results(tx, [result], cycle_s)["late"]:
        raise Transient("the upload took longer than its lease", hint="send it again")


def require_dataset(tx: Tx, dataset: tuple[str, str]) -> Row[Any]:
    """The dataset, which is open now."""
    parent = dids.require_open(tx, *dataset, field="dataset")
    if parent.kind != DidKind.DATASET:
        raise InvalidInput(f"{codec.shown(':'.join(dataset))} is a container: files go into a dataset", field="dataset")
    return parent


def abandon_upload(tx: Tx, upload: Upload, reason: str, leftover: ReplicaState | None) -> None:
    """Take the intent back; what was left at the storage (`leftover`) becomes a replica that nobody wants."""
    result = Result(upload.request_id, upload.fence, Verdict.CANCELLED, leftover=leftover, error=reason[:1000])
    record_results(tx, [result], cycle_s=86_400)


class Lease:
    """Renews an upload's lease while bytes come, each time half of it has passed."""

    def __init__(self, lease_s: float, extend: Callable[[], bool]) -> None:
        self.lease_s = lease_s
        self.extend = extend
        self.renew_at = time.monotonic() + lease_s / 2

    def __call__(self) -> None:
        if time.monotonic() < self.renew_at:
            return
        if not self.extend():
            raise Transient("the upload was slower than its lease", hint="send it again")
        self.renew_at = time.monotonic() + self.lease_s / 2
