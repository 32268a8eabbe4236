"""Reads the input of a batch: which requests it has, or what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from sglang.common.batch_lines import BadLine, Checker, needs_seed, parse_line, read_lines, seed_of
from sglang.srt.errors import RequestError
from sglang.srt.server.limits.json_limits import CHUNK, check_json
from sglang.srt.server.openai.batches.batch_records import BatchError

MAX_ERRORS = 100
"""that are told of one file"""

_decode = msgspec.json.Decoder().decode


class Row(NamedTuple):
    """Where a request stands in the file: `line` from 1, `start` and `size` in bytes. What it says is read again when it is sent, since
    all rows of all batches that run are in memory."""

    line: int
    start: int
    size: int


class _Body(msgspec.Struct):
    seed: Any = None


class _Request(msgspec.Struct):
    custom_id: str
    body: msgspec.Raw


_request = msgspec.json.Decoder(_Request)
_fields = msgspec.json.Decoder(_Body)


def read_input(path: Path, endpoint: str, max_requests: int, max_line: int) -> tuple[list[Row], list[BatchError]]:
    """The requests, those with a common prefix together, or what is wrong. Nobody has us read blank lines for long."""
    found: list[tuple[bytes, Row]] = []
    errors: list[BatchError] = []
    checker = Checker(endpoint)
    try:
        with path.open("rb") as file:
            for number, start, line in read_lines(file, max_line, max_requests):
                try:
                    item = checker.item(number, start, line, parse_line(number, line, _decode_checked))
                    found.append((item.key, Row(number, start, len(line))))
                except BadLine as error:
                    errors.append(_told(error))
                    if len(errors) == MAX_ERRORS:
                        break
    except BadLine as error:
        errors.append(_told(error))
    except OSError as error:
        errors.append(BatchError("invalid_file", f"the input cannot be read: {error.strerror}"))
    if not found and not errors:
        errors.append(BatchError("empty_file", "the file has no requests"))
    found.sort()
    return ([] if errors else [row for _, row in found]), errors


def _decode_checked(line: bytes) -> Any:
    """Counts a long line before objects are made of it. Raises ValueError."""
    if len(line) > CHUNK:
        try:
            check_json(line)
        except RequestError as error:
            raise ValueError(str(error)) from error
    return _decode(line)


def line_at(file: IO[bytes], row: Row) -> bytes:
    file.seek(row.start)
    return file.read(row.size)


def custom_id_of(line: bytes) -> str:
    return _request.decode(line).custom_id


def _told(error: BadLine) -> BatchError:
    return BatchError(error.code, str(error)[:500].encode(errors="replace").decode(), error.line, error.param)


def body_of(line: bytes, endpoint: str, custom_id: str) -> bytes:
    """The body of a request as it was written, with a seed if it needs one."""
    body = bytes(_request.decode(line).body)
    fields = _fields.decode(body)
    if not needs_seed(endpoint, {"seed": fields.seed}):
        return body
    seed = b'"seed":%d' % seed_of(custom_id)
    if b'"seed"' in body:  # null, or a member of another object
        value = _decode(body)
        if "seed" in value:
            return msgspec.json.encode(value | {"seed": seed_of(custom_id)})
    inner = body[1:].lstrip()
    return b"{" + seed + (b"" if inner.startswith(b"}") else b",") + inner
