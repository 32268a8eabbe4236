"""A path of the original: see sglang.compat.tokenizers."""

from __future__ import annotations

from sglang.compat.tokenizers import get_tokenizer

__all__ = ["get_tokenizer"]
