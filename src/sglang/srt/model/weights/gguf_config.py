"""Reads a GGUF file's metadata into a ModelConfig.

The metadata is spelled as a config.json of Hugging Face and takes the same way from there, so that a family is described once
and overrides work alike. What GGUF does differently is put right at the end: gemma's norm weights are stored with their
offset added, biases are known by their tensors, and llama3 rope scaling is a tensor of divisors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sglang.srt.checkpoint.files import shown
from sglang.srt.checkpoint.gguf_reader import GGUFFile
from sglang.srt.errors import ModelError
from sglang.srt.model.model_config import ModelConfig, RopeConfig
from sglang.srt.model.weights.config_fields import MAX_ID, MAX_LAYERS, MAX_POSITIONS, MAX_SIZE
from sglang.srt.model.weights.config_reader import MIN_SCALE, parse_model_config

MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
"""general.architecture -> config.json's model_type"""

ROPE_DIVISORS = "rope_freqs.weight"
EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
GEMMA3_27B_LAYERS = 62
MIN_DIVISOR = 1e-6
TOLD_BY_TENSORS = ("tie_word_embeddings", "attention_bias", "mlp_bias")


def read_gguf_config(gguf: GGUFFile, overrides: Mapping[str, Any]) -> ModelConfig:
    """The model of a GGUF file; `overrides` are fields of a config.json. Raises ModelError."""
    meta = _Meta(gguf)
    for name in TOLD_BY_TENSORS:
        if name in overrides:
            raise ModelError(f"json_model_override_args: {name!r} is told by the tensors of a .gguf file and cannot be changed")
    config = parse_model_config(_as_hugging_face(meta), gguf.path, overrides)
    if meta.arch == "llama" and config.rope.rotary_dim != config.head_dim:
        raise meta.bad("rope.dimension_count", f"is {config.rope.rotary_dim}, and only whole heads of {config.head_dim} rotate")
    tensors = gguf.tensors
    scale = meta.number("attention.scale")
    return replace(
        config,
        rope=_with_divisors(meta, config.rope),
        norm_offset=0.0,
        tie_word_embeddings="output.weight" not in tensors,
        attention_bias="blk.0.attn_q.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        query_scale=config.query_scale if scale is None else _scale(meta, scale),
    )


def _scale(meta: _Meta, scale: float) -> float:
    if not MIN_SCALE < scale < 1 / MIN_SCALE:
        raise meta.bad("attention.scale", f"must lie between {MIN_SCALE:g} and {1 / MIN_SCALE:g}, and is {scale:g}")
    return float(scale)


