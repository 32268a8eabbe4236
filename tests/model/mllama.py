"""A tiny random Llama 3.2 Vision, saved by transformers, and that model's forward pass over prompts with pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.model.vision import randomize

if TYPE_CHECKING:
    from PIL import Image

IMAGE = 240
"""as in the real one, the first id beyond the vocabulary"""
CROSS = [1, 3]
TILE, PATCH = 28, 7
PUBLISHED_TILE, PUBLISHED_PATCH = 560, 14
"""of meta-llama/Llama-3.2-11B-Vision-Instruct"""
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_global_layers": 2,
    "attention_heads": 2,
    "vision_output_dim": 32 * 3,
    "intermediate_layers_indices": [0, 2],
}
TEXT = {
    "vocab_size": IMAGE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "cross_attention_layers": CROSS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def settings(tile: int) -> dict[str, Any]:
    """Of the image processor."""
    return {"size": {"height": tile, "width": tile}, "max_image_tiles": 4}


def save_mllama(folder: Path, seed: int = 5, tile: int = TILE, patch: int = PATCH, **text: Any) -> Any:
    """The model in `folder`; returns transformers' own. In that one rows before the first picture are kept from attending to all
    pictures, as in the original (mllama.py of our models says why)."""
    import torch
    import transformers as t

    vision = VISION | {"image_size": tile, "patch_size": patch}
    config = t.MllamaConfig(text_config=TEXT | text, vision_config=vision, image_token_index=IMAGE)
    model = randomize(t.MllamaForConditionalGeneration(config), seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name and "gate_proj" not in name:
                parameter.copy_(torch.rand_like(parameter) + 0.4)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "MllamaImageProcessor", **settings(tile)})
    )
    for layer in config.text_config.cross_attention_layers:
        _keep_blind_rows_blind(model.model.language_model.layers[layer])
    return model


def _keep_blind_rows_blind(layer: Any) -> None:
    inner, masks = layer.cross_attn.forward, {}

    def remember(module: Any, args: Any, kwargs: Any) -> None:
        masks["rows"] = kwargs.get("full_text_row_masked_out_mask")

    def attend(*args: Any, **kwargs: Any) -> Any:
        out, weights = inner(*args, **kwargs)
        return (out if masks["rows"] is None else out * masks["rows"][:, 0]), weights

    layer.register_forward_pre_hook(remember, with_kwargs=True)
    layer.cross_attn.forward = attend


def inputs_of(model: Any, ids: list[int], images: list[Image.Image]) -> dict[str, Any]:
    """Arguments of transformers' model for a prompt with an IMAGE id for each picture."""
    import torch
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    if not images:
        return inputs
    found = MllamaImageProcessorPil(**settings(model.config.vision_config.image_size))(images=[images], return_tensors="pt")
    sparse = get_cross_attention_token_mask(ids, IMAGE)
    mask = convert_sparse_cross_attention_mask_to_dense([sparse], found.pop("num_tiles"), 4, len(ids))
    return {**inputs, **found, "cross_attention_mask": torch.from_numpy(mask)}


def expected_logits(model: Any, ids: list[int], images: list[Image.Image]) -> np.ndarray[Any, Any]:
    import torch

    with torch.no_grad():
        return np.asarray(model(**inputs_of(model, ids, images)).logits[0])
