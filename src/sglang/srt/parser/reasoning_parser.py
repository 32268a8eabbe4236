"""A path of the original: see sglang.compat.reasoning."""

from __future__ import annotations

from sglang.compat.reasoning import ReasoningParser

__all__ = ["ReasoningParser"]
