"""POST /v1/messages: Anthropic's API, made of a chat (source: its published reference)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

from sglang.srt.errors import RequestError, SglangError, UnsupportedError
from sglang.srt.messages import FinishReason
from sglang.srt.server.calls import Call
from sglang.srt.server.fields import Fields, as_bool, check_members, note_unknown
from sglang.srt.server.http.json_pieces import encode_json
from sglang.srt.server.http.wire import anthropic_error
from sglang.srt.server.openai.blocks import Block, Blocks, Event
from sglang.srt.server.openai.chat import ChatCall
from sglang.srt.server.openai.prompts import ChatOptions
from sglang.srt.server.openai.protocol import ANSWERING, ChatRequest, parse_request
from sglang.srt.server.openai.sse import Usage, finish_details

_SAME = ("model", "temperature", "top_p", "top_k", "stream")
_OWN = frozenset({"messages", "system", "max_tokens", "stop_sequences", "tools", "tool_choice", "thinking"})
_NOTHING = frozenset({"metadata", "service_tier", "inference_geo"})
_REFUSED = frozenset({"container", "context_management", "mcp_servers", "output_config", "output_format"}) | (
    ANSWERING - {*_SAME, *_OWN}
)
MESSAGES_FIELDS = Fields(frozenset({*_SAME, *_OWN}), _NOTHING, _REFUSED, takes_hints=True)
_BLOCK_KEYS = {
    "text": {"text", "citations"},
    "image": {"source"},
    "tool_use": {"id", "name", "input", "caller"},
    "tool_result": {"tool_use_id", "content", "is_error"},
}
_HINTS = frozenset({"type", "cache_control"})
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_body(body: dict[str, Any], thinks: bool) -> dict[str, Any]:
    """The same request as a chat's body. `thinks`: reasoning is told from the answer here. Raises RequestError."""
    for name in _REFUSED & body.keys():
        if body[name] not in (None, [], {}):
            raise UnsupportedError(f"{name} is not supported by this server", name)
    chat = {name: body[name] for name in _SAME if body.get(name) is not None}
    chat["messages"] = _messages(body)
    if chat["messages"][-1]["role"] == "assistant":
        chat["continue_final_message"] = True
    if body.get("max_tokens") is not None:
        chat["max_tokens"] = body["max_tokens"]
    if body.get("stop_sequences") is not None:
        chat["stop"] = body["stop_sequences"]
    if body.get("tools"):
        if not isinstance(body["tools"], list):
            raise RequestError("tools must be a list", "tools")
        chat["tools"] = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(body["tools"])]
    _add_choice(body.get("tool_choice"), chat)
    _add_thinking(body.get("thinking"), chat, thinks)
    return chat


def _tool(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type", "custom") != "custom":
        raise UnsupportedError(f"{where}: only tools of the client's own (type custom) are supported", "tools")
    note_unknown(tool, {"name", "description", "input_schema", "strict", *_HINTS}, "key of a tool:")
    names = {"name": "name", "description": "description", "input_schema": "parameters", "strict": "strict"}
    return {"type": "function", "function": {new: tool[old] for old, new in names.items() if tool.get(old) is not None}}


def _add_choice(choice: Any, chat: dict[str, Any]) -> None:
    if choice is None:
        return
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "tool":
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif isinstance(kind, str) and kind in _CHOICES:
        chat["tool_choice"] = _CHOICES[kind]
    else:
        raise RequestError("tool_choice.type must be auto, any, tool or none", "tool_choice")
    check_members(choice, ("type", "name", "disable_parallel_tool_use"), "tool_choice", "tool_choice")
    if as_bool(choice, "disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False


def _add_thinking(thinking: Any, chat: dict[str, Any], thinks: bool) -> None:
    if thinking is None:
        return
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    if kind not in ("enabled", "disabled", "adaptive"):
        raise RequestError("thinking.type must be enabled, adaptive or disabled", "thinking")
    note_unknown(thinking, {"type", "budget_tokens", "display"}, "key of thinking:")
    if kind == "enabled" and not thinks:
        raise UnsupportedError("thinking needs a server that was started with --reasoning-parser", "thinking")
    if thinks and kind != "adaptive":
        chat["chat_template_kwargs"] = {"enable_thinking": kind == "enabled"}


# --- input ------------------------------------------------------------------------------------------------------------------


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.get("system"):
        messages.append({"role": "system", "content": _text_of(body["system"], "system")})
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise RequestError("messages must be a list that is not empty", "messages")
    for i, message in enumerate(given):
        where = f"messages[{i}]"
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
            raise RequestError(f"{where}.role must be user or assistant", "messages")
        note_unknown(message, {"role", "content"}, "key of a message:")
        content = message.get("content")
        if isinstance(content, str):
            messages.append({"role": message["role"], "content": content})
        elif isinstance(content, list):
            messages += _from_blocks(message["role"], content, where)
        else:
            raise RequestError(f"{where}.content must be a string or a list of blocks", "messages")
    return messages


def _from_blocks(role: str, blocks: list[Any], where: str) -> list[dict[str, Any]]:
    """Results of tools first, as messages of their own; then the rest of the message."""
    results: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for i, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, dict) else None
        if isinstance(kind, str) and kind in _BLOCK_KEYS:
            _note_block(block, kind)
        if kind == "text":
            parts.append({"type": "text", "text": block.get("text")})
        elif kind == "image":
            parts.append({"type": "image_url", "image_url": {"url": _image_url(block.get("source"), where)}})
        elif kind == "tool_result":
            content = _result(block.get("content") or "", f"{where}.content[{i}]")
            if as_bool(block, "is_error"):
                content = _as_error(content)
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content})
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": json.dumps(block.get("input") or {})}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind not in ("thinking", "redacted_thinking"):  # reasoning of earlier turns is no part of later prompts
            raise UnsupportedError(f"{where}.content[{i}] is of a type that is not supported", "messages")
    if calls:
        return [*results, {"role": role, "content": parts or None, "tool_calls": calls}]
    return [*results, {"role": role, "content": parts}] if parts or not results else results


