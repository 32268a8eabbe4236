"""Families of Llama's kind: root mean square norms and, most of them, a gated feed-forward layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sglang.srt.checkpoint.files import shown
from sglang.srt.model.model_config import ModelConfig, TensorLayout
from sglang.srt.model.weights.config_fields import MAX_POSITIONS, Fields
from sglang.srt.model.weights.families.family import (
    Family,
    GGUFForm,
    all_biases,
    every_layer_windowed,
    multiplier,
    with_window,
    without_window,
)
from sglang.srt.model.weights.rope_reader import read_local_rope

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


def _qwen(fields: Fields, config: ModelConfig) -> ModelConfig:
    use_window, first = fields.flag("use_sliding_window"), fields.get("max_window_layers")
    if not use_window:
        return without_window(fields, config)
    if type(first) is not int or first < 0:
        raise fields.bad("max_window_layers", f"must be a number of layers, got {shown(first)}")
    return with_window(fields, config, lambda layer: layer >= first)


def _qwen3(fields: Fields, config: ModelConfig) -> ModelConfig:
    bias = fields.flag("attention_bias")
    return replace(_qwen(fields, config), attention_bias=bias, output_bias=bias)


def _smollm3(fields: Fields, config: ModelConfig) -> ModelConfig:
    """`no_rope_layers` says 1 where a layer has rope."""
    n, rotated, every = config.num_layers, fields.get("no_rope_layers"), fields.count("no_rope_layer_interval", 4)
    if rotated is None:
        rotated = [int((i + 1) % every != 0) for i in range(n)]
    if not isinstance(rotated, list) or len(rotated) < n or any(r not in (0, 1) for r in rotated):
        raise fields.bad("no_rope_layers", f"must say 0 or 1 for {n} layers, got {shown(rotated)}")
    still = tuple(not r for r in rotated[:n])
    config = replace(all_biases(fields, config), unrotated_layers=still if any(still) else ())
    if fields.flag("use_sliding_window"):
        return with_window(fields, config, lambda layer: still[layer])
    return without_window(fields, config)


def read_granite(fields: Fields, config: ModelConfig) -> ModelConfig:
    return replace(
        all_biases(fields, config),
        embedding_scale=multiplier(fields, "embedding_multiplier", 1.0),
        query_scale=multiplier(fields, "attention_multiplier", 1.0),
        residual_scale=multiplier(fields, "residual_multiplier", 1.0),
        logit_scale=1 / multiplier(fields, "logits_scaling", 1.0),
    )


def _minicpm(fields: Fields, config: ModelConfig) -> ModelConfig:
    return replace(
        config,
        embedding_scale=multiplier(fields, "scale_emb", 1.0),
        residual_scale=multiplier(fields, "scale_depth", 1.0) / config.num_layers**0.5,
        logit_scale=multiplier(fields, "dim_model_base", 1.0) / config.hidden_size,
    )


def _olmo2(fields: Fields, config: ModelConfig) -> ModelConfig:
    bias = fields.flag("attention_bias")
    return replace(config, attention_bias=bias, output_bias=bias)


def _olmo3(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Scaling of rope is for the layers that see everything."""
    local = read_local_rope(fields, config.head_dim, config.context_len, _OLMO3["rope_theta"], "rope_theta")
    config = replace(_olmo2(fields, config), local_rope=local if local != config.rope else None)
    return with_window(fields, config, lambda layer: (layer + 1) % 4 != 0)


def _ministral3(fields: Fields, config: ModelConfig) -> ModelConfig:
    params = Fields(fields.object("rope_parameters"), fields.source, where="rope_parameters.")
    beta = params.optional("llama_4_scaling_beta", above=0.0, most=100.0)
    if beta is not None:
        length = params.count("original_max_position_embeddings", most=MAX_POSITIONS)
        config = replace(config, query_growth=(beta, length))
    return every_layer_windowed(fields, config)


def _qkv_bias(fields: Fields, config: ModelConfig) -> ModelConfig:
    return replace(config, attention_bias=fields.flag("attention_bias"))


def _helium(fields: Fields, config: ModelConfig) -> ModelConfig:
    return replace(_qkv_bias(fields, config), mlp_bias=fields.flag("mlp_bias"))


