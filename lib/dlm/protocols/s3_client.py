"""A botocore client for a storage, and what its errors mean. Of botocore's own files and variables none is read."""

from __future__ import annotations

import os
import ssl
import threading
from typing import Any
from urllib.parse import unquote

import botocore.session
from botocore import UNSIGNED
from botocore import exceptions as boto
from botocore.config import Config

from dlm.errors import DlmError, StorageError
from dlm.protocols.network import NOT_TRUSTED, STATUS_CLASSES, STATUS_CLASSES_WRITING, root_url
from dlm.rooted import shown
from dlm.types import ErrorClass, ProtocolRef

TRIES = 2
_CONNECTIONS = 16

CODES = {
    "NoSuchBucket": ErrorClass.UNAVAILABLE,
    "NoSuchKey": ErrorClass.SOURCE_MISSING,
    "NoSuchUpload": ErrorClass.IO,
    "PreconditionFailed": ErrorClass.DESTINATION_EXISTS,
    "QuotaExceeded": ErrorClass.NO_SPACE,
    "InsufficientCapacity": ErrorClass.NO_SPACE,
    "EntityTooLarge": ErrorClass.NO_SPACE,
    "KeyTooLongError": ErrorClass.INVALID_PATH,
    "InvalidURI": ErrorClass.INVALID_PATH,
    "SlowDown": ErrorClass.UNAVAILABLE,
    "ServiceUnavailable": ErrorClass.UNAVAILABLE,
    "RequestTimeout": ErrorClass.TIMEOUT,
    "BadDigest": ErrorClass.CHECKSUM_MISMATCH,
    "RequestTimeTooSkewed": ErrorClass.PERMISSION,
    "ExpiredToken": ErrorClass.PERMISSION,
    "InvalidAccessKeyId": ErrorClass.PERMISSION,
}
_RAISED: tuple[tuple[type[Exception], ErrorClass], ...] = (
    (boto.SSLError, ErrorClass.UNAVAILABLE),
    (boto.ConnectTimeoutError, ErrorClass.TIMEOUT),
    (boto.ReadTimeoutError, ErrorClass.TIMEOUT),
    (boto.EndpointConnectionError, ErrorClass.UNAVAILABLE),
    (boto.InvalidEndpointDiscoveryConfigurationError, ErrorClass.UNAVAILABLE),
)


class translating:  # noqa: N801  reads as a statement
    """Turns what botocore, and all below it, raises inside the block into a StorageError, by the tables above."""

    __slots__ = ("doing", "path", "writing")

    def __init__(self, doing: str, path: str, writing: bool = False) -> None:
        self.doing, self.path, self.writing = doing, path, writing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        # Not a list of types: of an answer that it cannot understand, botocore raises what its parsers happen to.
        if isinstance(error, Exception) and not isinstance(error, DlmError):
            raise _translated(error, self.doing, self.path, self.writing) from error


def _translated(error: Exception, doing: str, path: str, writing: bool) -> StorageError:
    if isinstance(error, boto.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        statuses = STATUS_CLASSES_WRITING if writing else STATUS_CLASSES
        error_class = CODES.get(code) or statuses.get(status, ErrorClass.IO)
        hint = "the secret is wrong, expired, or allows too little" if error_class == ErrorClass.PERMISSION else None
        if code == "NoSuchBucket":
            hint = "make the bucket; dlm does not"
        return StorageError(
            error_class, f"cannot {doing} {shown(path)}: the server says {status} {shown(code)}", hint=hint,
            code=shown(code),
        )  # fmt: skip
    error_class = next((found for kind, found in _RAISED if isinstance(error, kind)), ErrorClass.IO)
    hint = NOT_TRUSTED if isinstance(error, boto.SSLError) else None
    return StorageError(error_class, f"cannot {doing} {shown(path)}: {shown(str(error))}", hint=hint)


def bucket_of(ref: ProtocolRef) -> tuple[str, str]:
    """(bucket, what all keys of the root begin with); UNAVAILABLE when the prefix names none."""
    root = root_url(ref, ref.prefix.startswith("http:"))
    bucket, _, below = unquote(root.path.strip("/")).partition("/")
    if root.scheme not in ("http", "https") or not bucket:
        detail = f"{shown(ref.prefix)} is no https://host/bucket"
        raise StorageError(ErrorClass.UNAVAILABLE, detail, field="prefix")
    return bucket, f"{below}/" if below else ""


def made_client(ref: ProtocolRef, timeout_s: float, ca: str | None) -> Any:
    """A client for the reference's server, which is safe to share between threads; `ca` names a file."""
    root = root_url(ref, ref.prefix.startswith("http:"))
    secret, options = ref.secret or {}, ref.options
    config = Config(
        signature_version="s3v4" if "access_key" in secret else UNSIGNED,
        s3={"addressing_style": options.get("addressing", "path")},
        connect_timeout=timeout_s,
        read_timeout=timeout_s,
        retries={"total_max_attempts": TRIES, "mode": "standard"},
        max_pool_connections=_CONNECTIONS,
        proxies={},
        # Not every server knows the newer checksums; what we send carries Content-MD5.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    with translating("speak to", ref.prefix), _MAKING:  # sessions are not safe while a client is made
        return _session().create_client(
            "s3",
            region_name=options.get("region", "us-east-1"),
            endpoint_url=f"{root.scheme}://{root.netloc}",
            aws_access_key_id=secret.get("access_key"),
            aws_secret_access_key=secret.get("secret_key"),
            aws_session_token=secret.get("session_token"),
            verify=ca or ssl.get_default_verify_paths().cafile or True,
            config=config,
        )


_MAKING = threading.Lock()
_SESSION: botocore.session.Session | None = None


def _session() -> botocore.session.Session:
    """The session that keeps botocore's models; nothing of the user's AWS files or environment is read for it."""
    global _SESSION
    if _SESSION is None:
        _SESSION = botocore.session.Session(session_vars={"profile": (None, None, None, None)})
        _SESSION.set_config_variable("config_file", os.devnull)
        _SESSION.set_config_variable("credentials_file", os.devnull)
    return _SESSION
