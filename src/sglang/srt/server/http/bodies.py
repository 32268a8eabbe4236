"""Reads the bodies of requests: within a memory limit of all requests, checked on their bytes, then decoded.

    bytes --room--> counted on the bytes --> read piece by piece --> values of the names that are read --> names checked

Of a large body only the fields that the route reads are decoded, and its bytes are freed while it is read (json_reader.py). Small
bodies are decoded directly: their size bounds the objects that they can become.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.server.fields import Fields
from sglang.srt.server.http.wire_numbers import whole_number
from sglang.srt.server.limits.body_room import SMALL_BODY, room_of
from sglang.srt.server.limits.json_limits import CHUNK, JsonScan, Pieces, add_piece, check_json
from sglang.srt.server.limits.json_reader import JsonReader
from sglang.srt.server.side_threads import run_in_thread

LONG_BODY = 16 << 10
"""bytes above which a body is made into objects on another thread; above CHUNK piece by piece"""
MAX_NAME_BYTES = 4096
NAMES = frozenset(
    {
        *("model", "user", "cache_salt", "extra_key", "session_id", "previous_response_id", "reasoning_effort"),
        *("encoding_format", "tool_call_parser", "reasoning_parser"),
    }
)
"""fields that hold names: they are kept, and repeated in answers, so their length is limited"""

T = TypeVar("T")

_decode = msgspec.json.Decoder().decode


async def read_object(request: Request, fields: Fields) -> dict[str, Any]:
    """The values of the body's fields, save for the ignored ones. Raises RequestError if it is not a JSON object or names what is
    not known."""
    return (await read_sized(request, fields))[0]


async def read_sized(request: Request, fields: Fields) -> tuple[dict[str, Any], int]:
    """`read_object`, and the body's length in bytes."""
    body = await read_body(request)
    size = sum(map(len, body))
    if size > LONG_BODY:
        return await run_in_thread(parse_object, body, fields), size
    return parse_object(body, fields), size


async def read_as(request: Request, fields: Fields, make: Callable[[dict[str, Any]], T]) -> T:
    """Returns `make(values of the body)`; on another thread if the body is long. Nothing else keeps the values."""
    values, size = await read_sized(request, fields)
    return await run_in_thread(make, values) if size > LONG_BODY else make(values)


async def read_body(request: Request) -> Pieces:
    """All bytes of the body. What is not small waits for its turn first (body_room.py). Raises OverloadError."""
    message = await request.receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        return Pieces((message.get("body", b""),))
    whole, num_read, lease = Pieces(), 0, None
    while True:
        _check_there(message)
        piece: bytes = message.get("body", b"")
        add_piece(whole, piece)
        num_read += len(piece)
        if not message.get("more_body", False):
            return whole
        if lease is None and num_read > SMALL_BODY and (room := room_of(request.scope)) is not None:
            lease = await room.take(request.scope, _announced(request))
        if lease is None:
            message = await request.receive()
        else:
            message = await lease.receive(request.receive, num_read)


def _announced(request: Request) -> int | None:
    """The body's length by its Content-Length header."""
    return whole_number(request.headers.get("content-length", "").encode())


def _check_there(message: Any) -> None:
    if message["type"] == "http.disconnect":
        raise ClientDisconnect


# --- from bytes to objects --------------------------------------------------------------------------------------------------


def parse_object(body: Pieces, fields: Fields) -> dict[str, Any]:
    """The values of a body's fields; the body is used up. Raises RequestError."""
    try:
        if sum(map(len, body)) <= CHUNK:
            whole = b"".join(body)
            check_json(whole)
            return _parse_short(whole, fields)
        scan = JsonScan()
        for piece in body:
            scan.read(piece)
        reader = JsonReader(body, fields.is_built, lambda name: _check_long(name, fields), fields.ids)
        values = reader.read()
        fields.check(reader.names)
        _check_names(values)
        return values
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _refuse(error)
    except RecursionError as error:
        raise RequestError("the body is nested too deeply") from error


class _OneName(Fields):
    """Accepts all other names."""

    def check(self, names: Iterable[str]) -> None:
        pass


async def peek(body: Pieces, name: str) -> Any:
    """The value of one field of a body, which stays as it is; None if it has none. Raises RequestError if it is no JSON object."""
    only = _OneName(frozenset({name}))
    copy = Pieces(body)
    if sum(map(len, body)) > LONG_BODY:
        return (await run_in_thread(parse_object, copy, only)).get(name)
    return parse_object(copy, only).get(name)


def _parse_short(body: bytes, fields: Fields) -> dict[str, Any]:
    value = _decode(body)
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object")
    if not value.keys() <= fields.read:
        fields.check(value)
        value = {name: item for name, item in value.items() if fields.is_built(name)}
    if len(body) > MAX_NAME_BYTES:
        _check_names(value)
    return value


def _refuse(error: Exception) -> NoReturn:
    if isinstance(error, msgspec.ValidationError) and str(error).startswith("Expected `object`"):
        raise RequestError("the body must be a JSON object") from error
    raise RequestError(f"the body is not valid JSON: {str(error)[:200]}") from error


def _check_long(name: str, fields: Fields) -> None:
    """Checks a member whose value is longer than a piece."""
    if name in NAMES and name not in fields.ignored:
        raise _long_name(name)
    if name in fields.refused:
        raise UnsupportedError(f"{name} is not supported by this server", name)


def _check_names(values: dict[str, Any]) -> None:
    for name in values.keys() & NAMES:
        if isinstance(values[name], str) and len(values[name]) > MAX_NAME_BYTES:
            raise _long_name(name)


def _long_name(name: str) -> RequestError:
    return RequestError(f"{name} is longer than {MAX_NAME_BYTES} characters", name)
