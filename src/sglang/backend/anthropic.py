"""A path of older releases of the original: see sglang.lang.backend.anthropic."""

from __future__ import annotations

from sglang.lang.backend.anthropic import Anthropic

__all__ = ["Anthropic"]
