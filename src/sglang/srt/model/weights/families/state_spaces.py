"""Families with state spaces of Mamba 2 or 1 among the layers of attention (layers/recurrent.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from sglang.srt.checkpoint.files import shown
from sglang.srt.model.kernels.ops import Routing
from sglang.srt.model.model_config import ModelConfig, RecurrentConfig, SelectiveScanConfig, StateSpaceConfig, TensorLayout
from sglang.srt.model.weights.config_fields import LARGEST, MAX_LAYERS, MAX_SIZE, Fields
from sglang.srt.model.weights.families import rms
from sglang.srt.model.weights.families.family import Family, GGUFForm, all_biases, multiplier
from sglang.srt.model.weights.families.hybrid import MAX_HEAD, read_taps, with_recurrent
from sglang.srt.model.weights.families.mixtures import (
    GRANITE_BANKS,
    GRANITE_NAMES,
    GRANITE_SPELLED,
    MAX_EXPERTS,
    read_groups,
    with_experts,
)

KINDS = {"mamba": "linear_attention", "attention": "full_attention", "hybrid": "linear_attention"}
"""older names of kinds of layers"""


def read_state_space(
    fields: Fields, width: int, norm: Literal["", "gate_first", "gate_last"] = "gate_first", act: str = "hidden_act"
) -> StateSpaceConfig:
    """`width`: columns of x. `act`: the field that says what follows the convolution."""
    fields.choice(act, {"silu": "silu", "swish": "silu"}, "silu")
    heads, groups = fields.count("mamba_n_heads", most=MAX_HEAD), fields.count("mamba_n_groups", most=MAX_HEAD)
    of_head = fields.get("mamba_d_head")
    dim = max(1, width // heads) if of_head in ("auto", None) else fields.count("mamba_d_head", most=MAX_HEAD)
    if heads * dim != width:
        raise fields.bad("mamba_d_head", f"({dim}) and mamba_n_heads ({heads}) do not make the {width} columns of the mixer")
    if heads % groups or dim > MAX_HEAD:
        raise fields.bad(
            "mamba_n_heads", f"({heads}) must be a multiple of mamba_n_groups ({groups}), of at most {MAX_HEAD} each"
        )
    bias = fields.flag("mamba_proj_bias")
    mixer = StateSpaceConfig(
        heads,
        dim,
        groups,
        fields.count("mamba_d_state", most=MAX_HEAD),
        read_taps(fields, "mamba_d_conv"),
        bias,
        bias,
        fields.flag("mamba_conv_bias", True),
        norm,
        _step_limits(fields),
    )
    if mixer.mixed_width > MAX_SIZE:
        raise fields.bad("mamba_d_state", f"makes rows of {mixer.mixed_width} values, and {MAX_SIZE} is the most")
    return mixer


def _step_limits(fields: Fields) -> tuple[float, float]:
    """Two numbers; transformers writes one without end as an object."""
    told = fields.get("time_step_limit")
    told = [0.0, math.inf] if told is None else told
    found = [math.inf if v == {"__float__": "Infinity"} else v for v in told] if isinstance(told, (list, tuple)) else []
    valid = all(type(v) in (int, float) and (0 <= v <= LARGEST or v == math.inf) for v in found)
    if len(found) != 2 or not valid or found[0] > found[1]:
        raise fields.bad("time_step_limit", f"must be two numbers, the lower one first, got {shown(told)}")
    return float(found[0]), float(found[1])


def _width(fields: Fields, config: ModelConfig) -> int:
    width = fields.count("mamba_expand", 2, most=MAX_HEAD) * config.hidden_size
    if width > MAX_SIZE:
        raise fields.bad("mamba_expand", f"makes rows of {width} values, and {MAX_SIZE} is the most")
    return width


def _granite_hybrid(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Granite 4: a feed-forward layer for all rows, and often experts beside it; attention mostly without positions."""
    config = replace(rms.read_granite(fields, config), mlp_bias=False)
    rotates = fields.choice("position_embedding_type", {"rope": True, "nope": False}, "nope")
    config = replace(config, unrotated_layers=() if rotates else (True,) * config.num_layers)
    shared = fields.count("shared_expert_intermediate_size")
    if fields.get("num_experts") in (0, None):
        dense = {f"shared_mlp.{name}": ours for name, ours in _DENSE_NAMES.items()}
        layout = replace(config.layout, modules={**config.layout.modules, **dense})
        config = replace(config, intermediate_size=shared, layout=layout)
    else:
        config = with_experts(fields, config, Routing(), shared=shared)
    mixer = read_state_space(fields, _width(fields, config))
    return with_recurrent(fields, config, mixer, "linear_attention", ["linear_attention"] * config.num_layers, KINDS)


