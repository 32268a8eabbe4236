"""A path of the original: see sglang.srt.engine."""

from __future__ import annotations

from sglang.srt.engine import Engine

__all__ = ["Engine"]
