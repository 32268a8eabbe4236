"""Gemma 3n and Gemma 4: rows of tokens for each layer, and layers that read the K and V of earlier ones."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from sglang.srt.checkpoint.files import shown
from sglang.srt.model.kernels.ops import Routing
from sglang.srt.model.model_config import LayerInputs, ModelConfig, StreamsConfig, TensorLayout
from sglang.srt.model.weights.config_fields import MAX_LAYERS, Fields
from sglang.srt.model.weights.families.family import GATES, MIN_SCALE, Family, GGUFForm, with_window
from sglang.srt.model.weights.families.mixtures import with_experts
from sglang.srt.model.weights.rope_reader import read_local_rope, read_rope

MAX_STREAMS = 16
_BESIDE = TensorLayout(
    modules={"router.proj": "mlp.gate"},
    tensors={"router.scale": "mlp.router_norm.weight", "router.per_expert_scale": "mlp.gate.expert_scale"},
    banks={"experts.gate_up_proj": ("gate_proj", "up_proj"), "experts.down_proj": ("down_proj",)},
)
SPARSE_LAYERS = 10


def _gemma4(fields: Fields, config: ModelConfig) -> ModelConfig:
    """The last layer sees everything, whatever the config says."""
    bias, n = fields.flag("attention_bias"), config.num_layers
    config = replace(config, gate=fields.choice("hidden_activation", GATES), attention_bias=bias, output_bias=bias)
    config = with_window(fields, config, lambda layer: (layer + 1) % 6 != 0)
    windowed = (*(config.windowed_layers or (False,) * n)[:-1], False)
    if config.bidirectional:  # half of the window to either side
        config = replace(config, sliding_window=config.sliding_window // 2 + 1)
    config = _layer_shapes(fields, replace(config, windowed_layers=windowed))
    whole = next(i for i in range(n) if not windowed[i])
    if fields.flag("enable_moe_block"):
        config = with_experts(fields, replace(config, layout=_BESIDE), Routing(), beside=True)
    return replace(
        _with_inputs(fields, config),
        rope=read_rope(fields, config.of_layer(whole).head_dim, config.context_len, 1_000_000.0),
        local_rope=read_local_rope(fields, config.head_dim, config.context_len),
        keys_as_values=tuple(not w for w in windowed) if fields.flag("attention_k_eq_v") else (),
    )


def _gemma3n(fields: Fields, config: ModelConfig) -> ModelConfig:
    bias, n = fields.flag("attention_bias"), config.num_layers
    if fields.get("altup_active_idx") not in (None, 0):
        raise fields.bad("altup_active_idx", f"is {shown(fields.get('altup_active_idx'))}, and layers compute on stream 0 only")
    fields.read.add("altup_coef_clip")
    config = replace(config, gate=fields.choice("hidden_activation", GATES), attention_bias=bias, output_bias=bias)
    config = with_window(fields, config, lambda layer: (layer + 1) % 5 != 0)
    return replace(
        _with_inputs(fields, config),
        local_rope=read_local_rope(fields, config.head_dim, config.context_len),
        inner_widths=_widths(fields, n),
        sparsity=_sparsity(fields, n),
        streams=StreamsConfig(
            fields.count("altup_num_inputs", most=MAX_STREAMS),
            fields.count("laurel_rank"),
            fields.flag("altup_correct_scale", True),
        ),
    )


def _sparsity(fields: Fields, num_layers: int) -> tuple[float, ...]:
    told = fields.get("activation_sparsity_pattern")
    if told is None:
        first = SPARSE_LAYERS if num_layers > SPARSE_LAYERS else 0
        told = [0.95] * first + [0.0] * (num_layers - first)
    valid = isinstance(told, list) and all(type(v) in (int, float) and 0 <= v < 1 for v in told)
    if not valid or len(told) < num_layers:
        raise fields.bad("activation_sparsity_pattern", f"must be {num_layers} numbers from 0 to below 1, got {shown(told)}")
    return tuple(float(v) for v in told[:num_layers])


def _with_inputs(fields: Fields, config: ModelConfig) -> ModelConfig:
    """What both families have."""
    width = fields.get("hidden_size_per_layer_input")
    inputs = None
    if width:
        inputs = LayerInputs(
            fields.count("hidden_size_per_layer_input"),
            min(fields.count("vocab_size_per_layer_input"), config.vocab_size),
            _pad_id(fields, config),
        )
    return replace(
        config,
        embedding_scale=math.sqrt(config.hidden_size),
        query_scale=1.0,
        final_soft_cap=fields.optional("final_logit_softcapping", above=MIN_SCALE) or 0.0,
        layer_inputs=inputs,
        kv_owners=_kv_owners(fields, config),
    )


def _pad_id(fields: Fields, config: ModelConfig) -> int:
    value = fields.get("pad_token_id")
    if value is not None and not (type(value) is int and 0 <= value < config.vocab_size):
        raise fields.bad("pad_token_id", f"must be a token id below vocab_size ({config.vocab_size}), got {shown(value)}")
    return value or 0


def _kv_owners(fields: Fields, config: ModelConfig) -> tuple[int, ...]:
    """The last layers read the K and V of the last layer of their kind before them."""
    shared = fields.get("num_kv_shared_layers")
    if not shared:
        return ()
    first = config.num_layers - fields.count("num_kv_shared_layers", most=MAX_LAYERS)
    windowed = config.windowed_layers or (False,) * config.num_layers
    owners = list(range(max(first, 0)))
    for i in range(max(first, 0), config.num_layers):
        kept = [j for j in range(max(first, 0)) if windowed[j] == windowed[i]]
        if not kept:
            raise fields.bad("num_kv_shared_layers", f"({shown(shared)}) leaves layer {i} no layer of its kind to read from")
        owners.append(kept[-1])
    return tuple(owners)


def _layer_shapes(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Layers that see everything have wider heads, and fewer; those that read another's K and V wider feed-forward layers."""
    n, told = config.num_layers, fields.object("per_layer_config")
    dims, heads = [config.head_dim] * n, [config.num_kv_heads] * n
    for i in range(n):
        if config.windowed_layers[i]:
            continue
        name = f"per_layer_config.{i}"
        own = Fields(Fields({name: told.get(str(i))}, fields.source).object(name), fields.source, where=f"{name}.")
        dims[i] = own.count("head_dim", config.head_dim if told else fields.count("global_head_dim", config.head_dim))
        if fields.flag("attention_k_eq_v") or told:
            usual = config.num_kv_heads if told else fields.count("num_global_key_value_heads", config.num_kv_heads)
            heads[i] = own.count("num_key_value_heads", usual)
        if config.num_heads % heads[i]:
            raise own.bad("num_key_value_heads", f"({heads[i]}) must divide num_attention_heads ({config.num_heads})")
    fields.read.update(("global_head_dim", "num_global_key_value_heads"))
    widths = _widths(fields, n)
    if not widths and fields.flag("use_double_wide_mlp"):
        shared = fields.get("num_kv_shared_layers") or 0
        widths = tuple(config.intermediate_size * (2 if i >= n - shared else 1) for i in range(n))
    return replace(config, head_dims=tuple(dims), kv_heads=tuple(heads), inner_widths=widths)


