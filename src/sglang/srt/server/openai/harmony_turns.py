"""Messages and tools for gpt-oss's chat template, which shows one call of a turn, and of a turn with a call either its reasoning or its
text, and fails on a tool without a description."""

from __future__ import annotations

from collections import deque
from typing import Any

_REASONING = ("thinking", "reasoning_content")


def harmony_turns(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Several calls of one turn become as many turns, each followed by its result; text beside a call is the end of its reasoning."""
    out: list[dict[str, Any]] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        if not message.get("tool_calls"):
            out.append(message)
            continue
        end = at
        while end < len(messages) and messages[end]["role"] in ("tool", "function"):
            end += 1
        out += _turns(_with_one_text(message), messages[at:end])
        at = end
    return out


def _with_one_text(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    reasoning = message.get("thinking") or ""
    if not (text and reasoning):
        return message
    return {**message, "content": "", **dict.fromkeys(_REASONING, f"{reasoning}\n\n{text}")}


def _turns(message: dict[str, Any], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results go by the ids of the calls, or by their order where there are none."""
    calls = message["tool_calls"]
    if len(calls) == 1:
        return [message, *results]
    named: dict[Any, list[dict[str, Any]]] = {call.get("id"): [] for call in calls if call.get("id") is not None}
    others: deque[dict[str, Any]] = deque()
    for result in results:
        named.get(result.get("tool_call_id"), others).append(result)
    out: list[dict[str, Any]] = []
    bare = {key: value for key, value in message.items() if key not in _REASONING} | {"content": ""}
    for i, call in enumerate(calls):
        own = named.pop(call.get("id"), None) or ([others.popleft()] if others else [])
        out += [{**(bare if i else message), "tool_calls": [call]}, *own]
    return [*out, *others]


def described(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each tool with a description, which may be empty."""
    return [{**tool, "function": {"description": "", **tool["function"]}} for tool in tools]
