"""The names and shapes of a model's tensors, from its config: checkpoints are checked against them, dummy weights are made from them."""

from __future__ import annotations

from sglang.srt.model.model_config import ExpertsConfig, ModelConfig
from sglang.srt.model.weights.vision_shapes import vision_shapes

Shapes = dict[str, tuple[int, ...]]


def expected_shapes(config: ModelConfig) -> Shapes:
    """Hugging Face's name -> shape, rows first, for every tensor that a forward pass needs. A tied head has none of its own."""
    shapes: Shapes = {"model.embed_tokens.weight": (config.vocab_size + config.num_extra_ids, config.hidden_size)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for name, shape in (_cross_shapes(config) if layer in config.cross_layers else _layer_shapes(config, layer)).items():
            shapes[prefix + name] = shape
    shapes.update(_norm("model.norm", config))
    if config.learned_positions:
        shapes["model.embed_positions.weight"] = (config.learned_positions, config.hidden_size)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    if config.vision is not None:
        shapes.update(vision_shapes(config.vision))
    return shapes


def _layer_shapes(config: ModelConfig, layer: int) -> Shapes:
    hidden, head_dim = config.hidden_size, config.head_dim
    q_rows, kv_rows = config.num_heads * head_dim, config.num_kv_heads * head_dim
    shapes: Shapes = {}
    for name in _norm_names(config):
        shapes.update(_norm(f"{name}_layernorm", config))
    shapes.update(_linear("self_attn.q_proj", q_rows, hidden, config.attention_bias))
    shapes.update(_linear("self_attn.k_proj", kv_rows, hidden, config.attention_bias))
    shapes.update(_linear("self_attn.v_proj", kv_rows, hidden, config.attention_bias))
    shapes.update(_linear("self_attn.o_proj", hidden, q_rows, config.output_bias))
    if config.attention_sinks:
        shapes["self_attn.sinks"] = (config.num_heads,)
    if config.qk_norm:
        for name, heads in (("q", config.num_heads), ("k", config.num_kv_heads)):
            by_kind = {"whole": (heads * head_dim,), "layer": (heads, head_dim)}
            shapes[f"self_attn.{name}_norm.weight"] = by_kind.get(config.qk_norm, (head_dim,))
    if config.experts is not None and config.experts.layers[layer]:
        return {**shapes, **_expert_shapes(config, config.experts)}
    return {**shapes, **_feed_forward("mlp", config, config.intermediate_size, config.mlp_bias)}


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
