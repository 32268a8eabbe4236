"""The events of a stored response, for GET /v1/responses/{id}?stream=true: those of its own stream, with each text and each call's
arguments as one piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from sglang.srt.errors import RequestError
from sglang.srt.server.http.json_pieces import Encoded, cut, json_pieces
from sglang.srt.server.openai.responses.store import StoredResponse, read_json
from sglang.srt.server.side_threads import run_in_thread

_SWITCH = {"true": True, "1": True, "false": False, "0": False}
_LONG = 16 << 10
"""bytes of a response that is read on another thread"""

Named = tuple[str, dict[str, Any]]


def first_event(query: Mapping[str, str]) -> int | None:
    """The number of the first event that is asked for; None: the response is, as JSON. Raises RequestError."""
    streams = _SWITCH.get(query.get("stream", "false").lower())
    if streams is None:
        raise RequestError("stream must be true or false", "stream")
    after = query.get("starting_after")
    if after is None:
        return 0 if streams else None
    if not streams:
        raise RequestError(
            "starting_after is for stream=true: it is the number of the last event that arrived", "starting_after"
        )
    if not (after.isascii() and after.isdigit() and len(after) < 10):
        raise RequestError("starting_after must be the number of an event", "starting_after")
    return int(after) + 1


async def replay(stored: StoredResponse, first: int) -> AsyncIterator[bytes]:
    """Its events from number `first` on. Large ones come in pieces."""
    data = stored.response
    response = await run_in_thread(read_json, data) if len(data) > _LONG else read_json(data)
    for number, (kind, fields) in enumerate(_events(response, Encoded(cut(data)))):
        if number >= first:
            body = {"type": kind, "sequence_number": number, **fields}
            for piece in json_pieces(body, b"event: %b\ndata: " % kind.encode(), b"\n\n"):
                yield piece
                await asyncio.sleep(0)


def _events(response: dict[str, Any], whole: Encoded) -> Iterator[Named]:
    """`whole`: the response as it is stored."""
    begun = {**response, "status": "in_progress", "output": [], "incomplete_details": None, "usage": None}
    begun.pop("finish_details", None)
    yield "response.created", {"response": begun}
    yield "response.in_progress", {"response": begun}
    for i, item in enumerate(response["output"]):
        is_call = item["type"] == "function_call"
        blank: dict[str, Any] = {"arguments": ""} if is_call else {"content": []}
        yield "response.output_item.added", {"output_index": i, "item": {**item, **blank, "status": "in_progress"}}
        place = {"item_id": item["id"], "output_index": i}
        yield from _arguments(item, place) if is_call else _contents(item, place)
        yield "response.output_item.done", {"output_index": i, "item": item}
    yield f"response.{response['status']}", {"response": whole}


def _arguments(item: dict[str, Any], place: dict[str, Any]) -> Iterator[Named]:
    kind, text = "response.function_call_arguments", item["arguments"]
    if text:
        yield f"{kind}.delta", {**place, "delta": text}
    if item["status"] == "completed":
        yield f"{kind}.done", {**place, "arguments": text, "name": item["name"]}


def _contents(item: dict[str, Any], place: dict[str, Any]) -> Iterator[Named]:
    for i, part in enumerate(item["content"]):
        at = {**place, "content_index": i}
        kind, text = f"response.{part['type']}", part["text"]
        extra = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
        empty = {**part, "text": "", **({"logprobs": []} if extra else {})}
        yield "response.content_part.added", {**at, "part": empty}
        if text:
            yield f"{kind}.delta", {**at, "delta": text, **extra}
        yield f"{kind}.done", {**at, "text": text, **extra}
        yield "response.content_part.done", {**at, "part": part}
