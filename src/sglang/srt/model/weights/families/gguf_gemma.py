"""What GGUF files of Gemma 3n and Gemma 4 say, in the words of config.json (gemma4.py)."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np

from sglang.srt.checkpoint.files import shown
from sglang.srt.checkpoint.gguf_reader import GGUFFile
from sglang.srt.errors import ModelError


class Metadata(Protocol):
    """Metadata under the architecture's prefix (weights/gguf_config.py)."""

    gguf: GGUFFile

    def bad(self, key: str, what: str) -> ModelError: ...

    def get(self, key: str, default: Any = None) -> Any: ...

    def number(self, key: str, default: Any = None) -> Any: ...

    def size(self, key: str, default: int | None = None) -> int: ...

    def each(self, key: str, num_layers: int) -> list[int]: ...


def gemma4_fields(meta: Metadata, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The usual keys are of the layers without windows. K and V of a layer are one matrix where the file has no second."""
    tensors, layers = meta.gguf.tensors, raw["num_hidden_layers"]
    windowed = _windowed(raw, layers)
    heads = meta.each("attention.head_count_kv", layers)
    whole = [i for i in range(layers) if not windowed[i]]
    own = {str(i): {"head_dim": raw["head_dim"], "num_key_value_heads": heads[i]} for i in whole}
    local = [heads[i] for i in range(layers) if windowed[i]] or heads
    params = raw["rope_parameters"]
    return {
        **_shared(meta, raw),
        "head_dim": meta.size("attention.key_length_swa", raw["head_dim"]),
        "num_key_value_heads": local[0],
        "per_layer_config": own,
        "enable_moe_block": bool(meta.number("expert_count", 0)),
        "attention_k_eq_v": bool(whole) and f"blk.{whole[0]}.attn_v.weight" not in tensors,
        "rope_parameters": params if "rope_freqs.weight" in tensors else {**params, "full_attention": _partly(params)},
    }


def gemma3n_fields(meta: Metadata, raw: Mapping[str, Any]) -> dict[str, Any]:
    rank = meta.gguf.tensors.get("blk.0.laurel_l.weight")
    return {
        **_shared(meta, raw),
        "altup_num_inputs": meta.number("altup.num_inputs"),
        "altup_active_idx": meta.number("altup.active_idx"),
        "laurel_rank": rank.shape[0] if rank is not None else None,
        "activation_sparsity_pattern": _sparsity(meta),
    }


def _shared(meta: Metadata, raw: Mapping[str, Any]) -> dict[str, Any]:
    table = meta.gguf.tensors.get("per_layer_token_embd.weight")
    widths = meta.get("feed_forward_length")
    layers = raw["num_hidden_layers"]
    return {
        "num_kv_shared_layers": meta.number("attention.shared_kv_layers", 0),
        "pad_token_id": meta.gguf.metadata.get("tokenizer.ggml.padding_token_id"),
        "hidden_size_per_layer_input": meta.number("embedding_length_per_layer_input", 0),
        "vocab_size_per_layer_input": table.shape[0] if table is not None else None,
        "intermediate_size": meta.each("feed_forward_length", layers) if isinstance(widths, np.ndarray) else widths,
    }


def _windowed(raw: Mapping[str, Any], num_layers: int) -> list[bool]:
    kinds = raw.get("layer_types")
    if kinds is None:
        return [(i + 1) % 6 != 0 for i in range(num_layers)]
    return [kind == "sliding_attention" for kind in kinds[:num_layers]]


def _partly(params: Mapping[str, Any]) -> dict[str, Any]:
    """A quarter of each head turns, where the file has no divisors of frequencies."""
    return {**params["full_attention"], "rope_type": "proportional", "partial_rotary_factor": 0.25}


def _sparsity(meta: Metadata) -> list[float] | None:
    """The file has standard deviations above the mean; that of no sparsity is minus infinity."""
    values = meta.get("activation_sparsity_scale")
    if values is None:
        return None
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or np.isnan(values).any():
        raise meta.bad("activation_sparsity_scale", f"must be a number for each layer, got {shown(values)}")
    return [0.0 if np.isneginf(v) else NormalDist().cdf(float(v)) for v in values]
