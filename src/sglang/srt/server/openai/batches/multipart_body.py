"""Reads multipart/form-data (RFC 7578) as it comes: the pieces of a file are handed on, nothing large is held.

--BOUNDARY \\r\\n headers \\r\\n\\r\\n content \\r\\n--BOUNDARY \\r\\n headers ... \\r\\n--BOUNDARY--
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message

from sglang.srt.errors import NotJsonError, RequestError

MAX_BOUNDARY = 70
MAX_HEAD = 8 << 10
MAX_SEMICOLONS = 64
"""of a header: at each of them its reader goes through all that stands before"""
MAX_PARTS = 16
MAX_FIELD = 4 << 10
"""bytes of a field that is no file"""


@dataclass(frozen=True)
class Part:
    """The beginning of a part. `filename`: None for a field that is no file."""

    name: str
    filename: str | None


def boundary_of(content_type: str) -> bytes:
    """Raises NotJsonError for another type."""
    kind, boundary = _parameter(content_type, "content-type", "boundary")
    if kind != "multipart/form-data":
        raise NotJsonError("a file must be sent as multipart/form-data: curl -F purpose=batch -F file=@requests.jsonl")
    if boundary is None or not 1 <= len(boundary) <= MAX_BOUNDARY or not boundary.isascii():
        raise RequestError(f"Content-Type needs a boundary of 1 to {MAX_BOUNDARY} characters")
    return boundary.encode()


def _parameter(value: str, header: str, name: str) -> tuple[str, str | None]:
    """The value of a header without its parameters, and one of these. Raises RequestError."""
    if value.count(";") > MAX_SEMICOLONS:
        raise RequestError(f"{header} has more than {MAX_SEMICOLONS} semicolons")
    message = Message()
    message[header] = value.replace("\r", " ").replace("\n", " ")
    found = message.get_param(name, header=header)
    text = found[2] if isinstance(found, tuple) else found
    return value.partition(";")[0].strip().lower(), text if isinstance(text, str) else None


class MultipartParser:
    """`feed` takes bytes as they come and yields the beginnings of parts, and the bytes of the one that began last. Raises RequestError
    for what is no such body. `is_complete`: the end has come."""

    def __init__(self, boundary: bytes) -> None:
        self._mark = b"\r\n--" + boundary
        self._data = bytearray(b"\r\n")  # the first mark has no line before it
        self._is_inside = False
        self._num_parts = 0
        self.is_complete = False

    def feed(self, data: bytes) -> Iterator[Part | bytes]:
        if self.is_complete:
            return  # an epilogue says nothing
        self._data += data
        while not self.is_complete:
            found = self._content() if self._is_inside else self._head()
            if found is None:
                return
            if found != b"":
                yield found

    def _content(self) -> bytes | None:
        """The bytes up to the next mark, or those that cannot be a part of it."""
        at = self._data.find(self._mark)
        if at < 0:
            keep = len(self._mark) - 1
            return self._take(len(self._data) - keep) if len(self._data) > keep else None
        self._is_inside = False
        return self._take(at)

    def _head(self) -> Part | None:
        """What stands behind a mark."""
        size = len(self._mark)
        if len(self._data) < size + 2:
            return None
        if not self._data.startswith(self._mark):
            raise RequestError("the body does not begin with its boundary")
        if self._data[size : size + 2] == b"--":
            self.is_complete = True
            return None
        end = self._data.find(b"\r\n\r\n", size)
        if end < 0 and len(self._data) > MAX_HEAD:
            raise RequestError("the head of a part of the body is too long, or has no end")
        if end < 0:
            return None
        lines = bytes(self._data[size:end]).split(b"\r\n")[1:]
        self._take(end + 4)
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise RequestError(f"the body has more than {MAX_PARTS} parts")
        self._is_inside = True
        return _part(lines)

    def _take(self, size: int) -> bytes:
        found = bytes(self._data[:size])
        del self._data[:size]
        return found


def _part(lines: list[bytes]) -> Part:
    for line in lines:
        header, _, value = line.decode("utf-8", "replace").partition(":")
        if header.strip().lower() == "content-disposition":
            kind, name = _parameter(value, "content-disposition", "name")
            if kind == "form-data" and name is not None:
                return Part(name, _parameter(value, "content-disposition", "filename")[1])
    raise RequestError("a part of the body has no name (Content-Disposition: form-data; name=...)")
