"""The families of vision-language models: what their configs say of the encoder. A family is a row of VISION_FAMILIES."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sglang.srt.checkpoint.files import shown
from sglang.srt.model.configs.vision_config import CrossConfig, VisionConfig
from sglang.srt.model.weights.config_fields import MAX_EPS, MAX_LAYERS, MAX_SIZE, MIN_EPS, Fields
from sglang.srt.model.weights.vision.vision_fields import (
    GATED,
    MAX_MERGE,
    MAX_TAKEN,
    MAX_TILES,
    VisionFamily,
    VisionFields,
    decoder_width,
)


def _qwen2_vl(fields: VisionFields) -> VisionConfig:
    """Here `hidden_size` is the decoder's width and `embed_dim` the encoder's."""
    v = fields.vision
    width = v.count("embed_dim", 1280)
    return VisionConfig(
        kind="qwen2_vl",
        media_kinds=("image", "video"),
        num_layers=v.count("depth", 32, most=MAX_LAYERS),
        hidden_size=width,
        num_heads=v.count("num_heads", 16),
        intermediate_size=int(width * v.number("mlp_ratio", 4, above=1 / width, most=1024.0)),
        patch_size=fields.pixels("patch_size", 14),
        out_size=v.count("hidden_size", 3584),
        image_token_id=fields.top.count("image_token_id", 151655),
        activation=fields.activation("hidden_act", "quick_gelu"),
        num_channels=v.count("in_channels", v.count("in_chans", 3)),
        temporal_patch_size=fields.pixels("temporal_patch_size", 2),
        merge_size=v.count("spatial_merge_size", 2),
    )


def _qwen2_5_vl(fields: VisionFields) -> VisionConfig:
    v = fields.vision
    depth = v.count("depth", 32, most=MAX_LAYERS)
    return VisionConfig(
        kind="qwen2_5_vl",
        media_kinds=("image", "video"),
        num_layers=depth,
        hidden_size=v.count("hidden_size", 1280),
        num_heads=v.count("num_heads", 16),
        intermediate_size=v.count("intermediate_size", 3420),
        patch_size=fields.pixels("patch_size", 14),
        out_size=v.count("out_hidden_size", decoder_width(fields)),
        image_token_id=fields.top.count("image_token_id", 151655),
        activation=fields.activation("hidden_act", "silu"),
        num_channels=v.count("in_channels", v.count("in_chans", 3)),
        temporal_patch_size=fields.pixels("temporal_patch_size", 2),
        merge_size=v.count("spatial_merge_size", 2),
        window_size=v.count("window_size", 112),
        full_layers=v.layers("fullatt_block_indexes", [7, 15, 23, 31], depth),
    )


def _qwen3_vl(fields: VisionFields) -> VisionConfig:
    v = fields.vision
    depth = v.count("depth", 27, most=MAX_LAYERS)
    return VisionConfig(
        kind="qwen3_vl",
        media_kinds=("image", "video"),
        num_layers=depth,
        hidden_size=v.count("hidden_size", 1152),
        num_heads=v.count("num_heads", 16),
        intermediate_size=v.count("intermediate_size", 4304),
        patch_size=fields.pixels("patch_size", 16),
        out_size=v.count("out_hidden_size", decoder_width(fields)),
        image_token_id=fields.top.count("image_token_id", 151655),
        activation=fields.activation("hidden_act", "gelu_pytorch_tanh"),
        num_channels=v.count("in_channels", 3),
        temporal_patch_size=fields.pixels("temporal_patch_size", 2),
        merge_size=v.count("spatial_merge_size", 2),
        num_positions=v.count("num_position_embeddings", 2304),
        deep_layers=v.layers("deepstack_visual_indexes", [8, 16, 24], depth),
    )


def _qwen3_5(fields: VisionFields) -> VisionConfig:
    """Qwen3-VL's, without rows from layers in the middle."""
    alone = Fields({**fields.vision.raw, "deepstack_visual_indexes": []}, fields.vision.source, where="vision_config.")
    return replace(_qwen3_vl(replace(fields, vision=alone)), image_token_id=fields.top.count("image_token_id", 248056))


