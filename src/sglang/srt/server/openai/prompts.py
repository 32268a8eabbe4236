"""The prompt of a chat request: messages and tools rendered by the model's template, as ids or as text."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from sglang.common.reasoning import ReasoningFormat
from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server.fields import check_members, unknown_message
from sglang.srt.server.limits.json_limits import read_json_text
from sglang.srt.server.multimodal.inputs import PART_HINTS, MediaInput, parse_part
from sglang.srt.server.openai.harmony_turns import described, harmony_turns
from sglang.srt.server.openai.protocol import ChatRequest, has_format, parse_request, sampling_params
from sglang.srt.server.openai.template_hints import HINTS, template_variables
from sglang.srt.server.openai.tools import ToolPlan, plan_tools, tell_calls, tell_tools
from sglang.srt.server.parsers.harmony import HARMONY
from sglang.srt.server.parsers.reasoning import GPT_OSS
from sglang.srt.server.parsers.tool_calls import NONE, call_format, format_name, format_of_template
from sglang.srt.server.tokenization.chat_template import ChatTemplate
from sglang.srt.server.tokenization.joined_messages import encode_joined
from sglang.srt.server.tokenization.template_forms import MediaToken
from sglang.srt.server.tokenization.tokenizer import Tokenizer
from sglang.srt.server.tokenizer_manager import TokenizerManager

_LOG = logging.getLogger(__name__)
MAX_RENDERED_CHARS = 1 << 20
"""of users' messages that are rendered without being generated from, however short the context is"""


@dataclass(frozen=True)
class ChatOptions:
    """A server's options for chats. `context_len`: tokens of a prompt and its answer. `defaults`: sampling parameters that a
    request leaves open; `penalties`: the model's own, for those that sample free text. `tool_parser`: name of the format of tool calls. `media_tokens`: of each type of media that may be
    among the messages. `may_cut`: prompts that are too long lose their end."""

    tokenizer: Tokenizer
    served_name: str
    defaults: dict[str, Any]
    max_chars: int
    context_len: int
    tool_parser: str = "generic"
    reasoning: ReasoningFormat | None = None
    media_tokens: Mapping[str, MediaToken] = field(default_factory=dict)
    may_cut: bool = False
    penalties: dict[str, Any] = field(default_factory=dict)


def chat_options(
    manager: TokenizerManager,
    tool_parser: str | None,
    served_name: str = "",
    defaults: dict[str, Any] | None = None,
    reasoning: ReasoningFormat | None = None,
    penalties: dict[str, Any] | None = None,
) -> ChatOptions:
    """`tool_parser`: None for the one that the chat template gives away; harmony brings its reasoning. Raises RequestError if there is no tokenizer."""
    tokenizer = manager.need_tokenizer()
    template = tokenizer.chat_template(with_tools=True).source if tokenizer.has_chat_template else ""
    tool_parser = format_name(tool_parser or (HARMONY if reasoning is GPT_OSS else format_of_template(template)))
    if tool_parser == NONE:
        _LOG.warning(
            "The chat template has the model call tools in a way that no tool call parser reads: with tool_choice auto such calls stay "
            "text. tool_choice required works; --tool-call-parser sets another format."
        )
    return ChatOptions(
        tokenizer=tokenizer,
        served_name=served_name,
        defaults=defaults or {},
        max_chars=manager.max_chars,
        context_len=manager.context_len,
        tool_parser=tool_parser,
        reasoning=GPT_OSS if reasoning is None and tool_parser == HARMONY else reasoning,
        media_tokens=manager.media.media_tokens if manager.media is not None else {},
        may_cut=manager.http.allow_auto_truncate,
        penalties=penalties or {},
    )


