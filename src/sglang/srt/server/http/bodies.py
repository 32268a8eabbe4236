"""Bodies of requests: read within the room that there is for all of them, counted, then made into objects.

    bytes --room--> counted on the bytes --> {name: bytes of the value} --> names checked --> values of the names that are read

Of a large body nothing is built that the route does not read, and the body is gone once its values are there. Small ones take the
short way: what they could become is bounded by their size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.server.aside import run_aside
from sglang.srt.server.fields import Fields
from sglang.srt.server.http.wire_numbers import whole_number
from sglang.srt.server.limits.body_room import SMALL_BODY, room_of
from sglang.srt.server.limits.json_limits import CHUNK, MAX_ELEMENTS, check_json
from sglang.srt.server.shared_ints import SharedInts

LONG_BODY = 16 << 10
"""bytes above which a body is made into objects on another thread; above CHUNK value by value"""
MAX_NAME_BYTES = 4096
NAMES = frozenset(
    {
        *("model", "user", "cache_salt", "extra_key", "session_id", "previous_response_id", "reasoning_effort"),
        *("encoding_format", "tool_call_parser", "reasoning_parser"),
    }
)
"""fields that name something: they are kept, and said again in answers, so they are short"""
MAX_REFUSED_BYTES = 256
"""a value that a refused field may have, since it asks for nothing, is shorter"""

T = TypeVar("T")

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_rows = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode = msgspec.json.Decoder().decode


async def read_object(request: Request, fields: Fields) -> dict[str, Any]:
    """The values of the body's fields, save for the ignored ones. Raises RequestError if it is not a JSON object or names what is
    not known."""
    return (await read_sized(request, fields))[0]


async def read_sized(request: Request, fields: Fields) -> tuple[dict[str, Any], int]:
    """`read_object`, and the body's length in bytes."""
    body = await read_body(request)
    if len(body) > LONG_BODY:
        return await run_aside(parse_object, body, fields), len(body)
    return parse_object(body, fields), len(body)


async def read_as(request: Request, fields: Fields, make: Callable[[dict[str, Any]], T]) -> T:
    """What `make` makes of the body's values; on another thread if the body is long. Nothing else keeps the values."""
    values, size = await read_sized(request, fields)
    return await run_aside(make, values) if size > LONG_BODY else make(values)


async def read_body(request: Request) -> bytes | bytearray:
    """All bytes of the body. What is not small waits for its turn first (body_room.py). Raises OverloadError."""
    message = await request.receive()
    _check_there(message)
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return body
    whole, size, lease = bytearray(body), _announced(request), None
    room = room_of(request.scope)
    while message.get("more_body", False):
        if lease is None and room is not None and (size or len(whole)) > SMALL_BODY:
            lease = await room.take(request.scope, size)
        if lease is None:
            message = await request.receive()
        else:
            message = await lease.receive(request.receive, len(whole))
        _check_there(message)
        whole += message.get("body", b"")
    return whole


def _announced(request: Request) -> int | None:
    """The body's length as its head has it."""
    return whole_number(request.headers.get("content-length", "").encode())


def _check_there(message: Any) -> None:
    if message["type"] == "http.disconnect":
        raise ClientDisconnect


# --- from bytes to objects --------------------------------------------------------------------------------------------------


def parse_object(body: bytes | bytearray, fields: Fields) -> dict[str, Any]:
    """The values of a body's fields. Raises RequestError."""
    scan = check_json(body)
    try:
        if scan is None:
            return _parse_short(body, fields)
        members = _members(body)
        fields.check(members)
        for name, raw in members.items():
            _check_member(name, raw, fields)
        built = {name: raw for name, raw in members.items() if fields.is_built(name)}
        many = scan.elements + scan.numbers > MAX_ELEMENTS
        return {name: _value(raw, many) for name, raw in built.items()}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _refuse(error)
    except RecursionError as error:
        raise RequestError("the body is nested too deeply") from error


def _parse_short(body: bytes | bytearray, fields: Fields) -> dict[str, Any]:
    value = _decode(body)
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object")
    if not value.keys() <= fields.read:
        fields.check(value)
        value = {name: item for name, item in value.items() if fields.is_built(name)}
    if len(body) > MAX_NAME_BYTES:
        for name in value.keys() & NAMES:
            if isinstance(value[name], str):
                _check_name(name, len(value[name]))
    return value


def _refuse(error: Exception) -> NoReturn:
    if isinstance(error, msgspec.ValidationError) and str(error).startswith("Expected `object`"):
        raise RequestError("the body must be a JSON object") from error
    raise RequestError(f"the body is not valid JSON: {str(error)[:200]}") from error


def _check_member(name: str, raw: msgspec.Raw, fields: Fields) -> None:
    size = len(memoryview(raw))
    if name in NAMES and name not in fields.ignored:
        _check_name(name, size)
    if name in fields.refused and size > MAX_REFUSED_BYTES:
        raise UnsupportedError(f"{name} is not supported by this server", name)


def _check_name(name: str, size: int) -> None:
    if size > MAX_NAME_BYTES:
        raise RequestError(f"{name} is longer than {MAX_NAME_BYTES} characters", name)


def _value(raw: msgspec.Raw, many: bool) -> Any:
    """One value of a long body. `many`: numbers are so many that only lists of token ids may be."""
    view = memoryview(raw)
    if len(view) <= CHUNK:
        return _decode(raw)
    head = bytes(view[:64]).translate(None, b" \t\r\n")
    if head[:1] == b"[" and (head[1:2].isdigit() or head[1:2] == b"-"):
        ids = _ids(view, SharedInts())
        if ids is not None:
            return ids
        many = True
    elif head[:2] == b"[[":
        table = SharedInts()
        return [_row(row, table) for row in _rows(raw)]
    if many:
        _check_numbers(view)
    return _decode(raw)


def _check_numbers(view: memoryview) -> None:
    """Numbers in other places than lists of ids count like everything else."""
    scan = check_json(view)
    if scan is not None and scan.elements + scan.numbers > MAX_ELEMENTS:
        raise RequestError(f"the body has more than {MAX_ELEMENTS} values and keys")


def _row(raw: msgspec.Raw, table: SharedInts) -> Any:
    view = memoryview(raw)
    if len(view) > CHUNK and bytes(view[:1]) == b"[":
        ids = _ids(view, table)
        if ids is not None:
            return ids
        _check_numbers(view)
    row = _decode(raw)
    if isinstance(row, list) and row and type(row[0]) is int:
        return [table[i] if type(i) is int else i for i in row]
    return row


def _ids(view: memoryview, table: SharedInts) -> list[int] | None:
    """A long list of integers, read piece by piece: other threads run between two of them. None if it holds anything else."""
    found: list[int] = []
    at, end = 1, len(view)
    while True:
        piece, is_last = bytes(view[at : at + CHUNK]), at + CHUNK >= end
        cut = piece.rfind(b"]" if is_last else b",")
        try:
            ids = _decode(b"[%b]" % piece[: max(cut, 0)])
        except msgspec.DecodeError:
            ids = []
        if not ids or set(map(type, ids)) != {int}:
            return None
        found += table.share(ids)
        if is_last:
            return found
        at += cut + 1