def _glm4v(fields: VisionFields, image_token_id: int = 151343) -> VisionConfig:
    v = fields.vision
    width, heads = v.count("hidden_size", 1536), v.count("num_heads", 12)
    if width // heads % 4:
        raise v.bad("num_heads", f"must make heads of a multiple of 4 values, got {width} / {heads}")
    return VisionConfig(
        kind="glm4v",
        media_kinds=("image",),
        num_layers=v.count("depth", 24, most=MAX_LAYERS),
        hidden_size=width,
        num_heads=heads,
        intermediate_size=v.count("out_hidden_size", 4096),
        patch_size=fields.pixels("patch_size", 14),
        image_size=fields.pixels("image_size", 336),
        out_size=v.count("out_hidden_size", 4096),
        image_token_id=fields.top.count("image_token_id", image_token_id),
        activation=v.choice("hidden_act", GATED, "silu"),
        norm_eps=v.number("rms_norm_eps", 1e-5, above=MIN_EPS, most=MAX_EPS),
        num_channels=v.count("in_channels", 3),
        temporal_patch_size=fields.pixels("temporal_patch_size", 2),
        merge_size=v.count("spatial_merge_size", 2, MAX_MERGE),
        attention_bias=v.flag("attention_bias"),
        merger_size=v.count("intermediate_size", 13696),
    )


def _gemma4(fields: VisionFields) -> VisionConfig:
    v, top = fields.vision, fields.top
    width, heads = v.count("hidden_size", 768), v.count("num_attention_heads", 12)
    if v.count("head_dim", 64) * heads != width or width // heads % 4:
        raise v.bad("head_dim", f"must be {width} / {heads}, a multiple of 4")
    if v.count("num_key_value_heads", 12) != heads:
        raise v.bad("num_key_value_heads", f"must be num_attention_heads ({heads})")
    rope = {"rope_type": "axial", "rope_theta": 100.0, **v.object("rope_parameters")}
    rotation = Fields(rope, v.source, where="vision_config.rope_parameters.")
    rotation.choice("rope_type", {"axial": True})
    ahead = Fields(fields.text, top.source).get("use_bidirectional_attention") == "vision"
    return VisionConfig(
        kind="gemma4",
        media_kinds=("image",),
        num_layers=v.count("num_hidden_layers", 16, MAX_LAYERS),
        hidden_size=width,
        num_heads=heads,
        intermediate_size=v.count("intermediate_size", 3072),
        patch_size=fields.pixels("patch_size", 16),
        out_size=decoder_width(fields),
        image_token_id=top.count("image_token_id", 258880),
        activation=v.choice("hidden_activation", GATED, "gelu_pytorch_tanh"),
        norm_eps=v.number("rms_norm_eps", 1e-6, above=MIN_EPS, most=MAX_EPS),
        merge_size=v.count("pooling_kernel_size", 3, MAX_MERGE),
        num_positions=v.count("position_embedding_size", 10240),
        rope_theta=rotation.number("rope_theta", above=1.0),
        out_rows=top.count("vision_soft_tokens_per_image", 280),
        bidirectional_images=ahead,
        only_windows_see_ahead=ahead,
        bounded=v.flag("use_clipped_linears"),
        standardized=v.flag("standardize"),
    )


def _siglip(fields: VisionFields, kind: str, defaults: dict[str, Any]) -> VisionConfig:
    v = fields.vision

    def size(name: str) -> int:
        return v.count(name, defaults[name], MAX_LAYERS if name == "num_hidden_layers" else MAX_SIZE)

    return VisionConfig(
        kind=kind,
        media_kinds=("image",),
        num_layers=size("num_hidden_layers"),
        hidden_size=size("hidden_size"),
        num_heads=size("num_attention_heads"),
        intermediate_size=size("intermediate_size"),
        patch_size=fields.pixels("patch_size", defaults["patch_size"]),
        image_size=fields.pixels("image_size", defaults["image_size"]),
        out_size=decoder_width(fields),
        image_token_id=fields.top.count("image_token_id", fields.top.count("image_token_index", defaults["image_token_id"])),
        activation=fields.activation("hidden_act", defaults.get("hidden_act", "gelu_pytorch_tanh")),
        norm_eps=v.number("layer_norm_eps", defaults.get("layer_norm_eps", 1e-6), above=MIN_EPS, most=MAX_EPS),
        num_channels=v.count("num_channels", 3),
    )


_SIGLIP = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}


