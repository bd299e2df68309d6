"""Reading a WebDAV multistatus as it comes: one resource after the other, whatever the length of the listing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urlsplit
from xml.parsers import expat

from dlm.errors import StorageError
from dlm.rooted import shown
from dlm.types import ErrorClass
from dlm.unforeseen import ODD

TEXT_LIMIT = 1 << 16
RESPONSE_LIMIT_BYTES = 1 << 18  # what may come without the end of a resource; expat keeps all of an unfinished tag
BLOCK_BYTES = 1 << 16  # other threads wait while a block is understood
_SINCE_EVER = datetime(1970, 1, 1, tzinfo=UTC)
_TAKEN = {
    "DAV: href": "href", "DAV: getcontentlength": "size", "DAV: getlastmodified": "modified",
    "DAV: quota-available-bytes": "free", "DAV: quota-used-bytes": "used",
}  # fmt: skip
QUESTION = (
    b'<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop>'
    b"<resourcetype/><getcontentlength/><getlastmodified/></prop></propfind>"
)
QUOTA_QUESTION = (
    b'<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop>'
    b"<quota-available-bytes/><quota-used-bytes/></prop></propfind>"
)


@dataclass(frozen=True, slots=True)
class Resource:
    """A file or a collection, by its unquoted path on the server, without a slash at the end; None is not told."""

    path: str
    is_collection: bool
    size_bytes: int | None
    modified_at: datetime
    free_bytes: int | None = None
    used_bytes: int | None = None

    def size(self) -> int:
        """The file's size; IO when the server does not tell it: it is not taken for empty."""
        if self.size_bytes is None:
            raise StorageError(ErrorClass.IO, f"the server does not tell the size of {shown(self.path)}")
        return self.size_bytes


def resources(blocks: Iterable[bytes], limit_bytes: int | None = None) -> Iterator[Resource]:
    """The resources of a multistatus; IO if it is none, stops half-way, or is longer than that."""
    reader = _Reader()
    size = since = 0  # in all, and since the last resource ended
    try:
        for block in blocks:
            reader.parser.Parse(block, False)
            found = reader.taken()
            size, since = size + len(block), 0 if found else since + len(block)
            if since > RESPONSE_LIMIT_BYTES or (limit_bytes is not None and size > limit_bytes):
                raise ValueError("it is too long for what it tells")
            yield from found
        reader.parser.Parse(b"", True)
    except (expat.ExpatError, *ODD) as error:
        raise StorageError(ErrorClass.IO, f"the server's listing cannot be read: {shown(str(error))}") from error
    yield from reader.taken()


class _Reader:
    """Collects what expat meets. A document type is refused: entities are how XML explodes."""

    def __init__(self) -> None:
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self._found: list[Resource] = []
        self._facts: dict[str, str] = {}
        self._text: list[str] | None = None
        self._length = 0

    def taken(self) -> list[Resource]:
        found, self._found = self._found, []
        return found

    def _refuse(self, *_: object) -> None:
        raise ValueError("it has a document type")

    def _start(self, name: str, _: object) -> None:
        if name == "DAV: response":
            self._facts = {}
        elif name == "DAV: collection":
            self._facts["collection"] = "yes"
        elif name in _TAKEN:
            self._text, self._length = [], 0

    def _characters(self, text: str) -> None:
        if self._text is None:
            return
        self._length += len(text)
        if self._length > TEXT_LIMIT:
            raise ValueError("a value is too long")
        self._text.append(text)

    def _end(self, name: str) -> None:
        if name in _TAKEN and self._text is not None:
            text = "".join(self._text).strip()
            if text:  # properties that are not there come as empty elements
                self._facts[_TAKEN[name]] = text
            self._text = None
        elif name == "DAV: response" and "href" in self._facts:
            self._found.append(_resource(self._facts))


def _resource(facts: dict[str, str]) -> Resource:
    path = unquote(urlsplit(facts["href"]).path, errors="surrogateescape").rstrip("/")
    size, free, used = (_number(facts.get(name)) for name in ("size", "free", "used"))
    return Resource(path, "collection" in facts, size, _moment(facts.get("modified")), free, used)


def _number(text: str | None) -> int | None:
    number = None if text is None else int(text)
    return None if number is None or number < 0 else number


def _moment(text: str | None) -> datetime:
    if text is None:
        return _SINCE_EVER
    moment = parsedate_to_datetime(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