class ChatPrompt(msgspec.Struct, frozen=True, eq=False):
    """The input of the template. `media`: the images and videos among the messages, in their order. `continued`: the text of
    the last message, if it is to be continued. `asks`: whether the prompt ends by asking for the next turn."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    variables: dict[str, Any]
    media: list[MediaInput]
    continued: str | None
    asks: bool

    def ids(self, options: ChatOptions, joins: bool = False) -> list[int]:
        """`joins`: messages that the template refuses or leaves out are joined to fewer."""
        encode = partial(
            options.tokenizer.encode_chat,
            tools=self.tools or None,
            continue_final_message=self.continued is not None,
            generation_prompt=self.asks,
            template_variables=self.variables,
            max_chars=options.max_chars,
            may_cut=options.may_cut,
            media_tokens=options.media_tokens,
        )
        if not joins:
            return encode(self.messages)
        return encode_joined(encode, self.messages, options.tokenizer.chat_template(bool(self.tools)).forms)

    def text(self, options: ChatOptions) -> str:
        options.tokenizer.check_asked(self.messages, max(options.max_chars, MAX_RENDERED_CHARS))
        return options.tokenizer.chat_text(
            self.messages,
            tools=self.tools or None,
            continue_final_message=self.continued is not None,
            generation_prompt=self.asks,
            template_variables=self.variables,
            media_tokens=options.media_tokens,
        )


def make_prompt(request: ChatRequest, plan: ToolPlan, options: ChatOptions) -> ChatPrompt:
    """Raises RequestError for messages that are none, or that the model cannot read."""
    template = options.tokenizer.chat_template(with_tools=bool(plan.shown))
    if plan.strict:
        _check_strict(template, options.tool_parser)
    media: list[MediaInput] = []
    messages = parse_messages(request.messages, template, media if options.media_tokens else None)
    tools = plan.shown
    if options.tool_parser == HARMONY:
        messages, tools = harmony_turns(messages), described(tools)
    continued = _text_to_continue(messages[-1]) if request.continue_final_message else None
    if not (template.forms.tools or template.forms.calls or _CALLLESS.issuperset([m["role"] for m in messages])):
        messages = tell_calls(messages)
    if tools and not template.forms.tools:
        how = call_format(plan.parser or options.tool_parser).how
        messages, tools = tell_tools(messages, tools, how), []
    asks = request.add_generation_prompt is not False and continued is None
    variables = request.chat_template_kwargs or {}
    if not HINTS.isdisjoint(request.model_fields_set):
        variables = template_variables(request, template)
    return ChatPrompt(messages, tools, variables, media, continued, asks)


def plan_for(request: ChatRequest, sampling: SamplingParams, options: ChatOptions) -> ToolPlan:
    """The request's tools, and `sampling` as they change it. Raises RequestError."""
    if request.tools is None and request.tool_choice is None:
        return ToolPlan(sampling=sampling)
    return plan_tools(
        request.tools,
        request.tool_choice,
        request.parallel_tool_calls,
        options.tool_parser,
        sampling,
        has_format=has_format(request),
    )


def render_chat(body: dict[str, Any], options: ChatOptions) -> dict[str, Any]:
    """The body of a chat request -> {"text"}: what it has the model read. Any role's message may be continued. Raises RequestError."""
    request = parse_request(ChatRequest, body)
    sampling = sampling_params(request, None, options.defaults)
    return {"text": make_prompt(request, plan_for(request, sampling, options), options).text(options)}


def _check_strict(template: ChatTemplate, format_name: str) -> None:
    """Raises UnsupportedError if the template has the model write calls in another way than the one that can be constrained."""
    for sign in call_format(format_name).foreign:
        if template.mentions(sign):
            raise UnsupportedError(
                f"strict tools with tool_choice auto: this model writes calls with {sign}, which cannot be constrained; leave strict "
                "out, or use tool_choice required",
                "tools",
            )


def _text_to_continue(message: dict[str, Any]) -> str:
    """The text of the last message, to be continued. Raises RequestError where no text can follow."""
    if message.get("tool_calls"):
        raise RequestError("the last message ends with a call, which cannot be continued: its result must follow", "messages")
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


