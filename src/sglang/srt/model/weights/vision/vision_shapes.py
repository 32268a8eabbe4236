"""The names and shapes of an encoder's tensors, and the spellings of names in checkpoints of vision-language models."""

from __future__ import annotations

import re
from collections.abc import Callable

from sglang.srt.model.configs.vision_config import VisionConfig

Shapes = dict[str, tuple[int, ...]]

_SPELLINGS = (
    (re.compile(r"^model\.language_model\."), "model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^language_model\.model\."), "model."),
    (re.compile(r"^model\.text_model\."), "model."),
    (re.compile(r"^(model\.)?vision_tower\.vision_model\."), "vision_tower."),
    (
        re.compile(r"^model\.(visual|vision_tower|vision_model|multi_modal_projector|connector|image_newline|embed_vision)\b"),
        r"\1",
    ),
)
"""(what a file may say, what we say): transformers has moved the parts of these models about several times"""


def our_name(name: str) -> str:
    """The name we use for a tensor of a file."""
    for pattern, ours in _SPELLINGS:
        name = pattern.sub(ours, name)
    return name


def vision_shapes(config: VisionConfig) -> Shapes:
    """Name -> shape of every tensor that the encoder needs."""
    return _FAMILIES[config.kind](config)


def _linear(name: str, rows: int, width: int, bias: bool = True) -> Shapes:
    weight: Shapes = {f"{name}.weight": (rows, width)}
    return {**weight, f"{name}.bias": (rows,)} if bias else weight


def _norm(name: str, width: int, bias: bool = True) -> Shapes:
    weight: Shapes = {f"{name}.weight": (width,)}
    return {**weight, f"{name}.bias": (width,)} if bias else weight


def _qwen_patches(c: VisionConfig) -> Shapes:
    return {
        "visual.patch_embed.proj.weight": (c.hidden_size, c.num_channels, c.temporal_patch_size, c.patch_size, c.patch_size)
    }


def _qwen2_vl(c: VisionConfig) -> Shapes:
    shapes = _qwen_patches(c)
    for i in range(c.num_layers):
        at = f"visual.blocks.{i}"
        shapes |= _norm(f"{at}.norm1", c.hidden_size) | _norm(f"{at}.norm2", c.hidden_size)
        shapes |= _linear(f"{at}.attn.qkv", 3 * c.hidden_size, c.hidden_size)
        shapes |= _linear(f"{at}.attn.proj", c.hidden_size, c.hidden_size)
        shapes |= _linear(f"{at}.mlp.fc1", c.intermediate_size, c.hidden_size)
        shapes |= _linear(f"{at}.mlp.fc2", c.hidden_size, c.intermediate_size)
    return shapes | _qwen_merger(c, bias=True)


def _qwen_merger(c: VisionConfig, bias: bool) -> Shapes:
    wide = c.hidden_size * c.merge_size**2
    shapes = _norm("visual.merger.ln_q", c.hidden_size, bias)
    return shapes | _linear("visual.merger.mlp.0", wide, wide) | _linear("visual.merger.mlp.2", c.out_size, wide)


def _qwen3_vl(c: VisionConfig) -> Shapes:
    shapes = _qwen_patches(c) | {"visual.patch_embed.proj.bias": (c.hidden_size,)}
    shapes["visual.pos_embed.weight"] = (c.num_positions, c.hidden_size)
    for i in range(c.num_layers):
        at = f"visual.blocks.{i}"
        shapes |= _norm(f"{at}.norm1", c.hidden_size) | _norm(f"{at}.norm2", c.hidden_size)
        shapes |= _linear(f"{at}.attn.qkv", 3 * c.hidden_size, c.hidden_size)
        shapes |= _linear(f"{at}.attn.proj", c.hidden_size, c.hidden_size)
        shapes |= _linear(f"{at}.mlp.linear_fc1", c.intermediate_size, c.hidden_size)
        shapes |= _linear(f"{at}.mlp.linear_fc2", c.hidden_size, c.intermediate_size)
    wide = c.hidden_size * c.merge_size**2
    mergers = {"visual.merger": c.hidden_size} | {f"visual.deepstack_merger_list.{i}": wide for i in range(len(c.deep_layers))}
    for name, width in mergers.items():
        shapes |= _norm(f"{name}.norm", width) | _linear(f"{name}.linear_fc1", wide, wide)
        shapes |= _linear(f"{name}.linear_fc2", c.out_size, wide)
    return shapes


