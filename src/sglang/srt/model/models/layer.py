"""A decoder's layer: two halves, each with the norms of its family before or after.

    serial      x += after(mixer(before(x)));  x += after(channels(before(x)))
    parallel    x += mixer(before(x)) + channels(before(x))

The mixer combines positions: attention, or another op that reads other rows. The channel mixer works on each row alone: a
feed-forward layer. A norm that a family lacks is None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sglang.srt.model.kernels.ops import Activation, Array, KVLayer, Ops
from sglang.srt.model.layers.buffers import Readers, StepBuffers
from sglang.srt.model.layers.mlp import ChannelMixer
from sglang.srt.model.layers.norm import Norm, create_norm
from sglang.srt.model.layers.rope import Rope
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ModelConfig


@dataclass(frozen=True)
class Place:
    """Where a layer's weights are. `prefix`: the beginning of their names. `local`: the layer sees only a window."""

    ops: Ops
    source: WeightSource
    config: ModelConfig
    readers: Readers
    index: int
    prefix: str
    rope: Rope
    local: bool

    def norm(self, name: str, eps: float | None = None) -> Norm:
        """The layer's norm of this name, with the eps of norms of x if none is given."""
        return create_norm(self.ops, self.source, f"{self.prefix}.{name}_layernorm", self.config, eps)


class Mixer(Protocol):
    """Mixes positions: step.attn_in, and what `kv` keeps of earlier rows -> out."""

    def __call__(self, step: StepBuffers, kv: KVLayer, out: Array) -> None: ...


class Layer(Protocol):
    """One decoder layer in two halves. Each adds `delta` (unless it is None) to x, computes, and leaves its own addition in
    step.delta. `is_split`: `feed` can be left to the rows whose logits are wanted; otherwise `attend` is all of the layer."""

    is_split: bool
    needs_gate_up: bool

    def attend(self, step: StepBuffers, kv: KVLayer, delta: Array | None) -> None: ...

    def feed(self, step: StepBuffers, delta: Array | None) -> None: ...


class Half:
    """delta = after(compute(before(x + delta)))."""

    def __init__(self, ops: Ops, before: Norm | None, after: Norm | None) -> None:
        self.ops, self.before, self.after = ops, before, after

    def __call__(
        self, step: StepBuffers, delta: Array | None, into: Activation, compute: Callable[[StepBuffers, Array], None]
    ) -> None:
        """`compute` reads `into` and writes its second argument."""
        if self.before is not None:
            self.before(step.x, into, step.rows, delta=delta)
        else:
            if delta is not None:
                self.ops.overlay(step.x, delta, step.every, step.rows, add=True)
            self.ops.store(step.x, into, step.rows)
        if self.after is None:
            compute(step, step.delta)
        else:
            compute(step, step.branch)
            self.after(step.branch, step.delta, step.rows)


class SerialLayer:
    """The usual layer. Norms are named as Llama's where there are two, as Gemma's where there are four."""

    is_split = True

    def __init__(self, place: Place, mixer: Mixer, channels: ChannelMixer) -> None:
        where, eps = place.config.norm_place, place.config.norm_eps
        before = {"before": ("input", "post_attention"), "around": ("input", "pre_feedforward"), "after": ()}[where]
        after = () if where == "before" else ("post_attention", "post_feedforward")
        self.mixer, self.channels = mixer, channels
        self.mixing, self.feeding = (
            Half(place.ops, place.norm(before[i]) if before else None, place.norm(after[i], eps) if after else None)
            for i in range(2)
        )
        self.needs_gate_up = channels.needs_gate_up

    def attend(self, step: StepBuffers, kv: KVLayer, delta: Array | None) -> None:
        self.mixing(step, delta, step.attn_in, lambda step, out: self.mixer(step, kv, out))

    def feed(self, step: StepBuffers, delta: Array | None) -> None:
        self.feeding(step, delta, step.mlp_in, self.channels)


class HalfLayer:
    """x += half(norm(x)): a layer that has one half. It is computed for all rows."""

    is_split = False

    def __init__(self, place: Place, mixer: Mixer | None, channels: ChannelMixer | None) -> None:
        self.half, self.mixer, self.channels = Half(place.ops, place.norm("input"), None), mixer, channels
        self.needs_gate_up = channels is not None and channels.needs_gate_up

    def attend(self, step: StepBuffers, kv: KVLayer, delta: Array | None) -> None:
        if self.channels is not None:
            self.half(step, delta, step.mlp_in, self.channels)
        elif (mixer := self.mixer) is not None:
            self.half(step, delta, step.attn_in, lambda step, out: mixer(step, kv, out))

    def feed(self, step: StepBuffers, delta: Array | None) -> None: ...


class ParallelLayer:
    """Both halves read x as the layer found it, so neither can be left out for some rows."""

    is_split = False

    def __init__(self, place: Place, mixer: Mixer, channels: ChannelMixer) -> None:
        self.ops = place.ops
        self.norm = place.norm("input")
        self.channel_norm = self.norm if place.config.block == "shared" else place.norm("post_attention")
        self.mixer, self.channels = mixer, channels
        self.needs_gate_up = channels.needs_gate_up

    def attend(self, step: StepBuffers, kv: KVLayer, delta: Array | None) -> None:
        self.norm(step.x, step.attn_in, step.rows, delta=delta)
        self.channel_norm(step.x, step.mlp_in, step.rows)
        self.mixer(step, kv, step.delta)
        self.ops.overlay(step.x, step.delta, step.every, step.rows, add=True)
        self.channels(step, step.delta)

    def feed(self, step: StepBuffers, delta: Array | None) -> None: ...
