"""One request to /v1/responses, run as a chat, and the format of its answer. A request may continue a stored response
(store.py), whose inputs and outputs then precede its own; instructions are those of the request alone."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from types import NoneType
from typing import Any

import msgspec

from sglang.srt.errors import OverloadError, RequestError, SglangError
from sglang.srt.messages import FinishReason
from sglang.srt.server.calls import Call
from sglang.srt.server.fields import as_bool, in_client_words
from sglang.srt.server.http.json_pieces import JsonArray, encode_json, encoded_within, json_pieces
from sglang.srt.server.http.request_scope import created_at, new_name
from sglang.srt.server.http.wire import KEEP_ALIVE, error_body
from sglang.srt.server.openai.answers import Usage, finish_details
from sglang.srt.server.openai.blocks import Block, Blocks, Event
from sglang.srt.server.openai.chat import ChatCall
from sglang.srt.server.openai.prompts import ChatOptions
from sglang.srt.server.openai.protocol import ChatRequest, parse_request
from sglang.srt.server.openai.responses.input_items import ItemMessages, input_items
from sglang.srt.server.openai.responses.request_body import NAMES, add_messages, chat_body
from sglang.srt.server.openai.responses.response_tools import ResponseTools, read_tools
from sglang.srt.server.openai.responses.store import MAX_OWN_BYTES
from sglang.srt.server.openai.responses.text_logprobs import Entry, TextLogprobs
from sglang.srt.server.openai.responses.truncation import longest_fitting
from sglang.srt.server.side_threads import run_in_thread

MANY_POSITIONS = 200
"""whose log probabilities are written on another thread"""
_MESSAGE = re.compile(r"messages\[(\d+)\]")


def _chat_call(body: dict[str, Any], history: list[Any], tools: ResponseTools, options: ChatOptions) -> ChatCall:
    """The chat that the request is. Raises RequestError, in this API's words, messages named by the items that they were."""
    found = ItemMessages(tools)
    add_messages(body, history, found)
    chat = chat_body(body, tools)

    def make(kept: list[int]) -> ChatCall:
        try:
            request = parse_request(ChatRequest, {**chat, "messages": [found.messages[i] for i in kept]})
            return ChatCall(request, options, takes_hints=True)
        except RequestError as error:
            error.args = (_MESSAGE.sub(lambda place: found.origins[kept[int(place[1])]], str(error)),)
            raise in_client_words(error, NAMES) from error

    if body.get("truncation") != "auto":
        return make(list(range(len(found.messages))))
    answer_len = body.get("max_output_tokens")
    room = options.context_len - (answer_len if isinstance(answer_len, int) else 1)
    return longest_fitting(found.messages, make, room, options.max_chars)


