"""Reads a GGUF file's metadata into a ModelConfig.

The metadata is converted to a config.json of Hugging Face and read like one, so that a family is described once and overrides work
the same. Differences of GGUF are corrected at the end: gemma's norm weights include their offset, biases are found by their tensors,
and llama3 rope scaling is a tensor of divisors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sglang.srt.checkpoint.files import shown
from sglang.srt.checkpoint.gguf_reader import GGUFFile
from sglang.srt.errors import ModelError
from sglang.srt.model.model_config import ModelConfig, RopeConfig, TensorLayout
from sglang.srt.model.weights.config_fields import MAX_ID, MAX_LAYERS, MAX_POSITIONS, MAX_SIZE
from sglang.srt.model.weights.config_reader import parse_model_config
from sglang.srt.model.weights.families.family import MIN_SCALE, Family
from sglang.srt.model.weights.families.gguf_gemma import gemma3n_fields, gemma4_fields
from sglang.srt.model.weights.families.gguf_states import RECURRENT_EXPERTS, RECURRENT_FIELDS
from sglang.srt.model.weights.families.latents import LATENT_FAMILIES
from sglang.srt.model.weights.families.mixtures import EXPERT_FAMILIES
from sglang.srt.model.weights.families.table import FAMILIES
from sglang.srt.model.weights.family_source import gguf_layout
from sglang.srt.model.weights.gguf_experts import LATENT, expert_fields, latent_fields

BY_ARCHITECTURE: dict[str, Family] = {family.gguf.architecture: family for family in FAMILIES if family.gguf is not None}
"""general.architecture -> family"""
EXPERTS = {
    "llama",
    "gemma4",
    *RECURRENT_EXPERTS,
    *(family.gguf.architecture for family in (*EXPERT_FAMILIES, *LATENT_FAMILIES) if family.gguf is not None),
}
"""architectures that may have experts"""
EMBEDDING = {"gemma-embedding": "gemma3"}
"""architectures that embed -> the one that they are but for seeing both ways"""
SEEING = {"qwen2vl": "qwen2", "qwen3vl": "qwen3"}
"""decoders of vision-language models -> what they are to texts"""

ROPE_DIVISORS = "rope_freqs.weight"
LONGROPE = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
GEMMA2_27B_LAYERS, GEMMA3_27B_LAYERS = 46, 62
MIN_DIVISOR = 1e-6
TWO_ROPES = ("gemma3", "gemma3n", "gemma4")
"""families whose layers with windows have a rope of their own"""
UNEQUAL_LAYERS = ("gemma3n", "gemma4")
WHOLE_HEADS = ("llama", "mistral3", "granite", "granitemoe", "granitehybrid", "minicpm", "smollm3", "arcee", "internlm2")
"""whose q and k were put in interleaved order over whole heads, so only whole heads can be put back"""
TOLD_BY_TENSORS = ("tie_word_embeddings", "attention_bias", "mlp_bias")
STEMS: dict[str, str | tuple[str, ...]] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""of a layer's tensors"""


def read_gguf_config(gguf: GGUFFile, overrides: Mapping[str, Any]) -> ModelConfig:
    """The model of a GGUF file; `overrides` are fields of a config.json. Raises ModelError."""
    meta = _Meta(gguf)
    for name in TOLD_BY_TENSORS:
        if name in overrides:
            raise ModelError(
                f"json_model_override_args: {name!r} is given by the tensors of a .gguf file and cannot be changed"
            )
    config = parse_model_config(_as_hugging_face(meta), gguf.path, overrides)
    if meta.arch in WHOLE_HEADS and config.rope.rotary_dim != config.head_dim:
        raise meta.bad("rope.dimension_count", f"is {config.rope.rotary_dim}, and only whole heads of {config.head_dim} rotate")
    tensors = gguf.tensors
    scale = meta.number("attention.scale")
    return replace(
        config,
        rope=_with_divisors(meta, config.rope),
        layout=gguf_layout_of(meta.family, config),
        norm_offset=0.0,
        tie_word_embeddings="output.weight" not in tensors,
        attention_bias=_has_tensor(meta, "attn_q.bias") or _has_tensor(meta, "attn_qkv.bias"),
        output_bias=_has_tensor(meta, "attn_output.bias"),
        mlp_bias=_has_tensor(meta, "ffn_up.bias"),
        query_scale=config.query_scale if scale is None else _scale(meta, scale),
    )


