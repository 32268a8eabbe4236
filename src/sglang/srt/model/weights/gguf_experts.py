"""What a GGUF file says of experts, in the words of config.json (families/mixtures.py). Sizes and layers are those of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sglang.srt.checkpoint.gguf_reader import GGUFTensor

SCORES = {1: "softmax", 2: "sigmoid"}
"""expert_gating_func -> scoring_func"""
NORMALISED = {"qwen3moe": True, "qwen2moe": False, "olmoe": False}
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
        "norm_topk_prob": NORMALISED.get(arch) if norm is None else norm,
        "routed_scaling_factor": number("expert_weights_scale") or None,
        "scoring_func": SCORES.get(number("expert_gating_func")),
        "n_group": number("expert_group_count") or None,
        "topk_group": number("expert_group_used_count") or None,
    }
