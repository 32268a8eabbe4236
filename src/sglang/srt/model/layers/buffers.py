"""The static arrays a step runs in. Ops are recorded once with these arrays as arguments and replayed for every step, so a
step is: write the inputs, replay, read the logits.

    rows of the body    0 .. rows[0]            every new token of the step
    rows of the head    0 .. head_rows[0]       those whose logits are wanted: head_row_idx[i] is the body row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sglang.srt.model.kernels.ops import Activation, Array, AttentionMeta, Ops, Weight
from sglang.srt.model.model_config import ModelConfig


@dataclass
class Readers:
    """The weights that read each kind of activation: they decide its form."""

    attn_in: list[Weight] = field(default_factory=list)
    attn_out: list[Weight] = field(default_factory=list)
    mlp_in: list[Weight] = field(default_factory=list)
    mlp_out: list[Weight] = field(default_factory=list)
    head_in: list[Weight] = field(default_factory=list)


@dataclass
class MediaBuffers:
    """What the decoder of a model that sees needs besides: rows that are not text, and, where positions have several axes,
    rotation tables made for the step."""

    embeds: Array  # [max_rows, hidden], rows of encoders (with DeepStack several times hidden)
    index: Array  # [max_rows], row of `embeds` for a row of the step, -1 for text
    positions: Array  # [3, max_rows]
    row_numbers: Array  # [max_rows], 0, 1, 2 ...
    cos: Array  # [max_rows, rotary_dim / 2]
    sin: Array  # [max_rows, rotary_dim / 2]


@dataclass
class StepBuffers:
    """All layers share these: at any moment only one layer computes."""

    # inputs of the step
    rows: Array  # [1]
    input_ids: Array  # [max_rows]
    positions: Array  # [max_rows]
    slots: Array  # [max_rows]
    meta: AttentionMeta
    # between ops
    x: Array  # [max_rows, hidden], the residual stream
    delta: Array  # [max_rows, hidden], what is still to be added to x
    branch: Array  # [max_rows, hidden], an output that is normalised before it becomes delta
    qkv: Array  # [max_rows, (num_heads + 2 * num_kv_heads) * head_dim]
    gate_up: Array | None  # [max_rows, 2 * intermediate], only where gate and up do not pack together
    attn_in: Activation
    attn_out: Activation
    mlp_in: Activation
    mlp_out: Activation
    # the head
    head_rows: Array  # [1]
    head_row_idx: Array  # [max_logit_rows]
    head_in: Activation
    logits: Array  # [max_logit_rows, vocab_size]
    media: MediaBuffers | None = None


@dataclass(frozen=True)
class StepLimits:
    """The largest step."""

    max_rows: int
    max_reqs: int
    max_logit_rows: int


def _attention_meta(ops: Ops, max_reqs: int, req_to_token: Array, row_ends: Array | None) -> AttentionMeta:
    def per_req() -> Array:
        return ops.empty((max_reqs,), "int32")

    return AttentionMeta(ops.empty((1,), "int32"), per_req(), per_req(), per_req(), per_req(), req_to_token, row_ends)


def create_buffers(
    ops: Ops, config: ModelConfig, readers: Readers, limits: StepLimits, req_to_token: Array, split_gate: bool
) -> StepBuffers:
    """`split_gate`: whether some layer needs `gate_up`."""
    n, hidden = limits.max_rows, config.hidden_size
    qkv_width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim

    def ints(size: int) -> Array:
        return ops.empty((size,), "int32")

    def activation(weights: Sequence[Weight], size: int = n) -> Activation:
        return ops.activation(size, weights)

    delta = ops.empty((n, hidden))
    row_ends = ints(n) if config.vision is not None and config.vision.two_way else None
    return StepBuffers(
        rows=ints(1),
        input_ids=ints(n),
        positions=ints(n),
        slots=ints(n),
        meta=_attention_meta(ops, limits.max_reqs, req_to_token, row_ends),
        x=ops.empty((n, hidden)),
        delta=delta,
        branch=ops.empty((n, hidden)) if config.post_norms else delta,
        qkv=ops.empty((n, qkv_width)),
        gate_up=ops.empty((n, 2 * config.intermediate_size)) if split_gate else None,
        attn_in=activation(readers.attn_in),
        attn_out=activation(readers.attn_out),
        mlp_in=activation(readers.mlp_in),
        mlp_out=activation(readers.mlp_out),
        head_rows=ints(1),
        head_row_idx=ints(limits.max_logit_rows),
        head_in=activation(readers.head_in, limits.max_logit_rows),
        logits=ops.empty((limits.max_logit_rows, config.vocab_size)),
        media=_media_buffers(ops, config, n) if config.vision is not None else None,
    )


def _media_buffers(ops: Ops, config: ModelConfig, n: int) -> MediaBuffers:
    assert config.vision is not None
    parts, pairs = 1 + len(config.vision.deep_layers), max(len(config.rope_axes), 1)
    return MediaBuffers(
        embeds=ops.empty((n, config.hidden_size * parts)),
        index=ops.empty((n,), "int32"),
        positions=ops.empty((3, n), "int32"),
        row_numbers=ops.array(np.arange(n, dtype=np.int32)),
        cos=ops.empty((n, pairs)),
        sin=ops.empty((n, pairs)),
    )


def buffer_bytes(config: ModelConfig, limits: StepLimits) -> int:
    """About what `create_buffers` takes, for the memory plan made before it is called."""
    qkv_width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    attn_width = config.num_heads * config.head_dim
    embeds = 1 + len(config.vision.deep_layers) if config.vision is not None else 0
    floats_a_row = (5 + embeds) * config.hidden_size + qkv_width + attn_width + 3 * config.intermediate_size
    return 4 * (limits.max_rows * floats_a_row + limits.max_logit_rows * (config.vocab_size + config.hidden_size))
