"""Families with mixtures of experts (layers/experts.py).

What their configs call the same thing is read under one name, which `spelled` of a family translates, and which is what GGUF files'
metadata become (gguf_experts.py):

    num_experts, num_experts_per_tok, moe_intermediate_size, shared_expert_intermediate_size, n_shared_experts
    norm_topk_prob, routed_scaling_factor, scoring_func, n_group, topk_group
    mlp_layer_types                                         "dense" or "sparse" for each layer
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sglang.srt.checkpoint.files import shown
from sglang.srt.model.kernels.ops import Routing
from sglang.srt.model.model_config import ExpertsConfig, ModelConfig, TensorLayout
from sglang.srt.model.weights.config_fields import MAX_LAYERS, Fields
from sglang.srt.model.weights.families import rms
from sglang.srt.model.weights.families.family import (
    Family,
    GGUFForm,
    every_layer_windowed,
    multiplier,
    with_window,
    without_window,
)

MAX_EXPERTS = 4096
"""of a layer: what the kernels take"""
MAX_ALL_EXPERTS = 1 << 16
"""of a model: each has tensors of its own"""
SOFTMAX, SIGMOID = Routing(), Routing("sigmoid")


def with_experts(
    fields: Fields,
    config: ModelConfig,
    routing: Routing,
    is_sparse: Callable[[int], bool] = lambda layer: True,
    shared: int = 0,
    **more: Any,
) -> ModelConfig:
    """Sets the experts, on the layers of `mlp_layer_types` if given, else on those that `is_sparse` says."""
    count = fields.count("num_experts", most=MAX_EXPERTS)
    top_k = fields.count("num_experts_per_tok", most=MAX_EXPERTS)
    width = fields.count("moe_intermediate_size", config.intermediate_size)
    size = count // routing.num_groups
    if count % routing.num_groups:
        raise fields.bad("n_group", f"({routing.num_groups}) must divide the number of experts, {count}")
    if top_k > size * routing.top_groups:
        raise fields.bad(
            "num_experts_per_tok", f"must be at most the {size * routing.top_groups} experts to choose from, got {top_k}"
        )
    layers = _sparse_layers(fields, config.num_layers, is_sparse)
    if not any(layers):
        return config
    if count * sum(layers) > MAX_ALL_EXPERTS:
        raise fields.bad(
            "num_experts",
            f"({count}) makes {count * sum(layers)} experts in {sum(layers)} layers, and {MAX_ALL_EXPERTS} are the most",
        )
    return replace(config, experts=ExpertsConfig(count, top_k, width, layers, routing, shared_width=shared, **more))


def _sparse_layers(fields: Fields, num_layers: int, is_sparse: Callable[[int], bool]) -> tuple[bool, ...]:
    kinds = fields.get("mlp_layer_types")
    if kinds is None:
        return tuple(is_sparse(layer) for layer in range(num_layers))
    if not isinstance(kinds, list) or len(kinds) < num_layers or any(kind not in ("dense", "sparse") for kind in kinds):
        raise fields.bad("mlp_layer_types", f"must say dense or sparse for {num_layers} layers, got {shown(kinds)}")
    return tuple(kind == "sparse" for kind in kinds[:num_layers])


def shared_width(fields: Fields, width: int, default: int = 1) -> int:
    """Of so many shared experts of an expert's width, which are one layer."""
    if fields.get("shared_expert_intermediate_size") is not None:
        return fields.count("shared_expert_intermediate_size")
    number = fields.get("n_shared_experts", default)
    if number in (0, None):
        return 0
    return fields.count("n_shared_experts", default, most=MAX_EXPERTS) * width


def read_groups(fields: Fields, routing: Routing) -> Routing:
    groups, top = fields.count("n_group", 1, most=MAX_EXPERTS), fields.count("topk_group", 1, most=MAX_EXPERTS)
    if top > groups:
        raise fields.bad("topk_group", f"must be at most n_group ({groups}), got {top}")
    scale = multiplier(fields, "routed_scaling_factor", 1.0)
    return replace(routing, num_groups=groups, top_groups=top, scale=scale)


def read_qwen_layers(fields: Fields) -> Callable[[int], bool]:
    step, dense = fields.count("decoder_sparse_step", 1, most=MAX_LAYERS), fields.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(type(i) is not int or not 0 <= i < MAX_LAYERS for i in dense):
        raise fields.bad("mlp_only_layers", f"must list layers, got {shown(dense)}")
    return lambda layer: (layer + 1) % step == 0 and layer not in dense


def _qwen3_moe(fields: Fields, config: ModelConfig) -> ModelConfig:
    bias = fields.flag("attention_bias")
    config = replace(config, attention_bias=bias, output_bias=bias)
    config = every_layer_windowed(fields, config) if fields.flag("use_sliding_window") else without_window(fields, config)
    routing = replace(SOFTMAX, normalize=fields.flag("norm_topk_prob"))
    return with_experts(fields, config, routing, read_qwen_layers(fields))


