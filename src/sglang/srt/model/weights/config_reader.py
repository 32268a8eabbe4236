"""Reads config.json and generation_config.json into a ModelConfig.

Settings of single families are in `families/`. GGUF metadata is read the same way: `gguf_config.py` converts it to a config.json.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sglang.common.suggest import did_you_mean
from sglang.srt.checkpoint.files import shown
from sglang.srt.errors import ModelError, UnknownModelError
from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.quant.scheme import QuantConfig, parse_quantization
from sglang.srt.model.weights.config_fields import (
    MAX_EPS,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_SIZE,
    MIN_EPS,
    Fields,
    read_json,
)
from sglang.srt.model.weights.families.family import GATES, PLAIN_GATES, Family
from sglang.srt.model.weights.families.table import FAMILIES
from sglang.srt.model.weights.rope_reader import read_rope
from sglang.srt.model.weights.vision.vision_families import VISION_FAMILIES, find_vision_family
from sglang.srt.model.weights.vision.vision_reader import text_part, with_vision

logger = logging.getLogger("sglang")
MAX_DTYPE_LEN = 32
OUTER_FIELDS = ("tie_word_embeddings", "dtype", "torch_dtype", "quantization_config", "eos_token_id")
"""of a class that sees or hears, for its decoder"""
WHOLE_ROOT = "model.language_model."
"""what stands before a decoder's names in such a class"""


def read_model_config(folder: Path, overrides: Mapping[str, Any]) -> ModelConfig:
    """The model of a Hugging Face folder. `overrides` replace fields of its config.json.

    Raises ModelError for a missing, damaged or unsupported config, and for overrides that mean nothing.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(f"{folder} has no config.json: it is not a model folder")
    config = parse_model_config(read_json(path), path, overrides)
    generation = folder / "generation_config.json"
    if generation.exists() and "eos_token_id" not in overrides:
        eos = Fields(read_json(generation), generation).ids("eos_token_id")
        _check_ids(eos, config, generation)
        config = replace(config, eos_token_ids=tuple(dict.fromkeys((*eos, *config.eos_token_ids))))
    return config


def parse_model_config(raw: Mapping[str, Any], source: Path, overrides: Mapping[str, Any]) -> ModelConfig:
    """A config.json's content as a ModelConfig; `source` is named in errors."""
    seeing, whole = find_vision_family(raw.get("architectures")), find_whole(raw.get("architectures"))
    if seeing is not None and (whole is None or raw.get("vision_config") is not None):
        text = text_part(raw, seeing, source)
        return with_vision(parse_model_config(text, source, overrides), raw, text, seeing, source)
    if whole is not None:
        config = parse_model_config(_decoder_part(raw, whole, source), source, overrides)
        return replace(config, layout=replace(config.layout, root=WHOLE_ROOT))
    family = _find_family({**raw, **overrides}, source)
    fields = Fields({**family.implied(raw), **raw}, source, family.defaults, overrides, spelled=family.spelled)
    fields.read.update(("architectures", "model_type"))
    config = replace(family.finish(fields, _common(fields, family)), quantization=_quantization(fields))
    fields.check_used()
    _check_ids(config.eos_token_ids, config, source)
    _check_ids(() if config.bos_token_id is None else (config.bos_token_id,), config, source, "bos_token_id")
    return config


def find_whole(classes: object) -> Family | None:
    """The family whose decoder is the text part of a class that sees or hears as well."""
    names = classes if isinstance(classes, list) else []
    return next((f for f in FAMILIES if f.whole_name and f.whole_name in names), None)


def _decoder_part(raw: Mapping[str, Any], family: Family, source: Path) -> dict[str, Any]:
    inner = raw.get("text_config")
    if not isinstance(inner, dict):
        raise ModelError(f"{source}: text_config must be an object, got {shown(inner)}")
    outer = {name: raw[name] for name in OUTER_FIELDS if raw.get(name) is not None}
    return {**inner, **outer, "architectures": [family.class_name]}


def _check_ids(ids: tuple[int, ...], config: ModelConfig, source: Path, name: str = "eos_token_id") -> None:
    """An end that the model cannot produce would never come, a beginning that it does not know could not be read."""
    for token_id in ids:
        if token_id >= config.vocab_size:
            raise ModelError(f"{source}: {name} {token_id} is not below vocab_size ({config.vocab_size})")


def _quantization(fields: Fields) -> QuantConfig | None:
    raw = fields.get("quantization_config")
    if raw is None or raw == {}:
        return None
    try:
        return parse_quantization(raw)
    except ValueError as error:
        raise fields.bad("quantization_config", str(error)) from error