def gguf_layout_of(family: Family, config: ModelConfig) -> TensorLayout:
    """How GGUF files of a family that has them name and cut what the decoder reads."""
    assert family.gguf is not None
    stems = {**STEMS, **family.gguf.stems}
    if config.norm_place == "around":
        stems["ffn_norm"] = "pre_feedforward_layernorm"
    return gguf_layout(stems, family.gguf.interleaved)


def _scale(meta: _Meta, scale: float) -> float:
    if not MIN_SCALE < scale < 1 / MIN_SCALE:
        raise meta.bad("attention.scale", f"must lie between {MIN_SCALE:g} and {1 / MIN_SCALE:g}, got {scale:g}")
    return float(scale)


class _Meta:
    """Metadata under the architecture's prefix."""

    def __init__(self, gguf: GGUFFile) -> None:
        self.gguf = gguf
        arch = gguf.metadata.get("general.architecture")
        kind = (EMBEDDING | SEEING).get(arch, arch) if isinstance(arch, str) else ""
        if not isinstance(arch, str) or kind not in BY_ARCHITECTURE:
            raise ModelError(
                f"{gguf.path}: general.architecture {shown(arch)} is not supported; docs/models.md lists the "
                f"{len(BY_ARCHITECTURE) + len(EMBEDDING) + len(SEEING)} that are"
            )
        self.arch, self.kind = arch, kind
        self.family = BY_ARCHITECTURE[kind]
        self.num_experts = self.number("expert_count", 0)
        if self.num_experts and kind not in EXPERTS:
            raise ModelError(f"{gguf.path}: {arch} with experts is not supported; docs/models.md lists the families that are")

    def bad(self, key: str, what: str) -> ModelError:
        return ModelError(f"{self.gguf.path}: {self.arch}.{key} {what}")

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is."""
        return self.gguf.metadata.get(f"{self.arch}.{key}", default)

    def number(self, key: str, default: Any = None) -> Any:
        """A finite number, or the default if absent."""
        value = self.get(key, default)
        if value is not default and not (type(value) in (int, float) and math.isfinite(value)):
            raise self.bad(key, f"must be a number, got {shown(value)}")
        return value

    def size(self, key: str, default: int | None = None, most: int = MAX_SIZE) -> int:
        """An integer from 1 to `most`, the same for all layers if it is written once per layer."""
        value = self.get(key, default)
        if isinstance(value, np.ndarray):
            if key in ("attention.head_count_kv", "feed_forward_length"):  # layers without that half have none
                value = value[value != 0] if (value != 0).any() else value
            if len(value) == 0 or (value != value[0]).any():
                raise self.bad(key, f"differs between layers ({value.tolist()[:8]}), which is not supported")
            value = value[0].item()
        if type(value) is not int or value < 1:
            raise self.bad(key, "is missing" if value is None else f"must be a positive integer, got {shown(value)}")
        if value > most:
            raise self.bad(key, f"must be at most {most}, got {value}")
        return value

    def most(self, key: str, default: int | None = None) -> int:
        """As `size`; the largest of several where the family's layers differ."""
        value = self.get(key)
        if self.kind not in UNEQUAL_LAYERS or not isinstance(value, np.ndarray) or not len(value):
            return self.size(key, default)
        return max(self.each(key, len(value)))

    def each(self, key: str, num_layers: int) -> list[int]:
        """A positive integer of each layer."""
        value = self.get(key)
        values = value.tolist() if isinstance(value, np.ndarray) else [value] * num_layers
        if len(values) < num_layers or any(type(v) is not int or not 0 < v <= MAX_SIZE for v in values):
            raise self.bad(key, f"must be {num_layers} positive integers, got {shown(values[:8])}")
        return values[:num_layers]


