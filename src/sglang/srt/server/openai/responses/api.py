"""POST /v1/responses: OpenAI's newer API, made of a chat. A request may follow a stored response (responses/store.py), whose inputs
and outputs then stand before its own; instructions are those of the request alone."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import NoneType
from typing import Any
from uuid import uuid4

import msgspec

from sglang.srt.errors import RequestError, SglangError, UnsupportedError
from sglang.srt.messages import FinishReason
from sglang.srt.server.calls import Call
from sglang.srt.server.fields import Fields, as_bool, check_members, note_unknown
from sglang.srt.server.http.json_pieces import encode_json
from sglang.srt.server.http.wire import error_body
from sglang.srt.server.multimodal.inputs import PART_HINTS
from sglang.srt.server.openai.blocks import Block, Blocks, Event
from sglang.srt.server.openai.chat import ChatCall, ChatOptions
from sglang.srt.server.openai.protocol import ANSWERING, ChatRequest, parse_request
from sglang.srt.server.openai.responses.store import MAX_OWN_BYTES
from sglang.srt.server.openai.sse import Usage, finish_details

_SAME = (
    *("model", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stream", "parallel_tool_calls", "user", "rid"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty", "chat_template_kwargs", "priority", "cache_salt"),
)
_OWN = frozenset(
    {
        "input",
        "instructions",
        "max_output_tokens",
        "tools",
        "tool_choice",
        "text",
        "reasoning",
        "metadata",
        "store",
        "previous_response_id",
    }
)
_NOTHING = frozenset({"service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})
_REFUSED: dict[str, tuple[Any, ...]] = {
    "conversation": (),
    "background": (False,),
    "include": ([],),
    "truncation": ("disabled",),
    "top_logprobs": (0,),
    "max_tool_calls": (),
    "prompt": (),
    "stream_options": ({}, {"include_obfuscation": False}),
    "context_management": ([],),
    **dict.fromkeys(ANSWERING - {*_SAME, *_OWN, "top_logprobs", "stream_options"}, ()),
}
RESPONSES_FIELDS = Fields(frozenset({*_SAME, *_OWN}), _NOTHING, frozenset(_REFUSED), takes_hints=True)
_ITEM_KEYS = {
    "message": {"role", "content"},
    "function_call": {"call_id", "name", "arguments"},
    "function_call_output": {"call_id", "output"},
}
_ITEM_HINTS = frozenset({"type", "id", "status"})
_PART_HINTS = frozenset({"annotations", "logprobs", *PART_HINTS})


def chat_body(body: dict[str, Any], history: list[Any]) -> dict[str, Any]:
    """The same request as a chat's body; the items of `history` stand before its input. Raises RequestError."""
    for name in _REFUSED.keys() & body.keys():
        if body[name] is not None and body[name] not in _REFUSED[name]:
            raise UnsupportedError(f"{name} is not supported by this server", name)
    chat = {name: body[name] for name in _SAME if body.get(name) is not None}
    chat["messages"] = _messages(body, history)
    if body.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = body["max_output_tokens"]
    if body.get("tools"):
        chat["tools"] = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(_list(body, "tools"))]
    if body.get("tool_choice") is not None:
        chat["tool_choice"] = _choice(body["tool_choice"])
    _add_text_format(body.get("text"), chat)
    _add_reasoning(body.get("reasoning"), chat)
    return chat


def _list(body: dict[str, Any], name: str) -> list[Any]:
    value = body[name]
    if not isinstance(value, list):
        raise RequestError(f"{name} must be a list", name)
    return value


