"""Reads rotary embedding parameters in the spellings that config.json files use.

Old: `rope_theta`, with `rope_scaling` {"type" or "rope_type", "factor", ...}. New (transformers 5): `rope_parameters`, which holds
both, and for models with sliding windows one such object per kind of layer.
"""

from __future__ import annotations

import math
from typing import Any

from sglang.srt.checkpoint.files import shown
from sglang.srt.model.model_config import RopeConfig
from sglang.srt.model.weights.config_fields import MAX_POSITIONS, Fields

LAYER_KINDS = ("full_attention", "sliding_attention")
KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional")
MIN_FACTOR, MAX_FACTOR = 1e-3, 1e6


def read_rope(fields: Fields, head_dim: int, context_len: int, theta: float = 10000.0) -> RopeConfig:
    """Rope of a model's layers (of its full-attention layers, where kinds differ). `theta` is the family's default base;
    `context_len` what `original_max_position_embeddings` defaults to."""
    params = fields.object("rope_parameters")
    if any(kind in params for kind in LAYER_KINDS):
        params = _of_kind(fields, params, "full_attention")
    params = {**params, **_renamed(fields.object("rope_scaling"))}
    return _parse(fields, params, head_dim, context_len, "rope_theta", theta)


def read_local_rope(
    fields: Fields, head_dim: int, context_len: int, theta: float = 10000.0, theta_name: str = "rope_local_base_freq"
) -> RopeConfig:
    """Rope of the sliding-window layers of a model that has its own for them. Scaling never applies to old-style files."""
    params = _of_kind(fields, fields.object("rope_parameters"), "sliding_attention")
    return _parse(fields, params, head_dim, context_len, theta_name, theta)


def _of_kind(fields: Fields, params: dict[str, Any], kind: str) -> dict[str, Any]:
    inner = params.get(kind)
    if inner is None:
        return {}
    if not isinstance(inner, dict):
        raise fields.bad(f"rope_parameters.{kind}", f"must be an object, got {shown(inner)}")
    return inner


def _renamed(scaling: dict[str, Any]) -> dict[str, Any]:
    return {("rope_type" if name == "type" else name): value for name, value in scaling.items()}


def _base(outer: Fields, params: Fields, name: str, default: float) -> float:
    """The object's own `rope_theta`, else the config's field `name`; an override of the latter wins."""
    top = outer.number(name, default, above=1.0)
    return top if name in outer.overrides else params.number("rope_theta", top, above=1.0)


def _parse(
    outer: Fields, raw: dict[str, Any], head_dim: int, context_len: int, theta_name: str, default_theta: float
) -> RopeConfig:
    holder = "rope_scaling" if outer.object("rope_scaling") else "rope_parameters"
    params = Fields(_renamed(raw), outer.source, where=f"{holder}.")
    kind = params.get("rope_type")
    if kind is None:
        kind = "default"
    if kind == "su" or (kind == "yarn" and "short_factor" in raw):  # what Phi-3's first files call longrope
        kind = "longrope"
    if kind not in KINDS:
        raise outer.bad(holder, f"asks for rope of type {shown(kind)}; known: {', '.join(KINDS)}")
    partial = params.number(
        "partial_rotary_factor", outer.number("partial_rotary_factor", 1.0, above=0.0, most=1.0), above=0.0, most=1.0
    )
    if kind == "proportional":
        base, factor = (
            _base(outer, params, theta_name, default_theta),
            params.number("factor", 1.0, above=MIN_FACTOR, most=MAX_FACTOR),
        )
        return proportional(base, head_dim, int(partial * head_dim // 2), factor)
    rotary_dim = int(head_dim * partial)
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise outer.bad(
            "partial_rotary_factor", f"makes {rotary_dim} of {head_dim} elements rotate (head_dim), which is not an even number"
        )
    theta = _base(outer, params, theta_name, default_theta)
    if kind in ("default", "dynamic"):  # dynamic scaling is the identity up to the context length, beyond which nothing runs
        return RopeConfig(theta=theta, rotary_dim=rotary_dim)
    if kind == "longrope":
        return _longrope(outer, params, theta, rotary_dim, context_len)
    factor = params.number("factor", above=MIN_FACTOR, most=MAX_FACTOR)
    if kind == "linear":
        return RopeConfig(theta=theta, rotary_dim=rotary_dim, kind="linear", factor=factor)
    original = params.count("original_max_position_embeddings", context_len, most=MAX_POSITIONS)
    if kind == "llama3":
        low = params.number("low_freq_factor", above=0.0, most=MAX_FACTOR)
        high = params.number("high_freq_factor", above=0.0, most=MAX_FACTOR)
        if high <= low:
            raise outer.bad(holder, f"has a high_freq_factor ({high:g}) that is not above low_freq_factor ({low:g})")
        return RopeConfig(
            theta=theta,
            rotary_dim=rotary_dim,
            kind="llama3",
            factor=factor,
            original_context_len=original,
            low_freq_factor=low,
            high_freq_factor=high,
        )
    return RopeConfig(
        theta=theta,
        rotary_dim=rotary_dim,
        kind="yarn",
        factor=factor,
        original_context_len=original,
        beta_fast=params.number("beta_fast", 32.0, above=0.0, most=MAX_FACTOR),
        beta_slow=params.number("beta_slow", 1.0, above=0.0, most=MAX_FACTOR),
        attention_factor=params.optional("attention_factor", above=0.0, most=MAX_FACTOR),
        mscale=params.optional("mscale", above=-MIN_FACTOR, most=MAX_FACTOR),
        mscale_all_dim=params.optional("mscale_all_dim", above=-MIN_FACTOR, most=MAX_FACTOR),
        truncate=params.flag("truncate", True),
    )


def proportional(theta: float, head_dim: int, num_turned: int, factor: float = 1.0) -> RopeConfig:
    """Frequencies are those of whole heads, and only the first pairs turn: the others' are 0."""
    divisors = (factor,) * num_turned + (math.inf,) * (head_dim // 2 - num_turned)
    return RopeConfig(theta=theta, rotary_dim=head_dim, freq_divisors=divisors)


def _longrope(outer: Fields, params: Fields, theta: float, rotary_dim: int, context_len: int) -> RopeConfig:
    """The factor is by how much the context was made longer, if nothing else is said."""
    original = outer.count("original_max_position_embeddings", context_len, most=MAX_POSITIONS)
    original = params.count("original_max_position_embeddings", original, most=MAX_POSITIONS)
    return RopeConfig(
        theta=theta,
        rotary_dim=rotary_dim,
        kind="longrope",
        factor=params.number("factor", context_len / original, above=MIN_FACTOR, most=MAX_FACTOR),
        original_context_len=original,
        attention_factor=params.optional("attention_factor", above=0.0, most=MAX_FACTOR),
        freq_divisors=params.numbers("short_factor", rotary_dim // 2),
        long_divisors=params.numbers("long_factor", rotary_dim // 2),
    )