class _Meta:
    """Metadata under the architecture's prefix."""

    def __init__(self, gguf: GGUFFile) -> None:
        self.gguf = gguf
        arch = gguf.metadata.get("general.architecture")
        if not isinstance(arch, str) or arch not in MODEL_TYPES:
            raise ModelError(
                f"{gguf.path}: general.architecture {shown(arch)} is not supported; supported are {', '.join(MODEL_TYPES)}"
            )
        self.arch = arch
        parts = gguf.metadata.get("split.count", 1)
        if type(parts) is not int or parts not in (0, 1):
            raise ModelError(f"{gguf.path} is one part of a split model: merge the parts with llama-gguf-split --merge first")
        if self.number("expert_count"):
            raise ModelError(f"{gguf.path}: mixtures of experts are not supported")

    def bad(self, key: str, what: str) -> ModelError:
        return ModelError(f"{self.gguf.path}: {self.arch}.{key} {what}")

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is."""
        return self.gguf.metadata.get(f"{self.arch}.{key}", default)

    def number(self, key: str, default: Any = None) -> Any:
        """A finite number, or the default if absent."""
        value = self.get(key, default)
        if value is not default and not (type(value) in (int, float) and math.isfinite(value)):
            raise self.bad(key, f"must be a number, and is {shown(value)}")
        return value

    def size(self, key: str, default: int | None = None, most: int = MAX_SIZE) -> int:
        """An integer from 1 to `most`, the same for all layers if it is written once per layer."""
        value = self.get(key, default)
        if isinstance(value, np.ndarray):
            if len(value) == 0 or (value != value[0]).any():
                raise self.bad(key, f"differs between layers ({value.tolist()[:8]}), which is not supported")
            value = value[0].item()
        if type(value) is not int or value < 1:
            raise self.bad(key, "is missing" if value is None else f"must be a positive integer, and is {shown(value)}")
        if value > most:
            raise self.bad(key, f"must be at most {most}, and is {value}")
        return value


def _as_hugging_face(meta: _Meta) -> dict[str, Any]:
    """The metadata in the words of config.json; absent keys are left out, so that the family's defaults hold."""
    gguf, arch = meta.gguf, meta.arch
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{gguf.path} has no matrix 'token_embd.weight': it is not a whole language model")
    num_heads, hidden = meta.size("attention.head_count"), meta.size("embedding_length")
    head_dim = meta.size("attention.key_length", hidden // num_heads)
    if meta.size("attention.value_length", head_dim) != head_dim:
        raise meta.bad("attention.value_length", f"differs from the key length {head_dim}, which is not supported")
    raw = {
        "model_type": MODEL_TYPES[arch],
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "num_hidden_layers": meta.size("block_count", most=MAX_LAYERS),
        "num_attention_heads": num_heads,
        "num_key_value_heads": meta.size("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "intermediate_size": meta.size("feed_forward_length"),
        "max_position_embeddings": meta.size("context_length", most=MAX_POSITIONS),
        "rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon"),
        "attn_logit_softcapping": meta.number("attn_logit_softcapping"),
        "final_logit_softcapping": meta.number("final_logit_softcapping"),
        "eos_token_id": _eos_ids(gguf),
        "bos_token_id": _token_id(gguf, "bos_token_id"),
        "dtype": _main_format(gguf),
        **_rope(meta, head_dim),
    }
    if arch == "gemma3":
        raw.update(_gemma3(meta, raw))
    elif arch == "llama" and meta.number("attention.sliding_window"):  # Mistral's first models, every layer of which has it
        raw.update(model_type="mistral", sliding_window=meta.size("attention.sliding_window", most=MAX_ID))
    elif meta.number("attention.sliding_window"):
        raise meta.bad("attention.sliding_window", "is set, and says not which layers it is for: use the Hugging Face folder")
    return {name: value for name, value in raw.items() if value is not None}


def _gemma3(meta: _Meta, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The scale of queries is not in the file: 1 / sqrt(head_dim) but for 27B, which has hidden_size / num_heads instead."""
    is_27b = raw["num_hidden_layers"] == GEMMA3_27B_LAYERS
    window, pattern = meta.number("attention.sliding_window"), meta.get("attention.sliding_window_pattern", 6)
    kinds = None
    if isinstance(pattern, np.ndarray):
        kinds = ["sliding_attention" if windowed else "full_attention" for windowed in pattern.tolist()]
        pattern = None
    return {
        "query_pre_attn_scalar": raw["hidden_size"] // raw["num_attention_heads"] if is_27b else raw["head_dim"],
        "sliding_window": window or None,
        "sliding_window_pattern": pattern,
        "layer_types": kinds,
    }


def _rope(meta: _Meta, head_dim: int) -> dict[str, Any]:
    default_theta = 1_000_000.0 if meta.arch == "gemma3" else 10000.0
    params: dict[str, Any] = {"rope_theta": meta.number("rope.freq_base", default_theta)}
    kind, factor = meta.get("rope.scaling.type"), meta.number("rope.scaling.factor", 0.0)
    if kind is not None and not isinstance(kind, str):
        raise meta.bad("rope.scaling.type", f"must be a name, and is {shown(kind)}")
    if kind is None and (factor or meta.number("rope.scale_linear")):  # files older than rope.scaling.type
        kind, factor = "linear", factor or meta.number("rope.scale_linear")
    if kind not in (None, "none"):
        params.update(rope_type=kind, factor=factor)
        params["original_max_position_embeddings"] = meta.number("rope.scaling.original_context_length")
    if kind == "yarn":
        params["beta_fast"] = meta.number("rope.scaling.yarn_beta_fast")
        params["beta_slow"] = meta.number("rope.scaling.yarn_beta_slow")
        params["attention_factor"] = _yarn_attention_factor(meta, factor)
    raw: dict[str, Any] = {"partial_rotary_factor": meta.size("rope.dimension_count", head_dim) / head_dim}
    if meta.arch != "gemma3":
        return {**raw, "rope_parameters": params}
    local = {"rope_theta": meta.number("rope.freq_base_swa", 10000.0)}
    return {**raw, "rope_parameters": {"full_attention": params, "sliding_attention": local}}


def _yarn_attention_factor(meta: _Meta, factor: float) -> float | None:
    """GGUF's own factor comes on top of the paper's."""
    own = meta.number("rope.scaling.yarn_attn_factor", meta.number("rope.scaling.attn_factor"))
    if own is None:
        return None
    return float(own * (0.1 * math.log(factor) + 1.0)) if factor > 1 else float(own)


def _with_divisors(meta: _Meta, rope: RopeConfig) -> RopeConfig:
    tensor = meta.gguf.tensors.get(ROPE_DIVISORS)
    if tensor is None:
        return rope
    if tensor.format != "f32" or tensor.shape != (rope.rotary_dim // 2,):
        raise ModelError(
            f"{meta.gguf.path}: tensor {ROPE_DIVISORS!r} is {tensor.format} {list(tensor.shape)}, and f32 [{rope.rotary_dim // 2}] "
            "is what the heads need: convert the model again"
        )
    if not (np.isfinite(tensor.data).all() and (tensor.data > MIN_DIVISOR).all()):
        raise ModelError(f"{meta.gguf.path}: tensor {ROPE_DIVISORS!r} holds values that are not positive numbers")
    return replace(rope, freq_divisors=tuple(tensor.data.tolist()))


def _eos_ids(gguf: GGUFFile) -> list[int]:
    ids = [_token_id(gguf, key) for key in EOS_KEYS]
    return list(dict.fromkeys(i for i in ids if i is not None))


def _token_id(gguf: GGUFFile, key: str) -> int | None:
    value = gguf.metadata.get(f"tokenizer.ggml.{key}")
    if value is not None and (type(value) is not int or not 0 <= value <= MAX_ID):
        raise ModelError(f"{gguf.path}: tokenizer.ggml.{key} must be a token id, and is {shown(value)}")
    return value


def _main_format(gguf: GGUFFile) -> str:
    """The format that most bytes of the matrices have."""
    sizes: dict[str, int] = {}
    for tensor in gguf.tensors.values():
        if len(tensor.shape) == 2 and not tensor.name.startswith("token_embd"):
            sizes[tensor.format] = sizes.get(tensor.format, 0) + tensor.data.nbytes
    return max(sizes, key=lambda name: sizes[name], default="f32")