def _tool(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise UnsupportedError(f"{where}: only tools of the type function are supported", "tools")
    known = ("name", "description", "parameters", "strict")
    note_unknown(tool, {"type", *known}, "key of a tool:")
    return {"type": "function", "function": {key: tool[key] for key in known if key in tool}}


def _choice(choice: Any) -> Any:
    """That of a chat."""
    if isinstance(choice, dict) and choice.get("type") == "function":
        check_members(choice, ("type", "name"), "tool_choice", "tool_choice")
        return {"type": "function", "function": {"name": choice.get("name")}}
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        return {"type": "allowed_tools", "allowed_tools": {key: choice[key] for key in choice if key != "type"}}
    return choice


def _add_text_format(text: Any, chat: dict[str, Any]) -> None:
    if text is None:
        return
    if not isinstance(text, dict) or not isinstance(text.get("format", {}), dict):
        raise RequestError("text must be an object with a format", "text")
    check_members(text, ("format", "verbosity"), "text", "text")
    if text.get("verbosity") not in (None, "medium"):
        raise UnsupportedError("text.verbosity is not supported", "text")
    form = text.get("format") or {"type": "text"}
    if form.get("type") == "json_schema":
        check_members(form, ("type", "name", "description", "schema", "strict"), "text.format", "text")
        form = {"type": "json_schema", "json_schema": {key: value for key, value in form.items() if key != "type"}}
    chat["response_format"] = form


def _add_reasoning(reasoning: Any, chat: dict[str, Any]) -> None:
    if reasoning is None:
        return
    if not isinstance(reasoning, dict):
        raise RequestError("reasoning must be an object", "reasoning")
    note_unknown(reasoning, {"effort", "summary", "generate_summary"}, "key of reasoning:")
    if reasoning.get("effort") is not None:
        chat["reasoning_effort"] = reasoning["effort"]


# --- input ------------------------------------------------------------------------------------------------------------------


def input_items(body: dict[str, Any]) -> list[Any]:
    """The input as a list of items. Raises RequestError."""
    given = body.get("input")
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise RequestError("input must be a string or a list of items", "input")
    return given


def _messages(body: dict[str, Any], history: list[Any]) -> list[dict[str, Any]]:
    instructions = body.get("instructions")
    messages: list[dict[str, Any]] = []
    if instructions is not None:
        if not isinstance(instructions, str):
            raise RequestError("instructions must be a string", "instructions")
        messages.append({"role": "system", "content": instructions})
    for item in history:
        _add_item(item, "previous_response_id", messages)
    for i, item in enumerate(input_items(body)):
        _add_item(item, f"input[{i}]", messages)
    return messages


def _add_item(item: Any, where: str, messages: list[dict[str, Any]]) -> None:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if isinstance(kind, str) and kind in _ITEM_KEYS:
        note_unknown(item, _ITEM_KEYS[kind] | _ITEM_HINTS, f"key of an item of type {kind}:")
    if kind == "message":
        messages.append({"role": item.get("role"), "content": _content(item.get("content"), where)})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        last = messages[-1] if messages else {}
        if last.get("role") == "assistant":
            last.setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        output = item.get("output")
        content = output if isinstance(output, str) else _content(output, f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
    elif kind != "reasoning":  # thoughts of earlier turns are no part of later prompts
        raise UnsupportedError(
            f"{where} is of a type that is not supported; message, function_call and its output are", "input"
        )


def _content(content: Any, where: str) -> Any:
    if not isinstance(content, list):
        return content
    parts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text"):
            note_unknown(part, {"type", "text", *_PART_HINTS}, "key of a part of text:")
            parts.append({"type": "text", "text": part.get("text")})
        elif kind == "input_image" and isinstance(part.get("image_url"), str) and part.get("file_id") is None:
            check_members(part, ("type", "image_url", "detail", "file_id", *PART_HINTS), where, "input")
            parts.append({"type": "image_url", "image_url": {"url": part["image_url"], "detail": part.get("detail") or "auto"}})
        elif kind == "refusal":
            parts.append({"type": "refusal", "refusal": part.get("refusal")})
        else:
            raise UnsupportedError(f"{where}.content[{i}] is of a type that is not supported", "input")
    return parts


# --- output -----------------------------------------------------------------------------------------------------------------


class ResponsesCall:
    """One request: a chat, and how its answer looks here. `history`: items of earlier responses that it follows. `keep` takes the
    input's items and the whole response once it has ended, if it is to be stored."""

    tail = b""

    def __init__(
        self, body: dict[str, Any], options: ChatOptions, history: list[Any], keep: Callable[[Any, dict[str, Any]], None]
    ) -> None:
        self._keep = keep
        self._input = _kept_input(body)
        self._echo = _echo_of(body)
        self._chat = ChatCall(parse_request(ChatRequest, chat_body(body, history)), options)
        self.req = self._chat.req
        self._model = body.get("model") or options.served_name
        self._created = int(time.time())
        self._id = f"resp_{uuid4().hex}"
        self._items: list[dict[str, Any]] = []
        self._usage = Usage(1)
        self._number = 0

    async def collect(self, call: Call) -> dict[str, Any]:
        """The whole response."""
        finish: FinishReason | None = None
        blocks = Blocks()
        async for out in call:
            self._chat.count(out, self._usage)
            for piece in await self._chat.parsed(out):
                for event in blocks.add(piece):
                    self._note(event)
            finish = out.finish
        for event in blocks.close(finish):
            self._note(event)
        return self._ended(finish, blocks)

    def _ended(self, finish: FinishReason | None, blocks: Blocks) -> dict[str, Any]:
        response = self._response(finish, are_calls_cut=bool(blocks.calls) and not blocks.may_run)
        if self._input is not None and finish is not None:
            self._keep(msgspec.Raw(self._input), response)
        return response

    async def events(self, call: Call) -> AsyncIterator[bytes]:
        """response.created, then for every item what is added to it, then response.completed."""
        yield self._event("response.created", response=self._response(None))
        yield self._event("response.in_progress", response=self._response(None))
        finish: FinishReason | None = None
        blocks = Blocks()
        async for out in call:
            self._chat.count(out, self._usage)
            for piece in await self._chat.parsed(out):
                for event in blocks.add(piece):
                    for data in self._streamed(event):
                        yield data
            finish = out.finish
        for event in blocks.close(finish):
            for data in self._streamed(event):
                yield data
        if finish is not None:
            response = self._ended(finish, blocks)
            yield self._event(f"response.{response['status']}", response=response)

    def error_event(self, error: SglangError) -> bytes:
        inner = error_body(error, openai=True)["error"]
        return self._event("error", code=str(inner["code"]), message=inner["message"], param=inner["param"])

    def _event(self, kind: str, **fields: Any) -> bytes:
        body = encode_json({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)

    def _streamed(self, event: Event) -> Iterator[bytes]:
        block = event.block
        if event.what == "open":
            self._note(event)
            item = self._items[block.index]
            yield self._event("response.output_item.added", output_index=block.index, item=item)
            if block.kind != "call":
                part = _part(Block(block.kind, block.index))
                yield self._event("response.content_part.added", **self._place(block), content_index=0, part=part)
        elif event.what == "add":
            at = {} if block.kind == "call" else {"content_index": 0}
            extra: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
            yield self._event(f"response.{_STREAMED[block.kind]}.delta", **self._place(block), **at, delta=event.text, **extra)
        else:
            self._note(event)
            yield from self._closed(block)

    def _closed(self, block: Block) -> Iterator[bytes]:
        kind, place = f"response.{_STREAMED[block.kind]}.done", self._place(block)
        if block.kind == "call":
            if block.is_whole:
                yield self._event(kind, **place, arguments=block.text, name=block.name)
        else:
            extra: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
            yield self._event(kind, **place, content_index=0, text=block.text, **extra)
            yield self._event("response.content_part.done", **place, content_index=0, part=_part(block))
        yield self._event("response.output_item.done", output_index=block.index, item=self._items[block.index])

    def _place(self, block: Block) -> dict[str, Any]:
        return {"item_id": self._items[block.index]["id"], "output_index": block.index}

    def _note(self, event: Event) -> None:
        """Keeps the items up to date: one is made when its block opens and completed when it closes."""
        if event.what == "open":
            self._items.append(_item(event.block))
        elif event.what == "close":
            item = self._items[event.block.index]
            item["status"] = "completed" if event.block.is_whole else "incomplete"
            if event.block.kind == "call":
                item["arguments"] = event.block.text
            else:
                item["content"] = [_part(event.block)]

    def _response(self, finish: FinishReason | None, are_calls_cut: bool = False) -> dict[str, Any]:
        body = self._echo
        cut = finish is not None and (finish.type != "stop" or are_calls_cut)
        status = "in_progress" if finish is None else "incomplete" if cut else "completed"
        reason = {"reason": _CUT_BY[finish.type]} if finish is not None and cut else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": reason,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "metadata": body.get("metadata") or {},
            "model": self._model,
            "output": list(self._items) if finish is not None else [],
            "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
            "previous_response_id": body.get("previous_response_id"),
            "reasoning": body.get("reasoning") or {"effort": None, "summary": None},
            "store": self._input is not None,
            "temperature": body.get("temperature"),
            "text": body.get("text") or {"format": {"type": "text"}},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [],
            "top_p": body.get("top_p"),
            "truncation": "disabled",
            "usage": self._usage_dict() if finish is not None else None,
            "user": body.get("user"),
            **(finish_details(finish) if finish is not None else {}),
        }

    def _usage_dict(self) -> dict[str, Any]:
        usage = self._usage.as_dict()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": usage["completion_tokens_details"],
            "total_tokens": usage["total_tokens"],
        }


_CUT_BY = {"length": "max_output_tokens", "abort": "aborted", "stop": "stop"}
_ECHOED = (
    *("instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "previous_response_id", "reasoning"),
    *("temperature", "text", "tool_choice", "tools", "top_p", "user"),
)
MAX_ECHO_BYTES = 4 << 20


def _kept_input(body: dict[str, Any]) -> bytes | None:
    """The input's items as JSON, if the response is to be stored: unless `store` is false. What is too large is not, and must not
    have been asked for."""
    if not as_bool(body, "store", True):
        return None
    items = encode_json(input_items(body))
    if len(items) <= MAX_OWN_BYTES:
        return items
    if body.get("store"):
        raise RequestError(f"an input of more than {MAX_OWN_BYTES} bytes is not stored: set store to false", "store")
    return None


def _echo_of(body: dict[str, Any]) -> dict[str, Any]:
    """What every response says again of its request. Raises RequestError if that is too long."""
    echo = {name: body[name] for name in _ECHOED if name in body}
    if len(encode_json(echo)) > MAX_ECHO_BYTES:
        raise RequestError(f"what is said again in the answer ({', '.join(echo)}) is longer than {MAX_ECHO_BYTES} bytes")
    if not isinstance(body.get("metadata"), (dict, NoneType)):
        raise RequestError("metadata must be an object", "metadata")
    return echo


_STREAMED = {"text": "output_text", "reasoning": "reasoning_text", "call": "function_call_arguments"}


def _part(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}


def _item(block: Block) -> dict[str, Any]:
    name = uuid4().hex
    if block.kind == "call":
        return {
            "type": "function_call", "id": f"fc_{name}", "call_id": f"call_{name[:24]}", "name": block.name, "arguments": "",
            "status": "in_progress",
        }  # fmt: skip
    if block.kind == "reasoning":
        return {"type": "reasoning", "id": f"rs_{name}", "summary": [], "content": [], "status": "in_progress"}
    return {"type": "message", "id": f"msg_{name}", "role": "assistant", "content": [], "status": "in_progress"}
