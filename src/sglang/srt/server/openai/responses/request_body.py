"""The fields of a Responses request: implemented, ignored and refused; and the conversion to a chat's body."""

from __future__ import annotations

from typing import Any

from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.server.fields import Fields, as_object, note_ignored, note_unknown
from sglang.srt.server.openai.protocol import ANSWERING, CHAT_FIELDS, REFUSED, CompletionRequest, note_members
from sglang.srt.server.openai.responses.input_items import ItemMessages, input_items
from sglang.srt.server.openai.responses.response_tools import ResponseTools
from sglang.srt.server.openapi.schemas import Schema, free, integer, list_of, nullable, one_of, text, truth

_SAME = (
    *("model", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stream", "parallel_tool_calls", "user", "rid"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty", "chat_template_kwargs", "priority", "cache_salt"),
    *("enable_thinking", "thinking"),
)
_OWN: dict[str, Schema] = {
    "input": one_of(text(), list_of(free(type=text())), says="a text, or items: messages, calls and their results, references"),
    "instructions": text("what the system says; not kept for the next response"),
    "max_output_tokens": integer("the most tokens of the answer"),
    "tools": list_of(free(type=text()), "functions that the model may call, alone or in a namespace"),
    "tool_choice": one_of(text(), free(type=text()), says="none, auto, required, or a function that is to be called"),
    "text": free("the format of the answer", format=free(type=text(enum=["text", "json_object", "json_schema"]))),
    "reasoning": free("how much", effort=nullable(text("a word for templates that use it"))),
    "metadata": free("told again in the response"),
    "store": truth("keep the response, so that others can follow it"),
    "previous_response_id": text("the stored response that this one follows"),
    "include": list_of(text(), "`message.output_text.logprobs`: log probabilities of the answer's tokens"),
    "top_logprobs": integer("how many of the likeliest tokens at each place", minimum=0, maximum=20),
    "truncation": text("auto: leave out early items that do not fit", enum=["auto", "disabled"]),
}
_NOTHING = frozenset(
    {
        *("service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "client_metadata"),
        *("stream_options", "context_management", "max_tool_calls", "verbosity", "request_id"),
    }
)
"""`max_tool_calls` counts calls of hosted tools, and there are none"""
_REFUSED: dict[str, tuple[Any, ...]] = {
    **{
        name: REFUSED[name].neutral if name in REFUSED else ()
        for name in (ANSWERING | CompletionRequest.model_fields.keys()) - {*_SAME, *_OWN, *_NOTHING}
    },
    "n": (1,),
    "conversation": (),
    "background": (False,),
    "prompt": (),
    **dict.fromkeys(("system", "stop_sequences", "output_config", "output_format", "max_tokens_to_sample"), ()),
}


def _schemas() -> dict[str, Schema]:
    of_chat = CHAT_FIELDS.describe()
    return {**{name: of_chat[name] for name in _SAME}, **_OWN}


RESPONSES_FIELDS = Fields(
    frozenset({*_SAME, *_OWN}),
    _NOTHING,
    frozenset(_REFUSED),
    takes_hints=True,
    describe=_schemas,
    required=("input",),
    name="ResponsesRequest",
)
LOGPROBS = "message.output_text.logprobs"
NAMES = {
    "max_new_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "top_logprobs_num": "top_logprobs",
    "input_ids": "input",
    "messages": "input",
}
"""what errors about a chat call its fields, and what they are here"""
_FORMATS: dict[str, tuple[str, ...]] = {"json_schema": ("name", "description", "schema", "strict"), "json_object": ("schema",)}
"""type of `text.format` -> its members"""


def chat_body(body: dict[str, Any], tools: ResponseTools) -> dict[str, Any]:
    """The same request as a chat's body, without messages. Raises RequestError."""
    for name in _REFUSED.keys() & body.keys():
        if body[name] not in (None, [], {}, *_REFUSED[name]):
            raise UnsupportedError(f"{name} is not supported by this server", name)
    chat = {name: body[name] for name in _SAME if body.get(name) is not None}
    if body.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = body["max_output_tokens"]
    if tools.functions:
        chat["tools"] = tools.functions
    if body.get("tool_choice") is not None:
        chat["tool_choice"] = tools.chat_choice(body["tool_choice"])
    _add_text_format(body.get("text"), chat)
    _add_reasoning(body.get("reasoning"), chat)
    _add_logprobs(body, chat)
    return chat


def add_messages(body: dict[str, Any], history: list[Any], messages: ItemMessages) -> None:
    """Adds messages of the instructions, of the `history`'s items and of the input. Raises RequestError."""
    instructions = body.get("instructions")
    if instructions is not None:
        if not isinstance(instructions, str):
            raise RequestError("instructions must be a string", "instructions")
        messages.add_message({"role": "system", "content": instructions}, "instructions")
    for item in history:
        messages.add(item, "previous_response_id")
    for i, item in enumerate(input_items(body)):
        messages.add(item, f"input[{i}]")


def _add_text_format(text: Any, chat: dict[str, Any]) -> None:
    if text is None:
        return
    if not isinstance(text, dict):
        raise RequestError("text must be an object with a format", "text")
    note_members(text, ("format", "verbosity"), "text", "text")
    if text.get("verbosity") not in (None, "medium"):
        note_ignored("text.verbosity")
    form = as_object(text, "format", "text.format", "text") or {"type": "text"}
    kind = form.get("type")
    known = _FORMATS.get(kind, ()) if isinstance(kind, str) else ()
    note_members(form, ("type", *known), "text.format", "text")
    members = {name: form[name] for name in known if name in form}
    chat["response_format"] = {"type": kind, **({"json_schema": members} if kind == "json_schema" else members)}


def _add_reasoning(reasoning: Any, chat: dict[str, Any]) -> None:
    if reasoning is None:
        return
    if not isinstance(reasoning, dict):
        raise RequestError("reasoning must be an object", "reasoning")
    note_unknown(reasoning, {"effort", "summary", "generate_summary"}, "key of reasoning:")
    if reasoning.get("effort") is not None:
        chat["reasoning_effort"] = reasoning["effort"]


def _add_logprobs(body: dict[str, Any], chat: dict[str, Any]) -> None:
    """Log probabilities, where `include` or `top_logprobs` asks for them. All else that may be included is of items that there are
    none of here, or, as encrypted reasoning, is not needed."""
    include = [] if body.get("include") is None else body["include"]
    if not isinstance(include, list) or not all(isinstance(name, str) for name in include):
        raise RequestError("include must be a list of strings", "include")
    for name in include:
        if name != LOGPROBS:
            note_ignored(f"include: {name}")
    if body.get("truncation") not in (None, "auto", "disabled"):
        raise RequestError("truncation must be auto or disabled", "truncation")
    num_top = body.get("top_logprobs")
    if LOGPROBS in include or not (num_top is None or (type(num_top) is int and num_top == 0)):
        chat["logprobs"] = True
        chat["top_logprobs"] = num_top
