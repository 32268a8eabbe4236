"""Families with latent attention (layers/latent.py) and mixtures of experts: DeepSeek-V2 (arXiv 2405.04434), DeepSeek-V3
(arXiv 2412.19437) and those that are built as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from sglang.srt.checkpoint.files import shown
from sglang.srt.model.model_config import LatentConfig, ModelConfig, RopeConfig
from sglang.srt.model.weights.config_fields import MAX_LAYERS, MAX_SIZE, Fields
from sglang.srt.model.weights.families import rms
from sglang.srt.model.weights.families.family import Family, GGUFForm
from sglang.srt.model.weights.families.mixtures import (
    SIGMOID,
    SOFTMAX,
    expert_layout,
    first_dense,
    read_groups,
    shared_width,
    with_experts,
)


def with_latent(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Sets the latent. `head_dim` was read as qk_rope_head_dim, which is what rotates."""
    rope_dim, rank = config.head_dim, fields.count("kv_lora_rank")
    q_rank = fields.get("q_lora_rank") or None
    latent = LatentConfig(
        rank=rank,
        rope_dim=rope_dim,
        nope_dim=fields.count("qk_nope_head_dim"),
        v_dim=fields.count("v_head_dim"),
        q_rank=0 if q_rank is None else fields.count("q_lora_rank"),
        interleaved=fields.flag("rope_interleave", True),
        is_split=fields.flag("kv_b_is_split"),
    )
    if rank % 2 or latent.nope_dim % 2:
        raise fields.bad("kv_lora_rank", f"and qk_nope_head_dim must be even, got {rank} and {latent.nope_dim}")
    if config.rope.rotary_dim != rope_dim:
        raise fields.bad("partial_rotary_factor", "must be 1: qk_rope_head_dim is what rotates")
    if max(config.num_heads + 2, 1) * (rank + rope_dim) > MAX_SIZE:
        raise fields.bad("kv_lora_rank", f"({rank}) makes rows of q of more than {MAX_SIZE} values")
    bias = fields.flag("attention_bias")
    return replace(
        config,
        num_kv_heads=1,
        head_dim=rope_dim + rank,
        latent=latent,
        attention_bias=bias,
        output_bias=bias,
        query_scale=latent.q_dim**-0.5 * _stretch(config.rope) ** 2,
    )


def _stretch(rope: RopeConfig) -> float:
    """What yarn multiplies q and k by besides what it does to their rotating parts."""
    if rope.kind != "yarn" or not rope.mscale_all_dim or rope.factor <= 1:
        return 1.0
    return 0.1 * rope.mscale_all_dim * math.log(rope.factor) + 1.0


def _sparse_from(fields: Fields, default: int) -> Callable[[int], bool]:
    """Every so many layers, from the first that has experts."""
    step, late = fields.count("moe_layer_freq", 1, most=MAX_LAYERS), first_dense(fields, default)
    return lambda layer: late(layer) and layer % step == 0


def _deepseek2(fields: Fields, config: ModelConfig) -> ModelConfig:
    if fields.flag("norm_topk_prob"):
        raise fields.bad("norm_topk_prob", "must be false, as in all published models of this class")
    config = replace(with_latent(fields, config), mlp_bias=fields.flag("mlp_bias"))
    groups = replace(read_groups(fields, SOFTMAX), normalize=False, group_best=1)
    greedy = replace(groups, num_groups=1, top_groups=1)
    routing = fields.choice("topk_method", {"greedy": greedy, "group_limited_greedy": groups}, "greedy")
    shared = shared_width(fields, fields.count("moe_intermediate_size"), 2)
    return with_experts(fields, config, routing, _sparse_from(fields, 0), shared)


def _deepseek3(fields: Fields, config: ModelConfig) -> ModelConfig:
    if fields.get("topk_method") not in (None, "noaux_tc"):
        raise fields.bad("topk_method", f"must be noaux_tc, got {shown(fields.get('topk_method'))}")
    if fields.get("scoring_func") not in (None, "sigmoid"):
        raise fields.bad("scoring_func", f"must be sigmoid, got {shown(fields.get('scoring_func'))}")
    config = with_latent(fields, config)
    routing = replace(read_groups(fields, SIGMOID), normalize=fields.flag("norm_topk_prob", True))
    shared = shared_width(fields, fields.count("moe_intermediate_size"), 1)
    return with_experts(fields, config, routing, _sparse_from(fields, 3), shared, choice_bias=True)


def _glm4_lite(fields: Fields, config: ModelConfig) -> ModelConfig:
    """As DeepSeek-V3; one layer at the beginning is dense."""
    fields.read.update(("topk_method", "scoring_func"))
    config = with_latent(fields, config)
    routing = replace(read_groups(fields, SIGMOID), normalize=fields.flag("norm_topk_prob", True))
    shared = shared_width(fields, fields.count("moe_intermediate_size"), 1)
    return with_experts(fields, config, routing, _sparse_from(fields, 1), shared, choice_bias=True)


_DEEPSEEK2 = {
    **rms.LLAMA,
    "num_experts": 64,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "moe_intermediate_size": 1407,
}
_DEEPSEEK3 = {
    **_DEEPSEEK2,
    "max_position_embeddings": 4096,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "routed_scaling_factor": 2.5,
    "n_group": 8,
    "topk_group": 4,
}
_GLM4_LITE = {
    **_DEEPSEEK2,
    "max_position_embeddings": 202752,
    "rms_norm_eps": 1e-5,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1536,
    "routed_scaling_factor": 1.8,
}
_SPELLED = {"head_dim": "qk_rope_head_dim", "num_experts": "n_routed_experts"}
_STEMS: dict[str, str | tuple[str, ...]] = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.k_b_proj",
    "attn_v_b": "self_attn.v_b_proj",
}

LATENT_FAMILIES = (
    Family("deepseek_v2", "DeepseekV2ForCausalLM", "deepseek_v2", _DEEPSEEK2, _deepseek2, "DeepseekV2Model",
           layout=expert_layout(), spelled=_SPELLED, gguf=GGUFForm("deepseek2", _STEMS)),
    Family("deepseek_v3", "DeepseekV3ForCausalLM", "deepseek_v3", _DEEPSEEK3, _deepseek3, "DeepseekV3Model",
           layout=expert_layout(), spelled=_SPELLED),
    Family("glm4_moe_lite", "Glm4MoeLiteForCausalLM", "glm4_moe_lite", _GLM4_LITE, _glm4_lite, "Glm4MoeLiteModel",
           layout=expert_layout(), spelled=_SPELLED),
)  # fmt: skip
