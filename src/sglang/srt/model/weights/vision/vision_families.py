"""The families of vision-language models: what their configs say of the encoder. A family is a row of VISION_FAMILIES."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sglang.srt.checkpoint.files import shown
from sglang.srt.model.configs.vision_config import CrossConfig, VisionConfig
from sglang.srt.model.weights.config_fields import MAX_EPS, MAX_LAYERS, MAX_SIZE, MIN_EPS, Fields
from sglang.srt.model.weights.vision.vision_fields import MAX_TILES, VisionFamily, VisionFields, decoder_width


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
        activation=fields.activation("hidden_act", "gelu_pytorch_tanh"),
        norm_eps=v.number("layer_norm_eps", 1e-6, above=MIN_EPS, most=MAX_EPS),
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


VISION_FAMILIES = (
    VisionFamily("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM", _gemma3, is_tied=True),
    VisionFamily("MllamaForConditionalGeneration", "MllamaForCausalLM", _mllama, is_tied=None),
    VisionFamily("SmolVLMForConditionalGeneration", "LlamaForCausalLM", _idefics),
    VisionFamily("Idefics3ForConditionalGeneration", "LlamaForCausalLM", _idefics),
    VisionFamily("LlavaOnevisionForConditionalGeneration", "Qwen2ForCausalLM", _llava_onevision),
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
