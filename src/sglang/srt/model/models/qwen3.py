"""Qwen3 (dense): Llama with norms over each head of q and k (`qk_norm`) and a head_dim of its own."""

from __future__ import annotations

from sglang.srt.model.models.llama import Llama


class Qwen3(Llama):
    """What differs from Llama is in the ModelConfig."""