def _widths(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """Of feed-forward layers, where they are told one by one and differ."""
    told = fields.get("intermediate_size")
    return tuple(told[:num_layers]) if isinstance(told, list) and len(set(told[:num_layers])) > 1 else ()


_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
_GEMMA4: dict[str, Any] = {
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "vocab_size": 262144,
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 256,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "sliding_window": 512,
    "rope_parameters": _ROPES,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_GEMMA3N = {
    **_GEMMA4,
    "vocab_size": 262400,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 35,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "final_logit_softcapping": 30.0,
    "num_kv_shared_layers": 15,
    "altup_num_inputs": 4,
    "laurel_rank": 64,
    "rope_theta": 1_000_000.0,
    "rope_parameters": None,
}
_STEMS: dict[str, str | tuple[str, ...]] = {
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
    "altup_router": "altup.modality_router",
    "altup_router_norm": "altup.router_norm",
    "altup_predict_coef": "altup.prediction_coefs",
    "altup_correct_coef": "altup.correction_coefs",
    "laurel_l": "laurel.linear_left",
    "laurel_r": "laurel.linear_right",
    "laurel_post_norm": "laurel.post_laurel_norm",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
}
_SHAPE = {"norm_place": "around", "qk_norm": "head", "value_norm": True}

GEMMA4_FAMILIES = (
    Family(
        "gemma3n",
        "Gemma3nForCausalLM",
        "gemma3n_text",
        _GEMMA3N,
        _gemma3n,
        "Gemma3nTextModel",
        _SHAPE,
        width_per_layer=True,
        gguf=GGUFForm("gemma3n", _STEMS),
        whole_name="Gemma3nForConditionalGeneration",
    ),
    Family(
        "gemma4",
        "Gemma4ForCausalLM",
        "gemma4_text",
        _GEMMA4,
        _gemma4,
        "Gemma4TextModel",
        {**_SHAPE, "layer_scales": True},
        width_per_layer=True,
        gguf=GGUFForm("gemma4", _STEMS),
        whole_name="Gemma4ForConditionalGeneration",
        spelled={"num_experts_per_tok": "top_k_experts"},
    ),
)