def _qwen2_moe(fields: Fields, config: ModelConfig) -> ModelConfig:
    config = replace(config, attention_bias=fields.flag("qkv_bias", True))
    if fields.flag("use_sliding_window"):
        first = fields.count("max_window_layers", most=MAX_LAYERS)
        config = with_window(fields, config, lambda layer: layer % 2 == 0 and layer < first)
    else:
        config = without_window(fields, config)
    routing, shared = replace(SOFTMAX, normalize=fields.flag("norm_topk_prob")), fields.count("shared_expert_intermediate_size")
    return with_experts(fields, config, routing, read_qwen_layers(fields), shared, shared_gate=True)


def _mixtral(fields: Fields, config: ModelConfig) -> ModelConfig:
    return with_experts(fields, every_layer_windowed(fields, config), SOFTMAX)


def _olmoe(fields: Fields, config: ModelConfig) -> ModelConfig:
    if fields.get("clip_qkv") is not None:
        raise fields.bad("clip_qkv", f"is not supported, got {shown(fields.get('clip_qkv'))}")
    bias = fields.flag("attention_bias")
    config = replace(config, attention_bias=bias, output_bias=bias)
    return with_experts(fields, config, replace(SOFTMAX, normalize=fields.flag("norm_topk_prob")))


def _granite_moe(fields: Fields, config: ModelConfig) -> ModelConfig:
    """The softmax is of the chosen alone, which is the same as to divide by their sum."""
    number = fields.get("shared_expert_intermediate_size")
    shared = fields.count("shared_expert_intermediate_size") if number else 0
    return with_experts(fields, rms.read_granite(fields, config), SOFTMAX, shared=shared)


def first_dense(fields: Fields, default: int) -> Callable[[int], bool]:
    """So many layers at the beginning have no experts."""
    dense = fields.get("first_k_dense_replace", default)
    if type(dense) is not int or not 0 <= dense <= MAX_LAYERS:
        raise fields.bad("first_k_dense_replace", f"must be a number of layers, got {shown(dense)}")
    return lambda layer: layer >= dense


def _glm4_moe(fields: Fields, config: ModelConfig) -> ModelConfig:
    qk_norm: Any = "head" if fields.flag("use_qk_norm") else ""
    config = replace(config, attention_bias=fields.flag("attention_bias"), qk_norm=qk_norm)
    routing = replace(read_groups(fields, SIGMOID), normalize=fields.flag("norm_topk_prob", True))
    width = fields.count("moe_intermediate_size")
    return with_experts(fields, config, routing, first_dense(fields, 1), shared_width(fields, width), choice_bias=True)


def _ernie_moe(fields: Fields, config: ModelConfig) -> ModelConfig:
    """All layers from the first to the last with experts, or every so many of them."""
    if fields.flag("use_bias"):
        raise fields.bad("use_bias", "asks for biases, which models of this family have not")
    first, last = fields.get("moe_layer_start_index", 1), fields.get("moe_layer_end_index", -1)
    for name, value in (("moe_layer_start_index", first), ("moe_layer_end_index", last)):
        if type(value) is not int or not -1 <= value <= MAX_LAYERS:
            raise fields.bad(name, f"must be a layer, got {shown(value)}")
    every = fields.count("moe_layer_interval", 1, most=MAX_LAYERS)
    until = config.num_layers - 1 if last == -1 else last
    width = fields.count("moe_intermediate_size")
    return with_experts(
        fields, config, SOFTMAX, lambda layer: (layer + 1) % every == 0 and first <= layer <= until,
        shared_width(fields, width, 2), choice_bias=True,
    )  # fmt: skip


def _hunyuan_moe(fields: Fields, config: ModelConfig) -> ModelConfig:
    """The shared expert is as wide as the others. Some fields are a number or a list of one for each layer."""
    for name in ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts"):
        fields.settle(name)
    config = rms.read_hunyuan(fields, config)
    width = fields.count("moe_intermediate_size", config.intermediate_size)
    return with_experts(fields, config, SOFTMAX, shared=shared_width(fields, width))


def _bailing(fields: Fields, config: ModelConfig) -> ModelConfig:
    if fields.flag("norm_head"):
        raise fields.bad("norm_head", "asks for a head of rows of length 1, which is not supported")
    config = replace(config, attention_bias=fields.flag("use_qkv_bias"), output_bias=fields.flag("use_bias"))
    routing = replace(SOFTMAX, normalize=fields.flag("norm_topk_prob", True))
    shared = shared_width(fields, fields.count("moe_intermediate_size"), 0)
    return with_experts(fields, config, routing, first_dense(fields, 0), shared)


