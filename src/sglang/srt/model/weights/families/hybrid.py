"""Families with recurrent or convolutional layers among those of attention (layers/recurrent.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sglang.srt.checkpoint.files import shown
from sglang.srt.model.kernels.ops import Routing
from sglang.srt.model.model_config import ConvConfig, DeltaConfig, ModelConfig, RecurrentConfig, StateMixer, TensorLayout
from sglang.srt.model.weights.config_fields import MAX_LAYERS, MAX_SIZE, Fields
from sglang.srt.model.weights.families.family import Family, GGUFForm, multiplier
from sglang.srt.model.weights.families.mixtures import V5_BANKS, first_dense, read_qwen_layers, with_experts

MAX_TAPS = 8
MAX_HEAD = 1 << 12
"""a thread's scratch holds some columns of a head's state"""


NO_NAMES: Mapping[str, str] = {}


def with_recurrent(
    fields: Fields, config: ModelConfig, mixer: StateMixer, kind: str, default: list[str], older: Mapping[str, str] = NO_NAMES
) -> ModelConfig:
    """Sets the mixer of the layers that `layer_types`, or else `default`, call `kind`. `older`: other names of kinds."""
    kinds = fields.get("layer_types")
    kinds = default if kinds is None else kinds
    if isinstance(kinds, list):
        kinds = [older.get(each, each) if isinstance(each, str) else each for each in kinds]
    known = ("full_attention", kind)
    if not isinstance(kinds, list) or len(kinds) < config.num_layers or any(each not in known for each in kinds):
        raise fields.bad("layer_types", f"must say {known[0]} or {known[1]} for {config.num_layers} layers, got {shown(kinds)}")
    layers = tuple(each == kind for each in kinds[: config.num_layers])
    if all(layers):
        raise fields.bad("layer_types", f"names no layer of {known[0]}, which is not supported")
    return replace(config, recurrent=RecurrentConfig(layers, mixer)) if any(layers) else config


def read_taps(fields: Fields, name: str) -> int:
    taps = fields.count(name, most=MAX_TAPS)
    if taps < 2:
        raise fields.bad(name, f"must be at least 2, got {taps}")
    return taps


def _lfm2(fields: Fields, config: ModelConfig) -> ModelConfig:
    mixer = ConvConfig(config.hidden_size, read_taps(fields, "conv_L_cache"), fields.flag("conv_bias"))
    attends = fields.layers("full_attn_idxs", list(range(config.num_layers)), config.num_layers)
    default = ["full_attention" if i in attends else "conv" for i in range(config.num_layers)]
    width = config.intermediate_size
    if fields.get("block_ff_dim") is not None:
        width = fields.count("block_ff_dim")
    if fields.flag("block_auto_adjust_ff_dim", True):
        factor = fields.number("block_ffn_dim_multiplier", 1.0, above=0.0, most=100.0)
        multiple = fields.count("block_multiple_of", 256)
        width = -(-int(factor * int(2 * width / 3)) // multiple) * multiple
    if not 0 < width <= MAX_SIZE:
        raise fields.bad("intermediate_size", f"becomes {width}, which is not possible")
    tied = fields.flag("tie_embedding", config.tie_word_embeddings)
    config = replace(config, intermediate_size=width, tie_word_embeddings=tied)
    return with_recurrent(fields, config, mixer, "conv", default)


def _lfm2_moe(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Experts in all layers but the first few."""
    tied = fields.flag("tie_embedding", config.tie_word_embeddings)
    attends = fields.layers("full_attn_idxs", list(range(config.num_layers)), config.num_layers)
    default = ["full_attention" if i in attends else "conv" for i in range(config.num_layers)]
    scale = multiplier(fields, "routed_scaling_factor", 1.0)
    routing = Routing("sigmoid", normalize=fields.flag("norm_topk_prob", True), scale=scale)
    config = replace(config, tie_word_embeddings=tied)
    config = with_experts(fields, config, routing, first_dense(fields, 2), choice_bias=fields.flag("use_expert_bias", True))
    mixer = ConvConfig(config.hidden_size, read_taps(fields, "conv_L_cache"), fields.flag("conv_bias"))
    return with_recurrent(fields, config, mixer, "conv", default)