# --- messages as clients send them, checked and brought into the form that templates read -----------------------------------


MAX_MESSAGES = 65_536
"""of a request, and parts of one message"""
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_CALLLESS = frozenset({"system", "developer", "user"})
"""whose messages neither call nor answer a call"""
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""names that servers have for the reasoning of an earlier answer; templates read the first or the second"""
_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "refusal", *_REASONING})
_HINTS = frozenset(
    {
        *("id", "annotations", "parsed", "cache_control", "reasoning_details", "thinking_blocks", "metadata", "weight"),
        *("provider_specific_fields", "extra_content", "finish_reason", "matched_stop", "stop_reason", "citations"),
        *("usage", "model", "created", "timestamp", "index", "logprobs", "phase", "status", "signature", "thought_signature"),
        *("reasoning_opaque", "reasoning_text", "reasoning_signature", "reasoning_items", "encrypted_content"),
        *("additional_kwargs", "response_metadata", "usage_metadata", "prompt_cache_breakpoint", "provider_options"),
    }
)
"""what clients send back from an answer, or add for other servers; it says nothing to the model"""
_EMPTY_KEYS = frozenset({"function_call", "audio", "images", "prefix", "partial", "invalid_tool_calls"})
"""what clients send back from an answer; means nothing when empty. The last but one ask for what continue_final_message does"""
_NOTHING: tuple[Any, ...] = (None, False, [], {}, "")
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""types of parts that are text -> where it stands; the second and third as /v1/responses has them"""
_REASONING_PARTS = frozenset({"thinking", "redacted_thinking", "reasoning"})
"""of an earlier answer, whose reasoning is not read again"""
_MEDIA = frozenset({"image_url", "video_url", "audio_url", "input_audio", "image", "video", "audio", "file", "input_image"})
_PLAIN = frozenset({"role", "content"})
_TEXT_HINTS = frozenset({*PART_HINTS, "annotations", "logprobs", "citations", "id", "metadata"})
_CALL_KEYS = frozenset({"id", "type", "function", "index"})
_CALL_HINTS = frozenset({"cache_control", "extra_content", "provider_specific_fields"})
"""what other servers put beside their calls; it says nothing to the model"""
_FUNCTION_KEYS = frozenset({"name", "arguments", "parsed_arguments"})


def parse_messages(
    raw: list[dict[str, Any]], template: ChatTemplate, media: list[MediaInput] | None = None
) -> list[dict[str, Any]]:
    """Messages for the template. Images and videos are appended to `media`, in their order; without it they are refused. Raises
    RequestError naming the message at fault."""
    if not raw:
        raise RequestError("messages must not be empty", "messages")
    if len(raw) > MAX_MESSAGES:
        raise RequestError(f"there may be at most {MAX_MESSAGES} messages, got {len(raw)}", "messages")
    return [_message(message, f"messages[{i}]", template, media) for i, message in enumerate(raw)]


def _message(raw: dict[str, Any], where: str, template: ChatTemplate, media: list[MediaInput] | None) -> dict[str, Any]:
    role = raw.get("role")
    role = role.lower() if isinstance(role, str) else None
    if role not in ROLES:
        raise RequestError(f"{where}.role must be one of {', '.join(sorted(ROLES))}", "messages")
    if role == "developer" and not template.mentions("developer"):
        role = "system"
    content = raw.get("content")
    if type(content) is str and raw.keys() <= _PLAIN:
        return {"role": role, "content": content}
    for key, value in raw.items():
        if key in _EMPTY_KEYS and value not in _NOTHING:
            raise UnsupportedError(f"{where}.{key} is not supported", "messages")
        if key not in _KEYS and key not in _EMPTY_KEYS and key not in _HINTS:
            raise RequestError(f"{where}: {unknown_message(key, _KEYS, 'key')}", "messages")
    message: dict[str, Any] = {"role": role, "content": _content(content, where, role, raw, media)}
    for key in ("name", "tool_call_id", *_REASONING):
        if (value := raw.get(key)) is not None and not isinstance(value, str):
            raise RequestError(f"{where}.{key} must be a string", "messages")
    message |= {key: raw[key] for key in ("name", "tool_call_id") if raw.get(key) is not None}
    if reasoning := {key: raw[key] for key in _REASONING if raw.get(key) is not None}:
        first = next(iter(reasoning.values()))
        message |= {"thinking": first, **reasoning, "reasoning_content": first}
    if raw.get("tool_calls") is not None and (calls := _tool_calls(raw["tool_calls"], where, template.forms.argument_objects)):
        message["tool_calls"] = calls
    return message