def _find_family(raw: Mapping[str, Any], source: Path) -> Family:
    classes = raw.get("architectures")
    if classes is None:
        classes = []
    if not isinstance(classes, list):
        raise ModelError(f"{source}: architectures must be a list, got {shown(classes)}")
    for family in FAMILIES:
        names = [name for name in (family.class_name, family.bare_name, family.classifier_name) if name]
        if any(name in classes for name in names) or (not classes and family.model_type == raw.get("model_type")):
            return family
    asked = ", ".join(c[:80] if isinstance(c, str) else shown(c) for c in classes[:4])
    hint = did_you_mean(asked, _class_names()) if asked else ""
    asked = f"architectures [{asked}]" if asked else f"model_type {shown(raw.get('model_type'))}"
    raise UnknownModelError(
        f"{source}: {asked} is not supported{hint}; docs/models.md lists the {len(_class_names())} classes that are"
    )


def is_bare(folder: Path) -> bool:
    """Whether a model folder holds a decoder without a head, or one whose rows see what follows them: it embeds."""
    path = folder / "config.json"
    raw = read_json(path) if path.is_file() else {}
    if raw.get("is_causal") is False or raw.get("use_bidirectional_attention") in (True, "all"):
        return True
    return _has_class(raw, lambda family: family.bare_name)


def is_classifier(folder: Path) -> bool:
    """Whether a model folder holds a decoder with a head for labels."""
    path = folder / "config.json"
    return path.is_file() and _has_class(read_json(path), lambda family: family.classifier_name)


def _has_class(raw: Mapping[str, Any], name_of: Callable[[Family], str]) -> bool:
    classes = raw.get("architectures")
    return isinstance(classes, list) and any(name_of(family) in classes for family in FAMILIES if name_of(family))


def _class_names() -> list[str]:
    whole = (f.whole_name for f in FAMILIES if f.whole_name)
    return list(dict.fromkeys((*(f.class_name for f in FAMILIES), *whole, *(f.class_name for f in VISION_FAMILIES))))


def _common(fields: Fields, family: Family) -> ModelConfig:
    """Fields that all families have."""
    num_heads = fields.count("num_attention_heads")
    num_kv_heads = fields.count("num_key_value_heads", num_heads)
    hidden_size = fields.count("hidden_size")
    if num_heads % num_kv_heads:
        raise fields.bad("num_attention_heads", f"({num_heads}) must be a multiple of num_key_value_heads ({num_kv_heads})")
    head_dim = fields.count("head_dim", max(1, hidden_size // num_heads))
    context_len = fields.count("max_position_embeddings", most=MAX_POSITIONS)
    width = (num_heads + 2 * num_kv_heads) * head_dim
    if width > MAX_SIZE:
        raise fields.bad("head_dim", f"({head_dim}) makes rows of {width} values for q, k and v, and {MAX_SIZE} is the most")
    rope = read_rope(fields, head_dim, context_len, fields.defaults.get("rope_theta", 10000.0))
    if rope.kind == "yarn":  # such files often keep the length before scaling in max_position_embeddings
        context_len = min(max(context_len, int(rope.original_context_len * rope.factor)), MAX_POSITIONS)
    bos = fields.ids("bos_token_id")
    return ModelConfig(
        architecture=family.architecture,
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        num_layers=fields.count("num_hidden_layers", most=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=_widest(fields, family, family.mlp_width * hidden_size or None),
        context_len=context_len,
        norm_eps=fields.number("rms_norm_eps", above=MIN_EPS, most=MAX_EPS),
        rope=rope,
        layout=family.layout,
        bidirectional=not fields.flag("is_causal", True) or _sees_ahead(fields, family),
        **family.shape,
        **_activation(fields, family),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        eos_token_ids=fields.ids("eos_token_id"),
        bos_token_id=bos[0] if bos else None,
        dtype=_dtype(fields),
    )


def _widest(fields: Fields, family: Family, default: int | None) -> int:
    """Of the feed-forward layers, where a list may have the width of each."""
    widths = fields.get("intermediate_size")
    if not family.width_per_layer or not isinstance(widths, list):
        return fields.count("intermediate_size", default)
    if len(widths) < fields.count("num_hidden_layers", most=MAX_LAYERS) or any(
        type(w) is not int or not 0 < w <= MAX_SIZE for w in widths
    ):
        raise fields.bad("intermediate_size", f"must be a number, or one for each layer, got {shown(widths)}")
    return max(int(width) for width in widths)


def _sees_ahead(fields: Fields, family: Family) -> bool:
    """Gemma 4 says it in words; "vision" is about rows of images alone."""
    if family.architecture == "gemma4" and isinstance(fields.get("use_bidirectional_attention"), str):
        return fields.choice("use_bidirectional_attention", {"all": True, "vision": False})
    return fields.flag("use_bidirectional_attention")


def _activation(fields: Fields, family: Family) -> dict[str, Any]:
    if family.is_plain:
        return {"plain": fields.choice("hidden_act", PLAIN_GATES)}
    return {"gate": fields.choice("hidden_act", GATES)}


def _dtype(fields: Fields) -> str:
    old, value = fields.get("torch_dtype"), fields.get("dtype")
    value = old if value is None else value
    if value is None:
        return "float32"
    if not isinstance(value, str) or not 0 < len(value) <= MAX_DTYPE_LEN:
        raise fields.bad("torch_dtype" if value is old else "dtype", f"must be a name, got {shown(value)}")
    return value.removeprefix("torch.")