def _qwen3_next(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Qwen3-Next and 3.5: attention with a gate, every fourth layer; norms count from 1."""
    k_heads, v_heads = (
        fields.count("linear_num_key_heads", most=MAX_HEAD),
        fields.count("linear_num_value_heads", most=MAX_HEAD),
    )
    if v_heads % k_heads:
        raise fields.bad("linear_num_value_heads", f"({v_heads}) must be a multiple of linear_num_key_heads ({k_heads})")
    k_dim, v_dim = fields.count("linear_key_head_dim", most=MAX_HEAD), fields.count("linear_value_head_dim", most=MAX_HEAD)
    taps, turns = read_taps(fields, "linear_conv_kernel_dim"), fields.flag("value_heads_take_turns")
    mixer = DeltaConfig(k_heads, v_heads, k_dim, v_dim, taps, turns)
    if mixer.conv_width > MAX_SIZE:
        raise fields.bad(
            "linear_key_head_dim", f"({k_dim}) makes rows of {mixer.conv_width} values, and {MAX_SIZE} is the most"
        )
    every = fields.count("full_attention_interval", 4, most=MAX_LAYERS)
    default = ["linear_attention" if (i + 1) % every else "full_attention" for i in range(config.num_layers)]
    bias = fields.flag("attention_bias")
    config = replace(config, attention_bias=bias, output_bias=bias)
    return with_recurrent(fields, config, mixer, "linear_attention", default)


def _qwen3_next_moe(fields: Fields, config: ModelConfig) -> ModelConfig:
    config = _qwen3_next(fields, config)
    if not fields.get("num_experts"):
        return config
    routing = Routing(normalize=fields.flag("norm_topk_prob", True))
    shared = fields.count("shared_expert_intermediate_size")
    return with_experts(fields, config, routing, read_qwen_layers(fields), shared, shared_gate=True)


_LFM2 = {
    "vocab_size": 65536,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128_000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "conv_L_cache": 3,
}
_LFM2_MOE = {
    **_LFM2,
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "moe_intermediate_size": 1792,
    "num_experts": 32,
    "num_experts_per_tok": 4,
}
_DELTA = {
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
_QWEN3_NEXT = {
    **_DELTA,
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}
_QWEN3_5 = {
    **_DELTA,
    "vocab_size": 248320,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
}
_QWEN3_5_MOE = {
    **_DELTA,
    "vocab_size": 248320,
    "hidden_size": 2048,
    "intermediate_size": 512,
    "num_hidden_layers": 40,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}

_LFM2_LAYOUT = TensorLayout(
    whole={"embedding_norm": "model.norm"},
    modules={
        "operator_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj",
        "self_attn.out_proj": "self_attn.o_proj",
        "self_attn.q_layernorm": "self_attn.q_norm",
        "self_attn.k_layernorm": "self_attn.k_norm",
        "conv.conv": "mixer.conv",
        "conv.in_proj": "mixer.in_proj",
        "conv.out_proj": "mixer.out_proj",
    },
)
_LFM2_MOE_LAYOUT = replace(
    _LFM2_LAYOUT,
    modules={
        **_LFM2_LAYOUT.modules,
        "feed_forward.gate": "mlp.gate",
        **{f"feed_forward.experts.*.{w}": f"mlp.experts.*.{x}_proj" for w, x in (("w1", "gate"), ("w3", "up"), ("w2", "down"))},
    },
    tensors={"feed_forward.expert_bias": "mlp.gate.e_score_correction_bias"},
    banks={f"feed_forward.{name.removeprefix('mlp.')}": modules for name, modules in V5_BANKS.items()},
)
_LFM2_STEMS: dict[str, str | tuple[str, ...]] = {
    f"shortconv.{name}": f"mixer.{name}" for name in ("conv", "in_proj", "out_proj")
}
_DELTA_NAMES: dict[str, str | tuple[str, ...]] = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.q_gate"),
    "linear_attn": "mixer",
    "linear_attn.conv1d": "mixer.conv",
    "linear_attn.norm": "mixer.gate_scale",
    "linear_attn.out_proj": "mixer.out_proj",
    "linear_attn.in_proj_qkvz": ("mixer.in_qkv", "mixer.in_z"),
    "linear_attn.in_proj_ba": ("mixer.in_b", "mixer.in_a"),
    **{f"linear_attn.in_proj_{name}": f"mixer.in_{name}" for name in ("qkv", "z", "b", "a")},
    **{f"mlp.shared_expert.{x}_proj": f"mlp.shared_experts.{x}_proj" for x in ("gate", "up", "down")},
}
_DELTA_STEMS: dict[str, str | tuple[str, ...]] = {
    "attn_q": ("self_attn.q_proj", "self_attn.q_gate"),
    "attn_qkv": "mixer.in_qkv",
    "attn_gate": "mixer.in_z",
    "ssm_in": ("mixer.in_qkv", "mixer.in_z"),
    "ssm_ba": ("mixer.in_b", "mixer.in_a"),
    "ssm_beta": "mixer.in_b",
    "ssm_alpha": "mixer.in_a",
    "ssm_conv1d": "mixer.conv",
    "ssm_out": "mixer.out_proj",
}
"""of Qwen3-Next's and Qwen3.5's files"""
_DELTA_LAYOUT = TensorLayout(modules=_DELTA_NAMES, banks=V5_BANKS)
_DELTA_SHAPE: dict[str, Any] = {"qk_norm": "head", "output_gate": True, "norm_offset": 1.0}

RECURRENT_FAMILIES = (
    Family("lfm2", "Lfm2ForCausalLM", "lfm2", _LFM2, _lfm2, shape={"qk_norm": "head"}, layout=_LFM2_LAYOUT,
           spelled={"rms_norm_eps": "norm_eps"}, gguf=GGUFForm("lfm2", _LFM2_STEMS)),
    Family("lfm2_moe", "Lfm2MoeForCausalLM", "lfm2_moe", _LFM2_MOE, _lfm2_moe, shape={"qk_norm": "head"}, layout=_LFM2_MOE_LAYOUT,
           spelled={"rms_norm_eps": "norm_eps", "first_k_dense_replace": "num_dense_layers"}, gguf=GGUFForm("lfm2moe", _LFM2_STEMS)),
    Family("qwen3_next", "Qwen3NextForCausalLM", "qwen3_next", _QWEN3_NEXT, _qwen3_next_moe, shape=_DELTA_SHAPE,
           layout=_DELTA_LAYOUT, gguf=GGUFForm("qwen3next", _DELTA_STEMS)),
    Family("qwen3_5", "Qwen3_5ForCausalLM", "qwen3_5_text", _QWEN3_5, _qwen3_next, shape=_DELTA_SHAPE, layout=_DELTA_LAYOUT,
           gguf=GGUFForm("qwen35", _DELTA_STEMS)),
    Family("qwen3_5_moe", "Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", _QWEN3_5_MOE, _qwen3_next_moe, shape=_DELTA_SHAPE,
           layout=_DELTA_LAYOUT, gguf=GGUFForm("qwen35moe", _DELTA_STEMS)),
)  # fmt: skip