def _qwen2_5_vl(c: VisionConfig) -> Shapes:
    shapes = _qwen_patches(c)
    for i in range(c.num_layers):
        at = f"visual.blocks.{i}"
        shapes |= _norm(f"{at}.norm1", c.hidden_size, False) | _norm(f"{at}.norm2", c.hidden_size, False)
        shapes |= _linear(f"{at}.attn.qkv", 3 * c.hidden_size, c.hidden_size)
        shapes |= _linear(f"{at}.attn.proj", c.hidden_size, c.hidden_size)
        for name in ("gate_proj", "up_proj"):
            shapes |= _linear(f"{at}.mlp.{name}", c.intermediate_size, c.hidden_size)
        shapes |= _linear(f"{at}.mlp.down_proj", c.hidden_size, c.intermediate_size)
    return shapes | _qwen_merger(c, bias=False)


def _glm4v(c: VisionConfig) -> Shapes:
    shapes = _qwen_patches(c) | {"visual.patch_embed.proj.bias": (c.hidden_size,)}
    shapes["visual.embeddings.position_embedding.weight"] = ((c.image_size // c.patch_size) ** 2, c.hidden_size)
    for i in range(c.num_layers):
        at = f"visual.blocks.{i}"
        shapes |= _norm(f"{at}.norm1", c.hidden_size, False) | _norm(f"{at}.norm2", c.hidden_size, False)
        shapes |= _linear(f"{at}.attn.qkv", 3 * c.hidden_size, c.hidden_size, c.attention_bias)
        shapes |= _linear(f"{at}.attn.proj", c.hidden_size, c.hidden_size, False)
        for name in ("gate_proj", "up_proj"):
            shapes |= _linear(f"{at}.mlp.{name}", c.intermediate_size, c.hidden_size, False)
        shapes |= _linear(f"{at}.mlp.down_proj", c.hidden_size, c.intermediate_size, False)
    for name in ("post_conv_layernorm", "post_layernorm"):
        shapes |= _norm(f"visual.{name}", c.hidden_size, False)
    shapes |= {"visual.downsample.weight": (c.out_size, c.hidden_size, c.merge_size, c.merge_size)}
    shapes |= {"visual.downsample.bias": (c.out_size,)} | _norm("visual.merger.post_projection_norm", c.out_size)
    shapes |= _linear("visual.merger.proj", c.out_size, c.out_size, False)
    for name in ("gate_proj", "up_proj"):
        shapes |= _linear(f"visual.merger.{name}", c.merger_size, c.out_size, False)
    return shapes | _linear("visual.merger.down_proj", c.out_size, c.merger_size, False)


def _gemma4(c: VisionConfig) -> Shapes:
    at = "vision_tower.patch_embedder"
    shapes = _linear(f"{at}.input_proj", c.hidden_size, c.num_channels * c.patch_size**2, False)
    shapes[f"{at}.position_embedding_table"] = (2, c.num_positions, c.hidden_size)
    for i in range(c.num_layers):
        at = f"vision_tower.encoder.layers.{i}"
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            shapes |= _norm(f"{at}.{name}_layernorm", c.hidden_size, False)
        for part in "qk":
            shapes |= _norm(f"{at}.self_attn.{part}_norm", c.head_dim, False)
        linear = {f"self_attn.{part}_proj": (c.hidden_size, c.hidden_size) for part in "qkvo"}
        linear |= {f"mlp.{part}_proj": (c.intermediate_size, c.hidden_size) for part in ("gate", "up")}
        linear["mlp.down_proj"] = (c.hidden_size, c.intermediate_size)
        for name, (rows, width) in linear.items():
            shapes |= _linear(f"{at}.{name}.linear", rows, width, False)
            if c.bounded:
                shapes |= {f"{at}.{name}.{bound}": () for bound in ("input_min", "input_max", "output_min", "output_max")}
    if c.standardized:
        shapes |= {f"vision_tower.std_{part}": (c.hidden_size,) for part in ("bias", "scale")}
    return shapes | _linear("embed_vision.embedding_projection", c.out_size, c.hidden_size, False)


def _siglip(c: VisionConfig, prefix: str, normed: bool = True) -> Shapes:
    at, is_clip = f"{prefix}.embeddings", c.class_row
    shapes: Shapes = {
        f"{at}.patch_embedding.weight": (c.hidden_size, c.num_channels, c.patch_size, c.patch_size),
        f"{at}.position_embedding.weight": ((c.image_size // c.patch_size) ** 2 + int(is_clip), c.hidden_size),
    }
    if is_clip:
        shapes |= {f"{at}.class_embedding": (c.hidden_size,)} | _norm(f"{prefix}.pre_layrnorm", c.hidden_size)
    else:
        shapes[f"{at}.patch_embedding.bias"] = (c.hidden_size,)
    for i in range(c.num_layers):
        at = f"{prefix}.encoder.layers.{i}"
        shapes |= _norm(f"{at}.layer_norm1", c.hidden_size) | _norm(f"{at}.layer_norm2", c.hidden_size)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{at}.self_attn.{name}", c.hidden_size, c.hidden_size)
        shapes |= _linear(f"{at}.mlp.fc1", c.intermediate_size, c.hidden_size)
        shapes |= _linear(f"{at}.mlp.fc2", c.hidden_size, c.intermediate_size)
    return shapes | _norm(f"{prefix}.post_layernorm", c.hidden_size) if normed else shapes


def _idefics(c: VisionConfig) -> Shapes:
    name = "connector.modality_projection.proj"
    return _siglip(c, "vision_model") | _linear(name, c.out_size, c.hidden_size * c.merge_size**2, False)


def _gemma3(c: VisionConfig) -> Shapes:
    name = "multi_modal_projector"
    shapes = _siglip(c, "vision_tower") | {f"{name}.mm_input_projection_weight": (c.hidden_size, c.out_size)}
    return shapes | _norm(f"{name}.mm_soft_emb_norm", c.hidden_size, False)


def _mllama(c: VisionConfig) -> Shapes:
    cross, width = c.cross_attention, c.hidden_size
    assert cross is not None
    places = (c.image_size // c.patch_size) ** 2 + 1
    at = "vision_model"
    shapes: Shapes = {
        f"{at}.patch_embedding.weight": (width, c.num_channels, c.patch_size, c.patch_size),
        f"{at}.class_embedding": (width,),
        f"{at}.gated_positional_embedding.gate": (1,),
        f"{at}.gated_positional_embedding.embedding": (places, width),
        f"{at}.gated_positional_embedding.tile_embedding.weight": (cross.num_shapes + 1, cross.max_tiles * places * width),
    }
    for name in ("pre_tile_positional_embedding", "post_tile_positional_embedding"):
        shapes[f"{at}.{name}.gate"] = (1,)
        shapes[f"{at}.{name}.embedding.weight"] = (cross.num_shapes + 1, cross.max_tiles * width)
    shapes |= _norm(f"{at}.layernorm_pre", width) | _norm(f"{at}.layernorm_post", width)
    names = [f"{at}.transformer.layers.{i}" for i in range(c.num_layers)]
    gated = [f"{at}.global_transformer.layers.{i}" for i in range(cross.num_global_layers)]
    for name in names + gated:
        shapes |= _norm(f"{name}.input_layernorm", width) | _norm(f"{name}.post_attention_layernorm", width)
        for part in "qkvo":
            shapes |= _linear(f"{name}.self_attn.{part}_proj", width, width, False)
        shapes |= _linear(f"{name}.mlp.fc1", c.intermediate_size, width) | _linear(
            f"{name}.mlp.fc2", width, c.intermediate_size
        )
    for name in gated:
        shapes |= {f"{name}.gate_attn": (1,), f"{name}.gate_ffn": (1,)}
    return shapes | _linear("multi_modal_projector", c.out_size, width * (1 + len(cross.taken_layers)))


def _connector(c: VisionConfig, width: int) -> Shapes:
    name, bias = "multi_modal_projector", c.projector_bias
    return _linear(f"{name}.linear_1", c.out_size, width, bias) | _linear(f"{name}.linear_2", c.out_size, c.out_size, bias)


def _llava(c: VisionConfig) -> Shapes:
    return _siglip(c, "vision_tower", normed=False) | _connector(c, c.hidden_size * max(1, len(c.taken_layers)))


def _tiled_llava(c: VisionConfig) -> Shapes:
    return _llava(c) | {"image_newline": (c.out_size,)}


def _pixtral(c: VisionConfig) -> Shapes:
    at, width = "vision_tower", c.hidden_size
    shapes: Shapes = {f"{at}.patch_conv.weight": (width, c.num_channels, c.patch_size, c.patch_size)}
    shapes |= _norm(f"{at}.ln_pre", width, False)
    for i in range(c.num_layers):
        layer = f"{at}.transformer.layers.{i}"
        shapes |= _norm(f"{layer}.attention_norm", width, False) | _norm(f"{layer}.ffn_norm", width, False)
        for part in "qkvo":
            shapes |= _linear(f"{layer}.attention.{part}_proj", width, width, False)
        for part in ("gate_proj", "up_proj"):
            shapes |= _linear(f"{layer}.feed_forward.{part}", c.intermediate_size, width, False)
        shapes |= _linear(f"{layer}.feed_forward.down_proj", width, c.intermediate_size, False)
    return shapes | _connector(c, width)


def _mistral3(c: VisionConfig) -> Shapes:
    name, width = "multi_modal_projector", c.hidden_size
    shapes = _pixtral(c) | _norm(f"{name}.norm", width, False)
    return shapes | _linear(f"{name}.patch_merger.merging_layer", width, width * c.merge_size**2, False)


def _internvl(c: VisionConfig) -> Shapes:
    at, width, wide = "vision_tower.embeddings", c.hidden_size, c.hidden_size * c.merge_size**2
    shapes: Shapes = {
        f"{at}.cls_token": (1, 1, width),
        f"{at}.position_embeddings": (1, (c.image_size // c.patch_size) ** 2 + 1, width),
        f"{at}.patch_embeddings.projection.weight": (width, c.num_channels, c.patch_size, c.patch_size),
        f"{at}.patch_embeddings.projection.bias": (width,),
    }
    for i in range(c.num_layers):
        at = f"vision_tower.encoder.layer.{i}"
        for name in ("layernorm_before", "layernorm_after"):
            shapes |= _norm(f"{at}.{name}", width, not c.rms_norms)
        for part in "qkv":
            shapes |= _linear(f"{at}.attention.{part}_proj", width, width, c.attention_bias)
        if c.qk_norm:
            shapes |= _norm(f"{at}.attention.q_norm", width, False) | _norm(f"{at}.attention.k_norm", width, False)
        shapes |= _linear(f"{at}.attention.projection_layer", width, width)
        shapes |= _linear(f"{at}.mlp.fc1", c.intermediate_size, width) | _linear(f"{at}.mlp.fc2", width, c.intermediate_size)
        shapes |= {f"{at}.lambda_1": (width,), f"{at}.lambda_2": (width,)}
    shapes |= _norm("vision_tower.layernorm", width) if c.final_norm else {}
    return shapes | _norm("multi_modal_projector.layer_norm", wide) | _connector(c, wide)


_FAMILIES: dict[str, Callable[[VisionConfig], Shapes]] = {
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    "glm4v": _glm4v,
    "idefics": _idefics,
    "internvl": _internvl,
    "llava": _llava,
    "llava_next": _tiled_llava,
    "llava_onevision": _tiled_llava,
    "mistral3": _mistral3,
    "mllama": _mllama,
    "pixtral": _pixtral,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
}