def _as_error(content: Any) -> Any:
    """Templates have no other word for a call that failed."""
    return [{"type": "text", "text": "Error: "}, *content] if isinstance(content, list) else f"Error: {content}"


def _result(content: Any, where: str) -> Any:
    """What a tool gave back: text, or parts with images among them."""
    if not isinstance(content, list) or not any(map(_is_image, content)):
        return _text_of(content, where)
    return [
        {"type": "image_url", "image_url": {"url": _image_url(block.get("source"), where)}}
        if _is_image(block)
        else {"type": "text", "text": _text_of([block], where)}
        for block in content
    ]


def _is_image(block: Any) -> bool:
    if not isinstance(block, dict) or block.get("type") != "image":
        return False
    _note_block(block, "image")
    return True


def _note_block(block: dict[str, Any], kind: str) -> None:
    note_unknown(block, _BLOCK_KEYS[kind] | _HINTS, f"key of a block of type {kind}:")


def _image_url(source: Any, where: str) -> str:
    if isinstance(source, dict):
        known = ("type", "url") if source.get("type") == "url" else ("type", "media_type", "data")
        check_members(source, known, f"{where}: source", "messages")
    if isinstance(source, dict) and source.get("type") == "url" and isinstance(source.get("url"), str):
        return str(source["url"])
    if isinstance(source, dict) and source.get("type") == "base64" and isinstance(source.get("data"), str):
        return f"data:{source.get('media_type') or 'image/png'};base64,{source['data']}"
    raise RequestError(f"{where}: an image's source must be of the type base64 or url", "messages")


def _text_of(value: Any, where: str) -> str:
    """A string, or the text blocks of a list joined."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        blocks = [block if isinstance(block, dict) and block.get("type") == "text" else {} for block in value]
        for block in blocks:
            _note_block(block, "text")
        texts = [block.get("text") for block in blocks]
        if all(isinstance(text, str) for text in texts):
            return "".join(str(text) for text in texts)
    raise RequestError(f"{where} must be a string or a list of text blocks", where.split("[")[0])


# --- output -----------------------------------------------------------------------------------------------------------------


class MessagesCall:
    """One request: a chat, and how its answer looks here."""

    tail = b""

    def __init__(self, body: dict[str, Any], options: ChatOptions, counts_only: bool = False) -> None:
        if body.get("max_tokens") is None and not counts_only:
            raise RequestError("max_tokens is missing", "max_tokens")
        self._chat = ChatCall(parse_request(ChatRequest, chat_body(body, options.reasoning is not None)), options)
        self.req = self._chat.req
        self._model = body.get("model") or options.served_name
        self._id = f"msg_{uuid4().hex[:24]}"
        self._usage = Usage(1)

    async def collect(self, call: Call) -> dict[str, Any]:
        """The whole message."""
        blocks, finish = Blocks(), FinishReason("stop")
        async for out in call:
            self._usage.add(out)
            for piece in await self._chat.parsed(out):
                for _ in blocks.add(piece):
                    pass
            finish = out.finish or finish
        content = [_content(block) for block in blocks.all if block.kind != "call" or _may_run(block)]
        return self._message(content, *_stopped(finish, blocks)) | finish_details(finish)

    async def events(self, call: Call) -> AsyncIterator[bytes]:
        """message_start; for every block start, deltas and stop; message_delta with the reason; message_stop."""
        blocks, finish, begun = Blocks(), FinishReason("stop"), False
        async for out in call:
            self._usage.add(out)
            if not begun:
                begun = True
                yield _event("message_start", message=self._message([], None, None))
                yield _event("ping")
            for piece in await self._chat.parsed(out):
                for event in blocks.add(piece):
                    for data in _streamed(event):
                        yield data
            finish = out.finish or finish
        for event in blocks.close(finish):
            for data in _streamed(event):
                yield data
        reason, matched = _stopped(finish, blocks)
        delta = {"stop_reason": reason, "stop_sequence": matched}
        yield _event("message_delta", delta=delta, usage=self._usage_dict(), **finish_details(finish))
        yield _event("message_stop")

    def error_event(self, error: SglangError) -> bytes:
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
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
        }


def _stopped(finish: FinishReason, blocks: Blocks) -> tuple[str, str | None]:
    """(stop_reason, stop_sequence)"""
    if finish.type == "length":
        return "max_tokens", None
    if blocks.may_run and all(map(_may_run, blocks.calls)):
        return "tool_use", None
    if isinstance(finish.matched, str):
        return "stop_sequence", finish.matched
    return "end_turn", None


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode_json({"type": kind, **fields}))


def _content(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    if block.kind == "text":
        return {"type": "text", "text": block.text}
    return {"type": "tool_use", "id": f"toolu_{uuid4().hex[:24]}", "name": block.name, "input": _input(block) or {}}


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


def _streamed(event: Event) -> Iterator[bytes]:
    block = event.block
    if event.what == "open":
        yield _event("content_block_start", index=block.index, content_block=_content(block))
    elif event.what == "add":
        kind, name = _DELTAS[block.kind]
        yield _event("content_block_delta", index=block.index, delta={"type": kind, name: event.text})
    else:
        yield _event("content_block_stop", index=block.index)