class ResponsesCall:
    """One request: a chat, and how its answer looks here. `history`: items of earlier responses that it follows. `keep` takes the
    input's items and the whole response once it has ended, if it is to be stored."""

    tail = b""
    keep_alive = KEEP_ALIVE

    def __init__(
        self, body: dict[str, Any], options: ChatOptions, history: list[Any], keep: Callable[[Any, dict[str, Any]], None]
    ) -> None:
        self._keep = keep
        self._input = _kept_input(body)
        self._echo = _echo_of(body)
        self._tools = read_tools(body.get("tools"), [*history, *input_items(body)])
        self._chat = _chat_call(body, history, self._tools, options)
        self.req = self._chat.req
        self._model = body.get("model") or options.served_name
        self._created = created_at()
        self._id = f"resp_{new_name()}"
        self._items: list[dict[str, Any]] = []
        self._blocks = Blocks()
        self._finish: FinishReason | None = None
        self._logprobs = TextLogprobs(self._chat.token_bytes, self._chat.logprob_entries)
        self._added: list[Entry] = []
        """log probabilities of what was added last"""
        self._of_block: dict[int, JsonArray] = {}
        self._usage = Usage(1)
        self._number = 0

    @property
    def is_large(self) -> bool:
        """Whether the response may be."""
        return self._chat.is_large

    async def collect(self, call: Call) -> dict[str, Any]:
        """The whole response."""
        async for event in self._happenings(call):
            self._note(event)
        return self._ended()

    async def events(self, call: Call) -> AsyncIterator[bytes]:
        """response.created, then for every item what is added to it, then response.completed. Large ones come in pieces."""
        for kind in ("created", "in_progress"):
            for data in self._event(f"response.{kind}", response=self._response(None)):
                yield data
        async for event in self._happenings(call):
            for data in self._streamed(event):
                yield data
        if self._finish is not None:
            response = self._ended()
            for data in self._event(f"response.{response['status']}", response=response):
                yield data

    async def _happenings(self, call: Call) -> AsyncIterator[Event]:
        """Changes of the answer's blocks, up to its end."""
        async for out in call:
            self._chat.count(out, self._usage)
            self._logprobs.add(out.output_logprobs)
            for piece in await self._chat.parsed(out):
                for event in self._blocks.add(piece):
                    await self._find_logprobs(event)
                    yield event
            self._finish = out.finish
        for event in self._blocks.close(self._finish):
            await self._find_logprobs(event)
            yield event

    async def _find_logprobs(self, event: Event) -> None:
        """Finds the log probabilities of a block's text: with each addition where the tokens are the text, else at its end."""
        if not self.is_large or event.what == "open":
            return
        is_added = event.what == "add"
        if is_added != (self.req.stream and not self._chat.is_parsed):
            return
        text = event.text if is_added else event.block.text
        if self._logprobs.num_waiting > MANY_POSITIONS:
            await run_in_thread(self._take_logprobs, event.block, text)
        else:
            self._take_logprobs(event.block, text)

    def _take_logprobs(self, block: Block, text: str) -> None:
        """Takes the log probabilities of a text that was added to the block."""
        self._added = self._logprobs.take(text)
        if block.kind == "text":
            self._of_block.setdefault(block.index, JsonArray()).extend(self._added)

    def _ended(self) -> dict[str, Any]:
        blocks, finish = self._blocks, self._finish
        response = self._response(finish, are_calls_cut=bool(blocks.calls) and not blocks.may_run)
        if self._input is not None and finish is not None:
            self._keep(msgspec.Raw(self._input), response)
        return response

    def error_event(self, error: SglangError) -> bytes:
        if isinstance(error, RequestError):
            error = in_client_words(error, NAMES)
        inner = error_body(error, openai=True)["error"]
        code, message = str(inner["code"]), inner["message"]
        failed = {**self._response(None), "status": "failed", "error": {"code": _failure(error), "message": message}}
        events = (
            self._event("error", code=code, message=message, param=inner["param"]),
            self._event("response.failed", response=failed),
        )
        return b"".join(data for event in events for data in event)

    def _event(self, kind: str, **fields: Any) -> Iterator[bytes]:
        """Encodes an event; in pieces if it is large."""
        body = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        if self.is_large:
            return json_pieces(body, b"event: %b\ndata: " % kind.encode(), b"\n\n")
        return iter((b"event: %b\ndata: %b\n\n" % (kind.encode(), encode_json(body)),))

    def _streamed(self, event: Event) -> Iterator[bytes]:
        block = event.block
        if event.what == "open":
            self._note(event)
            item = self._items[block.index]
            yield from self._event("response.output_item.added", output_index=block.index, item=item)
            if block.kind != "call":
                part = self._part(Block(block.kind, block.index))
                yield from self._event("response.content_part.added", **self._place(block), part=part)
        elif event.what == "add":
            extra: dict[str, Any] = {"logprobs": list(self._added)} if block.kind == "text" else {}
            yield from self._event(f"response.{_STREAMED[block.kind]}.delta", **self._place(block), delta=event.text, **extra)
        else:
            self._note(event)
            yield from self._closed(block)

    def _closed(self, block: Block) -> Iterator[bytes]:
        kind, place = f"response.{_STREAMED[block.kind]}.done", self._place(block)
        if block.kind == "call":
            if block.is_whole:
                yield from self._event(kind, **place, arguments=block.text, name=self._items[block.index]["name"])
        else:
            part = self._part(block)
            extra: dict[str, Any] = {"logprobs": part["logprobs"]} if block.kind == "text" else {}
            yield from self._event(kind, **place, text=block.text, **extra)
            yield from self._event("response.content_part.done", **place, part=part)
        yield from self._event("response.output_item.done", output_index=block.index, item=self._items[block.index])

    def _place(self, block: Block) -> dict[str, Any]:
        place = {"item_id": self._items[block.index]["id"], "output_index": block.index}
        return place if block.kind == "call" else {**place, "content_index": 0}

    def _part(self, block: Block) -> dict[str, Any]:
        if block.kind == "reasoning":
            return {"type": "reasoning_text", "text": block.text}
        found = self._of_block.get(block.index)
        logprobs: Any = found.copy() if found is not None else []
        return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": logprobs}

    def _note(self, event: Event) -> None:
        """Keeps the items up to date: one is made when its block opens and completed when it closes."""
        if event.what == "open":
            self._items.append(_item(event.block, self._tools))
        elif event.what == "close":
            item = self._items[event.block.index]
            item["status"] = "completed" if event.block.is_whole else "incomplete"
            if event.block.kind == "call":
                item["arguments"] = event.block.text
            else:
                item["content"] = [self._part(event.block)]

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
            "top_logprobs": body.get("top_logprobs") or 0,
            "truncation": body.get("truncation") or "disabled",
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
    *("temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p", "truncation", "user"),
)
MAX_ECHO_BYTES = 4 << 20


