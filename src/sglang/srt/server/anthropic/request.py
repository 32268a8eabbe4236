"""Converts the body of a request to /v1/messages to that of a chat.

Fields that change an answer are implemented or refused by name. Unknown fields are hints, of which clients send new ones every month:
they are ignored, each with one line in the log (fields.note_unknown).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sglang.srt.errors import RequestError, ThreadUnsupportedError, UnsupportedError
from sglang.srt.sampling_params import MAX_COUNT
from sglang.srt.server.anthropic.content import added_tools, chat_messages
from sglang.srt.server.anthropic.tools import add_tools
from sglang.srt.server.fields import Fields, as_int, as_list, as_object, as_texts, in_client_words, note_ignored, note_unknown
from sglang.srt.server.openai.protocol import ANSWERING, CHAT_FIELDS, REFUSED, CompletionRequest, note_members
from sglang.srt.server.openapi.anthropic_shapes import BLOCK, TURN
from sglang.srt.server.openapi.schemas import Schema, anything, free, integer, list_of, one_of, text

_THINKING = frozenset({"enabled", "disabled", "adaptive", "between_tools"})
_SAME = ("model", "temperature", "top_p", "top_k", "stream")
_FORMAT = free("a JSON schema that the answer follows", type=text(enum=["json_schema"]), schema=anything())
_OWN: dict[str, Schema] = {
    "messages": list_of(TURN, "the conversation"),
    "system": one_of(text(), list_of(BLOCK), says="the system prompt"),
    "max_tokens": integer("the most tokens of the answer", minimum=0),
    "stop_sequences": list_of(text(), "texts at which the answer ends"),
    "tools": list_of(free(name=text(), description=text(), input_schema=free()), "functions that the model may call"),
    "tool_choice": free("auto, any, none, or a tool that is to be called", type=text()),
    "thinking": free("whether the model reasons first", type=text(enum=sorted(_THINKING)), display=text()),
    "output_config": free("of the answer", format=_FORMAT, effort=text("how hard to think")),
    "output_format": {**_FORMAT, "deprecated": True},
    "thread": anything("refused: send the whole conversation"),
}
_NOTHING = frozenset({"metadata", "service_tier", "inference_geo", "request_id"})
_OF_RESPONSES = frozenset(
    {
        *(
            "input",
            "instructions",
            "max_output_tokens",
            "text",
            "reasoning",
            "truncation",
            "previous_response_id",
            "conversation",
        ),
        *("prompt", "background", "enable_thinking"),
    }
)
_OF_OTHERS = ANSWERING | CompletionRequest.model_fields.keys() | _OF_RESPONSES
"""what changes an answer in another API"""
_REFUSED = frozenset({"container", "mcp_servers", "compaction"}) | (_OF_OTHERS - {*_SAME, *_OWN, *_NOTHING, "stream_options"})


def _schemas() -> dict[str, Schema]:
    of_chat = CHAT_FIELDS.describe()
    return {**{name: of_chat[name] for name in _SAME}, **_OWN}


MESSAGES_FIELDS = Fields(
    frozenset({*_SAME, *_OWN}),
    _NOTHING,
    _REFUSED,
    takes_hints=True,
    describe=_schemas,
    required=("messages",),
    name="MessagesRequest",
)
NAMES = {"max_new_tokens": "max_tokens", "stop": "stop_sequences", "json_schema": "output_config", ".function.name": ".name"}
"""fields as this API has them, by our names of them"""
_BEYOND_HIGH = frozenset({"xhigh", "max"})
"""efforts that templates do not know"""


def chat_body(body: dict[str, Any], thinks: bool) -> dict[str, Any]:
    """The same request as a chat's body. `thinks`: this server separates reasoning from answers. Raises RequestError."""
    if body.get("thread") is not None:
        raise ThreadUnsupportedError("thread is not supported by this server: send the whole conversation without it", "thread")
    for name in _REFUSED & body.keys():
        neutral = REFUSED[name].neutral if name in REFUSED else ()
        if body[name] not in (None, [], {}, *neutral):
            raise UnsupportedError(f"{name!r} is not supported by this server", name)
    chat = {name: body[name] for name in _SAME if body.get(name) is not None}
    chat["messages"] = chat_messages(body)
    if chat["messages"][-1]["role"] == "assistant":
        chat["continue_final_message"] = True
    if body.get("max_tokens") is not None:
        chat["max_tokens"] = as_int(body, "max_tokens", 0, 0, MAX_COUNT)
    if body.get("stop_sequences") is not None:
        chat["stop"] = as_texts(body, "stop_sequences")
    add_tools([*as_list(body, "tools"), *added_tools(body)], body.get("tool_choice"), chat)
    _add_output_config(body, chat)
    _add_thinking(body.get("thinking"), chat, thinks)
    return chat


@contextmanager
def messages_words() -> Iterator[None]:
    """Errors leave with the names of fields that this API has."""
    try:
        yield
    except RequestError as error:
        raise in_client_words(error, NAMES) from error


def hides_reasoning(body: dict[str, Any]) -> bool:
    """Whether reasoning is to be shown as blocks without their text."""
    thinking = body.get("thinking")
    return isinstance(thinking, dict) and thinking.get("display") == "omitted"


def _add_output_config(body: dict[str, Any], chat: dict[str, Any]) -> None:
    """`output_config`: how hard to think, and a format, which was called `output_format` before."""
    config = as_object(body, "output_config")
    note_unknown(config, {"format", "effort"}, "key of output_config:")
    new, old = config.get("format"), body.get("output_format")
    if new is not None and old is not None and new != old:
        raise RequestError("output_format is an older name of output_config.format: give one of them", "output_format")
    if config.get("effort") is not None:
        chat["reasoning_effort"] = _effort(config["effort"])
    if new is not None or old is not None:
        where = "output_config.format" if new is not None else "output_format"
        chat["response_format"] = _response_format(new if new is not None else old, where)


def _effort(effort: Any) -> str:
    if not isinstance(effort, str):
        raise RequestError("output_config.effort must be a string", "output_config")
    return "high" if effort in _BEYOND_HIGH else effort


def _response_format(form: Any, where: str) -> dict[str, Any]:
    param = where.partition(".")[0]
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        raise RequestError(f"{where} must be an object of the type 'json_schema'", param)
    note_members(form, ("type", "schema", "name", "description", "strict"), where, param)
    if not isinstance(form.get("schema"), (dict, bool)):
        raise RequestError(f"{where}.schema must be a JSON schema", param)
    return {"type": "json_schema", "json_schema": {key: form[key] for key in ("schema", "strict") if key in form}}


def _add_thinking(thinking: Any, chat: dict[str, Any], thinks: bool) -> None:
    """Whether the template asks for reasoning. Where no parser tells it from answers, nothing is asked: it would be text."""
    if thinking is None:
        return
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    if not isinstance(kind, str) or kind not in _THINKING:
        raise RequestError("thinking.type must be enabled, adaptive, between_tools or disabled", "thinking")
    note_unknown(thinking, {"type", "display"}, "key of thinking:")
    if not thinks and kind != "disabled":
        note_ignored("thinking: the server was started without --reasoning-parser")
    elif kind in ("enabled", "disabled"):
        chat["chat_template_kwargs"] = {"enable_thinking": kind == "enabled"}
