"""Our attention behind transformers' attention interface: K and V of a step's rows go into their slots of the KV pool, and the rows
attend to all that lies there of their requests.

    transformers' attention module -> attend(module, q, k, v) -> rope_store (which turns nothing), attention -> rows

All rows of a step are one sequence to transformers; which request a row is of, our op knows. Arrays of NumPy and tensors share memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sglang.srt.errors import ModelError
from sglang.srt.model.kernels.ops import Array, KVLayer, Ops, Weight
from sglang.srt.model.layers.buffers import StepBuffers
from sglang.srt.model.layers.rope import no_rope
from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.quant.formats import dense

NAME = "sglang"
SEAT = "_sglang_seat"
HARMLESS = {
    "dropout",
    "position_ids",
    "cache_position",
    "is_causal",
    "use_cache",
    "past_key_values",
    "cache",
    "output_attentions",
}


class Attention:
    """What all layers of one model share. `step` and `kv` are set for the length of a step; without a step, calls are only checked."""

    def __init__(self, ops: Ops, config: ModelConfig, num_positions: int) -> None:
        self.ops, self.config = ops, config
        self.width = config.num_heads * config.head_dim
        self.still = no_rope(ops, num_positions)
        # the rows of an activation are the op set's own business: a product with the identity shows them
        self.identity: Weight = ops.pack([dense("identity", np.eye(self.width, dtype=np.float32))])
        self.out: Array = None
        self.step: StepBuffers | None = None
        self.kv: Sequence[KVLayer] = ()
        self.called: list[int] = []

    def bind(self, step: StepBuffers, kv: Sequence[KVLayer]) -> None:
        if self.step is not step:
            self.out = self.ops.empty((len(step.every), self.width))
        self.step, self.kv, self.called = step, kv, []


@dataclass
class Seat:
    """A layer's place in its model. `window`: what transformers' config says of the layer."""

    attention: Attention
    index: int
    window: int
    untold: int
    """a window of the config of which it does not say which layers have it"""
    sinks: dict[int, Array] = field(default_factory=dict)


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Any = None,
    **more: Any,
) -> tuple[Any, None]:
    """query: [1, num_heads, rows, head_dim]; key, value: [1, num_kv_heads, rows, head_dim]. Returns [1, rows, num_heads, head_dim]."""
    import torch

    seat: Seat | None = getattr(module, SEAT, None)
    if seat is None:
        raise ModelError(
            f"{type(module).__name__} attends outside of the model's layers, which --model-impl transformers cannot serve"
        )
    own, config = seat.attention, seat.attention.config
    step, ops = own.step, own.ops
    rows, (heads, kv_heads, dim) = query.shape[2], (config.num_heads, config.num_kv_heads, config.head_dim)
    _check(module, query, key, value, attention_mask, config, more)
    own.called.append(seat.index)
    if step is None:
        _check_window(module, seat, sliding_window)
        return query.new_zeros((1, rows, heads, dim)), None
    qkv = torch.from_numpy(step.qkv)[:rows].view(rows, heads + 2 * kv_heads, dim)
    for first, part in ((0, query), (heads, key), (heads + kv_heads, value)):
        qkv[:, first : first + part.shape[1]] = part[0].transpose(0, 1)
    kv = own.kv[seat.index]
    ops.rope_store(
        step.qkv, kv, step.positions, step.slots, step.rows, num_heads=heads, cos=own.still.cos, sin=own.still.sin,
        q_scale=dim**-0.5 if scaling is None else float(scaling),
    )  # fmt: skip
    window = seat.window if sliding_window is None else int(sliding_window)
    ops.attention(
        step.qkv, kv, step.attn_out[own.width], step.meta, num_heads=heads, window=window,
        soft_cap=float(softcap or 0.0), sinks=_sinks(seat, s_aux),
    )  # fmt: skip
    ops.linear(own.identity, step.attn_out[own.width], own.out, step.rows)
    ops.finish()
    return torch.from_numpy(own.out)[:rows].view(1, rows, heads, dim).to(query.dtype), None


def _sinks(seat: Seat, values: Any) -> Array | None:
    if values is None:
        return None
    if id(values) not in seat.sinks:
        seat.sinks = {id(values): seat.attention.ops.array(values.detach().float().numpy())}
    return seat.sinks[id(values)]


def _check(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, config: ModelConfig, more: dict[str, Any]
) -> None:
    """What `attend` would have to leave out, or has no room for."""
    name = type(module).__name__
    shapes = tuple(query.shape[1::2]), tuple(key.shape[1::2]), tuple(value.shape[1::2])
    q, kv = (config.num_heads, config.head_dim), (config.num_kv_heads, config.head_dim)
    if shapes != (q, kv, kv):
        raise ModelError(f"{name}: heads of q, k and v are {shapes}, and the config makes them {(q, kv, kv)}")
    if attention_mask is not None:
        raise ModelError(f"{name} has a mask of its own, which --model-impl transformers cannot serve")
    unknown = sorted(n for n, v in more.items() if n not in HARMLESS and v is not None and v is not False)
    if unknown or more.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise ModelError(f"{name}: --model-impl transformers has no attention with {', '.join(unknown) or 'is_causal=False'}")


def _check_window(module: Any, seat: Seat, told: int | None) -> None:
    if told is None and 0 < seat.untold < seat.attention.config.context_len:
        raise ModelError(
            f"{type(module).__name__}: the config has a sliding window of {seat.untold}, and transformers does not say which layers "
            f"have it; --context-length {seat.untold} serves the model without"
        )


def register() -> None:
    """Names `attend` to transformers. No masks are made for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


def seat_layers(model: Any, attention: Attention, theirs: Any) -> None:
    """Gives every attention module of the model its place. Raises ModelError for windows that transformers keeps to itself."""
    kinds = getattr(theirs, "layer_types", None)
    window = getattr(theirs, "sliding_window", None) or 0
    untold = window if kinds is None and getattr(theirs, "use_sliding_window", True) else 0
    for module in model.modules():
        index = getattr(module, "layer_idx", None)
        if type(index) is int and 0 <= index < attention.config.num_layers:
            is_local = kinds is not None and kinds[index] == "sliding_attention"
            setattr(module, SEAT, Seat(attention, index, window if is_local else 0, untold))
