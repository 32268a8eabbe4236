"""POST /v1/messages: one request, run as a chat, and its answer in Anthropic's format (source: its published reference)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from sglang.srt.errors import RequestError, SglangError
from sglang.srt.messages import FinishReason
from sglang.srt.server.anthropic.request import NAMES, chat_body, hides_reasoning
from sglang.srt.server.calls import Call
from sglang.srt.server.fields import in_client_words
from sglang.srt.server.http.json_pieces import encode_json
from sglang.srt.server.http.request_scope import new_name
from sglang.srt.server.http.wire import anthropic_error
from sglang.srt.server.openai.answers import Usage, finish_details
from sglang.srt.server.openai.blocks import Block, Blocks, Event
from sglang.srt.server.openai.chat import ChatCall
from sglang.srt.server.openai.prompts import ChatOptions
from sglang.srt.server.openai.protocol import ChatRequest, parse_request


class MessagesCall:
    """One request: a chat, and how its answer looks here."""

    tail = b""
    keep_alive = b'event: ping\ndata: {"type":"ping"}\n\n'

    def __init__(self, body: dict[str, Any], options: ChatOptions, counts_only: bool = False) -> None:
        if body.get("max_tokens") is None and not counts_only:
            raise RequestError("max_tokens is missing", "max_tokens")
        self._chat = ChatCall(
            parse_request(ChatRequest, chat_body(body, options.reasoning is not None)), options, takes_hints=True
        )
        self.req = self._chat.req
        self._model = body.get("model") or options.served_name
        self._id = f"msg_{new_name()[:24]}"
        self._usage = Usage(1)
        self._hides_reasoning = hides_reasoning(body)

    async def collect(self, call: Call) -> dict[str, Any]:
        """The whole message."""
        blocks, finish = Blocks(), FinishReason("stop")
        async for out in call:
            self._chat.count(out, self._usage)
            for piece in await self._chat.parsed(out):
                for _ in blocks.add(piece):
                    pass
            finish = out.finish or finish
        content = [self._content(block) for block in blocks.all if block.kind != "call" or _may_run(block)]
        return self._message(content, *_stopped(finish, blocks)) | finish_details(finish)

    async def events(self, call: Call) -> AsyncIterator[bytes]:
        """message_start; for every block start, deltas and stop; message_delta with the reason; message_stop."""
        blocks, finish, begun = Blocks(), FinishReason("stop"), False
        async for out in call:
            self._chat.count(out, self._usage)
            if not begun:
                begun = True
                yield _event("message_start", message=self._message([], None, None))
                yield _event("ping")
            for piece in await self._chat.parsed(out):
                for event in blocks.add(piece):
                    for data in self._streamed(event):
                        yield data
            finish = out.finish or finish
        for event in blocks.close(finish):
            for data in self._streamed(event):
                yield data
        reason, matched = _stopped(finish, blocks)
        delta = {"stop_reason": reason, "stop_sequence": matched}
        yield _event("message_delta", delta=delta, usage=self._usage_dict(), **finish_details(finish))
        yield _event("message_stop")

    def _content(self, block: Block) -> dict[str, Any]:
        if block.kind == "reasoning":
            return {"type": "thinking", "thinking": "" if self._hides_reasoning else block.text, "signature": ""}
        if block.kind == "text":
            return {"type": "text", "text": block.text}
        return {"type": "tool_use", "id": f"toolu_{new_name()[:24]}", "name": block.name, "input": _input(block) or {}}

    def _streamed(self, event: Event) -> Iterator[bytes]:
        block = event.block
        if event.what == "open":
            yield _event("content_block_start", index=block.index, content_block=self._content(block))
        elif event.what == "close":
            yield _event("content_block_stop", index=block.index)
        elif block.kind != "reasoning" or not self._hides_reasoning:
            kind, name = _DELTAS[block.kind]
            yield _event("content_block_delta", index=block.index, delta={"type": kind, name: event.text})

    def error_event(self, error: SglangError) -> bytes:
        if isinstance(error, RequestError):
            error = in_client_words(error, NAMES)
        return b"event: error\ndata: " + encode_json(anthropic_error(error)) + b"\n\n"

    def _message(self, content: list[dict[str, Any]], reason: str | None, matched: str | None) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": matched,
            "usage": self._usage_dict(),
        }

    def _usage_dict(self) -> dict[str, Any]:
        usage = self._usage.as_dict()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"] - cached,
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"thinking_tokens": usage["completion_tokens_details"]["reasoning_tokens"]},
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
        }


def _stopped(finish: FinishReason, blocks: Blocks) -> tuple[str, str | None]:
    """(stop_reason, stop_sequence). An aborted answer is one that could go on where it stands."""
    if finish.type != "stop":
        return "max_tokens" if finish.type == "length" else "pause_turn", None
    if blocks.may_run and all(map(_may_run, blocks.calls)):
        return "tool_use", None
    if isinstance(finish.matched, str):
        return "stop_sequence", finish.matched
    return "end_turn", None


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode_json({"type": kind, **fields}))


def _input(call: Block) -> dict[str, Any] | None:
    """None for what is no JSON object: the model wrote something else, or was cut off."""
    try:
        value = json.loads(call.text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _may_run(call: Block) -> bool:
    return call.is_whole and _input(call) is not None


_DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}
