"""The lines of a batch in OpenAI's format, for `sglang batch` and for /v1/batches.

input   {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
output  {"id": ..., "custom_id": "a", "response": {"status_code": 200, "request_id": ..., "body": {...}}, "error": null}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

SEEDED = frozenset({"/v1/chat/completions", "/v1/completions"})
"""whose requests get a seed from their custom_id where they name none"""
ENDPOINTS = SEEDED | {"/v1/responses", "/v1/embeddings", "/v1/score", "/v1/rerank"}
MAX_NAME = 512
KEY_BYTES = 512
"""of a request's text by which those with a common prefix are sorted together"""
DIGEST_BYTES = 8

Decode = Callable[[bytes], Any]


class BadLine(Exception):
    """A line of the input is no request. `code`: in OpenAI's words; `line`: from 1; `param`: the member that is wrong."""

    def __init__(self, line: int, message: str, code: str = "invalid_request", param: str | None = None) -> None:
        super().__init__(message)
        self.line, self.code, self.param = line, code, param


@dataclass(frozen=True)
class Item:
    """One request. It is read again when it is sent: `start` and `size` are its place in the file. `key`: sorts those with a
    common prefix together."""

    custom_id: str
    start: int
    size: int
    key: bytes
    line: int


def read_lines(file: IO[bytes], max_bytes: int | None = None, max_lines: int | None = None) -> Iterator[tuple[int, int, bytes]]:
    """(number, start, text) of all lines that are not blank. Raises BadLine for one of more than `max_bytes`, and for more than
    `max_lines`, blank ones counted."""
    start = number = 0
    limit = -1 if max_bytes is None else max_bytes + 1
    while line := file.readline(limit):
        number += 1
        if number - 1 == max_lines:
            raise BadLine(number, f"the file has more than {max_lines} lines", "too_many_requests")
        if len(line) == limit:
            raise BadLine(number, f"the line is longer than {max_bytes} bytes", "line_too_long")
        if line.strip():
            yield number, start, line
        start += len(line)


def parse_line(number: int, line: bytes, decode: Decode = json.loads) -> dict[str, Any]:
    """Raises BadLine."""
    try:
        request = decode(line)
    except (ValueError, RecursionError) as error:
        raise BadLine(number, f"not valid JSON: {str(error)[:200]}", "invalid_json_line") from error
    if not isinstance(request, dict):
        raise BadLine(number, "a JSON object is expected", "invalid_json_line")
    return request


class Checker:
    """Checks the requests of one file, one after the other. `endpoint`: the one that all must have; empty: that of the first."""

    def __init__(self, endpoint: str = "") -> None:
        self.endpoint = endpoint
        self._is_given = bool(endpoint)
        self._seen: dict[bytes, int] = {}
        """lines by digests of their names, which are shorter than names can be"""

    def item(self, number: int, start: int, line: bytes, request: dict[str, Any]) -> Item:
        """Raises BadLine for a request that cannot be run."""
        self._check(number, request)
        self.endpoint = self.endpoint or request["url"]
        name = request["custom_id"]
        self._seen[_digest_of(name)] = number
        return Item(name, start, len(line), _sort_key(request["body"]), number)

    def _check(self, number: int, request: dict[str, Any]) -> None:
        unknown = request.keys() - {"custom_id", "method", "url", "body"}
        if unknown:
            what = f"unknown field {min(unknown)[:100]!r}: custom_id, method, url and body are read"
            raise BadLine(number, what, "unknown_field", min(unknown)[:100])
        name, body = request.get("custom_id"), request.get("body")
        if not isinstance(name, str) or not name or len(name) > MAX_NAME:
            what = f"custom_id must be a string of 1 to {MAX_NAME} characters"
            raise BadLine(number, what, "invalid_custom_id", "custom_id")
        if (first := self._seen.get(_digest_of(name))) is not None:
            what = f"custom_id {name[:100]!r} is there a second time; the first is line {first}"
            raise BadLine(number, what, "duplicate_custom_id", "custom_id")
        if request.get("method") != "POST":
            raise BadLine(number, "method must be POST", "invalid_method", "method")
        self._check_url(number, request.get("url"))
        if not isinstance(body, dict):
            raise BadLine(number, "body must be a JSON object", "invalid_body", "body")
        if body.get("stream"):
            raise BadLine(number, "body.stream: answers of a batch are not streamed", "invalid_body", "body.stream")

    def _check_url(self, number: int, url: Any) -> None:
        if not isinstance(url, str) or url not in ENDPOINTS:
            raise BadLine(number, f"url must be one of {', '.join(sorted(ENDPOINTS))}", "invalid_url", "url")
        if self.endpoint and url != self.endpoint:
            before = "is the batch's" if self._is_given else "before"
            what = f"url is {url}, and {self.endpoint} {before}: a batch has one endpoint"
            raise BadLine(number, what, "mismatched_url", "url")


def _digest_of(name: str) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest()


def _sort_key(body: dict[str, Any]) -> bytes:
    """The model, and the beginning of the texts."""
    found = bytearray(json.dumps(str(body.get("model"))[:100]).encode())
    for text in _texts(body.get("messages") or body.get("prompt") or body.get("input")):
        found += text[:KEY_BYTES].encode(errors="replace") + b"\0"
        if len(found) >= KEY_BYTES:
            break
    return bytes(found[:KEY_BYTES])


def _texts(value: Any, depth: int = 8) -> Iterator[str]:
    """All texts in a value, and its numbers as text, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (int, float)):
        yield str(value)
    elif depth and isinstance(value, (list, dict)):
        for item in value if isinstance(value, list) else value.values():
            yield from _texts(item, depth - 1)


def seed_of(custom_id: str) -> int:
    """The seed of a request that names none: a run that was stopped ends with the answers of one that was not."""
    digest = hashlib.blake2b(custom_id.encode(errors="surrogatepass"), digest_size=DIGEST_BYTES).digest()
    return int.from_bytes(digest, "little") >> 33


def body_of(line: bytes, endpoint: str, custom_id: str) -> dict[str, Any]:
    """What is sent for a line of the input."""
    body: dict[str, Any] = json.loads(line)["body"]
    if needs_seed(endpoint, body):
        body["seed"] = seed_of(custom_id)
    return body


def needs_seed(endpoint: str, body: dict[str, Any]) -> bool:
    return endpoint in SEEDED and body.get("seed") is None
