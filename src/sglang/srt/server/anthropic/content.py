"""Converts messages of Anthropic's API to those of a chat: text, images and documents become parts, tool results messages.

Blocks that only Anthropic's servers produce (server tools and their results, signed reasoning) mean nothing to another model and are
left out of the prompt; blocks of unknown types are refused.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from typing import Any

from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.server.fields import SHOWN, as_bool, as_object, note_ignored, note_unknown
from sglang.srt.server.openai.protocol import note_members

_BLOCK_KEYS = {
    "text": {"text", "citations"},
    "image": {"source"},
    "document": {"source", "title", "context", "citations"},
    "search_result": {"source", "title", "content", "citations"},
    "compaction": {"content", "encrypted_content", "signature", "tool_changes"},
    "tool_use": {"id", "name", "input", "caller", "toolset_name"},
    "tool_result": {"tool_use_id", "content", "is_error", "toolset_name"},
    "tool_reference": {"tool_name"},
}
_HINTS = frozenset({"type", "cache_control"})
_NO_PARTS = frozenset({"tool_use", "tool_result", "tool_addition", "thinking", "redacted_thinking"})
"""blocks that stand beside the parts of a message, and reasoning of earlier turns, which is not part of later prompts"""
_SERVER_SIDE = frozenset({"server_tool_use", "mcp_tool_use", "mcp_tool_listing", "fallback", "tool_removal"})
_SERVER_RESULT = "_tool_result"
"""end of the types of what server tools gave back"""

Part = dict[str, Any]


def chat_messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    """`system` and `messages` as messages of a chat. Raises RequestError."""
    messages: list[dict[str, Any]] = []
    if body.get("system") is not None and (system := _text_of(body["system"], "system")):
        messages.append({"role": "system", "content": system})
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


def added_tools(body: dict[str, Any]) -> list[Any]:
    """Definitions of tools that stand among the messages (tool_addition)."""
    found = []
    for message in body["messages"]:
        content = message["content"]
        for block in content if isinstance(content, list) else ():
            tool = block.get("tool") if _kind(block) == "tool_addition" else None
            if isinstance(tool, dict) and tool.get("type") == "tool_definition":
                found.append(tool.get("definition"))
    return found


def _kind(block: Any) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    return kind if isinstance(kind, str) else ""


def _from_blocks(role: str, blocks: list[Any], where: str) -> list[dict[str, Any]]:
    """Results of tools first, as their own messages; then the rest of the message."""
    results = [_result(block, f"{where}.content[{i}]") for i, block in enumerate(blocks) if _kind(block) == "tool_result"]
    calls = [_call(block, f"{where}.content[{i}]") for i, block in enumerate(blocks) if _kind(block) == "tool_use"]
    parts = _parts(blocks, f"{where}.content")
    if calls:
        return [*results, {"role": role, "content": parts or None, "tool_calls": calls}]
    return [*results, {"role": role, "content": parts}] if parts or not results else results


def _result(block: dict[str, Any], where: str) -> dict[str, Any]:
    _note_block(block, "tool_result")
    content = "" if block.get("content") is None else block["content"]
    if not isinstance(content, str):
        if not isinstance(content, list):
            raise RequestError(f"{where}.content must be a string or a list of blocks", "messages")
        parts = _parts(content, f"{where}.content")
        is_text = all(part["type"] == "text" for part in parts)
        content = "\n".join(part["text"] for part in parts) if is_text else parts
    if as_bool(block, "is_error"):
        content = _as_error(content)
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}


def _as_error(content: Any) -> Any:
    """Templates have no other word for a call that failed."""
    return [{"type": "text", "text": "Error:"}, *content] if isinstance(content, list) else f"Error: {content}"


def _call(block: dict[str, Any], where: str) -> dict[str, Any]:
    _note_block(block, "tool_use")
    function = {"name": block.get("name"), "arguments": json.dumps(as_object(block, "input", f"{where}.input", "messages"))}
    return {"id": block.get("id"), "type": "function", "function": function}


# --- parts ------------------------------------------------------------------------------------------------------------------


def _parts(blocks: list[Any], where: str) -> list[Part]:
    """The parts that the model reads, from blocks. Raises RequestError for a block of an unknown type."""
    parts: list[Part] = []
    for i, block in enumerate(blocks):
        kind = _kind(block)
        if kind in _PARTS:
            _note_block(block, kind)
            parts += _PARTS[kind](block, f"{where}[{i}]")
        elif kind in _SERVER_SIDE or kind.endswith(_SERVER_RESULT):
            note_ignored(f"a block of type {kind[:SHOWN]!r}, which Anthropic's servers made")
        elif kind not in _NO_PARTS:
            raise UnsupportedError(f"{where}[{i}] is of a type that is not supported: {kind[:SHOWN]!r}", "messages")
    return parts


def _text(block: dict[str, Any], where: str) -> list[Part]:
    return [{"type": "text", "text": _string(block, "text", where)}]


def _image(block: dict[str, Any], where: str) -> list[Part]:
    source: Any = block.get("source")
    url = _image_url(source, where)
    known = ("type", "url") if source.get("type") == "url" else ("type", "media_type", "data")
    note_members(source, known, f"{where}.source", "messages")
    return [{"type": "image_url", "image_url": {"url": url}}]


def _image_url(source: Any, where: str) -> str:
    kind = source.get("type") if isinstance(source, dict) else None
    if kind == "url" and isinstance(source.get("url"), str):
        return str(source["url"])
    if kind == "base64" and isinstance(source.get("data"), str):
        return f"data:{source.get('media_type') or 'image/png'};base64,{source['data']}"
    raise RequestError(f"{where}: an image's source must be of the type base64 or url", "messages")


def _document(block: dict[str, Any], where: str) -> list[Part]:
    """Its text between marks that say its title and what else is known of it."""
    names = {name: _string(block, name, where) for name in ("title", "context") if block.get(name) is not None}
    return _between_marks("document", names, _document_parts(block.get("source"), f"{where}.source"))


def _document_parts(source: Any, where: str) -> list[Part]:
    kind = source.get("type") if isinstance(source, dict) else None
    if kind == "text":
        note_members(source, ("type", "media_type", "data"), where, "messages")
        return [{"type": "text", "text": _string(source, "data", where)}]
    if kind == "content":
        note_members(source, ("type", "content"), where, "messages")
        content = source.get("content")
        return _parts([{"type": "text", "text": content}] if isinstance(content, str) else _list(content, where), where)
    if kind == "base64" and str(source.get("media_type")).startswith("text/"):
        note_members(source, ("type", "media_type", "data"), where, "messages")
        return [{"type": "text", "text": _decoded(_string(source, "data", where), where)}]
    named = source.get("media_type") or kind if isinstance(source, dict) else None
    raise UnsupportedError(
        f"{where}: documents are read as text (source.type text or content), and this one is {str(named)[:SHOWN]!r}: PDF and stored "
        "files are not supported",
        "messages",
    )


def _decoded(data: str, where: str) -> str:
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{where}.data must be base64 of UTF-8 text", "messages") from error


def _search_result(block: dict[str, Any], where: str) -> list[Part]:
    names = {name: _string(block, name, where) for name in ("title", "source") if block.get(name) is not None}
    return _between_marks("search_result", names, _parts(_list(block.get("content"), where), f"{where}.content"))


def _between_marks(mark: str, names: dict[str, str], parts: list[Part]) -> list[Part]:
    head = "".join(f' {name}="{value}"' for name, value in names.items())
    parts = [{"type": "text", "text": f"<{mark}{head}>\n"}, *parts, {"type": "text", "text": f"\n</{mark}>\n"}]
    if any(part["type"] != "text" for part in parts):
        return parts
    return [{"type": "text", "text": "".join(part["text"] for part in parts)}]


def _compaction(block: dict[str, Any], where: str) -> list[Part]:
    """A summary of the earlier conversation; an encrypted one can be read only by Anthropic's servers."""
    return [{"type": "text", "text": _string(block, "content", where)}] if block.get("content") is not None else []