def _bamba(fields: Fields, config: ModelConfig) -> ModelConfig:
    attends = fields.layers("attn_layer_indices", [], config.num_layers)
    default = ["full_attention" if i in attends else "linear_attention" for i in range(config.num_layers)]
    mixer = read_state_space(fields, _width(fields, config))
    return with_recurrent(fields, all_biases(fields, config), mixer, "linear_attention", default, KINDS)


def _scales(fields: Fields, name: str, count: int) -> tuple[float, ...]:
    if fields.get(name) is None:
        return (1.0,) * count
    return fields.numbers(name, count)


def _falcon_h1(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Attention and a state space side by side in every layer, and a factor at every matrix. Those that cannot be told from others
    are multiplied into one."""
    config = all_biases(fields, config)
    into, key, out = (multiplier(fields, f"{name}_multiplier", 1.0) for name in ("attention_in", "key", "attention_out"))
    before, after = (multiplier(fields, f"ssm_{name}_multiplier", 1.0) for name in ("in", "out"))
    if config.attention_bias and into != 1:
        raise fields.bad("attention_bias", "with an attention_in_multiplier is not supported")
    width = fields.count("mamba_d_ssm") if fields.get("mamba_d_ssm") is not None else _width(fields, config)
    norm: Any = ""
    if fields.flag("mamba_rms_norm"):
        norm = "gate_last" if fields.flag("mamba_norm_before_gate", True) else "gate_first"
    mixer = read_state_space(fields, width, norm)
    if mixer.in_bias and before != 1:
        raise fields.bad("mamba_proj_bias", "with an ssm_in_multiplier is not supported")
    mixer = replace(
        mixer,
        out_bias=fields.flag("projectors_bias"),
        scales=tuple(before * scale for scale in _scales(fields, "ssm_multipliers", 5)),
    )
    gate, down = _scales(fields, "mlp_multipliers", 2)
    config = replace(
        config,
        query_scale=config.head_dim**-0.5 * into**2 * key,
        mlp_scales=(gate, down),
        embedding_scale=multiplier(fields, "embedding_multiplier", 1.0),
        logit_scale=multiplier(fields, "lm_head_multiplier", 1.0),
    )
    return replace(config, recurrent=RecurrentConfig((True,) * config.num_layers, mixer, (into * out, after)))


_PATTERN = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}


def _nemotron_kinds(raw: Mapping[str, Any]) -> Any:
    """Of layers, as a list, from whichever field says it."""
    kinds, pattern = raw.get("layers_block_type", raw.get("layer_types")), raw.get("hybrid_override_pattern")
    if kinds is None and isinstance(pattern, str):
        kinds = [_PATTERN.get(letter, letter) for letter in pattern]
    return [KINDS.get(kind, kind) if isinstance(kind, str) else kind for kind in kinds] if isinstance(kinds, list) else kinds


def _nemotron_layers(raw: Mapping[str, Any]) -> dict[str, Any]:
    kinds = _nemotron_kinds(raw)
    return {"num_hidden_layers": len(kinds)} if isinstance(kinds, list) and kinds else {}


def _nemotron_h(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Every layer is one half of others': a state space, attention without positions, or a feed-forward layer."""
    fields.read.update(("layers_block_type", "layer_types", "hybrid_override_pattern"))
    name = (
        "hybrid_override_pattern"
        if fields.raw.get("layers_block_type", fields.raw.get("layer_types")) is None
        else "layers_block_type"
    )
    kinds = _nemotron_kinds(fields.raw)
    known = ("linear_attention", "full_attention", "mlp", "moe")
    if not isinstance(kinds, list) or len(kinds) < config.num_layers:
        raise fields.bad(name, f"must say the kinds of {config.num_layers} layers, got {shown(kinds)}")
    kinds = kinds[: config.num_layers]
    if any(kind not in known for kind in kinds):
        raise fields.bad(name, f"must say {', '.join(known)} for each layer, got {shown(kinds)}")
    if "full_attention" not in kinds:
        raise fields.bad(name, "names no layer of attention, which is not supported")
    if fields.get("sliding_window") is not None:
        raise fields.bad("sliding_window", "is not supported for this family")
    heads, dim = fields.count("mamba_n_heads", most=MAX_HEAD), fields.count("mamba_d_head", most=MAX_HEAD)
    if heads * dim > MAX_SIZE:
        raise fields.bad("mamba_d_head", f"makes rows of {heads * dim} values, and {MAX_SIZE} is the most")
    mixer = read_state_space(fields, heads * dim, act="mamba_hidden_act")
    shortest = fields.number("time_step_min", 0.001, above=-1.0, most=1e6)
    mixer = replace(mixer, step_limits=(max(shortest, 0.0), math.inf), out_bias=mixer.in_bias)
    halves: Any = tuple("channels" if kind in ("mlp", "moe") else "mixer" for kind in kinds)
    layers = tuple(kind == "linear_attention" for kind in kinds)
    config = replace(config, halves=halves, unrotated_layers=(True,) * config.num_layers, mlp_bias=fields.flag("mlp_bias"))
    config = replace(config, tie_word_embeddings=False)  # no class of theirs ties, whatever the config says
    if "moe" in kinds:
        config = _nemotron_experts(fields, config, kinds)
    return replace(config, recurrent=RecurrentConfig(layers, mixer)) if any(layers) else config


def _nemotron_experts(fields: Fields, config: ModelConfig, kinds: list[str]) -> ModelConfig:
    if config.plain != "relu2":
        raise fields.bad("hidden_act", "must be relu2 where there are experts")
    if fields.get("moe_latent_size") is not None:
        raise fields.bad("moe_latent_size", "is not supported: experts on narrower rows")
    routing = Routing("sigmoid", fields.flag("norm_topk_prob", True))
    shared = fields.count("shared_expert_intermediate_size")
    return with_experts(
        fields, config, read_groups(fields, routing), lambda layer: kinds[layer] == "moe", shared, choice_bias=True
    )


def _every(fields: Fields, kind: str, period: int, offset: int) -> Callable[[int], bool]:
    """Layers so many apart, from one on."""
    every, first = fields.count(f"{kind}_layer_period", period, most=MAX_LAYERS), fields.get(f"{kind}_layer_offset", offset)
    if type(first) is not int or not 0 <= first < every:
        raise fields.bad(f"{kind}_layer_offset", f"must be below {kind}_layer_period ({every}), got {shown(first)}")
    return lambda layer: layer % every == first


def _jamba(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Selective scans, attention without positions every so many layers, experts every so many."""
    attends, width = _every(fields, "attn", 8, 4), _width(fields, config)
    fields.choice("hidden_act", {"silu": "silu", "swish": "silu"})
    rank = fields.get("mamba_dt_rank")
    mixer = SelectiveScanConfig(
        width,
        fields.count("mamba_d_state", most=MAX_HEAD),
        -(-config.hidden_size // 16) if rank in (None, "auto") else fields.count("mamba_dt_rank"),
        read_taps(fields, "mamba_d_conv"),
        fields.flag("mamba_proj_bias"),
        fields.flag("mamba_conv_bias", True),
    )
    if mixer.mixed_width > MAX_SIZE:
        raise fields.bad("mamba_expand", f"makes rows of {mixer.mixed_width} values, and {MAX_SIZE} is the most")
    if fields.count("num_experts", most=MAX_EXPERTS) > 1:
        config = with_experts(fields, config, Routing(normalize=False), _every(fields, "expert", 2, 1))
    kinds = ["full_attention" if attends(i) else "linear_attention" for i in range(config.num_layers)]
    config = replace(config, unrotated_layers=(True,) * config.num_layers)
    return with_recurrent(fields, config, mixer, "linear_attention", kinds, KINDS)


_MAMBA = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "mamba_n_heads": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_conv": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GRANITE_HYBRID = {
    **rms.LLAMA,
    **_MAMBA,
    "rms_norm_eps": 1e-6,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 1024,
}
_BAMBA = {
    **_MAMBA,
    "vocab_size": 128000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 262144,
    "partial_rotary_factor": 0.5,
}
_FALCON_H1 = {**_BAMBA, "mamba_d_ssm": 1024, "max_position_embeddings": 8192, "partial_rotary_factor": 1.0}
_NEMOTRON_H = {
    "vocab_size": 131072,
    "hidden_size": 4096,
    "intermediate_size": 21504,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "relu2",
    "mamba_n_heads": 128,
    "mamba_d_head": 64,
    "mamba_n_groups": 8,
    "mamba_d_state": 128,
    "mamba_d_conv": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "time_step_min": 0.001,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 7688,
    "shared_expert_intermediate_size": 7688,
}
_NEMOTRON_SPELLED = {
    "rms_norm_eps": "layer_norm_epsilon",
    "hidden_act": "mlp_hidden_act",
    "mamba_n_heads": "mamba_num_heads",
    "mamba_d_head": "mamba_head_dim",
    "mamba_n_groups": "n_groups",
    "mamba_d_state": "ssm_state_size",
    "mamba_d_conv": "conv_kernel",
    "mamba_conv_bias": "use_conv_bias",
    "mamba_proj_bias": "use_bias",
    "num_experts": "n_routed_experts",
    "shared_expert_intermediate_size": "moe_shared_expert_intermediate_size",
}
_JAMBA = {
    "vocab_size": 65536,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
}

MIXER_NAMES: dict[str, str | tuple[str, ...]] = {
    "mamba": "mixer",
    "mamba.conv1d": "mixer.conv",
    "mamba.norm": "mixer.gate_scale",
    "mamba.in_proj": "mixer.in_proj",
    "mamba.out_proj": "mixer.out_proj",
}
_DENSE_NAMES: dict[str, str | tuple[str, ...]] = {
    "input_linear": ("mlp.gate_proj", "mlp.up_proj"),
    "output_linear": "mlp.down_proj",
}
_FEEDING: dict[str, str | tuple[str, ...]] = {
    "pre_ff_layernorm": "post_attention_layernorm",
    **{f"feed_forward.{x}_proj": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}
_NEMOTRON_NAMES: dict[str, str | tuple[str, ...]] = {
    "norm": "input_layernorm",
    "mixer.conv1d": "mixer.conv",
    "mixer.norm": "mixer.gate_scale",
    **{f"mixer.{x}_proj": f"self_attn.{x}_proj" for x in ("q", "k", "v", "o")},
    **{f"mixer.{x}_proj": f"mlp.{x}_proj" for x in ("up", "down")},
    "mixer.gate": "mlp.gate",
    **{f"mixer.{of}.{x}_proj": f"mlp.{of}.{x}_proj" for of in ("experts.*", "shared_experts") for x in ("up", "down")},
}
_NEMOTRON_BANKS = {f"mixer.experts.{x}_proj": (f"{x}_proj",) for x in ("up", "down")}
_JAMBA_NAMES: dict[str, str | tuple[str, ...]] = {
    **MIXER_NAMES,
    **_FEEDING,
    **{f"mamba.{x}_layernorm": f"mixer.{x}_norm" for x in ("dt", "b", "c")},
    **{f"mamba.{x}_proj": f"mixer.{x}_proj" for x in ("x", "dt")},
    "feed_forward.router": "mlp.gate",
    **{f"feed_forward.experts.*.{x}_proj": f"mlp.experts.*.{x}_proj" for x in ("gate", "up", "down")},
}
SSM_STEMS: dict[str, str | tuple[str, ...]] = {
    "ssm_in": "mixer.in_proj",
    "ssm_conv1d": "mixer.conv",
    "ssm_out": "mixer.out_proj",
}

STATE_SPACE_FAMILIES = (
    Family("granite_hybrid", "GraniteMoeHybridForCausalLM", "granitemoehybrid", _GRANITE_HYBRID, _granite_hybrid, "GraniteMoeHybridModel",
           layout=TensorLayout(modules={**GRANITE_NAMES, **MIXER_NAMES}, banks=GRANITE_BANKS),
           spelled={**GRANITE_SPELLED, "layer_types": "layers_block_type"}, gguf=GGUFForm("granitehybrid", SSM_STEMS, interleaved=True)),
    Family("bamba", "BambaForCausalLM", "bamba", _BAMBA, _bamba, "BambaModel",
           layout=TensorLayout(modules={**MIXER_NAMES, **_FEEDING}, whole={"final_layernorm": "model.norm"}),
           spelled={"layer_types": "layers_block_type"}),
    Family("falcon_h1", "FalconH1ForCausalLM", "falcon_h1", _FALCON_H1, _falcon_h1, "FalconH1Model",
           layout=TensorLayout(modules={**MIXER_NAMES, **_FEEDING}, whole={"final_layernorm": "model.norm"}), gguf=GGUFForm("falcon-h1", SSM_STEMS)),
    Family("nemotron_h", "NemotronHForCausalLM", "nemotron_h", _NEMOTRON_H, _nemotron_h, "NemotronHModel", spelled=_NEMOTRON_SPELLED,
           layout=TensorLayout(root="backbone.", modules=_NEMOTRON_NAMES, whole={"embeddings": "model.embed_tokens", "norm_f": "model.norm"},
                               banks=_NEMOTRON_BANKS),
           is_plain=True, implied=_nemotron_layers, gguf=GGUFForm("nemotron_h", SSM_STEMS)),
    Family("jamba", "JambaForCausalLM", "jamba", _JAMBA, _jamba, "JambaModel",
           layout=TensorLayout(modules=_JAMBA_NAMES, whole={"final_layernorm": "model.norm"},
                               banks={"feed_forward.experts.gate_up_proj": ("gate_proj", "up_proj"), "feed_forward.experts.down_proj": ("down_proj",)})),
)  # fmt: skip
