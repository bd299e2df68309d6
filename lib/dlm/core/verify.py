"""The invariants (architecture 4), once, for tests and for production."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from dlm.core import audit, credentials
from dlm.db import audits
from dlm.db import verify as rows
from dlm.db.engine import Tx
from dlm.did import derived_path, from_derived_path
from dlm.errors import InvalidInput, StorageError, Unsupported
from dlm.protocols import Entry, StorageProtocol, open_protocol
from dlm.types import Checksums

SAMPLE = 20  # findings of one kind that are told in full
CHUNK_FILES = 5000


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that breaks an invariant."""

    invariant: str
    object: str
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.object}: {self.detail}"


def verify(tx: Tx, sample: int = SAMPLE) -> list[Finding]:
    """What in the catalogue breaks an invariant; two statements.

    Up to `sample` findings of a kind are told, then how many more there are. Work that the judge has still before it
    (pending changes, locks being filled) is no finding.
    """
    findings: list[Finding] = []
    told: dict[str, int] = {}
    for row in rows.broken(tx, sample):
        findings.append(Finding(row.invariant, row.object, row.detail))
        told[row.invariant] = row.number
    more = [(invariant, number - sample) for invariant, number in told.items() if number > sample]
    return findings + [Finding(invariant, "…", f"and {number:,} more") for invariant, number in more]


def verify_files(tx: Tx, storage_ids: Sequence[int] | None = None, *, with_checksum: bool = True) -> list[Finding]:
    """Where catalogue and storages differ: missing, altered, and dark files (which no row owns).

    Storages that are not available are left out. On a storage that dlm may not write to, what is not registered is
    its owner's business, and not dark. Memory is bounded by the findings.
    """
    findings: list[Finding] = []
    refs = credentials.refs(tx)
    for storage in rows.storages_to_compare(tx, storage_ids):
        if storage.id not in refs:
            continue
        try:
            protocol = open_protocol(refs[storage.id])
            findings += _differing(tx, storage.id, storage.name, protocol, with_checksum)
            if storage.can_write:
                findings += _dark(tx, storage.id, storage.name, protocol)
        except (StorageError, Unsupported) as error:
            findings.append(Finding("I3 a storage can be compared", f"storage {storage.name}", error.detail))
    return findings


def _differing(
    tx: Tx, storage_id: int, storage: str, protocol: StorageProtocol, with_checksum: bool
) -> Iterator[Finding]:
    """Files that are missing, or not what the catalogue says, without being known as bad or lost."""
    after = 0
    while items := audits.load_chunk(tx, storage_id, after, CHUNK_FILES):
        after = items[-1].did_id
        for item in items:
            if item.state not in ("available", "unverified"):
                continue
            path = item.path or derived_path(item.scope, item.name)
            stat = protocol.stat(path)
            answer = audit.judge_size(item, None if stat is None else stat.size_bytes)
            if answer.verdict is audit.Verdict.PRESENT and with_checksum:
                answer = audit.judge_bytes(item, _digests(protocol, path, audit.expected(item)))
            if answer.detail:
                yield Finding(
                    "I3 files are what the catalogue says", f"{item.scope}:{item.name} at {storage}", answer.detail
                )


def _digests(protocol: StorageProtocol, path: str, known: Checksums) -> Checksums:
    algorithms = tuple(known.known())
    return protocol.checksum(path, algorithms) if algorithms else Checksums()


def _dark(tx: Tx, storage_id: int, storage: str, protocol: StorageProtocol) -> Iterator[Finding]:
    """Files on the storage that no row owns."""
    entries = iter(protocol.list())
    while chunk := list(islice(entries, CHUNK_FILES)):
        names = [_derived_from(entry) for entry in chunk]
        paths = [entry.path for entry in chunk]
        owned = rows.owned(tx, storage_id, paths, [name[0] for name in names], [name[1] for name in names])
        for entry in chunk:
            if entry.path not in owned:
                yield Finding(
                    "I3 no dark files", f"{entry.path} at {storage}", f"{entry.size_bytes:,} bytes, no row owns it"
                )


def _derived_from(entry: Entry) -> tuple[str, str]:
    """The scope and name that the path derives from; empty when it derives from none."""
    try:
        return from_derived_path(entry.path)
    except InvalidInput:
        return "", ""
