"""Reads the config.json of vision-language models: the decoder's part is read as for text models, the encoder's part becomes
a VisionConfig."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sglang.srt.checkpoint.files import shown
from sglang.srt.errors import ModelError
from sglang.srt.model.model_config import PLAIN_LAYOUT, ModelConfig
from sglang.srt.model.weights.config_fields import Fields
from sglang.srt.model.weights.vision.vision_fields import VisionFamily, VisionFields


def text_part(raw: Mapping[str, Any], family: VisionFamily, source: Path) -> dict[str, Any]:
    """The decoder's config as a text model's: of the inner object if there is one, else of the flat fields of older files."""
    inner = raw.get("text_config")
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        raise ModelError(f"{source}: text_config must be an object, got {shown(inner)}")
    outer = {name: value for name, value in raw.items() if name not in ("text_config", "vision_config")}
    text = {**outer, **{name: value for name, value in inner.items() if value is not None}}
    kind = inner.get("model_type", family.text_type)
    absent = family.text_defaults.get(kind, {}) if isinstance(kind, str) else {}
    null = {name: None for name in absent if name in inner and inner[name] is None}
    text = {**absent, **text, **null}
    if family.text_class:
        text.update(
            architectures=[family.text_classes.get(kind, family.text_class) if isinstance(kind, str) else family.text_class]
        )
    else:
        text.update(model_type=kind, architectures=None)
    text.update(family.fixed)
    told = outer.get("tie_word_embeddings")
    text["tie_word_embeddings"] = family.is_tied is True if told is None or family.is_tied in (None, "without head") else told
    for name in ("dtype", "torch_dtype"):
        if outer.get(name):
            text[name] = outer[name]
    for name in ("rope_scaling", "rope_parameters"):
        params = text.get(name)
        if isinstance(params, dict) and "mrope" in (params.get("type"), params.get("rope_type")):
            text[name] = {**params, "type": "default", "rope_type": "default"}
    return text


def with_vision(
    config: ModelConfig, raw: Mapping[str, Any], text: Mapping[str, Any], family: VisionFamily, source: Path
) -> ModelConfig:
    """`config` of the decoder, with its encoder and the axes of its positions."""
    vision = raw.get("vision_config")
    if not isinstance(vision, dict):
        raise ModelError(f"{source}: {family.class_name} needs a vision_config object")
    read = family.read(VisionFields(Fields(raw, source), Fields(vision, source, where="vision_config."), text))
    if read.hidden_size % read.num_heads:
        raise ModelError(
            f"{source}: vision_config: the hidden_size {read.hidden_size} is not a multiple of its {read.num_heads} heads"
        )
    if read.out_size != config.hidden_size:
        raise ModelError(
            f"{source}: vision_config: the encoder makes rows of {read.out_size}, and the decoder's hidden_size is "
            f"{config.hidden_size}"
        )
    num_rows = config.vocab_size + config.num_extra_ids
    if read.image_token_id >= num_rows:
        raise ModelError(f"{source}: image_token_id {read.image_token_id} is not below {num_rows}, the rows of the embedding")
    if 0 < read.image_size < read.patch_size:
        raise ModelError(f"{source}: patch_size {read.patch_size} is larger than image_size {read.image_size}")
    if len(read.deep_layers) > config.num_layers:
        raise ModelError(f"{source}: deepstack_visual_indexes are more than the decoder's {config.num_layers} layers")
    inner = raw.get("text_config")
    told_inside = isinstance(inner, dict) and inner.get("tie_word_embeddings") is True
    by_head = told_inside or (family.is_tied == "without head" and raw.get("tie_word_embeddings") is not False)
    read = replace(read, tied_without_head=by_head and family.is_tied is not None and not config.tie_word_embeddings)
    layout = (
        replace(config.layout, root="model.", turned_banks="by shape" if family.turned_banks else False)
        if config.layout != PLAIN_LAYOUT
        else PLAIN_LAYOUT
    )
    return replace(config, vision=read, layout=layout, rope_axes=_rope_axes(config, text, family, source))


def _rope_axes(config: ModelConfig, text: Mapping[str, Any], family: VisionFamily, source: Path) -> tuple[int, ...]:
    """Which axis turns each pair. Blocks (arXiv 2409.12191, M-RoPE) or, interleaved, every third pair (Qwen3-VL)."""
    sections: Any = None
    for name in ("rope_scaling", "rope_parameters"):
        params = text.get(name)
        if isinstance(params, dict):
            sections = params.get("mrope_section", sections)
    if sections is None and not family.sections:
        return ()
    sections = list(family.sections) if sections is None else sections
    pairs = config.rope.rotary_dim // 2
    valid = isinstance(sections, list) and len(sections) == 3 and all(type(s) is int and s >= 0 for s in sections)
    if not valid or sum(sections) != pairs:
        raise ModelError(f"{source}: mrope_section must be three numbers that add up to {pairs}, got {shown(sections)}")
    if not family.interleaved_axes:
        return tuple(axis for axis, size in enumerate(sections) for _ in range(size))
    return tuple(i % 3 if i % 3 and i < 3 * sections[i % 3] else 0 for i in range(pairs))
