"""A path of older releases of the original: see sglang.lang.backend.litellm."""

from __future__ import annotations

from sglang.lang.backend.litellm import LiteLLM

__all__ = ["LiteLLM"]