def _as_hugging_face(meta: _Meta) -> dict[str, Any]:
    """The metadata in the words of config.json; absent keys are left out, so that the family's defaults hold."""
    gguf = meta.gguf
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{gguf.path} has no matrix 'token_embd.weight': it is not a whole language model")
    num_heads, hidden = meta.size("attention.head_count"), meta.size("embedding_length")
    head_dim = meta.size("attention.key_length", hidden // num_heads)
    if meta.kind not in LATENT and meta.size("attention.value_length", head_dim) != head_dim:
        raise meta.bad("attention.value_length", f"differs from the key length {head_dim}, which is not supported")
    raw = {
        "model_type": meta.family.model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "num_hidden_layers": meta.size("block_count", most=MAX_LAYERS),
        "num_attention_heads": num_heads,
        "num_key_value_heads": meta.most("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "intermediate_size": meta.most("feed_forward_length", meta.get("expert_feed_forward_length")),
        "max_position_embeddings": meta.size("context_length", most=MAX_POSITIONS),
        "rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon", meta.number("attention.layer_norm_epsilon")),
        "attn_logit_softcapping": meta.number("attn_logit_softcapping"),
        "final_logit_softcapping": meta.number("final_logit_softcapping"),
        "eos_token_id": _eos_ids(gguf),
        "bos_token_id": _token_id(gguf, "bos_token_id"),
        "dtype": _main_format(gguf),
        **_rope(meta, head_dim),
    }
    raw.update(_windows(meta))
    if meta.num_experts:
        raw.update(_experts(meta, raw["num_hidden_layers"]))
    if meta.kind in PECULIAR:
        raw.update(PECULIAR[meta.kind](meta, raw))
    if meta.arch in EMBEDDING:
        raw["use_bidirectional_attention"] = True
    return {name: value for name, value in raw.items() if value is not None}


def _experts(meta: _Meta, num_layers: int) -> dict[str, Any]:
    norm = meta.get("expert_weights_norm")
    if norm not in (None, False, True):
        raise meta.bad("expert_weights_norm", f"must be true or false, got {shown(norm)}")
    if not any(name.endswith(".ffn_gate_inp.weight") for name in meta.gguf.tensors):
        raise meta.bad(
            "expert_count", f"is {meta.num_experts}, and no layer has a tensor 'ffn_gate_inp.weight' that chooses among them"
        )
    return expert_fields(meta.arch, meta.gguf.tensors, meta.number, norm, num_layers)


def _windows(meta: _Meta) -> dict[str, Any]:
    """The window, and on which layers it is, where the file says so or the family does."""
    window, pattern = meta.number("attention.sliding_window"), meta.get("attention.sliding_window_pattern")
    if not window:
        return {}
    window = meta.size("attention.sliding_window", most=MAX_ID)
    if isinstance(pattern, np.ndarray):
        kinds = ["sliding_attention" if windowed else "full_attention" for windowed in pattern.tolist()]
        return {"sliding_window": window, "layer_types": kinds}
    if pattern is None and meta.kind not in WINDOWED:
        raise meta.bad("attention.sliding_window", "is set, and says not which layers it is for: use the Hugging Face folder")
    return {"sliding_window": window, "sliding_window_pattern": pattern}


WINDOWED = ("llama", "mistral3", "phi3", "gemma2", "gemma3", "cohere2", "exaone4", "starcoder2", "gpt-oss")
"""families of which it is known which layers have the window"""


def _llama(meta: _Meta, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Mistral's first models, every layer of which has a window, and Mixtral."""
    if meta.num_experts:
        return {"model_type": "mixtral"}
    return {"model_type": "mistral"} if raw.get("sliding_window") else {}


def _gemma(meta: _Meta, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The scale of queries is not in the file: 1 / sqrt(head_dim) but for 27B, which has hidden_size / num_heads instead."""
    is_27b = raw["num_hidden_layers"] == (GEMMA2_27B_LAYERS if meta.arch == "gemma2" else GEMMA3_27B_LAYERS)
    return {"query_pre_attn_scalar": raw["hidden_size"] // raw["num_attention_heads"] if is_27b else raw["head_dim"]}


def _granite(meta: _Meta, raw: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "embedding_multiplier": meta.number("embedding_scale"),
        "residual_multiplier": meta.number("residual_scale"),
        "attention_multiplier": meta.number("attention.scale"),
        "logits_scaling": meta.number("logit_scale"),
    }


def _minicpm(meta: _Meta, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Values that the file lacks are those of the first models."""
    layers, hidden = raw["num_hidden_layers"], raw["hidden_size"]
    residual, logits = meta.number("residual_scale", 1.4 / layers**0.5), meta.number("logit_scale", hidden / 256)
    if not logits > 0:
        raise meta.bad("logit_scale", f"must be positive, got {logits:g}")
    return {
        "scale_emb": meta.number("embedding_scale", 12.0),
        "scale_depth": residual * layers**0.5,
        "dim_model_base": hidden / logits,
    }


def _olmo2(meta: _Meta, raw: Mapping[str, Any]) -> dict[str, Any]:
    """OLMo 3 has windows, and scaling of rope for the layers without."""
    if not raw.get("sliding_window"):
        return {}
    base = {"rope_theta": raw["rope_parameters"]["rope_theta"]}
    return {"model_type": "olmo3", "rope_parameters": {"full_attention": raw["rope_parameters"], "sliding_attention": base}}


def _mistral3(meta: _Meta, raw: Mapping[str, Any]) -> dict[str, Any]:
    """`yarn_log_multiplier` cancels what yarn does to the size of scores."""
    params = dict(raw["rope_parameters"])
    flat = meta.number("rope.scaling.yarn_log_multiplier")
    params.update({"mscale": flat, "mscale_all_dim": flat} if flat else {})
    params["llama_4_scaling_beta"] = meta.number("attention.temperature_scale")
    return {"rope_parameters": params}


def _cohere(meta: _Meta, raw: Mapping[str, Any]) -> dict[str, Any]:
    return {"logit_scale": meta.number("logit_scale"), "use_qk_norm": "blk.0.attn_q_norm.weight" in meta.gguf.tensors}


def _gpt_oss(meta: _Meta, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Which layers have windows is known, and that rope's range is not rounded."""
    return {"sliding_window_pattern": None, "rope_parameters": {**raw["rope_parameters"], "truncate": False}}


def _bailing2(meta: _Meta, raw: Mapping[str, Any]) -> dict[str, Any]:
    found = _glm4_moe(meta, raw)
    return {
        **found,
        "score_function": raw.get("scoring_func"),
        "moe_router_enable_expert_bias": _has_tensor(meta, "exp_probs_b.bias"),
    }


def _has_tensor(meta: _Meta, name: str) -> bool:
    """In some layer."""
    return any(each.endswith(f".{name}") for each in meta.gguf.tensors)


def _glm4_moe(meta: _Meta, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The last layers are for speculation."""
    layers = (
        raw["num_hidden_layers"] - meta.size("nextn_predict_layers", most=MAX_LAYERS)
        if meta.number("nextn_predict_layers")
        else None
    )
    return {
        "num_hidden_layers": layers or raw["num_hidden_layers"],
        "use_qk_norm": "blk.0.attn_q_norm.weight" in meta.gguf.tensors,
    }


def _deepseek2(meta: _Meta, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The last layers are for speculation, if there are any."""
    spare = meta.size("nextn_predict_layers", most=MAX_LAYERS) if meta.number("nextn_predict_layers") else 0
    layers = raw["num_hidden_layers"] - spare
    if layers < 1:
        raise meta.bad("nextn_predict_layers", f"leaves none of {raw['num_hidden_layers']} layers")
    found = latent_fields(meta.gguf.tensors, meta.number, raw)
    return {**found, "num_hidden_layers": layers, "mlp_layer_types": (raw.get("mlp_layer_types") or [])[:layers] or None}


def _stablelm(meta: _Meta, raw: Mapping[str, Any]) -> dict[str, Any]:
    tensors = meta.gguf.tensors
    return {
        "qk_layernorm": "blk.0.attn_q_norm.weight" in tensors,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors,
    }


def _gpt_neox(meta: _Meta, raw: Mapping[str, Any]) -> dict[str, Any]:
    return {"use_parallel_residual": meta.get("use_parallel_residual")}


PECULIAR: dict[str, Callable[[_Meta, Mapping[str, Any]], dict[str, Any]]] = {
    "llama": _llama,
    "gemma2": _gemma,
    "gemma3": _gemma,
    "gemma3n": gemma3n_fields,
    "gemma4": gemma4_fields,
    "granite": _granite,
    "granitemoe": _granite,
    "minicpm": _minicpm,
    "olmo2": _olmo2,
    "mistral3": _mistral3,
    "glm4moe": _glm4_moe,
    "bailingmoe2": _bailing2,
    "gpt-oss": _gpt_oss,
    "deepseek2": _deepseek2,
    "command-r": _cohere,
    "cohere2": _cohere,
    "stablelm": _stablelm,
    "gptneox": _gpt_neox,
    **RECURRENT_FIELDS,
}
"""architecture -> what only its files say or leave out"""


def _rope(meta: _Meta, head_dim: int) -> dict[str, Any]:
    default_theta = 1_000_000.0 if meta.kind in TWO_ROPES else 10000.0
    params: dict[str, Any] = {"rope_theta": meta.number("rope.freq_base", default_theta)}
    kind, factor = meta.get("rope.scaling.type"), meta.number("rope.scaling.factor", 0.0)
    if kind is not None and not isinstance(kind, str):
        raise meta.bad("rope.scaling.type", f"must be a name, got {shown(kind)}")
    if kind is None and (factor or meta.number("rope.scale_linear")):  # files older than rope.scaling.type
        kind, factor = "linear", factor or meta.number("rope.scale_linear")
    if kind not in (None, "none"):
        params.update(rope_type=kind, factor=factor)
        params["original_max_position_embeddings"] = meta.number("rope.scaling.original_context_length")
    if kind == "yarn":
        params["beta_fast"] = meta.number("rope.scaling.yarn_beta_fast")
        params["beta_slow"] = meta.number("rope.scaling.yarn_beta_slow")
        params["attention_factor"] = _yarn_attention_factor(meta, factor)
    params.update({name: _divisors(meta, stored, None) for name, stored in LONGROPE.items() if stored in meta.gguf.tensors})
    if "long_factor" in params:
        params.update(rope_type="longrope", factor=None, attention_factor=meta.number("rope.scaling.attn_factor"))
        params["original_max_position_embeddings"] = meta.number("rope.scaling.original_context_length")
    raw: dict[str, Any] = {"partial_rotary_factor": meta.size("rope.dimension_count", head_dim) / head_dim}
    if meta.kind not in TWO_ROPES:
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
    if ROPE_DIVISORS not in meta.gguf.tensors:
        return rope
    return replace(rope, freq_divisors=tuple(_divisors(meta, ROPE_DIVISORS, rope.rotary_dim // 2)))


def _divisors(meta: _Meta, name: str, length: int | None) -> list[float]:
    """A tensor of what frequencies are divided by, of the length that heads need."""
    tensor = meta.gguf.tensors[name]
    if tensor.format != "f32" or len(tensor.shape) != 1 or length not in (None, tensor.shape[0]):
        raise ModelError(
            f"{meta.gguf.path}: tensor {name!r} is {tensor.format} {list(tensor.shape)}, and f32 [{length or 'n'}] "
            "is what the heads need: convert the model again"
        )
    if not (np.isfinite(tensor.data).all() and (tensor.data > MIN_DIVISOR).all()):
        raise ModelError(f"{meta.gguf.path}: tensor {name!r} holds values that are not positive numbers")
    values: list[float] = tensor.data.tolist()
    return values


def _eos_ids(gguf: GGUFFile) -> list[int]:
    ids = [_token_id(gguf, key) for key in EOS_KEYS]
    return list(dict.fromkeys(i for i in ids if i is not None))


def _token_id(gguf: GGUFFile, key: str) -> int | None:
    value = gguf.metadata.get(f"tokenizer.ggml.{key}")
    if value is not None and (type(value) is not int or not 0 <= value <= MAX_ID):
        raise ModelError(f"{gguf.path}: tokenizer.ggml.{key} must be a token id, got {shown(value)}")
    return value


def _main_format(gguf: GGUFFile) -> str:
    """The format that most bytes of the matrices have."""
    sizes: dict[str, int] = {}
    for tensor in gguf.tensors.values():
        if len(tensor.shape) == 2 and not tensor.name.startswith("token_embd"):
            sizes[tensor.format] = sizes.get(tensor.format, 0) + tensor.data.nbytes
    return max(sizes, key=lambda name: sizes[name], default="f32")
