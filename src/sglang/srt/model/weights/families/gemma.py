"""The Gemma families: norm weights stored minus 1, a scaled embedding, and from Gemma 2 on norms before and after each half."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.weights.config_fields import Fields
from sglang.srt.model.weights.families.family import GATES, MIN_SCALE, Family, GGUFForm, with_window
from sglang.srt.model.weights.rope_reader import read_local_rope


def _gemma(fields: Fields, config: ModelConfig) -> ModelConfig:
    """The first files say "gelu" and mean its approximation."""
    bias, named = fields.flag("attention_bias"), fields.choice("hidden_activation", GATES, fields.get("hidden_act"))
    return replace(
        config,
        gate="gelu_tanh" if named == "gelu" else named,
        attention_bias=bias,
        output_bias=bias,
        embedding_scale=math.sqrt(config.hidden_size),
    )


def _gemma2(fields: Fields, config: ModelConfig, period: int = 2) -> ModelConfig:
    bias = fields.flag("attention_bias")
    pattern = fields.count("sliding_window_pattern", fields.count("_sliding_window_pattern", period))
    config = replace(
        config,
        gate=fields.choice("hidden_activation", GATES),
        attention_bias=bias,
        output_bias=bias,
        embedding_scale=math.sqrt(config.hidden_size),
        query_scale=fields.number("query_pre_attn_scalar", above=MIN_SCALE, most=1 / MIN_SCALE) ** -0.5,
        attn_soft_cap=fields.optional("attn_logit_softcapping", above=MIN_SCALE) or 0.0,
        final_soft_cap=fields.optional("final_logit_softcapping", above=MIN_SCALE) or 0.0,
    )
    return with_window(fields, config, lambda layer: (layer + 1) % pattern != 0)


def _gemma3(fields: Fields, config: ModelConfig) -> ModelConfig:
    config = _gemma2(fields, config, period=6)
    if config.bidirectional:  # half of the window to either side
        config = replace(config, sliding_window=config.sliding_window // 2 + 1)
    return replace(config, local_rope=read_local_rope(fields, config.head_dim, config.context_len))


_GEMMA: dict[str, Any] = {
    "hidden_act": "gelu_pytorch_tanh",
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_GEMMA2 = {
    **_GEMMA,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GEMMA3 = {
    **_GEMMA2,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1_000_000.0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
_SHAPE = {"norm_offset": 1.0}
_SANDWICH = {**_SHAPE, "norm_place": "around"}

GEMMA_FAMILIES = (
    Family("gemma", "GemmaForCausalLM", "gemma", _GEMMA, _gemma, "GemmaModel", _SHAPE, gguf=GGUFForm("gemma")),
    Family("gemma2", "Gemma2ForCausalLM", "gemma2", _GEMMA2, _gemma2, "Gemma2Model", _SANDWICH, gguf=GGUFForm("gemma2")),
    Family(
        "gemma3",
        "Gemma3ForCausalLM",
        "gemma3_text",
        _GEMMA3,
        _gemma3,
        "Gemma3TextModel",
        {**_SANDWICH, "qk_norm": "head"},
        gguf=GGUFForm("gemma3"),
    ),
)
