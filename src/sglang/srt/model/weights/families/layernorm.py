"""Families with layer norms, many of them with a feed-forward layer without a gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sglang.srt.model.model_config import ModelConfig, TensorLayout
from sglang.srt.model.weights.config_fields import Fields
from sglang.srt.model.weights.families.family import (
    Family,
    GGUFForm,
    all_biases,
    every_layer_windowed,
    multiplier,
    with_window,
)

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def _cohere(fields: Fields, config: ModelConfig) -> ModelConfig:
    bias = fields.flag("attention_bias")
    return replace(
        config,
        attention_bias=bias,
        output_bias=bias,
        logit_scale=multiplier(fields, "logit_scale", 0.0625),
        qk_norm="layer" if fields.flag("use_qk_norm") else "",
    )


def _cohere2(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Layers that see everything have no rope."""
    every = fields.count("sliding_window_pattern", 4)
    config = with_window(fields, _cohere(fields, config), lambda layer: (layer + 1) % every != 0)
    return replace(config, unrotated_layers=tuple(not w for w in config.windowed_layers or (False,) * config.num_layers))


def _starcoder2(fields: Fields, config: ModelConfig) -> ModelConfig:
    return every_layer_windowed(fields, all_biases(fields, config, "use_bias", "use_bias"))


def _stablelm(fields: Fields, config: ModelConfig) -> ModelConfig:
    return replace(
        config,
        attention_bias=fields.flag("use_qkv_bias"),
        qk_norm="layer" if fields.flag("qk_layernorm") else "",
        block="shared" if fields.flag("use_parallel_residual") else "serial",
    )


def _gpt_neox(fields: Fields, config: ModelConfig) -> ModelConfig:
    bias = fields.flag("attention_bias")
    return replace(
        config,
        attention_bias=bias,
        output_bias=bias,
        block="parallel" if fields.flag("use_parallel_residual") else "serial",
    )


def _gpt2(fields: Fields, config: ModelConfig) -> ModelConfig:
    if fields.flag("scale_attn_by_inverse_layer_idx"):
        raise fields.bad(
            "scale_attn_by_inverse_layer_idx", "is true, and scores that are scaled by the layer are not supported"
        )
    return replace(
        config,
        learned_positions=config.context_len,
        unrotated_layers=(True,) * config.num_layers,
        query_scale=None if fields.flag("scale_attn_weights", True) else 1.0,
    )


_COHERE: dict[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
}
_COHERE2 = {**_COHERE, "rope_theta": 10_000.0, "sliding_window": 4096}
_STARCODER2 = {
    "hidden_act": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-5,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "use_bias": True,
}
_STABLELM = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "partial_rotary_factor": 0.25,
}
_GPT_NEOX = {
    "hidden_act": "gelu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "partial_rotary_factor": 0.25,
    "attention_bias": True,
    "use_parallel_residual": True,
}
_GPT2 = {
    "vocab_size": 50257,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 1024,
    "hidden_act": "gelu_new",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
_NEMOTRON = {
    "hidden_act": "relu2",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "partial_rotary_factor": 0.5,
}

_SHARED = {"norm": "layer", "block": "shared"}
_BIASED = {"norm": "layer", "norm_bias": True}
_ALL_BIASED = {**_BIASED, "attention_bias": True, "output_bias": True, "mlp_bias": True}
_INTERLEAVED = TensorLayout(interleaved=True)
_NEOX_LAYOUT = TensorLayout(
    root="gpt_neox.",
    whole={"embed_in": "model.embed_tokens", "final_layer_norm": "model.norm", "embed_out": "lm_head"},
    modules={
        "attention.query_key_value": QKV,
        "attention.dense": "self_attn.o_proj",
        "mlp.dense_h_to_4h": "mlp.up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
    },
    grouped_qkv=True,
)
_GPT2_LAYOUT = TensorLayout(
    root="transformer.",
    whole={"wte": "model.embed_tokens", "wpe": "model.embed_positions", "ln_f": "model.norm"},
    layers="h",
    modules={
        "ln_1": "input_layernorm",
        "attn.c_attn": QKV,
        "attn.c_proj": "self_attn.o_proj",
        "ln_2": "post_attention_layernorm",
        "mlp.c_fc": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    },
    transposed=True,
)
_STABLELM_LAYOUT = TensorLayout(
    modules={"self_attn.q_layernorm.norms": "self_attn.q_norm", "self_attn.k_layernorm.norms": "self_attn.k_norm"}
)
_EPS = {"rms_norm_eps": "layer_norm_eps"}
_GPT2_SPELLED = {
    "rms_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
}
_NEOX_SPELLED = {**_EPS, "rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}

LAYER_NORM_FAMILIES = (
    Family("cohere", "CohereForCausalLM", "cohere", _COHERE, _cohere, "CohereModel", _SHARED, _INTERLEAVED, _EPS,
           gguf=GGUFForm("command-r", interleaved=True)),
    Family("cohere2", "Cohere2ForCausalLM", "cohere2", _COHERE2, _cohere2, "Cohere2Model", _SHARED, _INTERLEAVED, _EPS,
           gguf=GGUFForm("cohere2", interleaved=True)),
    Family("starcoder2", "Starcoder2ForCausalLM", "starcoder2", _STARCODER2, _starcoder2, "Starcoder2Model", _BIASED,
           TensorLayout(modules={"mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"}),
           {"rms_norm_eps": "norm_epsilon"}, is_plain=True, gguf=GGUFForm("starcoder2")),
    Family("stablelm", "StableLmForCausalLM", "stablelm", _STABLELM, _stablelm, "StableLmModel", _BIASED, _STABLELM_LAYOUT, _EPS,
           gguf=GGUFForm("stablelm")),
    Family("gpt_neox", "GPTNeoXForCausalLM", "gpt_neox", _GPT_NEOX, _gpt_neox, "GPTNeoXModel", {**_BIASED, "mlp_bias": True},
           _NEOX_LAYOUT, _NEOX_SPELLED, is_plain=True, gguf=GGUFForm("gptneox")),
    Family("gpt2", "GPT2LMHeadModel", "gpt2", _GPT2, _gpt2, "GPT2Model", _ALL_BIASED, _GPT2_LAYOUT, _GPT2_SPELLED,
           is_plain=True, mlp_width=4, gguf=GGUFForm("gpt2")),
    Family("nemotron", "NemotronForCausalLM", "nemotron", _NEMOTRON, all_biases, "NemotronModel",
           {**_BIASED, "norm_offset": 1.0}, spelled={"rms_norm_eps": "norm_eps"}, is_plain=True, gguf=GGUFForm("nemotron")),
)  # fmt: skip
