"""What a GGUF file says of recurrent layers, in the words of config.json (families/hybrid.py, state_spaces.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from sglang.srt.checkpoint.gguf_reader import GGUFFile
from sglang.srt.errors import ModelError
from sglang.srt.model.weights.config_fields import MAX_LAYERS, MAX_SIZE


class Metadata(Protocol):
    """Of a GGUF file, under its architecture's prefix."""

    gguf: GGUFFile
    num_experts: Any

    def bad(self, key: str, what: str) -> ModelError: ...

    def get(self, key: str, default: Any = None) -> Any: ...

    def number(self, key: str, default: Any = None) -> Any: ...

    def size(self, key: str, default: int | None = None, most: int = MAX_SIZE) -> int: ...


RECURRENT_EXPERTS = ("granitehybrid", "qwen3next", "qwen35moe", "lfm2moe")
"""architectures that may have experts"""


def _kinds(meta: Metadata, kind: str) -> list[str] | None:
    """Layers without KV heads are recurrent."""
    heads = meta.get("attention.head_count_kv")
    return ["full_attention" if n else kind for n in heads.tolist()] if isinstance(heads, np.ndarray) else None


def _lfm2(meta: Metadata, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The width of feed-forward layers is the adjusted one."""
    fixed = {
        "block_auto_adjust_ff_dim": False,
        "use_expert_bias": any(n.endswith("exp_probs_b.bias") for n in meta.gguf.tensors),
    }
    return {"layer_types": _kinds(meta, "conv"), "conv_L_cache": meta.size("shortconv.l_cache", 3), **fixed}


def _granite_hybrid(meta: Metadata, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Files say with `rope.scaling.finetuned` whether attention has positions."""
    heads, inner = meta.size("ssm.time_step_rank"), meta.size("ssm.inner_size")
    dense = meta.gguf.tensors.get("blk.0.ffn_gate.weight")
    if inner % raw["hidden_size"]:
        raise meta.bad("ssm.inner_size", f"({inner}) must be a multiple of embedding_length ({raw['hidden_size']})")
    return {
        "layer_types": _kinds(meta, "linear_attention"),
        "position_embedding_type": "rope" if meta.get("rope.scaling.finetuned") is True else "nope",
        "embedding_multiplier": meta.number("embedding_scale"),
        "residual_multiplier": meta.number("residual_scale"),
        "attention_multiplier": meta.number("attention.scale"),
        "logits_scaling": meta.number("logit_scale"),
        "num_experts": raw.get("num_experts") or 0,
        "shared_expert_intermediate_size": dense.shape[0] if dense is not None else raw.get("shared_expert_intermediate_size"),
        "mamba_n_heads": heads,
        "mamba_d_head": inner // heads,
        "mamba_n_groups": meta.size("ssm.group_count"),
        "mamba_d_state": meta.size("ssm.state_size"),
        "mamba_d_conv": meta.size("ssm.conv_kernel"),
        "mamba_expand": inner // raw["hidden_size"],
        "mamba_conv_bias": any(name.endswith(".ssm_conv1d.bias") for name in meta.gguf.tensors),
        "mamba_proj_bias": any(name.endswith(".ssm_in.bias") for name in meta.gguf.tensors),
    }


def _falcon_h1(meta: Metadata, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Factors are part of the matrices."""
    heads, inner = meta.size("ssm.time_step_rank"), meta.size("ssm.inner_size")
    tensors = meta.gguf.tensors
    return {
        "mamba_d_ssm": inner,
        "mamba_n_heads": heads,
        "mamba_d_head": inner // heads,
        "mamba_n_groups": meta.size("ssm.group_count"),
        "mamba_d_state": meta.size("ssm.state_size"),
        "mamba_d_conv": meta.size("ssm.conv_kernel"),
        "mamba_conv_bias": "blk.0.ssm_conv1d.bias" in tensors,
        "mamba_proj_bias": "blk.0.ssm_in.bias" in tensors,
        "projectors_bias": "blk.0.ssm_out.bias" in tensors,
        "mamba_rms_norm": "blk.0.ssm_norm.weight" in tensors,
        "mamba_norm_before_gate": False,
    }


def _nemotron_h(meta: Metadata, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Which half a layer has, its tensors say."""
    heads, inner = meta.size("ssm.time_step_rank"), meta.size("ssm.inner_size")
    tensors = meta.gguf.tensors
    marks = {"ssm_in": "linear_attention", "attn_q": "full_attention", "ffn_up": "mlp"}
    kinds = [
        next((kind for mark, kind in marks.items() if f"blk.{i}.{mark}.weight" in tensors), "moe")
        for i in range(raw["num_hidden_layers"])
    ]
    return {
        "layers_block_type": kinds,
        "mamba_n_heads": heads,
        "mamba_d_head": inner // heads,
        "mamba_n_groups": meta.size("ssm.group_count"),
        "mamba_d_state": meta.size("ssm.state_size"),
        "mamba_d_conv": meta.size("ssm.conv_kernel"),
        "mamba_conv_bias": any(name.endswith(".ssm_conv1d.bias") for name in tensors),
        "mamba_proj_bias": any(name.endswith(".ssm_in.bias") for name in tensors),
    }


def _delta(meta: Metadata, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen3-Next and Qwen3.5. The last layers are for speculation, if there are any."""
    spare = meta.size("nextn_predict_layers", most=MAX_LAYERS) if meta.number("nextn_predict_layers") else 0
    layers = raw["num_hidden_layers"] - spare
    if layers < 1:
        raise meta.bad("nextn_predict_layers", f"leaves none of {raw['num_hidden_layers']} layers")
    heads, inner = meta.size("ssm.time_step_rank"), meta.size("ssm.inner_size")
    if inner % heads:
        raise meta.bad("ssm.inner_size", f"({inner}) must be a multiple of ssm.time_step_rank ({heads})")
    recurrent = [f"blk.{i}.ssm_a" in meta.gguf.tensors for i in range(layers)]
    return {
        "num_hidden_layers": layers,
        "layer_types": ["linear_attention" if each else "full_attention" for each in recurrent],
        "mlp_layer_types": (raw.get("mlp_layer_types") or [])[:layers] or None,
        "num_experts": raw.get("num_experts") or 0,
        "norm_topk_prob": True,
        "linear_num_key_heads": meta.size("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_key_head_dim": meta.size("ssm.state_size"),
        "linear_value_head_dim": inner // heads,
        "linear_conv_kernel_dim": meta.size("ssm.conv_kernel"),
    }


def _turned_delta(meta: Metadata, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Heads of v that share one of k do not stand together."""
    return {**_delta(meta, raw), "value_heads_take_turns": True}


RECURRENT_FIELDS: dict[str, Callable[[Any, Mapping[str, Any]], dict[str, Any]]] = {
    "lfm2": _lfm2,
    "lfm2moe": _lfm2,
    "granitehybrid": _granite_hybrid,
    "falcon-h1": _falcon_h1,
    "nemotron_h": _nemotron_h,
    "qwen3next": _delta,
    "qwen35": _turned_delta,
    "qwen35moe": _turned_delta,
}
"""architecture -> what only its files say or leave out"""
