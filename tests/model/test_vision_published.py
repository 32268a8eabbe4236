"""Every family with the sizes that its publisher gives pictures (tiles, patches, grids, budgets), at reduced width and depth, on
pictures of odd sizes. Round toy sizes hide what a remainder does."""

from __future__ import annotations

from typing import Any

import pytest

from sglang.srt.model.kernels.cpu import CpuOps
from tests.model.test_vision_pictures import (
    _CLIP_PROCESSOR,
    _GEMMA4_PROCESSOR,
    _INTERNVL_PROCESSOR,
    _NEXT_PROCESSOR,
    _PIXTRAL_PROCESSOR,
    _QWEN_PROCESSOR,
    Case,
    Family,
    _gemma3_inputs,
    _gemma4_inputs,
    _internvl_inputs,
    _llava_inputs,
    _llava_next_inputs,
    _llava_one_inputs,
    _pixtral_inputs,
    _qwen_inputs,
    _smolvlm_inputs,
    check_logits,
    make_family,
)
from tests.model.vision import IMAGE
from tests.model.vision_families import QWEN2_5, QWEN3, SIGLIP, SIZES, gemma4

LONG = SIZES | {"max_position_embeddings": 16384}
SIDES = [[384 * down, 384 * across] for down in range(1, 7) for across in range(1, 7)]
PHOTOS: dict[str, list[Any]] = {
    "small": [[5], (31, 27), [17]],
    "wide": [[5], (641, 333), [17]],
    "tall": [[5], (391, 777), [17]],
    "two": [[3], (200, 301), [7, 8], (97, 411), [9]],
}


def _ids(**names: int) -> dict[str, int]:
    return {name: IMAGE + number for name, number in names.items()}


def _llava() -> Any:
    """lmms-lab/llava-onevision-qwen2 (llava-hf): SigLIP so400m/14 at 384, anyres_max_9."""
    import transformers as t

    config = t.LlavaOnevisionConfig(
        vision_config=t.SiglipVisionConfig(**SIGLIP | {"image_size": 384, "patch_size": 14}),
        text_config=t.Qwen2Config(**LONG),
        image_grid_pinpoints=SIDES,
        vision_aspect_ratio="anyres_max_9",
        **_ids(image_token_id=0, video_token_id=1),
    )
    return t.LlavaOnevisionForConditionalGeneration(config)


def _smolvlm(name: str, size: int, patch: int, scale: int) -> Any:
    import transformers as t

    vision = SIGLIP | {"image_size": size, "patch_size": patch}
    config = getattr(t, f"{name}Config")(
        vision_config=vision, text_config=t.LlamaConfig(**LONG), image_token_id=IMAGE, scale_factor=scale
    )
    return getattr(t, f"{name}ForConditionalGeneration")(config)


def _gemma3() -> Any:
    """google/gemma-3-4b-it: SigLIP so400m/14 at 896, 256 rows an image."""
    import transformers as t

    text = t.Gemma3TextConfig(
        **{k: v for k, v in LONG.items() if k != "rope_parameters"}, head_dim=16, sliding_window=1024, query_pre_attn_scalar=16
    )
    vision = t.SiglipVisionConfig(**SIGLIP | {"image_size": 896, "patch_size": 14})
    ids = _ids(image_token_id=0, boi_token_index=2, eoi_token_index=3)
    config = t.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=256, **ids)
    return t.Gemma3ForConditionalGeneration(config)


def _gemma4(bidirectional: str | None, **vision: Any) -> Any:
    """google/gemma-4-E2B-it, google/gemma-4-31B-it: patches of 16, 280 rows an image, 10,240 positions an axis."""
    return gemma4(
        {"patch_size": 16, "position_embedding_size": 10240, **vision},
        max_position_embeddings=16384,
        sliding_window=512,
        use_bidirectional_attention=bidirectional,
    )


