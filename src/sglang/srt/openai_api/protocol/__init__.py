"""An older path of the original: see sglang.compat.function_calls."""

from __future__ import annotations

from sglang.compat.function_calls import Function, Tool

__all__ = ["Function", "Tool"]
