"""Speaks to dlm's REST API: one request at a time, bounded times, and dlm's own errors for what goes wrong."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn
from urllib.parse import quote, urlencode, urlsplit

import dlm
from dlm import did as codec
from dlm.errors import (
    CannotPlace,
    Conflict,
    Denied,
    DlmError,
    InvalidInput,
    NotFound,
    TooLarge,
    Transient,
    Unauthenticated,
    Unsupported,
)

API = "/api/v1"
CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 120.0
MAX_PROBLEM_BYTES = 1_000_000
BLOCK = 1 << 20

_KINDS: Mapping[int, type[DlmError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: Denied,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: CannotPlace,
    501: Unsupported,
}
_PASSING = (408, 429, 502, 503, 504)
_MEMBERS = ("type", "title", "status", "detail", "field", "hint")


def at(noun: str, did: str) -> str:
    """The address of what `noun` says of a DID, e.g. /contents/ska/vis/0001.ms."""
    scope, name = codec.parse(did)
    return f"/{noun}/{scope}/{quote(name, safe='/')}"


def named(noun: str, name: object, *more: str) -> str:
    """The address of an object that is named by one word, e.g. /storages/perth-disk/checks."""
    return "/".join(["", noun, quote(str(name), safe=""), *more])


class Response:
    """An answer as it comes; what fails in between is the service's, not what the reader does with it."""

    def __init__(self, client: Client, response: http.client.HTTPResponse) -> None:
        self._client, self._response = client, response
        self.headers = response.headers

    def read(self, size_bytes: int | None = None) -> bytes:
        with self._client.reached():
            return self._response.read(size_bytes)

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with self._client.reached():
                line = self._response.readline()
            if not line:
                return
            yield line


class Client:
    """The API at `url`, as the account whose token this is; `token_from` says where a missing one was looked for."""

    def __init__(self, url: str, token: str, token_from: str = "", timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"{codec.shown(url)} is no address", field="url", hint="e.g. http://127.0.0.1:8410")
        self.url = url.rstrip("/")
        self._parts = parts
        self._base = parts.path.rstrip("/") + API
        self._headers = {"User-Agent": f"dlm-admin/{dlm.__version__}"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._token_from = token_from
        self._timeout_s = timeout_s

    # One object

    def get(self, path: str, **query: Any) -> Any:
        return self.call("GET", path, query=query)

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Any:
        return self.call("POST", path, body, headers=headers)

    def patch(self, path: str, body: Any) -> Any:
        return self.call("PATCH", path, body)

    def delete(self, path: str, body: Any = None) -> Any:
        return self.call("DELETE", path, body)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON that is answered, None for an empty answer."""
        data = None if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", "Accept": "application/json", **(headers or {})}
        with self.open(method, path, data, query=query, headers=sent) as response:
            return self.read_json(response)

    def read_json(self, response: Response) -> Any:
        """The JSON of an answer, None for an empty one."""
        text = response.read()
        return self._parsed(text) if text else None

    def _parsed(self, text: bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            hint = "is it dlm's address? --url, or DLM_URL"
            raise DlmError(f"{self.url} answered what is not JSON", hint=hint) from error

    # Many

    def items(self, path: str, limit: int | None = None, **query: Any) -> Iterator[Any]:
        """The objects of a list, one after the other as they come (NDJSON), at most `limit`."""
        number = 0
        if limit is not None and limit <= 1000:
            query["limit"] = max(1, limit)
            yield from self.get(path, **query)["items"][:limit]
            return
        with self.open("GET", path, query=query, headers={"Accept": "application/x-ndjson"}) as response:
            for line in response:
                if limit is not None and number >= limit:
                    return
                number += 1
                yield self._parsed(line)

    # The connection

    @contextmanager
    def open(
        self,
        method: str,
        path: str,
        data: bytes | Iterable[bytes] | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[Response]:
        """The answer to a request, its body to be read; what is a problem is raised as the error it tells of."""
        connection = self._connection()
        given = {key: value for key, value in (query or {}).items() if value is not None}
        target = f"{self._base}{path}" + (f"?{urlencode(given, doseq=True)}" if given else "")
        try:
            with self.reached():
                response = self._ask(connection, method, target, data, {**self._headers, **(headers or {})})
            with response:  # one that ends with its connection owns the socket
                if response.status >= 400:
                    with self.reached():
                        self._refuse(response)
                yield Response(self, response)
        finally:
            connection.close()

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, target: str, data: Any, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        try:
            connection.connect()
            if connection.sock is not None:
                connection.sock.settimeout(self._timeout_s)
            connection.request(method, target, data, headers)
        except BrokenPipeError:
            pass  # refused before all was sent: the answer says why
        return connection.getresponse()

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Transient when the connection fails inside."""
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            raise self._away(error) from error

    def _connection(self) -> http.client.HTTPConnection:
        host, port = str(self._parts.hostname), self._parts.port
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=CONNECT_TIMEOUT_S, context=context)
        return http.client.HTTPConnection(host, port, timeout=CONNECT_TIMEOUT_S)

    def _away(self, error: Exception) -> Transient:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        hint = "start it: dlm-admin up   ·   it is elsewhere: --url, or DLM_URL"
        return Transient(f"{self.url} does not answer ({why[0].lower()}{why[1:]})", hint=hint)

    def _refuse(self, response: http.client.HTTPResponse) -> NoReturn:
        """Raise what the problem document in the answer tells."""
        try:
            body = json.loads(response.read(MAX_PROBLEM_BYTES))
            detail = body["detail"]
        except (ValueError, KeyError, TypeError):
            body, detail = {}, f"{self.url} answered {response.status} {response.reason}, and that is not dlm's way"
        told = {"field": body.get("field"), "hint": body.get("hint")}
        facts = {name: value for name, value in body.items() if name not in _MEMBERS}
        if response.status == 401 and "Authorization" not in self._headers:
            detail = f"{self.url} wants a token, and there is none in {self._token_from or 'a file'}"
            told["hint"] = "run it where dlm was started, or give --token or DLM_TOKEN"
        elif response.status == 401:
            detail = f"the token is not valid at {self.url}"
            told["hint"] = (
                f"it comes from --token, DLM_TOKEN or {self._token_from}; dlm-admin db init makes root's anew"
            )
        if response.status in _PASSING:
            wait = response.headers.get("Retry-After", "")
            raise Transient(detail, retry_after_s=int(wait) if wait.isdecimal() else 5, **told, **facts)
        raise _KINDS.get(response.status, DlmError)(detail, **told, **facts)
