"""Old import path of sglang.lang.typed.tools."""

from __future__ import annotations

from sglang.lang.typed.tools import ToolCall, ToolResult, ToolSpec, describe_tools, tool_output, tool_spec

__all__ = ["ToolCall", "ToolResult", "ToolSpec", "describe_tools", "tool_output", "tool_spec"]