def _idefics(fields: VisionFields) -> VisionConfig:
    defaults = {**_SIGLIP, "hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32, "image_size": 224}
    found = _siglip(fields, "idefics", {**defaults, "image_token_id": 128257})
    merge = fields.top.count("scale_factor", 2)
    if found.image_size // found.patch_size % merge:
        raise fields.top.bad("scale_factor", f"({merge}) does not divide the patches of a tile's side")
    return replace(found, merge_size=merge)


def _gemma3(fields: VisionFields) -> VisionConfig:
    defaults = {**_SIGLIP, "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 14, "num_attention_heads": 16}
    found = _siglip(fields, "gemma3", {**defaults, "num_hidden_layers": 27, "image_size": 896, "image_token_id": 262144})
    rows = fields.top.count("mm_tokens_per_image", 256)
    side = found.image_size // found.patch_size
    if int(rows**0.5) ** 2 != rows or int(rows**0.5) > side:
        raise fields.top.bad("mm_tokens_per_image", f"must be a square of at most {side} a side, got {rows}")
    return replace(found, out_rows=rows, bidirectional_images=True)


def _llava_onevision(fields: VisionFields) -> VisionConfig:
    top = fields.top
    if top.get("projector_hidden_act", "gelu") != "gelu" or not top.flag("multimodal_projector_bias", True):
        raise top.bad("projector_hidden_act", "and multimodal_projector_bias must be gelu and true")
    if top.get("vision_feature_layer", -1) != -1 or top.get("vision_feature_select_strategy", "full") != "full":
        raise top.bad("vision_feature_layer", "must be -1, with the strategy full")
    defaults = {**_SIGLIP, "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 14, "num_attention_heads": 16}
    return _siglip(
        fields, "llava_onevision", {**defaults, "num_hidden_layers": 26, "image_size": 384, "image_token_id": 151646}
    )


_CLIP = {**_SIGLIP, "image_size": 224, "patch_size": 32, "image_token_id": 32000}
_TOWERS: dict[str, dict[str, Any]] = {
    "clip_vision_model": {**_CLIP, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "class_row": True},
    "siglip_vision_model": {**_CLIP, "patch_size": 16},
}


def _feature_layers(top: Fields, default: int, depth: int) -> tuple[int, ...]:
    """After how many layers rows are taken. -1 is after the last."""
    value = top.get("vision_feature_layer", default)
    listed = value if isinstance(value, list) else [value]
    if not 0 < len(listed) <= MAX_TAKEN or any(type(i) is not int or not -depth - 1 <= i <= depth for i in listed):
        raise top.bad(
            "vision_feature_layer", f"must name layers of {depth}, or {MAX_TAKEN} of them at most, got {shown(value)}"
        )
    return tuple(i if i >= 0 else depth + 1 + i for i in listed)


def _projector(top: Fields, bias: bool = True) -> bool:
    """Whether the connector's matrices have biases."""
    top.choice("projector_hidden_act", {"gelu": "gelu"}, "gelu")
    return top.flag("multimodal_projector_bias", bias)


def _llava_tower(fields: VisionFields, kind: str) -> VisionConfig:
    top = fields.top
    found = fields.vision.choice("model_type", _TOWERS, "clip_vision_model")
    tower = _siglip(fields, kind, found)
    taken = _feature_layers(top, -2, tower.num_layers)
    drops = top.choice("vision_feature_select_strategy", {"default": True, "full": False}, "default")
    last = max(taken)
    if not last:
        raise top.bad("vision_feature_layer", "must name a layer that is not the first")
    return replace(
        tower,
        num_layers=last,
        taken_layers=taken,
        class_row=found.get("class_row", False),
        drops_first=drops,
        projector_bias=_projector(top),
    )


def _llava(fields: VisionFields) -> VisionConfig:
    """LLaVA 1.5; with Pixtral's tower, Pixtral."""
    if fields.vision.get("model_type") == "pixtral":
        return _pixtral(fields, "pixtral", -2, projector_bias=True, image_token_id=32000)
    return _llava_tower(fields, "llava")


def _llava_next(fields: VisionFields) -> VisionConfig:
    found = _llava_tower(fields, "llava_next")
    if found.class_row != found.drops_first:
        raise fields.top.bad("vision_feature_select_strategy", "must leave the rows of a tile's patches")
    return found


def _pixtral(fields: VisionFields, kind: str, layer: int, projector_bias: bool, image_token_id: int) -> VisionConfig:
    v, top = fields.vision, fields.top
    v.choice("model_type", {"pixtral": "pixtral"}, "pixtral")
    taken = _feature_layers(top, layer, v.count("num_hidden_layers", 24, MAX_LAYERS))
    if len(taken) > 1 or not taken[0]:
        raise top.bad("vision_feature_layer", "must be one layer that is not the first")
    if kind == "pixtral" and top.choice("vision_feature_select_strategy", {"default": True, "full": False}, "default"):
        raise top.bad("vision_feature_select_strategy", "must be full: no row of such an encoder can be left out")
    merged = kind == "mistral3"
    width, heads = v.count("hidden_size", 1024), v.count("num_attention_heads", 16)
    if v.count("head_dim", max(1, width // heads)) != width // heads or width // heads % 4:
        raise v.bad("head_dim", f"must be {width} / {heads}, a multiple of 4")
    rope = v.object("rope_parameters")
    return VisionConfig(
        kind=kind,
        media_kinds=("image",),
        num_layers=taken[0],
        hidden_size=width,
        num_heads=heads,
        intermediate_size=v.count("intermediate_size", 4096),
        patch_size=fields.pixels("patch_size", 16),
        out_size=decoder_width(fields),
        image_token_id=top.count("image_token_id", top.count("image_token_index", image_token_id)),
        activation=fields.activation("hidden_act", "gelu"),
        norm_eps=1e-5,
        num_channels=v.count("num_channels", 3),
        merge_size=top.count("spatial_merge_size", 2, MAX_MERGE) if merged else 1,
        rope_theta=Fields({"rope_theta": 1e4, **v.raw, **rope}, v.source, where="vision_config.").number(
            "rope_theta", above=1.0
        ),
        projector_bias=_projector(top, projector_bias),
        projector_eps=Fields(fields.text, top.source).number("rms_norm_eps", 1e-6, above=MIN_EPS, most=MAX_EPS),
    )


def _mistral3(fields: VisionFields) -> VisionConfig:
    return _pixtral(fields, "mistral3", -1, projector_bias=False, image_token_id=10)


def _internvl(fields: VisionFields) -> VisionConfig:
    v, top = fields.vision, fields.top
    defaults = {**_SIGLIP, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    found = _siglip(
        fields,
        "internvl",
        {**defaults, "patch_size": 14, "image_size": 448, "image_token_id": 151667, "hidden_act": "gelu"},
    )
    top.choice("projector_hidden_act", {"gelu": "gelu"}, "gelu")
    if top.get("vision_feature_layer", -1) != -1 or top.get("vision_feature_select_strategy", "default") != "default":
        raise top.bad("vision_feature_layer", "must be -1, with the strategy default")
    if not v.flag("use_absolute_position_embeddings", True):
        raise v.bad("use_absolute_position_embeddings", "must be true")
    merge = 1 / top.number("downsample_ratio", 0.5, above=1 / MAX_MERGE - 1e-9, most=1.0)
    if merge % 1 or found.image_size // found.patch_size % int(merge):
        raise top.bad("downsample_ratio", "must be one in a number that divides the patches of a tile's side")
    return replace(
        found,
        merge_size=int(merge),
        class_row=True,
        attention_bias=v.flag("attention_bias"),
        qk_norm=v.flag("use_qk_norm"),
        rms_norms=v.choice("norm_type", {"layer_norm": False, "rms_norm": True}, "layer_norm"),
        final_norm=not v.flag("use_mean_pooling", True),
    )


def _mllama(fields: VisionFields) -> VisionConfig:
    v, text = fields.vision, Fields(fields.text, fields.top.source)
    num_heads = text.count("num_attention_heads", 32)
    max_tiles = v.count("max_num_tiles", 4, most=MAX_TILES)
    shapes = sum(1 for a in range(1, max_tiles + 1) for b in range(1, max_tiles + 1) if a * b <= max_tiles)
    listed = v.get("supported_aspect_ratios")
    if listed is not None and not (isinstance(listed, list) and len(listed) == shapes):
        raise v.bad("supported_aspect_ratios", f"must be the {shapes} of {max_tiles} tiles, got {shown(listed)}")
    depth = v.count("num_hidden_layers", 32, MAX_LAYERS)
    num_layers = text.count("num_hidden_layers", 40, MAX_LAYERS)
    cross = CrossConfig(
        layers=tuple(sorted(text.layers("cross_attention_layers", [3, 8, 13, 18, 23, 28, 33, 38], num_layers))),
        num_kv_heads=text.count("num_key_value_heads", 8),
        head_dim=decoder_width(fields) // num_heads,
        norm_eps=text.number("rms_norm_eps", 1e-5, above=MIN_EPS, most=MAX_EPS),
        max_tiles=max_tiles,
        num_shapes=shapes,
        num_global_layers=v.count("num_global_layers", 8, MAX_LAYERS),
        taken_layers=tuple(sorted(v.layers("intermediate_layers_indices", [3, 7, 15, 23, 30], depth))),
    )
    width = v.count("hidden_size", 1280)
    if v.count("vision_output_dim", 7680) != width * (1 + len(cross.taken_layers)):
        raise v.bad("vision_output_dim", f"must be {width * (1 + len(cross.taken_layers))}, with these layers taken")
    return VisionConfig(
        kind="mllama",
        media_kinds=("image",),
        num_layers=depth,
        hidden_size=width,
        num_heads=v.count("attention_heads", v.count("num_attention_heads", 16)),
        intermediate_size=v.count("intermediate_size", 5120),
        patch_size=fields.pixels("patch_size", 14),
        image_size=fields.pixels("image_size", 448),
        out_size=decoder_width(fields),
        image_token_id=fields.top.count("image_token_index", fields.top.count("image_token_id", 128256)),
        activation=fields.activation("hidden_act", "gelu"),
        norm_eps=v.number("norm_eps", 1e-5, above=MIN_EPS, most=MAX_EPS),
        num_channels=v.count("num_channels", 3),
        cross_attention=cross,
    )


_LLAMA = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "vocab_size": 32000,
}
_MISTRAL = {**_LLAMA, "num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 131072}
_TEXTS: dict[str, dict[str, Any]] = {
    "llama": {**_LLAMA, "intermediate_size": 11008},
    "mistral": {**_MISTRAL, "sliding_window": 4096},
}
"""what published configs leave out, as transformers' config classes have it"""
GLM_4_5V_IMAGE = 151363
_GLM_MOE = {"attention_bias": True, "use_qk_norm": False, "vocab_size": 151424, "max_position_embeddings": 65536}
_DECODERS: dict[str, Any] = {"is_tied": "without head", "text_defaults": _TEXTS}

VISION_FAMILIES = (
    VisionFamily("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM", _gemma3, is_tied=True),
    VisionFamily(
        "Gemma4ForConditionalGeneration",
        "Gemma4ForCausalLM",
        _gemma4,
        is_tied=True,
        text_type="gemma4_text",
    ),
    VisionFamily("MllamaForConditionalGeneration", "MllamaForCausalLM", _mllama, is_tied=None),
    VisionFamily("SmolVLMForConditionalGeneration", "LlamaForCausalLM", _idefics),
    VisionFamily("Idefics3ForConditionalGeneration", "LlamaForCausalLM", _idefics),
    VisionFamily("LlavaOnevisionForConditionalGeneration", "Qwen2ForCausalLM", _llava_onevision),
    VisionFamily("LlavaForConditionalGeneration", "", _llava, **_DECODERS),
    VisionFamily("LlavaNextForConditionalGeneration", "", _llava_next, **_DECODERS),
    VisionFamily("Mistral3ForConditionalGeneration", "", _mistral3, text_type="mistral", **_DECODERS),
    VisionFamily("InternVLForConditionalGeneration", "", _internvl, text_type="qwen2", **_DECODERS),
    VisionFamily(
        "Glm4vForConditionalGeneration",
        "Glm4ForCausalLM",
        _glm4v,
        sections=(8, 12, 12),
        fixed={"attention_bias": True},
        is_tied="without head",
        text_type="glm4v_text",
        text_defaults={"glm4v_text": {"head_dim": None}},
    ),
    VisionFamily(
        "Glm4vMoeForConditionalGeneration",
        "Glm4MoeForCausalLM",
        lambda fields: _glm4v(fields, GLM_4_5V_IMAGE),
        sections=(8, 12, 12),
        fixed={"use_qk_norm": False},
        is_tied="without head",
        text_type="glm4v_moe_text",
        text_defaults={"glm4v_moe_text": _GLM_MOE},
    ),
    VisionFamily(
        "Glm46VForConditionalGeneration",
        "Glm4ForCausalLM",
        _glm4v,
        sections=(8, 12, 12),
        is_tied="without head",
        text_type="glm4v_text",
        text_classes={"glm4v_moe_text": "Glm4MoeForCausalLM"},
        text_defaults={"glm4v_text": {"head_dim": None, "attention_bias": True}, "glm4v_moe_text": _GLM_MOE},
    ),
    VisionFamily("Qwen2VLForConditionalGeneration", "Qwen2ForCausalLM", _qwen2_vl),
    VisionFamily("Qwen2_5_VLForConditionalGeneration", "Qwen2ForCausalLM", _qwen2_5_vl),
    VisionFamily("Qwen3VLForConditionalGeneration", "Qwen3ForCausalLM", _qwen3_vl, interleaved_axes=True),
    VisionFamily(
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3MoeForCausalLM",
        _qwen3_vl,
        interleaved_axes=True,
        turned_banks=True,
        fixed={"norm_topk_prob": True},
    ),
    VisionFamily(
        "Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM", _qwen3_5, interleaved_axes=True, sections=(11, 11, 10)
    ),
    VisionFamily(
        "Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM", _qwen3_5, interleaved_axes=True, sections=(11, 11, 10)
    ),
)


def find_vision_family(classes: object) -> VisionFamily | None:
    names = classes if isinstance(classes, list) else []
    return next((f for f in VISION_FAMILIES if f.class_name in names), None)
