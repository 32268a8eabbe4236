"""Adapts conversations to templates with strict rules about roles.

system system user user assistant        what came
system        user      assistant        adjacent messages of one role joined, for "roles must alternate"
              user      assistant        instructions as the user's text, for "no system role", "only at the beginning"
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.errors import TemplateRefusedError
from sglang.srt.server.tokenization.template_forms import TemplateForms

Message = dict[str, Any]
_BREAK = "\n\n"
_JOINED_ROLES = frozenset({"system", "developer", "user", "assistant"})


def encode_joined(encode: Callable[[list[Message]], list[int]], messages: list[Message], forms: TemplateForms) -> list[int]:
    """`encode(messages)`; where the template refuses them, of the same conversation in fewer messages. `forms`: what it shows; some
    leave out instructions that they do not expect, without a word. Raises RequestError."""
    first, second = _joined(_with_system_first(messages)), _joined(_without_system(messages))
    if not forms.system:
        messages = first = second
    elif not forms.late_system:
        messages = first
    try:
        return encode(messages)
    except TemplateRefusedError:
        for fewer in (first, second):
            try:
                return encode(fewer)
            except TemplateRefusedError:
                continue
        raise


def _with_system_first(messages: list[Message]) -> list[Message]:
    """Later instructions are the user's words."""
    first = next((i for i, message in enumerate(messages) if not _is_system(message)), len(messages))
    return [*messages[:first], *_without_system(messages[first:])]


def _without_system(messages: list[Message]) -> list[Message]:
    return [{**message, "role": "user"} if _is_system(message) else message for message in messages]


def _is_system(message: Message) -> bool:
    return message["role"] in ("system", "developer")


def _joined(messages: list[Message]) -> list[Message]:
    """Neighbours of one role as one message; calls end one of the assistant."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else {}
        if last.get("role") == message["role"] in _JOINED_ROLES and not last.get("tool_calls"):
            joined[-1] = {**last, **message, "content": _both(last["content"], message["content"])}
        else:
            joined.append(message)
    return joined


def _both(first: Any, then: Any) -> Any:
    if not first or not then:
        return first or then
    if isinstance(first, str) and isinstance(then, str):
        return first + _BREAK + then
    return [*_parts(first), {"type": "text", "text": _BREAK}, *_parts(then)]


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