def _content(
    content: Any, where: str, role: str, raw: dict[str, Any], media: list[MediaInput] | None
) -> str | list[dict[str, str]]:
    if content is None and (role == "assistant" or raw.get("tool_calls")):
        refusal = raw.get("refusal")
        content = refusal if isinstance(refusal, str) else ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where}.content must be a string or a list of parts", "messages")
    if len(content) > MAX_MESSAGES:
        raise RequestError(f"{where}.content may have at most {MAX_MESSAGES} parts, got {len(content)}", "messages")
    skips = role == "assistant"
    parts = enumerate(content)
    return [_part(part, f"{where}.content[{i}]", media) for i, part in parts if not (skips and _is_reasoning(part))]


def _is_reasoning(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and kind in _REASONING_PARTS


def _part(part: Any, where: str, media: list[MediaInput] | None) -> dict[str, str]:
    """A part as templates read it: text, or the place of an image or video."""
    found = parse_part(part, where) if isinstance(part, dict) else None
    if found is None:
        return {"type": "text", "text": _part_text(part, where)}
    if media is None:
        raise UnsupportedError(f"{where} is of type {part['type']!r}, but this server reads text only", "messages")
    media.append(found)
    return {"type": found.kind}


def _part_text(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in _MEDIA:
        raise UnsupportedError(f"{where} is of type {kind!r}, which this server does not read", "messages")
    text = part.get(_TEXTS[kind]) if isinstance(kind, str) and kind in _TEXTS else None
    if not isinstance(text, str):
        raise RequestError(f'{where} must be an object like {{"type": "text", "text": "..."}}', "messages")
    check_members(part, {"type", _TEXTS[str(kind)], *_TEXT_HINTS}, where, "messages")
    return text


def _tool_calls(raw: Any, where: str, as_objects: bool) -> list[dict[str, Any]]:
    """Earlier calls. `as_objects`: with their arguments as data, which most templates write as JSON themselves."""
    calls = []
    for i, call in enumerate(raw if isinstance(raw, list) else [None]):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RequestError(f"{where}.tool_calls[{i}] must have a function with a name", "messages")
        if call.get("type", "function") != "function":
            raise UnsupportedError(f"{where}.tool_calls[{i}] is of a type that is not supported", "messages")
        check_members(call, _CALL_KEYS | _CALL_HINTS, f"{where}.tool_calls[{i}]", "messages")
        check_members(function, _FUNCTION_KEYS, f"{where}.tool_calls[{i}].function", "messages")
        call = {key: value for key, value in call.items() if key not in _CALL_HINTS}
        arguments = function.get("arguments")
        arguments = "{}" if arguments is None else arguments
        if not isinstance(arguments, (str, dict)):
            raise RequestError(f"{where}.tool_calls[{i}].function.arguments must be a string of JSON", "messages")
        if isinstance(arguments, str) and as_objects:
            parsed = _data(arguments)
            arguments = parsed if isinstance(parsed, dict) else arguments
        calls.append({**call, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return calls


def _data(arguments: str) -> Any:
    """The arguments that a model wrote; None if they are not JSON, or nested too deeply."""
    try:
        return read_json_text(arguments, "messages") if arguments else {}
    except RequestError:
        return None