def _qwen(name: str, vision: dict[str, Any]) -> Any:
    import transformers as t

    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [3, 3, 2] if name == "Qwen3VL" else [2, 3, 3]}
    text = LONG | {"rope_parameters": rope} | ({"head_dim": 16} if name == "Qwen3VL" else {})
    ids = _ids(image_token_id=0, video_token_id=1, vision_start_token_id=2, vision_end_token_id=3)
    config = getattr(t, f"{name}Config")(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    return getattr(t, f"{name}ForConditionalGeneration")(config)


def _clip(name: str) -> Any:
    """llava-hf/llava-1.5-7b-hf, llava-hf/llava-v1.6-mistral-7b-hf: CLIP ViT-L/14 at 336, the last layer but one."""
    import transformers as t

    vision = t.CLIPVisionConfig(**SIGLIP | {"image_size": 336, "patch_size": 14, "num_hidden_layers": 3})
    config = getattr(t, f"{name}Config")(vision_config=vision, text_config=t.LlamaConfig(**LONG), image_token_index=IMAGE)
    return getattr(t, f"{name}ForConditionalGeneration")(config)


def _pixtral(name: str, patch: int, size: int, **more: Any) -> Any:
    """mistral-community/pixtral-12b, mistralai/Mistral-Small-3.1-24B-Instruct-2503"""
    import transformers as t

    vision = t.PixtralVisionConfig(**SIGLIP | {"image_size": size, "patch_size": patch})
    text = t.MistralConfig(**LONG, sliding_window=None)
    config = getattr(t, f"{name}Config")(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
        **more,
    )
    return getattr(t, f"{name}ForConditionalGeneration")(config)


def _glm4v() -> Any:
    """zai-org/GLM-4.1V-9B-Thinking: patches of 14, positions of 24 x 24 places."""
    import transformers as t

    vision = {"depth": 2, "num_heads": 4, "hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 72}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
    config = t.Glm4vConfig(
        text_config=LONG | {"rope_parameters": rope, "pad_token_id": 0},
        vision_config=vision | {"image_size": 336, "patch_size": 14},
        tie_word_embeddings=False,
        **_ids(image_token_id=0, video_token_id=1, image_start_token_id=2, image_end_token_id=3),
    )
    return t.Glm4vForConditionalGeneration(config)


def _internvl() -> Any:
    """OpenGVLab/InternVL3-1B-hf: InternViT-300M/14 at 448, 256 rows a tile, biases on q, k and v."""
    import transformers as t

    vision = t.InternVLVisionConfig(**SIGLIP | {"image_size": [448, 448], "patch_size": [14, 14]}, attention_bias=True)
    config = t.InternVLConfig(
        vision_config=vision, text_config=t.Qwen2Config(**LONG), image_token_id=IMAGE, tie_word_embeddings=False
    )
    return t.InternVLForConditionalGeneration(config)


_CROPPED = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
CASES = {
    "llava-1.5-7b": Case(lambda: _clip("Llava"), _CLIP_PROCESSOR, _CROPPED, _llava_one_inputs),
    "llava-v1.6-mistral-7b": Case(lambda: _clip("LlavaNext"), _NEXT_PROCESSOR, _CROPPED, _llava_next_inputs),
    "pixtral-12b": Case(
        lambda: _pixtral("Llava", 16, 1024, vision_feature_select_strategy="full"),
        _PIXTRAL_PROCESSOR,
        {"size": {"longest_edge": 1024}, "patch_size": {"height": 16, "width": 16}},
        _pixtral_inputs(16),
    ),
    "Mistral-Small-3.1-24B": Case(
        lambda: _pixtral("Mistral3", 14, 1540),
        _PIXTRAL_PROCESSOR,
        {"size": {"longest_edge": 1540}, "patch_size": {"height": 14, "width": 14}},
        _pixtral_inputs(28),
    ),
    "GLM-4.1V-9B": Case(
        _glm4v,
        ("glm4v.image_processing_pil_glm4v", "Glm4vImageProcessorPil"),
        {"size": {"shortest_edge": 12544, "longest_edge": 9633792}, "patch_size": 14},
        _qwen_inputs,
    ),
    "InternVL3-1B": Case(
        _internvl, _INTERNVL_PROCESSOR, {"size": {"height": 448, "width": 448}, "max_patches": 12}, _internvl_inputs
    ),
    "llava-onevision-qwen2-0.5b": Case(
        _llava,
        ("llava_onevision.image_processing_pil_llava_onevision", "LlavaOnevisionImageProcessorPil"),
        {"size": {"height": 384, "width": 384}, "image_grid_pinpoints": SIDES},
        _llava_inputs,
    ),
    "SmolVLM-256M": Case(
        lambda: _smolvlm("SmolVLM", 512, 16, 4),
        ("smolvlm.image_processing_pil_smolvlm", "SmolVLMImageProcessorPil"),
        {"size": {"longest_edge": 1024}, "max_image_size": {"longest_edge": 512}},
        _smolvlm_inputs,
    ),
    "Idefics3-8B": Case(
        lambda: _smolvlm("Idefics3", 364, 14, 2),
        ("idefics3.image_processing_pil_idefics3", "Idefics3ImageProcessorPil"),
        {"size": {"longest_edge": 728}, "max_image_size": {"longest_edge": 364}},
        _smolvlm_inputs,
    ),
    "gemma-3-4b": Case(
        _gemma3,
        ("gemma3.image_processing_pil_gemma3", "Gemma3ImageProcessorPil"),
        {"size": {"height": 896, "width": 896}},
        _gemma3_inputs,
    ),
    "gemma-4-E2B": Case(
        lambda: _gemma4(None, use_clipped_linears=True),
        _GEMMA4_PROCESSOR,
        {"patch_size": 16, "pooling_kernel_size": 3, "max_soft_tokens": 280},
        _gemma4_inputs,
    ),
    "gemma-4-31B": Case(
        lambda: _gemma4("vision", standardize=True, head_dim=24, hidden_size=72),
        _GEMMA4_PROCESSOR,
        {"patch_size": 16, "pooling_kernel_size": 3, "max_soft_tokens": 280},
        _gemma4_inputs,
    ),
    "Qwen2.5-VL-3B": Case(
        lambda: _qwen("Qwen2_5_VL", QWEN2_5 | {"patch_size": 14, "window_size": 112}),
        _QWEN_PROCESSOR,
        {"size": {"shortest_edge": 3136, "longest_edge": 12845056}, "patch_size": 14},
        _qwen_inputs,
    ),
    "Qwen3-VL-4B": Case(
        lambda: _qwen("Qwen3VL", QWEN3 | {"patch_size": 16, "num_position_embeddings": 2304}),
        _QWEN_PROCESSOR,
        {"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "patch_size": 16},
        _qwen_inputs,
    ),
}


@pytest.fixture(scope="module", params=CASES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return make_family(CASES[request.param], tmp_path_factory.mktemp("published"))


@pytest.mark.parametrize("photo", [pytest.param(p, marks=pytest.mark.slow) if p == "wide" else p for p in PHOTOS])
def test_photos_of_odd_sizes(family: Family, photo: str) -> None:
    check_logits(family, CpuOps(2), PHOTOS[photo])
