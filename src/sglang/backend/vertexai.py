"""A path of older releases of the original: see sglang.lang.backend.vertexai."""

from __future__ import annotations

from sglang.lang.backend.vertexai import VertexAI

__all__ = ["VertexAI"]
