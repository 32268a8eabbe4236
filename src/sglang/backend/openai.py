"""A path of older releases of the original: see sglang.lang.backend.openai."""

from __future__ import annotations

from sglang.lang.backend.openai import OpenAI

__all__ = ["OpenAI"]
