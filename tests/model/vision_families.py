"""Tiny vision-language models as transformers makes them, before `vision.randomize`: one function a family."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.model.vision import IMAGE, TEXT

SIZES = TEXT | {"vocab_size": 240, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
SIGLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SIGLIP |= {"image_size": 28, "patch_size": 7}


CLIP = SIGLIP | {"num_hidden_layers": 3}


def llava(layers: Any = -2, strategy: str = "default", tower: str = "CLIP", **more: Any) -> Any:
    """LLaVA 1.5. `more`: of the whole config."""
    import transformers as t

    config = t.LlavaConfig(
        vision_config=getattr(t, f"{tower}VisionConfig")(**CLIP),
        text_config=t.LlamaConfig(**SIZES),
        image_token_index=IMAGE,
        vision_feature_layer=layers,
        vision_feature_select_strategy=strategy,
        **more,
    )
    return t.LlavaForConditionalGeneration(config)


POINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]


def llava_next(tower: str = "CLIP", layers: Any = -2, strategy: str = "default", **text: Any) -> Any:
    import transformers as t

    config = t.LlavaNextConfig(
        vision_config=getattr(t, f"{tower}VisionConfig")(**CLIP),
        text_config=t.MistralConfig(**SIZES, sliding_window=None, **text),
        image_token_index=IMAGE,
        image_grid_pinpoints=POINTS,
        vision_feature_layer=layers,
        vision_feature_select_strategy=strategy,
    )
    return t.LlavaNextForConditionalGeneration(config)


PIXTRAL = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 7}


def pixtral(layer: int = -1) -> Any:
    import transformers as t

    config = t.LlavaConfig(
        vision_config=t.PixtralVisionConfig(**PIXTRAL, image_size=84),
        text_config=t.MistralConfig(**SIZES, sliding_window=None),
        image_token_index=IMAGE,
        vision_feature_layer=layer,
        vision_feature_select_strategy="full",
    )
    return t.LlavaForConditionalGeneration(config)


def mistral3() -> Any:
    import transformers as t

    config = t.Mistral3Config(
        vision_config=t.PixtralVisionConfig(**PIXTRAL, image_size=84, hidden_act="silu"),
        text_config=t.MistralConfig(**SIZES, sliding_window=None),
        image_token_index=IMAGE,
        tie_word_embeddings=False,
    )
    return t.Mistral3ForConditionalGeneration(config)


GLM_EXPERTS = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "first_k_dense_replace": 1}


def glm4v(name: str = "Glm4v", kind: str = "", **text: Any) -> Any:
    """`kind`: model_type of the decoder, where the class leaves it open."""
    import transformers as t

    vision = {"depth": 3, "num_heads": 4, "hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 72, "patch_size": 7}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 2, 1]}
    ids = {"image_token_id": IMAGE, "image_start_token_id": IMAGE + 2, "image_end_token_id": IMAGE + 3, "video_token_id": 1}
    decoder = SIZES | {"rope_parameters": rope, "pad_token_id": 0} | text
    config = getattr(t, f"{name}Config")(
        text_config=decoder | ({"model_type": kind} if kind else {}),
        vision_config=vision | {"image_size": 35},
        tie_word_embeddings=False,
        **ids,
    )
    config.text_config._experts_implementation = "eager"
    return getattr(t, f"{name}ForConditionalGeneration")(config)


def internvl(**vision: Any) -> Any:
    import transformers as t

    config = t.InternVLConfig(
        vision_config=t.InternVLVisionConfig(**SIGLIP, **vision),
        text_config=t.Qwen2Config(**SIZES),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return t.InternVLForConditionalGeneration(config)


def llava_onevision() -> Any:
    import transformers as t

    points = [[28, 28], [28, 56], [56, 28], [56, 56], [28, 112], [112, 28], [84, 84]]
    config = t.LlavaOnevisionConfig(
        vision_config=t.SiglipVisionConfig(**SIGLIP),
        text_config=t.Qwen2Config(**SIZES),
        image_token_id=IMAGE,
        video_token_id=IMAGE + 1,
        image_grid_pinpoints=points,
        vision_aspect_ratio="anyres_max_4",
    )
    return t.LlavaOnevisionForConditionalGeneration(config)


def smolvlm(name: str = "SmolVLM") -> Any:
    import transformers as t

    config = getattr(t, f"{name}Config")(
        vision_config=SIGLIP, text_config=t.LlamaConfig(**SIZES), image_token_id=IMAGE, scale_factor=2
    )
    return getattr(t, f"{name}ForConditionalGeneration")(config)


QWEN = {"depth": 3, "num_heads": 4, "hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 80, "patch_size": 7}
QWEN3 = QWEN | {"num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]}
QWEN2_5 = QWEN | {"window_size": 28, "fullatt_block_indexes": [1]}


def qwen(name: str, vision: dict[str, Any], **more: Any) -> Any:
    """`more`: of the decoder."""
    import transformers as t

    late = not name.startswith("Qwen2")
    sections = {"mrope_section": [3, 3, 2] if late else [2, 3, 3]}
    if name.startswith("Qwen3_5"):
        sections = {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25, "mrope_interleaved": True}
    rope = {"rope_type": "default", "rope_theta": 10000.0, **sections}
    text = SIZES | {"rope_parameters": rope} | ({"head_dim": 16} if late else {}) | more
    ids = {
        "image_token_id": IMAGE,
        "video_token_id": IMAGE + 1,
        "vision_start_token_id": IMAGE + 2,
        "vision_end_token_id": IMAGE + 3,
    }
    config = getattr(t, f"{name}Config")(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    config.text_config._experts_implementation = "eager"
    return getattr(t, f"{name}ForConditionalGeneration")(config)


QWEN3_5 = QWEN | {"num_position_embeddings": 25}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
DELTA = {
    "head_dim": 32,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}


GEMMA4 = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 3, "head_dim": 16}
GEMMA4 |= {"num_key_value_heads": 3, "patch_size": 4, "position_embedding_size": 800}


def gemma4(vision: dict[str, Any] | None = None, **text: Any) -> Any:
    """Layers with windows see all of an image where `use_bidirectional_attention` is "vision", the others never."""
    import torch
    import transformers as t

    kinds = ["sliding_attention", "full_attention"] * 2
    sizes = {k: v for k, v in SIZES.items() if k not in ("rope_parameters", "num_hidden_layers")}
    shape = {"num_hidden_layers": 4, "layer_types": kinds, "head_dim": 16, "global_head_dim": 32, "sliding_window": 100}
    inputs = {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": sizes["vocab_size"], "pad_token_id": 3}
    ids = {"image_token_id": IMAGE, "boi_token_id": IMAGE + 2, "eoi_token_id": IMAGE + 3}
    ids |= {"video_token_id": 201, "audio_token_id": 202}
    config = t.Gemma4Config(
        text_config=t.Gemma4TextConfig(**sizes | shape | inputs | text),
        vision_config=GEMMA4 | (vision or {}),
        audio_config=None,
        **ids,
    )
    model = t.Gemma4ForConditionalGeneration(config)
    rng = np.random.default_rng(1)
    for name, found in model.named_buffers():
        end = name.rpartition("_")[2]
        if "vision_tower" in name and end in ("min", "max", "bias", "scale"):
            values = {
                "min": -0.8,
                "max": 0.9,
                "bias": rng.normal(0, 0.5, found.shape),
                "scale": rng.uniform(0.5, 2, found.shape),
            }
            found.copy_(torch.as_tensor(values[end]))
    return model


def gemma3() -> Any:
    import transformers as t

    text = t.Gemma3TextConfig(
        **{k: v for k, v in SIZES.items() if k != "rope_parameters"}, head_dim=16, sliding_window=24, query_pre_attn_scalar=16
    )
    ids = {"image_token_id": IMAGE, "boi_token_index": IMAGE + 2, "eoi_token_index": IMAGE + 3}
    config = t.Gemma3Config(text_config=text, vision_config=t.SiglipVisionConfig(**SIGLIP), mm_tokens_per_image=4, **ids)
    return t.Gemma3ForConditionalGeneration(config)
