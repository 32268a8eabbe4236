"""Chat messages as clients send them, checked and brought into the form that templates read: contents are strings or lists of
parts, as they were sent; `Tokenizer.encode_chat` gives each template what it takes."""

from __future__ import annotations

from typing import Any

from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.server.fields import check_members, unknown_message
from sglang.srt.server.limits.json_limits import read_json_text
from sglang.srt.server.multimodal.inputs import PART_HINTS, MediaInput, parse_part
from sglang.srt.server.tokenization.chat_template import ChatTemplate

MAX_MESSAGES = 65_536
"""of a request, and parts of one message"""
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""names that servers have for the reasoning of an earlier answer; templates read the first or the second"""
_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "refusal", *_REASONING})
_HINTS = frozenset(
    {
        *("id", "annotations", "parsed", "cache_control", "reasoning_details", "thinking_blocks", "metadata", "weight"),
        *("provider_specific_fields", "extra_content", "finish_reason", "matched_stop", "citations"),
    }
)
"""what clients send back from an answer, or add for other servers; it says nothing to the model"""
_EMPTY_KEYS = frozenset({"function_call", "audio", "images"})
"""what clients send back from an answer; means nothing when empty"""
_MEDIA = frozenset({"image_url", "video_url", "audio_url", "input_audio", "image", "video", "audio", "file", "input_image"})
_PLAIN = frozenset({"role", "content"})
_TEXT_HINTS = frozenset({*PART_HINTS, "annotations", "logprobs"})
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
        if key in _EMPTY_KEYS and value not in (None, [], {}, ""):
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
    if raw.get("tool_calls"):
        message["tool_calls"] = _tool_calls(raw["tool_calls"], where, template.forms.argument_objects)
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
    return [_part(part, f"{where}.content[{i}]", media) for i, part in enumerate(content)]


def _part(part: Any, where: str, media: list[MediaInput] | None) -> dict[str, str]:
    """A part as templates read it: text, or the place of an image or video."""
    found = parse_part(part, where) if isinstance(part, dict) else None
    if found is None:
        return {"type": "text", "text": _part_text(part, where)}
    if media is None:
        raise UnsupportedError(f"{where} is of type {part['type']!r}, but this model reads text only", "messages")
    media.append(found)
    return {"type": found.kind}


def _part_text(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in _MEDIA:
        raise UnsupportedError(f"{where} is of type {kind!r}, which this server does not read", "messages")
    text = part.get("refusal" if kind == "refusal" else "text") if kind in ("text", "refusal") else None
    if not isinstance(text, str):
        raise RequestError(f'{where} must be an object like {{"type": "text", "text": "..."}}', "messages")
    check_members(part, {"type", str(kind), *_TEXT_HINTS}, where, "messages")
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
        arguments = function.get("arguments", "{}")
        if isinstance(arguments, str) and as_objects:
            parsed = _data(arguments)
            arguments = parsed if isinstance(parsed, dict) else arguments
        calls.append({**call, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return calls


def _data(arguments: str) -> Any:
    """What a model wrote as arguments; None if that is no JSON, or too deep to be handed on."""
    try:
        return read_json_text(arguments, "messages") if arguments else {}
    except RequestError:
        return None
