"""An older path of the original: see sglang.compat.function_calls."""

from __future__ import annotations

from sglang.compat.function_calls import FunctionCallParser, ToolCallItem

__all__ = ["FunctionCallParser", "ToolCallItem"]
