"""Bytes: a user's own data in and out, verified. Sites move data among themselves without this."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from flask import Response, request, stream_with_context
from marshmallow import Schema, fields, validate
from werkzeug.exceptions import HTTPException, LengthRequired

from dlm import did as codec
from dlm.core import replicas, uploads
from dlm.core.files import ALGORITHMS
from dlm.db import uploads as upload_rows
from dlm.errors import DlmError, NotFound, StorageError, Transient, Unsupported
from dlm.protocols import Chunks, open_protocol
from dlm.types import Checksums, ErrorClass, ReplicaState
from dlm.web.access import permission
from dlm.web.blueprint import Answer, Blueprint
from dlm.web.context import as_one, begin, own_scopes, web

blp = Blueprint("bytes", __name__, url_prefix="/bytes", description="A user's own bytes, in and out")

BLOCK = 1 << 20
AWAY = (ErrorClass.UNAVAILABLE, ErrorClass.TIMEOUT)  # the file may be as good as ever
BINARY = "application/octet-stream"
SENT = {BINARY: {"schema": {"type": "string", "format": "binary"}}}


def _digest(digits: int) -> Any:
    return fields.String(validate=validate.Regexp(f"^[0-9a-f]{{{digits}}}$"))


class PutQuery(Schema):
    storage = fields.String(required=True)
    dataset = fields.String(metadata={"description": "put the file into this open dataset"})
    adler32 = _digest(ALGORITHMS["adler32"])
    md5 = _digest(ALGORITHMS["md5"])
    sha256 = _digest(ALGORITHMS["sha256"])


class Stored(Answer):
    did = fields.String(required=True)
    storage = fields.String(required=True)
    size_bytes = fields.Integer(required=True)
    checksums = fields.Dict(fields.String(), fields.String(), required=True)


@blp.route("/<scope>/<path:name>", methods=["PUT"])
@permission("bytes.put")
@blp.arguments(PutQuery, location="query")
@blp.answers(Stored, 201)
@blp.doc(requestBody={"required": True, "content": SENT, "description": "the file; Content-Length is needed"})
def put(query: dict[str, Any], scope: str, name: str) -> tuple[dict[str, Any], int]:
    """Store a file's bytes at a storage and register it; available once it was read back"""
    request.max_content_length = web().settings.web_max_upload_bytes
    if request.content_length is None:
        raise LengthRequired("Content-Length is needed")
    dataset = codec.parse(query["dataset"], "dataset") if "dataset" in query else None
    given = Checksums(*(query.get(key) for key in ("adler32", "md5", "sha256")))
    lease_s = web().settings.conveyor_lease_s
    with as_one("files[0]", "name"), begin("bytes.put") as tx:
        own_scopes(tx, [scope, *(dataset[:1] if dataset else ())])
        if dataset is not None:
            uploads.require_dataset(tx, dataset)
        upload = uploads.begin_upload(tx, scope, name, query["storage"], request.content_length, given, lease_s)
    done = _received(upload, dataset, lease_s)
    shown = {"did": f"{scope}:{name}", "storage": query["storage"], "size_bytes": done.size_bytes}
    return {**shown, "checksums": done.found.known()}, 201


def _received(upload: uploads.Upload, dataset: tuple[str, str] | None, lease_s: float) -> uploads.Upload:
    """The upload, stored and recorded; when that fails its intent is taken back."""
    settings = web().settings
    leftover: ReplicaState | None = None
    try:
        written = uploads.store(upload, _blocks(), uploads.Lease(lease_s, lambda: _extend(upload, lease_s)))
        leftover = ReplicaState.BAD  # until it is read back; whatever goes wrong from here on, a file stands there
        stored = uploads.read_back(written)
        leftover = ReplicaState.AVAILABLE
        with web().database.begin("web.bytes.put") as tx:
            uploads.finish_upload(tx, stored, settings.auditor_cycle_s, dataset)
        return stored
    except (DlmError, HTTPException) as error:
        if isinstance(error, StorageError) and error.error_class == ErrorClass.CHECKSUM_MISMATCH:
            leftover = ReplicaState.BAD
        with web().database.begin("web.bytes.abandon") as tx:
            uploads.abandon_upload(tx, upload, str(error), leftover)
        _refuse(error)


def _refuse(error: Exception) -> NoReturn:
    """Raise the error; what a storage could not do at the moment is worth another try."""
    if isinstance(error, StorageError) and error.error_class in AWAY:
        raise Transient(error.detail, hint="try again, or name another storage") from error
    raise error


def _extend(upload: uploads.Upload, lease_s: float) -> bool:
    with web().database.begin("web.bytes.extend") as tx:
        return upload_rows.extend(tx, upload.request_id, upload.fence, lease_s)


def _blocks() -> Iterator[bytes]:
    while block := request.stream.read(BLOCK):
        yield block


@blp.route("/<scope>/<path:name>")
@permission("bytes.get")
@blp.alt_response(200, schema={"type": "string", "format": "binary"}, content_type=BINARY, success=True)
def get(scope: str, name: str) -> Response:
    """A file's bytes, from the best replica; compare them with the digests in the headers"""
    with begin("bytes.get") as tx:
        found = replicas.best_replicas(tx, scope, name)
    source, chunks = _opened(found)
    headers = {f"X-Checksum-{key.title()}": value for key, value in source.checksums.known().items()}
    headers |= {"X-Storage": source.storage, "Content-Length": str(source.size_bytes)}
    return Response(stream_with_context(_sent(chunks)), mimetype=BINARY, headers=headers)


def _sent(chunks: Chunks) -> Iterator[bytes]:
    with chunks:
        yield from chunks


def _opened(found: list[replicas.Source]) -> tuple[replicas.Source, Chunks]:
    """The first of these replicas that can be opened and has the right size.

    Transient when one of them is out of reach, Unsupported when this host cannot speak to one, NotFound when all of
    them could be asked and none is right.
    """
    reasons, is_away = [], False
    lacking: Unsupported | None = None
    for source in found:
        try:
            protocol = open_protocol(source.protocol)
            stat = protocol.stat(source.path)
            if stat is not None and stat.size_bytes == source.size_bytes:
                return source, protocol.read(source.path)
            reasons.append(f"{source.storage}: {'not there' if stat is None else 'of another size'}")
        except StorageError as error:
            is_away = is_away or error.error_class in AWAY
            reasons.append(f"{source.storage}: {error.detail}")
        except Unsupported as error:
            lacking = error
            reasons.append(f"{source.storage}: {error.detail}")
    told = f"no replica can be read now ({'; '.join(reasons)[:500]})"
    if is_away:
        raise Transient(told, field="did")
    if lacking is not None:
        raise Unsupported(told, field="did", hint=lacking.hint)
    raise NotFound(told, field="did")