def _tool_reference(block: dict[str, Any], where: str) -> list[Part]:
    """A sentence about a tool that a tool search found: all tools are shown to the model from the beginning."""
    return [{"type": "text", "text": f"The tool {_string(block, 'tool_name', where)} can be called."}]


_PARTS: dict[str, Callable[[dict[str, Any], str], list[Part]]] = {
    "text": _text,
    "image": _image,
    "document": _document,
    "search_result": _search_result,
    "compaction": _compaction,
    "tool_reference": _tool_reference,
}


# --- checks -----------------------------------------------------------------------------------------------------------------


def _note_block(block: dict[str, Any], kind: str) -> None:
    note_unknown(block, _BLOCK_KEYS[kind] | _HINTS, f"key of a block of type {kind}:")


def _string(value: dict[str, Any], name: str, where: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise RequestError(f"{where}.{name} must be a string", "messages")
    return text


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError(f"{where}.content must be a list of blocks", "messages")
    return value


def _text_of(value: Any, where: str) -> str:
    """A string, or the text blocks of a list joined."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(_kind(block) == "text" for block in value):
        for block in value:
            _note_block(block, "text")
        return "\n".join(_string(block, "text", where) for block in value)
    raise RequestError(f"{where} must be a string or a list of text blocks", where)
