"""Tools and tool_choice of Anthropic's API.

custom                                  the client's own: functions of a chat
bash, text_editor, memory, computer     run by the client, with schemas that the API defines: functions, too
web_search, code_execution, mcp...      would run on Anthropic's servers: left out, with a line in the log, unless they are forced
"""

from __future__ import annotations

import re
from typing import Any

from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.server.fields import SHOWN, as_bool, note_ignored, note_unknown
from sglang.srt.server.openai.protocol import note_members

_NAMES = {"name": "name", "description": "description", "input_schema": "parameters", "strict": "strict"}
_HINTS = frozenset({"type", "cache_control"})
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_VERSIONED = re.compile(r"(\w+)_(\d{8})")
_UNVERSIONED = frozenset({"mcp_toolset", "tool_search_tool_regex", "tool_search_tool_bm25"})
_UNDO_UNTIL = "20250124"
"""last version of the text editor with undo_edit, and with new_str as the text to insert"""

Tool = dict[str, Any]


def add_tools(tools: list[Any], choice: Any, chat: dict[str, Any]) -> None:
    """Puts `tools` and `tool_choice` of a request into the body of its chat. Raises RequestError."""
    shown, left_out = [], []
    for i, tool in enumerate(tools):
        function = _function(tool, f"tools[{i}]")
        if function is not None:
            shown.append({"type": "function", "function": function})
        else:
            note_ignored(f"a tool of type {tool['type'][:SHOWN]!r}, which runs on Anthropic's servers")
            left_out.append(tool)
    if shown:
        chat["tools"] = shown
    if choice is not None:
        _add_choice(choice, chat, left_out)


def _function(tool: Any, where: str) -> Tool | None:
    """The tool as a function of a chat; None if the client does not run it."""
    if not isinstance(tool, dict):
        raise RequestError(f"{where}.type must be custom or a tool of Anthropic's", "tools")
    kind = tool.get("type")
    if kind is None or kind == "custom":
        note_unknown(tool, {*_NAMES, *_HINTS}, "key of a tool:")
        return {new: tool[old] for old, new in _NAMES.items() if tool.get(old) is not None}
    if not isinstance(kind, str):
        raise UnsupportedError(f"{where}.type must be custom or a tool of Anthropic's", "tools")
    version = _VERSIONED.fullmatch(kind)
    if version is not None and version[1] in _CLIENT_TOOLS:
        return _client_tool(tool, version[1], version[2])
    if version is None and kind not in _UNVERSIONED:
        raise UnsupportedError(f"{where}.type must be custom or a tool of Anthropic's, got {kind[:SHOWN]!r}", "tools")
    return None


def _add_choice(choice: Any, chat: dict[str, Any], left_out: list[Tool]) -> None:
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "tool":
        _check_runs_here(choice.get("name"), left_out)
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif isinstance(kind, str) and kind in _CHOICES:
        chat["tool_choice"] = _CHOICES[kind]
        if kind == "any" and "tools" not in chat:
            _check_runs_here(left_out[0].get("name") if left_out else None, left_out)
            raise RequestError("tool_choice.type any needs tools, and there are none", "tool_choice")
    else:
        raise RequestError("tool_choice.type must be auto, any, tool or none", "tool_choice")
    note_members(choice, ("type", "name", "disable_parallel_tool_use"), "tool_choice", "tool_choice")
    if as_bool(choice, "disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False


def _check_runs_here(name: Any, left_out: list[Tool]) -> None:
    for tool in left_out:
        if tool.get("name") == name:
            raise UnsupportedError(
                f"tool_choice asks for a call of a tool of type {tool['type'][:SHOWN]!r}, which runs on Anthropic's servers and not "
                "on this one",
                "tool_choice",
            )


# --- tools with schemas of Anthropic's --------------------------------------------------------------------------------------


def _client_tool(tool: Tool, kind: str, version: str) -> Tool:
    note_unknown(tool, {"name", "strict", *_SCREEN, *_HINTS}, "key of a tool:")
    default, description, properties = _CLIENT_TOOLS[kind]
    function: Tool = {"name": tool.get("name") or default, "description": description}
    if kind == "computer" and all(type(tool.get(side)) is int for side in _SCREEN):
        function["description"] += " The screen is {} pixels wide and {} high.".format(*(tool[side] for side in _SCREEN))
    required = [name for name in properties if name in ("command", "action") and kind != "bash"]
    if kind == "text_editor":
        old = version <= _UNDO_UNTIL
        properties = _editor(["view", "create", "str_replace", "insert", *(["undo_edit"] if old else [])], old)
        required.append("path")
    function["parameters"] = {"type": "object", "properties": properties, "required": required}
    return function | ({"strict": tool["strict"]} if tool.get("strict") is not None else {})


def _editor(commands: list[str], old: bool) -> dict[str, Any]:
    inserted = {} if old else {"insert_text": _TEXT}
    return {
        "command": {"type": "string", "enum": commands},
        "path": {"type": "string", "description": "Absolute path of a file or directory"},
        "file_text": {"type": "string", "description": "For create: what the file is to hold"},
        "old_str": {"type": "string", "description": "For str_replace: text that occurs once"},
        "new_str": _TEXT,
        "insert_line": {"type": "integer", "description": "For insert: the line after which the text goes; 0: the beginning"},
        **inserted,
        "view_range": {
            "type": "array",
            "items": {"type": "integer"},
            "description": "For view: first and last line; -1: the end",
        },
    }


_SCREEN = ("display_width_px", "display_height_px")
_TEXT = {"type": "string"}
_POINT = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2, "description": "x and y in pixels"}
_ACTIONS = (
    *("key", "hold_key", "type", "cursor_position", "mouse_move", "left_mouse_down", "left_mouse_up", "left_click"),
    *("left_click_drag", "right_click", "middle_click", "double_click", "triple_click", "scroll", "wait", "screenshot", "zoom"),
)
_CLIENT_TOOLS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bash": (
        "bash",
        "Runs a command in a shell that goes on between calls.",
        {"command": _TEXT, "restart": {"type": "boolean", "description": "Start the shell anew instead"}},
    ),
    "text_editor": ("str_replace_based_edit_tool", "Views, creates and edits files.", {"command": _TEXT}),
    "memory": (
        "memory",
        "Keeps files below /memories between conversations.",
        {
            "command": {"type": "string", "enum": ["view", "create", "str_replace", "insert", "delete", "rename"]},
            **dict.fromkeys(("path", "file_text", "old_str", "new_str", "insert_text", "old_path", "new_path"), _TEXT),
            "insert_line": {"type": "integer"},
            "view_range": {"type": "array", "items": {"type": "integer"}},
        },
    ),
    "computer": (
        "computer",
        "Uses the mouse and the keyboard of a computer and looks at its screen.",
        {
            "action": {"type": "string", "enum": list(_ACTIONS)},
            "coordinate": _POINT,
            "start_coordinate": _POINT,
            "text": {"type": "string", "description": "What to type, or the keys to press"},
            "duration": {"type": "number", "description": "Seconds of hold_key and wait"},
            "scroll_direction": {"type": "string", "enum": ["up", "down", "left", "right"]},
            "scroll_amount": {"type": "integer"},
            "region": {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4},
        },
    ),
}
"""kind -> (name, description, properties): the schemas that Anthropic's reference gives for them"""