def _bailing2(fields: Fields, config: ModelConfig) -> ModelConfig:
    qk_norm: Any = "head" if fields.flag("use_qk_norm", True) else ""
    config = replace(config, attention_bias=fields.flag("use_qkv_bias"), output_bias=fields.flag("use_bias"), qk_norm=qk_norm)
    base = fields.choice("score_function", {"sigmoid": SIGMOID, "softmax": SOFTMAX}, "sigmoid")
    routing = replace(read_groups(fields, base), normalize=fields.flag("norm_topk_prob", True))
    corrected = fields.flag("moe_router_enable_expert_bias", True)
    shared = shared_width(fields, fields.count("moe_intermediate_size"), 0)
    return with_experts(fields, config, routing, first_dense(fields, 0), shared, choice_bias=corrected)


def _gpt_oss(fields: Fields, config: ModelConfig) -> ModelConfig:
    for name, value in (("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)):
        if fields.number(name, value) != value:
            raise fields.bad(name, f"must be {value}, as in all published models, got {shown(fields.get(name))}")
    bias = fields.flag("attention_bias", True)
    config = replace(config, attention_bias=bias, output_bias=bias)
    config = with_window(fields, config, lambda layer: layer % 2 == 0)
    return with_experts(fields, config, SOFTMAX, router_bias=True, bias=True, gate="clamped_silu")


_LLAMA = rms.LLAMA
_QWEN2_MOE = {
    **_LLAMA,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
}
_QWEN3_MOE = {
    **_LLAMA,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}
_MIXTRAL = {
    **_LLAMA,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}
_OLMOE = {**_LLAMA, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "num_experts": 64, "num_experts_per_tok": 8}
_GRANITE_MOE = {**_LLAMA, "num_experts": 8, "num_experts_per_tok": 2}
_GLM4_MOE = {
    **_LLAMA,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1408,
}
_ERNIE_MOE = {
    **_LLAMA,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
    "num_experts": 64,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1536,
}
_HUNYUAN_MOE = {**_LLAMA, "rms_norm_eps": 1e-5, "num_experts": 1, "num_experts_per_tok": 1}

_GPT_OSS = {
    **_LLAMA,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "sliding_window": 128,
    "rope_theta": 150_000.0,
    "num_experts": 128,
    "num_experts_per_tok": 4,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 150_000.0,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
}

_BAILING = {**_LLAMA, "rms_norm_eps": 1e-5, "max_position_embeddings": 16384, "rope_theta": 600_000.0}
_BAILING2 = {**_BAILING, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "partial_rotary_factor": 0.5}

V5_BANKS = {"mlp.experts.gate_up_proj": ("gate_proj", "up_proj"), "mlp.experts.down_proj": ("down_proj",)}
"""transformers' own form, of all experts in one tensor"""
_OSS_BIASES = {f"{name}_bias": modules for name, modules in V5_BANKS.items()}
_LOCAL = {"num_experts": "num_local_experts"}
_SHARED_EXPERT = {f"mlp.shared_expert.{x}_proj": f"mlp.shared_experts.{x}_proj" for x in ("gate", "up", "down")}
_SHARED_MLP = {f"mlp.shared_mlp.{x}_proj": f"mlp.shared_experts.{x}_proj" for x in ("gate", "up", "down")}
_MIXTRAL_NAMES: dict[str, str | tuple[str, ...]] = {
    "block_sparse_moe.gate": "mlp.gate",
    **{f"block_sparse_moe.experts.*.{w}": f"mlp.experts.*.{x}_proj" for w, x in (("w1", "gate"), ("w3", "up"), ("w2", "down"))},
}
GRANITE_NAMES: dict[str, str | tuple[str, ...]] = {
    "block_sparse_moe.router.layer": "mlp.gate",
    "block_sparse_moe.router": "mlp.gate",
    "shared_mlp.input_linear": ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
    "shared_mlp.output_linear": "mlp.shared_experts.down_proj",
}
GRANITE_BANKS = {
    "block_sparse_moe.input_linear.weight": ("gate_proj", "up_proj"),
    "block_sparse_moe.output_linear.weight": ("down_proj",),
    "block_sparse_moe.experts.gate_up_proj": ("gate_proj", "up_proj"),
    "block_sparse_moe.experts.down_proj": ("down_proj",),
}
_BAILING_NAMES: dict[str, str | tuple[str, ...]] = {
    "attention.query_key_value": rms.QKV,
    "attention.dense": "self_attn.o_proj",
    "attention.query_layernorm": "self_attn.q_norm",
    "attention.key_layernorm": "self_attn.k_norm",
}
_BAILING_WHOLE = {"word_embeddings": "model.embed_tokens"}
_ERNIE_SPELLED = {
    "num_experts": "moe_num_experts",
    "num_experts_per_tok": "moe_k",
    "n_shared_experts": "moe_num_shared_experts",
}
_HUNYUAN_SPELLED = {"num_experts_per_tok": "moe_topk", "n_shared_experts": "num_shared_expert"}
_GLM_SPELLED = {"num_experts": "n_routed_experts"}
GRANITE_SPELLED = {**_LOCAL, "shared_expert_intermediate_size": "shared_intermediate_size"}


def expert_layout(
    modules: dict[str, Any] | None = None, banks: dict[str, tuple[str, ...]] = V5_BANKS, **more: Any
) -> TensorLayout:
    return TensorLayout(modules=modules or {}, banks=banks, **more)


EXPERT_FAMILIES = (
    Family("qwen3_moe", "Qwen3MoeForCausalLM", "qwen3_moe", _QWEN3_MOE, _qwen3_moe, "Qwen3MoeModel", {"qk_norm": "head"}, expert_layout(),
           _LOCAL, gguf=GGUFForm("qwen3moe")),
    Family("qwen2_moe", "Qwen2MoeForCausalLM", "qwen2_moe", _QWEN2_MOE, _qwen2_moe, "Qwen2MoeModel", layout=expert_layout(_SHARED_EXPERT),
           spelled=_LOCAL, gguf=GGUFForm("qwen2moe")),
    Family("mixtral", "MixtralForCausalLM", "mixtral", _MIXTRAL, _mixtral, "MixtralModel", layout=expert_layout(_MIXTRAL_NAMES),
           spelled=_LOCAL),
    Family("olmoe", "OlmoeForCausalLM", "olmoe", _OLMOE, _olmoe, "OlmoeModel", {"qk_norm": "whole"}, expert_layout(), _LOCAL,
           gguf=GGUFForm("olmoe")),
    Family("granite_moe", "GraniteMoeForCausalLM", "granitemoe", _GRANITE_MOE, _granite_moe, "GraniteMoeModel",
           layout=expert_layout(GRANITE_NAMES, GRANITE_BANKS), spelled=GRANITE_SPELLED, gguf=GGUFForm("granitemoe", interleaved=True)),
    Family("granite_moe", "GraniteMoeSharedForCausalLM", "granitemoeshared", _GRANITE_MOE, _granite_moe, "GraniteMoeSharedModel",
           layout=expert_layout(GRANITE_NAMES, GRANITE_BANKS), spelled=GRANITE_SPELLED),
    Family("glm4_moe", "Glm4MoeForCausalLM", "glm4_moe", _GLM4_MOE, _glm4_moe, "Glm4MoeModel", layout=expert_layout(), spelled=_GLM_SPELLED,
           gguf=GGUFForm("glm4moe")),
    Family("ernie4_5_moe", "Ernie4_5_MoeForCausalLM", "ernie4_5_moe", _ERNIE_MOE, _ernie_moe, "Ernie4_5_MoeModel",
           layout=expert_layout({"mlp.moe_statics": "mlp.gate", "mlp.gate.moe_statics": "mlp.gate"}, interleaved=True),
           spelled=_ERNIE_SPELLED, gguf=GGUFForm("ernie4_5-moe", interleaved=True)),
    Family("hunyuan_moe", "HunYuanMoEV1ForCausalLM", "hunyuan_v1_moe", _HUNYUAN_MOE, _hunyuan_moe, "HunYuanMoEV1Model",
           {"qk_norm": "rotated"}, expert_layout({**rms.HUNYUAN_NAMES, **_SHARED_MLP, "mlp.gate.wg": "mlp.gate"}), _HUNYUAN_SPELLED,
           gguf=GGUFForm("hunyuan-moe")),
    Family("gpt_oss", "GptOssForCausalLM", "gpt_oss", _GPT_OSS, _gpt_oss, "GptOssModel", {"attention_sinks": True},
           expert_layout({"mlp.router": "mlp.gate"}, {**V5_BANKS, **_OSS_BIASES}, turned_banks=True, alternating_banks=True), _LOCAL,
           gguf=GGUFForm("gpt-oss")),
    Family("bailing_moe", "BailingMoeForCausalLM", "bailing_moe", _BAILING, _bailing, "BailingMoeModel",
           layout=expert_layout(_BAILING_NAMES, whole=_BAILING_WHOLE), spelled={"n_shared_experts": "num_shared_experts"},
           gguf=GGUFForm("bailingmoe")),
    Family("bailing_moe", "BailingMoeV2ForCausalLM", "bailing_moe_v2", _BAILING2, _bailing2, "BailingMoeV2Model",
           layout=expert_layout(_BAILING_NAMES, whole=_BAILING_WHOLE, tensors={"mlp.gate.expert_bias": "mlp.gate.e_score_correction_bias"}),
           spelled={"n_shared_experts": "num_shared_experts"}, gguf=GGUFForm("bailingmoe2")),
)  # fmt: skip