def _kept_input(body: dict[str, Any]) -> bytes | None:
    """The input's items as JSON, if the response is to be stored: unless `store` is false. What is too large is not, and must not
    have been asked for."""
    if not as_bool(body, "store", True):
        return None
    items = encoded_within(list(map(_with_id, input_items(body))), MAX_OWN_BYTES)
    if items is not None:
        return items
    if body.get("store"):
        raise RequestError(f"an input of more than {MAX_OWN_BYTES} bytes is not stored: set store to false", "store")
    return None


def _with_id(item: Any) -> Any:
    """An item as it is listed: with a type and an id."""
    if not isinstance(item, dict):
        return item
    given = {name: value for name, value in item.items() if value is not None or name not in ("type", "id")}
    kind = given.get("type", "message")
    prefix = _PREFIXES.get(kind, "item") if isinstance(kind, str) else "item"
    return {"type": kind, "id": f"{prefix}_{new_name()}", **given}


_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def _echo_of(body: dict[str, Any]) -> dict[str, Any]:
    """The fields of the request that every response repeats. Raises RequestError if they are too long."""
    echo = {name: body[name] for name in _ECHOED if name in body}
    if encoded_within(echo, MAX_ECHO_BYTES) is None:
        raise RequestError(f"the fields that the answer repeats ({', '.join(echo)}) is longer than {MAX_ECHO_BYTES} bytes")
    if not isinstance(body.get("metadata"), (dict, NoneType)):
        raise RequestError("metadata must be an object", "metadata")
    return echo


_STREAMED = {"text": "output_text", "reasoning": "reasoning_text", "call": "function_call_arguments"}


def _failure(error: SglangError) -> str:
    """The API's code for an error."""
    if isinstance(error, RequestError):
        return str(getattr(error, "code", "invalid_prompt"))
    return "rate_limit_exceeded" if isinstance(error, OverloadError) else "server_error"


def _item(block: Block, tools: ResponseTools) -> dict[str, Any]:
    name = new_name()
    if block.kind == "call":
        namespace, function = tools.meant(block.name)
        place = {"namespace": namespace} if namespace is not None else {}
        return {
            "type": "function_call", "id": f"fc_{name}", "call_id": f"call_{name[:24]}", **place, "name": function,
            "arguments": "", "status": "in_progress",
        }  # fmt: skip
    if block.kind == "reasoning":
        return {"type": "reasoning", "id": f"rs_{name}", "summary": [], "content": [], "status": "in_progress"}
    return {"type": "message", "id": f"msg_{name}", "role": "assistant", "content": [], "status": "in_progress"}
