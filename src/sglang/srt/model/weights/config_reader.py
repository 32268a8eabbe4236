"""Reads config.json and generation_config.json into a ModelConfig.

A family is a row of FAMILIES: which class names mean it, what transformers' config class assumes for absent fields, and one
function for what only this family has. GGUF metadata takes the same way: `gguf_config.py` spells it as a config.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sglang.srt.checkpoint.files import shown
from sglang.srt.errors import ModelError
from sglang.srt.model.kernels.ops import Gate
from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.quant.scheme import QuantConfig, parse_quantization
from sglang.srt.model.weights.config_fields import (
    MAX_EPS,
    MAX_ID,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_SIZE,
    MIN_EPS,
    Fields,
    read_json,
)
from sglang.srt.model.weights.rope_reader import read_local_rope, read_rope
from sglang.srt.model.weights.vision_config import VISION_FAMILIES, find_vision_family, text_part, with_vision

MAX_DTYPE_LEN = 32
MIN_SCALE = 1e-6
"""of attention scores and their caps"""

Finish = Callable[[Fields, ModelConfig], ModelConfig]

GATES: dict[str, Gate] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True)
class Family:
    """`architecture` is a key of models/registry.py; `class_name` and `model_type` are how config.json says it, `bare_name` that
    it is without a head: such a model embeds."""

    architecture: str
    class_name: str
    model_type: str
    defaults: Mapping[str, Any]
    finish: Finish
    bare_name: str = ""


def read_model_config(folder: Path, overrides: Mapping[str, Any]) -> ModelConfig:
    """The model of a Hugging Face folder. `overrides` replace fields of its config.json.

    Raises ModelError for a missing, damaged or unsupported config, and for overrides that mean nothing.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(f"{folder} has no config.json: it is not a model folder")
    config = parse_model_config(read_json(path), path, overrides)
    generation = folder / "generation_config.json"
    if generation.exists() and "eos_token_id" not in overrides:
        eos = Fields(read_json(generation), generation).ids("eos_token_id")
        _check_ids(eos, config, generation)
        config = replace(config, eos_token_ids=tuple(dict.fromkeys((*eos, *config.eos_token_ids))))
    return config


def parse_model_config(raw: Mapping[str, Any], source: Path, overrides: Mapping[str, Any]) -> ModelConfig:
    """A config.json's content as a ModelConfig; `source` is named in errors."""
    seeing = find_vision_family(raw.get("architectures"))
    if seeing is not None:
        text = text_part(raw, seeing, source)
        return with_vision(parse_model_config(text, source, overrides), raw, text, seeing, source)
    family = _find_family({**raw, **overrides}, source)
    fields = Fields(raw, source, family.defaults, overrides)
    fields.read.update(("architectures", "model_type"))
    config = replace(family.finish(fields, _common(fields, family)), quantization=_quantization(fields))
    fields.check_used()
    _check_ids(config.eos_token_ids, config, source)
    _check_ids(() if config.bos_token_id is None else (config.bos_token_id,), config, source, "bos_token_id")
    return config


def _check_ids(ids: tuple[int, ...], config: ModelConfig, source: Path, name: str = "eos_token_id") -> None:
    """An end that the model cannot produce would never come, a beginning that it does not know could not be read."""
    for token_id in ids:
        if token_id >= config.vocab_size:
            raise ModelError(f"{source}: {name} {token_id} is not below vocab_size ({config.vocab_size})")


def _quantization(fields: Fields) -> QuantConfig | None:
    raw = fields.get("quantization_config")
    if raw is None or raw == {}:
        return None
    try:
        return parse_quantization(raw)
    except ValueError as error:
        raise fields.bad("quantization_config", str(error)) from error