def _exaone4(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Where some layers see a window, the others have no rope."""
    pattern = fields.get("sliding_window_pattern")
    if fields.get("sliding_window") is None:
        return without_window(fields, config)
    if isinstance(pattern, str):
        windowed = [kind == "L" for kind in pattern] or [False]
        config = with_window(fields, config, lambda layer: windowed[layer % len(windowed)])
    else:
        every = fields.count("sliding_window_pattern", 4)
        config = with_window(fields, config, lambda layer: (layer + 1) % every != 0)
    still = tuple(not local for local in config.windowed_layers)
    return replace(config, unrotated_layers=still if any(still) else ())


def _seed_oss(fields: Fields, config: ModelConfig) -> ModelConfig:
    return replace(
        config,
        attention_bias=fields.flag("attention_bias"),
        output_bias=fields.flag("attention_out_bias"),
        mlp_bias=fields.flag("mlp_bias"),
    )


def _ernie(fields: Fields, config: ModelConfig) -> ModelConfig:
    return all_biases(fields, config, "use_bias", "use_bias")


def read_hunyuan(fields: Fields, config: ModelConfig) -> ModelConfig:
    """A fixed `alpha` widens the base of rope ("NTK"); files call that "dynamic"."""
    config = _olmo2(fields, config)
    for name in ("rope_parameters", "rope_scaling"):
        params = Fields(fields.object(name), fields.source, where=f"{name}.")
        alpha = params.optional("alpha", above=0.0, most=1e9)
        if alpha and params.get("rope_type", params.get("type")) == "dynamic":
            dim = config.head_dim
            if dim <= 2:
                raise fields.bad("head_dim", f"must be above 2 for this rope, got {dim}")
            config = replace(config, rope=replace(config.rope, theta=config.rope.theta * alpha ** (dim / (dim - 2))))
    return config


def _internlm3(fields: Fields, config: ModelConfig) -> ModelConfig:
    return all_biases(fields, config, "qkv_bias", "bias")


def _internlm2(fields: Fields, config: ModelConfig) -> ModelConfig:
    bias = fields.flag("bias")
    return replace(config, attention_bias=bias, output_bias=bias)


LLAMA: dict[str, Any] = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
_MISTRAL = {**LLAMA, "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}
_MINISTRAL3 = {
    **LLAMA,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1_000_000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
}
_QWEN2 = {
    **LLAMA,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_QWEN3 = {**_QWEN2, "head_dim": 128}
_PHI3 = {**LLAMA, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096}
_SMOLLM3 = {
    **LLAMA,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 2_000_000.0,
    "tie_word_embeddings": True,
}
_OLMO2 = {**LLAMA, "rms_norm_eps": 1e-5}
_OLMO3 = {**_OLMO2, "rope_theta": 500_000.0, "sliding_window": 4096}
_GLM = {
    **LLAMA,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-7,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "eos_token_id": [151329, 151336, 151338],
}
_EXAONE = {**LLAMA, "rms_norm_eps": 1e-5, "num_key_value_heads": 8, "max_position_embeddings": 4096, "rope_theta": 500_000.0}
_EXAONE4 = {**LLAMA, "rms_norm_eps": 1e-5, "num_key_value_heads": 32, "sliding_window": 4096}
_SEED_OSS = {
    **LLAMA,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 524288,
    "attention_bias": True,
}
_ERNIE = {
    **LLAMA,
    "rms_norm_eps": 1e-5,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
}
_ARCEE = {**LLAMA, "hidden_act": "relu2", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
_INTERNLM2 = {**LLAMA, "bias": True}
_INTERNLM3 = {
    **LLAMA,
    "rms_norm_eps": 1e-5,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 32768,
}
_HELIUM = {
    **LLAMA,
    "rms_norm_eps": 1e-8,
    "num_key_value_heads": 20,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "rope_theta": 100_000.0,
}

_SPLIT_GATE_UP = {"mlp.gate_up_proj": GATE_UP}
_GLM4_NAMES: dict[str, str | tuple[str, ...]] = {
    **_SPLIT_GATE_UP,
    "post_self_attn_layernorm": "post_attention_layernorm",
    "post_attention_layernorm": "pre_feedforward_layernorm",
    "post_mlp_layernorm": "post_feedforward_layernorm",
}
HUNYUAN_NAMES = {"self_attn.query_layernorm": "self_attn.q_norm", "self_attn.key_layernorm": "self_attn.k_norm"}
_EXAONE_LAYOUT = TensorLayout(
    root="transformer.",
    whole={"wte": "model.embed_tokens", "ln_f": "model.norm"},
    layers="h",
    modules={
        "ln_1": "input_layernorm",
        "attn.attention.q_proj": "self_attn.q_proj",
        "attn.attention.k_proj": "self_attn.k_proj",
        "attn.attention.v_proj": "self_attn.v_proj",
        "attn.attention.out_proj": "self_attn.o_proj",
        "ln_2": "post_attention_layernorm",
        "mlp.c_fc_0": "mlp.gate_proj",
        "mlp.c_fc_1": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    },
)
_INTERNLM2_LAYOUT = TensorLayout(
    whole={"tok_embeddings": "model.embed_tokens", "output": "lm_head"},
    modules={
        "attention_norm": "input_layernorm",
        "attention.wqkv": QKV,
        "attention.wo": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj",
    },
    grouped_qkv=True,
)
_EXAONE_SPELLED = {
    "num_hidden_layers": "num_layers",
    "rms_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
}
_GGUF_GATE_UP = {"ffn_up": GATE_UP}
_INTERLEAVED = TensorLayout(interleaved=True)
_OLMO_SHAPE = {"norm_place": "after", "qk_norm": "whole"}


def _gguf(architecture: str, interleaved: bool = False) -> GGUFForm:
    return GGUFForm(architecture, interleaved=interleaved)


RMS_FAMILIES = (
    Family("llama", "LlamaForCausalLM", "llama", LLAMA, all_biases, "LlamaModel", gguf=_gguf("llama", True)),
    Family("llama", "MistralForCausalLM", "mistral", _MISTRAL, every_layer_windowed, "MistralModel"),
    Family("llama", "MinistralForCausalLM", "ministral", _MISTRAL, every_layer_windowed, "MinistralModel"),
    Family(
        "ministral3", "Ministral3ForCausalLM", "ministral3", _MINISTRAL3, _ministral3, "Ministral3Model",
        gguf=_gguf("mistral3", True),
    ),
    Family(
        "qwen2", "Qwen2ForCausalLM", "qwen2", _QWEN2, _qwen, "Qwen2Model", {"attention_bias": True}, gguf=_gguf("qwen2")
    ),
    Family("qwen3", "Qwen3ForCausalLM", "qwen3", _QWEN3, _qwen3, "Qwen3Model", {"qk_norm": "head"}, gguf=_gguf("qwen3")),
    Family("mllama", "MllamaForCausalLM", "mllama_text_model", {**LLAMA, "rms_norm_eps": 1e-5}, shape={"num_extra_ids": 8}),
    Family(
        "phi3", "Phi3ForCausalLM", "phi3", _PHI3, every_layer_windowed, "Phi3Model",
        layout=TensorLayout(modules={"self_attn.qkv_proj": QKV, **_SPLIT_GATE_UP}), gguf=GGUFForm("phi3", _GGUF_GATE_UP),
    ),
    Family("smollm3", "SmolLM3ForCausalLM", "smollm3", _SMOLLM3, _smollm3, "SmolLM3Model", gguf=_gguf("smollm3", True)),
    Family("granite", "GraniteForCausalLM", "granite", LLAMA, read_granite, "GraniteModel", gguf=_gguf("granite", True)),
    Family("minicpm", "MiniCPMForCausalLM", "minicpm", {**LLAMA, "tie_word_embeddings": True}, _minicpm, "MiniCPMModel",
           gguf=_gguf("minicpm", True)),
    Family("olmo2", "Olmo2ForCausalLM", "olmo2", _OLMO2, _olmo2, "Olmo2Model", _OLMO_SHAPE, gguf=_gguf("olmo2")),
    Family("olmo3", "Olmo3ForCausalLM", "olmo3", _OLMO3, _olmo3, "Olmo3Model", _OLMO_SHAPE),
    Family(
        "glm", "GlmForCausalLM", "glm", _GLM, _qkv_bias, "GlmModel",
        layout=TensorLayout(modules=_SPLIT_GATE_UP, interleaved=True),
    ),
    Family(
        "glm4", "Glm4ForCausalLM", "glm4", _GLM, _qkv_bias, "Glm4Model", {"norm_place": "around"},
        TensorLayout(modules=_GLM4_NAMES, interleaved=True), gguf=GGUFForm("glm4", _GGUF_GATE_UP, True),
    ),
    Family("exaone", "ExaoneForCausalLM", "exaone", _EXAONE, all_biases, "ExaoneModel", layout=_EXAONE_LAYOUT,
           spelled=_EXAONE_SPELLED, gguf=_gguf("exaone")),
    Family(
        "exaone4", "Exaone4ForCausalLM", "exaone4", _EXAONE4, _exaone4, "Exaone4Model",
        {"norm_place": "after", "qk_norm": "head"}, gguf=_gguf("exaone4"),
    ),
    Family("seed_oss", "SeedOssForCausalLM", "seed_oss", _SEED_OSS, _seed_oss, "SeedOssModel",
           gguf=_gguf("seed_oss")),
    Family("ernie4_5", "Ernie4_5ForCausalLM", "ernie4_5", _ERNIE, _ernie, "Ernie4_5Model", layout=_INTERLEAVED,
           gguf=_gguf("ernie4_5", True)),
    Family(
        "hunyuan", "HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", {**LLAMA, "rms_norm_eps": 1e-5}, read_hunyuan,
        "HunYuanDenseV1Model", {"qk_norm": "rotated"}, TensorLayout(modules=HUNYUAN_NAMES), gguf=_gguf("hunyuan-dense"),
    ),
    Family("arcee", "ArceeForCausalLM", "arcee", _ARCEE, all_biases, "ArceeModel", is_plain=True, gguf=_gguf("arcee", True)),
    Family("internlm2", "InternLM2ForCausalLM", "internlm2", _INTERNLM2, _internlm2, "InternLM2Model",
           layout=_INTERNLM2_LAYOUT, gguf=_gguf("internlm2", True)),
    Family("internlm3", "InternLM3ForCausalLM", "internlm3", _INTERNLM3, _internlm3, "InternLM3Model"),
    Family("helium", "HeliumForCausalLM", "helium", _HELIUM, _helium, "HeliumModel", layout=_INTERLEAVED),
)  # fmt: skip
