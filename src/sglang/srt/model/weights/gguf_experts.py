"""What a GGUF file says of experts and latent attention, in the words of config.json (families/mixtures.py, latents.py). Sizes and layers
of experts are those of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sglang.srt.checkpoint.gguf_reader import GGUFTensor

SCORES = {1: "softmax", 2: "sigmoid"}
"""expert_gating_func -> scoring_func"""
NORMALIZED = {"qwen3moe": True, "qwen2moe": False, "olmoe": False}
"""whether weights are divided by their sum, where files do not say and config.json would"""


def expert_fields(
    arch: str, tensors: Mapping[str, GGUFTensor], number: Callable[[str], Any], norm: bool | None, num_layers: int
) -> dict[str, Any]:
    """`number`: a number of the metadata, None if it is absent; `norm`: expert_weights_norm."""
    sparse = [f"blk.{i}.ffn_gate_inp.weight" in tensors for i in range(num_layers)]
    first = sparse.index(True) if True in sparse else 0
    gate, shared = (tensors.get(f"blk.{first}.{name}.weight") for name in ("ffn_gate_exps", "ffn_gate_shexp"))
    merged = tensors.get(f"blk.{first}.ffn_gate_up_exps.weight")
    width = gate.shape[1] if gate is not None and len(gate.shape) == 3 else number("expert_feed_forward_length")
    if gate is None and merged is not None and len(merged.shape) == 3:
        width = merged.shape[1] // 2
    return {
        "num_experts": number("expert_count"),
        "num_experts_per_tok": number("expert_used_count"),
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": shared.shape[0] if shared is not None else None,
        "n_shared_experts": None if shared is not None else 0,
        "mlp_layer_types": ["sparse" if each else "dense" for each in sparse],
        "norm_topk_prob": NORMALIZED.get(arch) if norm is None else norm,
        "routed_scaling_factor": number("expert_weights_scale") or None,
        "scoring_func": SCORES.get(number("expert_gating_func")),
        "n_group": number("expert_group_count") or None,
        "topk_group": number("expert_group_used_count") or None,
    }


LATENT = ("deepseek2",)
YARN_LOG = 0.1
"""yarn_log_multiplier of these files is mscale_all_dim times it"""
_V3_EXPERTS, _V3_GROUPS = 256, (8, 4)
"""older files do not say the groups of DeepSeek-V3's experts"""


def latent_fields(tensors: Mapping[str, GGUFTensor], number: Callable[[str], Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Latent attention (families/latents.py). Files of one architecture are of DeepSeek-V2 or, where experts are chosen by sigmoids,
    built as DeepSeek-V3. `number`: a number of the metadata, None if it is absent."""
    rank, rope = number("attention.kv_lora_rank"), number("rope.dimension_count")
    split, whole = tensors.get("blk.0.attn_k_b.weight"), tensors.get("blk.0.attn_kv_b.weight")
    key = number("attention.key_length_mla") or number("attention.key_length")
    value = number("attention.value_length_mla") or number("attention.value_length")
    is_big = raw.get("num_experts") == _V3_EXPERTS
    is_v3 = raw.get("scoring_func") == "sigmoid"
    params = dict(raw["rope_parameters"])
    flat = number("rope.scaling.yarn_log_multiplier")
    if flat:
        params.update(mscale=flat / YARN_LOG, mscale_all_dim=flat / YARN_LOG)
    return {
        "model_type": "deepseek_v3" if is_v3 else "deepseek_v2",
        "num_key_value_heads": raw["num_attention_heads"],
        "head_dim": None,
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": key - rope if type(key) is int and type(rope) is int else None,
        "v_head_dim": value,
        "kv_lora_rank": rank,
        "q_lora_rank": number("attention.q_lora_rank") or 0,
        "kv_b_is_split": split is not None and whole is None,
        "topk_method": None if is_v3 else "group_limited_greedy",
        "scoring_func": None if is_v3 else raw.get("scoring_func"),
        "n_group": raw.get("n_group") or (_V3_GROUPS[0] if is_big else 1),
        "topk_group": raw.get("topk_group") or (_V3_GROUPS[1] if is_big else 1),
        "routed_scaling_factor": raw.get("routed_scaling_factor") or 1.0,
        "norm_topk_prob": raw.get("norm_topk_prob") if is_v3 else None,
        "rope_parameters": params,
        "partial_rotary_factor": None,
    }
