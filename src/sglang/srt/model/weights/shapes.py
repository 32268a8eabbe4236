"""The names and shapes of a model's tensors, from its config: checkpoints are checked against them, dummy weights are made from them."""

from __future__ import annotations

from sglang.srt.model.model_config import (
    ConvConfig,
    ExpertsConfig,
    LatentConfig,
    ModelConfig,
    SelectiveScanConfig,
    StateMixer,
    StateSpaceConfig,
    StreamsConfig,
)
from sglang.srt.model.weights.vision.vision_shapes import vision_shapes

Shapes = dict[str, tuple[int, ...]]


def expected_shapes(config: ModelConfig) -> Shapes:
    """Hugging Face's name -> shape, rows first, for every tensor that a forward pass needs. A tied head has none of its own."""
    shapes: Shapes = {"model.embed_tokens.weight": (config.vocab_size + config.num_extra_ids, config.hidden_size)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for name, shape in (
            _cross_shapes(config) if layer in config.cross_layers else _layer_shapes(config.of_layer(layer), layer)
        ).items():
            shapes[prefix + name] = shape
    shapes.update(_norm("model.norm", config))
    if config.learned_positions:
        shapes["model.embed_positions.weight"] = (config.learned_positions, config.hidden_size)
    if config.layer_inputs is not None:
        width = config.num_layers * config.layer_inputs.width
        shapes["model.embed_tokens_per_layer.weight"] = (config.layer_inputs.vocab_size, width)
        shapes["model.per_layer_model_projection.weight"] = (width, config.hidden_size)
        shapes["model.per_layer_projection_norm.weight"] = (config.layer_inputs.width,)
    if config.streams is not None:
        for i in range(config.streams.count - 1):
            for name in ("altup_projections", "altup_unembed_projections"):
                shapes[f"model.{name}.{i}.weight"] = (config.hidden_size, config.hidden_size)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    if config.vision is not None:
        shapes.update(vision_shapes(config.vision))
    return shapes


def _layer_shapes(config: ModelConfig, layer: int) -> Shapes:
    hidden = config.hidden_size
    shapes: Shapes = {}
    for name in _norm_names(config):
        shapes.update(_norm(f"{name}_layernorm", config))
    if config.recurrent is not None and config.recurrent.layers[layer]:
        shapes.update(_recurrent_shapes(config, config.recurrent.mixer))
    if config.attends(layer):
        shapes.update(_attention_shapes(config, layer))
    if config.layer_inputs is not None:
        shapes["per_layer_input_gate.weight"] = (config.layer_inputs.width, hidden)
        shapes["per_layer_projection.weight"] = (hidden, config.layer_inputs.width)
        shapes["post_per_layer_input_norm.weight"] = (hidden,)
    if config.streams is not None:
        shapes.update(_stream_shapes(config.streams, hidden))
    if config.layer_scales:
        shapes["layer_scalar"] = (1,)
    return shapes if config.halves and config.halves[layer] == "mixer" else {**shapes, **_channel_shapes(config, layer)}


def _attention_shapes(config: ModelConfig, layer: int) -> Shapes:
    hidden, head_dim = config.hidden_size, config.head_dim
    q_rows, kv_rows = config.num_heads * head_dim, config.num_kv_heads * head_dim
    shapes: Shapes = {}
    keeps_kv = config.keeps_kv(layer)
    if config.latent is not None:
        shapes.update(_latent_shapes(config, config.latent))
    else:
        shapes.update(_linear("self_attn.q_proj", q_rows, hidden, config.attention_bias))
        if config.output_gate:
            shapes.update(_linear("self_attn.q_gate", q_rows, hidden, config.attention_bias))
        if keeps_kv:
            shapes.update(_linear("self_attn.k_proj", kv_rows, hidden, config.attention_bias))
        if keeps_kv and not (config.keys_as_values and config.keys_as_values[layer]):
            shapes.update(_linear("self_attn.v_proj", kv_rows, hidden, config.attention_bias))
        shapes.update(_linear("self_attn.o_proj", hidden, q_rows, config.output_bias))
    if config.attention_sinks:
        shapes["self_attn.sinks"] = (config.num_heads,)
    if config.qk_norm:
        for name, heads in (("q", config.num_heads), *([("k", config.num_kv_heads)] if keeps_kv else [])):
            by_kind = {"whole": (heads * head_dim,), "layer": (heads, head_dim)}
            shapes[f"self_attn.{name}_norm.weight"] = by_kind.get(config.qk_norm, (head_dim,))
    return shapes


def _recurrent_shapes(config: ModelConfig, mixer: StateMixer) -> Shapes:
    hidden = config.hidden_size
    if isinstance(mixer, ConvConfig):
        shapes = _linear("mixer.in_proj", 3 * mixer.width, hidden, mixer.bias)
        shapes["mixer.conv.weight"] = (mixer.width, mixer.taps)
        bias: Shapes = {"mixer.conv.bias": (mixer.width,)} if mixer.bias else {}
        return {**shapes, **bias, **_linear("mixer.out_proj", hidden, mixer.width, mixer.bias)}
    if isinstance(mixer, StateSpaceConfig):
        return _state_space_shapes(hidden, mixer)
    if isinstance(mixer, SelectiveScanConfig):
        return _scan_shapes(hidden, mixer)
    heads = mixer.num_v_heads
    widths = {"in_qkv": mixer.conv_width, "in_z": mixer.v_width, "in_b": heads, "in_a": heads}
    shapes = {f"mixer.{name}.weight": (width, hidden) for name, width in widths.items()}
    shapes.update({"mixer.conv.weight": (mixer.conv_width, mixer.taps), "mixer.gate_scale.weight": (mixer.v_dim,)})
    shapes.update({"mixer.A_log": (heads,), "mixer.dt_bias": (heads,), "mixer.out_proj.weight": (hidden, mixer.v_width)})
    return shapes


def _state_space_shapes(hidden: int, mixer: StateSpaceConfig) -> Shapes:
    shapes = _linear("mixer.in_proj", mixer.width + mixer.conv_width + mixer.num_heads, hidden, mixer.in_bias)
    shapes["mixer.conv.weight"] = (mixer.conv_width, mixer.taps)
    if mixer.conv_bias:
        shapes["mixer.conv.bias"] = (mixer.conv_width,)
    shapes.update({f"mixer.{name}": (mixer.num_heads,) for name in ("A_log", "dt_bias", "D")})
    if mixer.norm:
        shapes["mixer.gate_scale.weight"] = (mixer.width,)
    return {**shapes, **_linear("mixer.out_proj", hidden, mixer.width, mixer.out_bias)}


def _scan_shapes(hidden: int, mixer: SelectiveScanConfig) -> Shapes:
    width, rank, state = mixer.width, mixer.dt_rank, mixer.state_dim
    shapes = _linear("mixer.in_proj", 2 * width, hidden, mixer.bias)
    shapes["mixer.conv.weight"] = (width, mixer.taps)
    if mixer.conv_bias:
        shapes["mixer.conv.bias"] = (width,)
    shapes.update({"mixer.x_proj.weight": (rank + 2 * state, width), "mixer.dt_proj.weight": (width, rank)})
    shapes.update({"mixer.dt_proj.bias": (width,), "mixer.A_log": (width, state), "mixer.D": (width,)})
    shapes.update({f"mixer.{name}_norm.weight": (size,) for name, size in (("dt", rank), ("b", state), ("c", state))})
    return {**shapes, **_linear("mixer.out_proj", hidden, width, mixer.bias)}


def _channel_shapes(config: ModelConfig, layer: int) -> Shapes:
    experts = config.experts
    if experts is None or not experts.layers[layer]:
        return _feed_forward("mlp", config, config.intermediate_size, config.mlp_bias)
    return {**_expert_shapes(config, experts), **(_beside_shapes(config, experts) if experts.beside else {})}


def _beside_shapes(config: ModelConfig, experts: ExpertsConfig) -> Shapes:
    """What experts beside a feed-forward layer need more than others."""
    names = ("post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2", "mlp.router_norm")
    shapes: Shapes = {f"{name}.weight": (config.hidden_size,) for name in names}
    shapes["mlp.gate.expert_scale"] = (experts.count,)
    return {**shapes, **_feed_forward("mlp", config, config.intermediate_size, config.mlp_bias)}


def _stream_shapes(streams: StreamsConfig, hidden: int) -> Shapes:
    count, rank = streams.count, streams.rank
    return {
        "altup.correct_output_scale": (hidden,),
        "altup.correction_coefs.weight": (count, count),
        "altup.prediction_coefs.weight": (count * count, count),
        "altup.modality_router.weight": (count, hidden),
        "altup.router_norm.weight": (hidden,),
        "laurel.linear_left.weight": (rank, hidden),
        "laurel.linear_right.weight": (hidden, rank),
        "laurel.post_laurel_norm.weight": (hidden,),
    }


def _latent_shapes(config: ModelConfig, latent: LatentConfig) -> Shapes:
    hidden, heads, rank, bias = config.hidden_size, config.num_heads, latent.rank, config.attention_bias
    shapes: Shapes = {}
    if latent.q_rank:
        shapes.update(_linear("self_attn.q_a_proj", latent.q_rank, hidden, bias))
        shapes["self_attn.q_a_layernorm.weight"] = (latent.q_rank,)
        shapes["self_attn.q_b_proj.weight"] = (heads * latent.q_dim, latent.q_rank)
    else:
        shapes["self_attn.q_proj.weight"] = (heads * latent.q_dim, hidden)
    shapes.update(_linear("self_attn.kv_a_proj_with_mqa", rank + latent.rope_dim, hidden, bias))
    shapes["self_attn.kv_a_layernorm.weight"] = (rank,)
    if latent.is_split:
        shapes["self_attn.k_b_proj.weight"] = (heads, rank, latent.nope_dim)
        shapes["self_attn.v_b_proj.weight"] = (heads, latent.v_dim, rank)
    else:
        shapes["self_attn.kv_b_proj.weight"] = (heads * (latent.nope_dim + latent.v_dim), rank)
    return {**shapes, **_linear("self_attn.o_proj", hidden, heads * latent.v_dim, config.output_bias)}


def _feed_forward(name: str, config: ModelConfig, inner: int, bias: bool) -> Shapes:
    hidden = config.hidden_size
    gate = _linear(f"{name}.gate_proj", inner, hidden, bias) if config.plain is None else {}
    return {**gate, **_linear(f"{name}.up_proj", inner, hidden, bias), **_linear(f"{name}.down_proj", hidden, inner, bias)}


def _expert_shapes(config: ModelConfig, experts: ExpertsConfig) -> Shapes:
    shapes = _linear("mlp.gate", experts.count, config.hidden_size, experts.router_bias)
    if experts.choice_bias:
        shapes["mlp.gate.e_score_correction_bias"] = (experts.count,)
    for e in range(experts.count):
        shapes.update(_feed_forward(f"mlp.experts.{e}", config, experts.width, experts.bias))
    if experts.shared_width:
        shapes.update(_feed_forward("mlp.shared_experts", config, experts.shared_width, config.mlp_bias))
    if experts.shared_gate:
        shapes["mlp.shared_expert_gate.weight"] = (1, config.hidden_size)
    return shapes


def _norm_names(config: ModelConfig) -> tuple[str, ...]:
    if config.halves:
        return ("input",)
    if config.block != "serial":
        return ("input",) if config.block == "shared" else ("input", "post_attention")
    both = ("input", "post_attention")
    feeding = ("pre_feedforward", "post_feedforward")
    return {"before": both, "around": both + feeding, "after": ("post_attention", "post_feedforward")}[config.norm_place]


def _norm(name: str, config: ModelConfig) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (config.hidden_size,)}
    return {**shapes, f"{name}.bias": (config.hidden_size,)} if config.norm_bias else shapes


def _cross_shapes(config: ModelConfig) -> Shapes:
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    shapes: Shapes = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    shapes.update({"cross_attn.q_norm.weight": (head_dim,), "cross_attn.k_norm.weight": (head_dim,)})
    shapes["cross_attn.q_proj.weight"] = (config.num_heads * head_dim, hidden)
    shapes["cross_attn.k_proj.weight"] = shapes["cross_attn.v_proj.weight"] = (config.num_kv_heads * head_dim, hidden)
    shapes["cross_attn.o_proj.weight"] = (hidden, config.num_heads * head_dim)
    shapes["mlp.gate_proj.weight"] = shapes["mlp.up_proj.weight"] = (inner, hidden)
    shapes["mlp.down_proj.weight"] = (hidden, inner)
    return {**shapes, "cross_attn_attn_gate": (1,), "cross_attn_mlp_gate": (1,)}


def _linear(name: str, rows: int, width: int, bias: bool) -> Shapes:
    weight: Shapes = {f"{name}.weight": (rows, width)}
    return {**weight, f"{name}.bias": (rows,)} if bias else weight
