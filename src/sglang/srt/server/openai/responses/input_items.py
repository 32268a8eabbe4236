"""Converts the input items of a Responses request to a chat's messages.

message, {role, content}                                 a message
function_call, custom_tool_call, shell_call...           a call of the assistant's message before it
function_call_output, custom_tool_call_output...         a message of the role tool
web_search_call, mcp_call...                             nothing: hosted tools ran elsewhere
reasoning                                                nothing: earlier reasoning is not part of later prompts
additional_tools                                         nothing: response_tools.py reads them
item_reference                                           replaced before by the item of a stored response (store.py)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.server.fields import SHOWN, as_object, note_ignored, note_unknown
from sglang.srt.server.http.json_pieces import encode_json
from sglang.srt.server.multimodal.inputs import PART_HINTS
from sglang.srt.server.openai.responses.response_tools import ADDED, ResponseTools

_OTHER_CALLS = {"local_shell": "action", "shell": "action", "apply_patch": "operation"}
"""tools whose calls have a type of their own (NAME_call, NAME_call_output), and where their arguments stand"""
_ITEM_KEYS = {
    "message": {"role", "content"},
    "function_call": {"call_id", "name", "namespace", "arguments"},
    "function_call_output": {"call_id", "output"},
    "custom_tool_call": {"call_id", "name", "namespace", "input"},
    "custom_tool_call_output": {"call_id", "output"},
    **{f"{name}_call": {"call_id", key} for name, key in _OTHER_CALLS.items()},
    **{f"{name}_call_output": {"call_id", "output"} for name in _OTHER_CALLS},
}
NO_COMPACTION = (
    "this server does not compact conversations, which OpenAI's models do in a form that they alone read: have the model write a "
    "summary in a request to /v1/responses, or send truncation auto, which leaves out the oldest turns"
)
_OF_SERVERS = frozenset(
    {
        *("web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call"),
        *("mcp_call", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response"),
        *("tool_search_call", "tool_search_output", "program", "program_output"),
    }
)
"""what hosted tools left in a conversation: what came of it is in the messages behind it"""
_ITEM_HINTS = frozenset({"type", "id", "status"})
_PART_HINTS = frozenset({"annotations", "logprobs", *PART_HINTS})


def input_items(body: dict[str, Any]) -> list[Any]:
    """The input as a list of items. Raises RequestError."""
    given = body.get("input")
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise RequestError("input must be a string or a list of items", "input")
    return given


@dataclass
class ItemMessages:
    """The messages that items make. `origins`: where in the request each of them stands."""

    tools: ResponseTools
    messages: list[dict[str, Any]] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)

    def add_message(self, message: dict[str, Any], where: str) -> None:
        self.messages.append(message)
        self.origins.append(where)

    def add(self, item: Any, where: str) -> None:
        """The next item, which stands at `where`. Raises RequestError."""
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if isinstance(kind, str) and kind in _ITEM_KEYS:
            note_unknown(item, _ITEM_KEYS[kind] | _ITEM_HINTS, f"key of an item of type {kind}:")
            self._add_known(item, kind, where)
        elif isinstance(kind, str) and kind in _OF_SERVERS:
            note_ignored(f"an item of type {kind!r}, which OpenAI's servers made")
        elif isinstance(kind, str) and "compaction" in kind:
            raise UnsupportedError(f"{where}: {NO_COMPACTION}", "input")
        elif kind not in ("reasoning", ADDED):
            shown = repr(kind[:SHOWN]) if isinstance(kind, str) else "that is none"
            raise UnsupportedError(
                f"{where} is of a type {shown}, which is not supported; message, function_call and function_call_output are",
                "input",
            )

    def _add_known(self, item: dict[str, Any], kind: str, where: str) -> None:
        if kind == "message":
            self.add_message({"role": item.get("role"), "content": _content(item.get("content"), f"{where}.content")}, where)
        elif kind.endswith("_output"):
            content = _result(item.get("output"), f"{where}.output")
            self.add_message({"role": "tool", "tool_call_id": _call_id(item), "content": content}, where)
        else:
            self._add_call({"id": _call_id(item), "type": "function", "function": self._function(item, kind)}, where)

    def _add_call(self, call: dict[str, Any], where: str) -> None:
        last = self.messages[-1] if self.messages else {}
        if last.get("role") == "assistant":
            last.setdefault("tool_calls", []).append(call)
        else:
            self.add_message({"role": "assistant", "content": None, "tool_calls": [call]}, where)

    def _function(self, item: dict[str, Any], kind: str) -> dict[str, Any]:
        """The function of a call and its arguments."""
        if kind == "function_call":
            name, arguments = self.tools.shown(item.get("name"), item.get("namespace")), item.get("arguments")
            arguments = "{}" if arguments in (None, "") else arguments
        elif kind == "custom_tool_call":
            name, arguments = item.get("name"), json.dumps({"input": item.get("input")}, ensure_ascii=False)
        else:
            name = kind.removesuffix("_call")
            arguments = encode_json(as_object(item, _OTHER_CALLS[name], param="input")).decode()
        return {"name": name, "arguments": arguments}


def _call_id(item: dict[str, Any]) -> Any:
    return item.get("call_id", item.get("id"))


def _result(output: Any, where: str) -> Any:
    """The result of a call: text, parts, or data, which the model reads as JSON."""
    if isinstance(output, list) and all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in output):
        return _content(output, where)
    return encode_json(output).decode() if isinstance(output, (list, dict)) else output


def _content(content: Any, where: str) -> Any:
    if not isinstance(content, list):
        return content
    return [_part(part, f"{where}[{i}]") for i, part in enumerate(content)]


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "output_text", "text"):
        note_unknown(part, {"type", "text", *_PART_HINTS}, "key of a part of text:")
        return {"type": "text", "text": part.get("text")}
    if kind == "input_image" and part.get("file_id") is None:
        given = part.get("image_url")
        image = given if isinstance(given, dict) else {"url": given}  # an object in chats, and so in some clients
        if isinstance(image.get("url"), str):
            note_unknown({**part, **image}, {"type", "image_url", "url", "detail", "file_id", *PART_HINTS}, "key of an image:")
            return {
                "type": "image_url",
                "image_url": {"url": image["url"], "detail": image.get("detail") or part.get("detail")},
            }
    if kind == "refusal":
        return {"type": "refusal", "refusal": part.get("refusal")}
    shown = repr(kind[:SHOWN]) if isinstance(kind, str) else "that is none"
    raise UnsupportedError(f"{where} is of a type {shown}, which is not supported", "input")