def _find_family(raw: Mapping[str, Any], source: Path) -> Family:
    classes = raw.get("architectures")
    if classes is None:
        classes = []
    if not isinstance(classes, list):
        raise ModelError(f"{source}: architectures must be a list, and is {shown(classes)}")
    for family in FAMILIES:
        if (
            family.class_name in classes
            or family.bare_name in classes
            or (not classes and family.model_type == raw.get("model_type"))
        ):
            return family
    asked = (
        ", ".join(c[:80] if isinstance(c, str) else shown(c) for c in classes[:4])
        or f"model_type {shown(raw.get('model_type'))}"
    )
    raise ModelError(f"{source}: {asked} is not supported; supported are {', '.join(_class_names())}")


def is_bare(folder: Path) -> bool:
    """Whether a model folder holds a decoder without a head."""
    path = folder / "config.json"
    classes = read_json(path).get("architectures") if path.is_file() else None
    return isinstance(classes, list) and any(family.bare_name in classes for family in FAMILIES if family.bare_name)


def _class_names() -> list[str]:
    return [*(f.class_name for f in FAMILIES), *(f.class_name for f in VISION_FAMILIES)]


def _common(fields: Fields, family: Family) -> ModelConfig:
    """What all families have."""
    for name, causal in (("is_causal", True), ("use_bidirectional_attention", False)):
        if fields.get(name) not in (None, causal):
            raise fields.bad(name, f"is {shown(fields.get(name))}: this is an encoder, and only decoders are supported")
    num_heads = fields.count("num_attention_heads")
    num_kv_heads = fields.count("num_key_value_heads", num_heads)
    hidden_size = fields.count("hidden_size")
    if num_heads % num_kv_heads:
        raise fields.bad("num_attention_heads", f"({num_heads}) must be a multiple of num_key_value_heads ({num_kv_heads})")
    head_dim = fields.count("head_dim", max(1, hidden_size // num_heads))
    context_len = fields.count("max_position_embeddings", most=MAX_POSITIONS)
    width = (num_heads + 2 * num_kv_heads) * head_dim
    if width > MAX_SIZE:
        raise fields.bad("head_dim", f"({head_dim}) makes rows of {width} values for q, k and v, and {MAX_SIZE} is the most")
    rope = read_rope(fields, head_dim, context_len, fields.defaults.get("rope_theta", 10000.0))
    if rope.kind == "yarn":  # such files often keep the length before scaling in max_position_embeddings
        context_len = min(max(context_len, int(rope.original_context_len * rope.factor)), MAX_POSITIONS)
    bos = fields.ids("bos_token_id")
    return ModelConfig(
        architecture=family.architecture,
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        num_layers=fields.count("num_hidden_layers", most=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=fields.count("intermediate_size"),
        context_len=context_len,
        rms_norm_eps=fields.number("rms_norm_eps", above=MIN_EPS, most=MAX_EPS),
        rope=rope,
        gate=fields.choice("hidden_act", GATES),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        eos_token_ids=fields.ids("eos_token_id"),
        bos_token_id=bos[0] if bos else None,
        dtype=_dtype(fields),
    )


def _dtype(fields: Fields) -> str:
    old, value = fields.get("torch_dtype"), fields.get("dtype")
    value = old if value is None else value
    if value is None:
        return "float32"
    if not isinstance(value, str) or not 0 < len(value) <= MAX_DTYPE_LEN:
        raise fields.bad("torch_dtype" if value is old else "dtype", f"must be a name, and is {shown(value)}")
    return value.removeprefix("torch.")


# --- windows ------------------------------------------------------------------------------------------------------------------


def _with_window(fields: Fields, config: ModelConfig, is_windowed: Callable[[int], bool]) -> ModelConfig:
    """Sets the sliding window, on the layers of `layer_types` if given, else on those that `is_windowed` says."""
    kinds, num_layers = fields.get("layer_types"), config.num_layers
    window = fields.get("sliding_window")
    if window is None:
        return config
    window = fields.count("sliding_window", most=MAX_ID)
    if kinds is None:
        layers = tuple(is_windowed(i) for i in range(num_layers))
    elif not isinstance(kinds, list) or len(kinds) < num_layers:
        raise fields.bad("layer_types", f"must name {num_layers} layers, and is {shown(kinds)}")
    else:
        for kind in kinds[:num_layers]:
            if kind not in ("full_attention", "sliding_attention"):
                raise fields.bad("layer_types", f"asks for {shown(kind)}, and known are full_attention and sliding_attention")
        layers = tuple(kind == "sliding_attention" for kind in kinds[:num_layers])
    return replace(config, sliding_window=window, windowed_layers=layers) if any(layers) else config


# --- families -----------------------------------------------------------------------------------------------------------------


def _llama(fields: Fields, config: ModelConfig) -> ModelConfig:
    bias = fields.flag("attention_bias")
    return replace(config, attention_bias=bias, output_bias=bias, mlp_bias=fields.flag("mlp_bias"))


def _mistral(fields: Fields, config: ModelConfig) -> ModelConfig:
    return _with_window(fields, config, lambda layer: True)


def _qwen(fields: Fields, config: ModelConfig) -> ModelConfig:
    use_window, first = fields.flag("use_sliding_window"), fields.get("max_window_layers")
    if not use_window:
        fields.read.update(("sliding_window", "layer_types"))
        return config
    if type(first) is not int or first < 0:
        raise fields.bad("max_window_layers", f"must be a number of layers, and is {shown(first)}")
    return _with_window(fields, config, lambda layer: layer >= first)


def _qwen2(fields: Fields, config: ModelConfig) -> ModelConfig:
    return replace(_qwen(fields, config), attention_bias=True)


def _qwen3(fields: Fields, config: ModelConfig) -> ModelConfig:
    bias = fields.flag("attention_bias")
    return replace(_qwen(fields, config), qk_norm=True, attention_bias=bias, output_bias=bias)


def _gemma3(fields: Fields, config: ModelConfig) -> ModelConfig:
    bias = fields.flag("attention_bias")
    pattern = fields.count("sliding_window_pattern", fields.count("_sliding_window_pattern", 6))
    config = replace(
        config,
        gate=fields.choice("hidden_activation", GATES),
        attention_bias=bias,
        output_bias=bias,
        qk_norm=True,
        post_norms=True,
        norm_offset=1.0,
        embedding_scale=math.sqrt(config.hidden_size),
        query_scale=fields.number("query_pre_attn_scalar", above=MIN_SCALE, most=1 / MIN_SCALE) ** -0.5,
        attn_soft_cap=fields.optional("attn_logit_softcapping", above=MIN_SCALE) or 0.0,
        final_soft_cap=fields.optional("final_logit_softcapping", above=MIN_SCALE) or 0.0,
        local_rope=read_local_rope(fields, config.head_dim, config.context_len),
    )
    return _with_window(fields, config, lambda layer: (layer + 1) % pattern != 0)


def _mllama(fields: Fields, config: ModelConfig) -> ModelConfig:
    """`cross_attention_layers` is read where the encoder is (vision_config.py)."""
    return replace(config, num_extra_ids=8)


_LLAMA = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
_MISTRAL = {
    **_LLAMA,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
_QWEN2 = {
    **_LLAMA,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_QWEN3 = {**_QWEN2, "head_dim": 128}
_GEMMA3 = {
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1_000_000.0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}

FAMILIES = (
    Family("llama", "LlamaForCausalLM", "llama", _LLAMA, _llama, "LlamaModel"),
    Family("llama", "MistralForCausalLM", "mistral", _MISTRAL, _mistral, "MistralModel"),
    Family("qwen2", "Qwen2ForCausalLM", "qwen2", _QWEN2, _qwen2, "Qwen2Model"),
    Family("qwen3", "Qwen3ForCausalLM", "qwen3", _QWEN3, _qwen3, "Qwen3Model"),
    Family("mllama", "MllamaForCausalLM", "mllama_text_model", {**_LLAMA, "rms_norm_eps": 1e-5}, _mllama),
    Family("gemma3", "Gemma3ForCausalLM", "gemma3_text", _GEMMA3, _gemma3, "Gemma3TextModel"),
)
