"""The frame of all decoders: embedding, layers, final norm and head.

    x = embed(ids)
    for each layer:  x += ...          two halves, `attend` and `feed`; what they are is the family's business
    logits = head(norm(x))

An addition to x is not made at once: it stays in `delta` and the next norm makes it, one pass over memory less.

What follows the last attention is computed for the rows whose logits are wanted alone: nobody else needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from sglang.srt.model.kernels.ops import Array, KVLayer, Ops, Weight
from sglang.srt.model.layers.buffers import Readers, StepBuffers
from sglang.srt.model.layers.embedding import Embedding, Head
from sglang.srt.model.layers.media import MediaSeam, StepRope
from sglang.srt.model.layers.mlp import GatedMLP
from sglang.srt.model.layers.rope import Rope, create_rope
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ModelConfig


class Layer(Protocol):
    """One decoder layer in two halves. Each adds `delta` (unless it is None) to x, computes, and leaves its own addition in
    step.delta."""

    mlp: GatedMLP

    def attend(self, step: StepBuffers, kv: KVLayer, delta: Array | None) -> None: ...

    def feed(self, step: StepBuffers, delta: Array | None) -> None: ...


class Decoder:
    """What the decoders have in common; a family says what a layer is (`create_layer`). `body` runs the layers over the step's rows,
    `head` turns selected rows into logits. `num_positions`: how far rotation tables reach."""

    def __init__(self, ops: Ops, source: WeightSource, config: ModelConfig, num_positions: int) -> None:
        self.config = config
        self.readers = Readers()
        self.embedding = Embedding(ops, source, config)
        rope = create_rope(ops, config.rope, num_positions)
        self.media = MediaSeam(ops, config, rope) if config.vision is not None else None
        if config.rope_axes:
            rope = StepRope(rope.cos, rope.sin)
        local_rope = create_rope(ops, config.local_rope, num_positions) if config.local_rope else rope
        windows = config.windowed_layers or (False,) * config.num_layers
        self.layers: list[Layer] = [
            self.create_layer(ops, source, f"model.layers.{i}", local_rope if local else rope, local)
            for i, local in enumerate(windows)
        ]
        self.ops = ops
        self.output = Head(ops, source, config, self.embedding)
        self.readers.head_in.append(self.output.weight)

    def create_layer(self, ops: Ops, source: WeightSource, prefix: str, rope: Rope, local: bool) -> Layer:
        """The layer whose weights' names begin with `prefix`. `local`: it sees only a window."""
        raise NotImplementedError

    def body(self, step: StepBuffers, kv: Sequence[KVLayer]) -> None:
        """Leaves x as it is after the last attention."""
        self.embedding(step)
        if self.media is not None:
            self.media(step)
        delta = None
        for i, (layer, layer_kv) in enumerate(zip(self.layers, kv, strict=True)):
            layer.attend(step, layer_kv, delta)
            delta = step.delta
            if layer is self.layers[-1]:
                break
            layer.feed(step, delta)
            if self.media is not None:
                self.media.after_layer(i, step)
        self.output.settle(step)

    def finish(self, step: StepBuffers) -> None:
        """The rest of the last layer, for all rows of step.x."""
        self.layers[-1].feed(step, None)
        self.output.settle(step)

    def head(self, step: StepBuffers) -> None:
        """step.logits of the rows `head_row_idx`. May run several times: it leaves x alone."""
        self.ops.gather_rows(step.x, step.head_row_idx, step.head_x, step.head_rows)
        n = len(step.head_x)
        self.finish(replace(step, x=step.head_x, delta=step.delta[:n], branch=step.branch[:n], rows=step.head_rows))
        self.output(step)

    @property
    def split_gate(self) -> bool:
        """Whether some layer writes step.gate_up."""
        return any(layer.mlp.fused is None for layer in self.layers)

    @property
    def weights(self) -> list[Weight]:
        """Every packed matrix, once."""
        r = self.readers
        every = [self.embedding.weight, *r.attn_in, *r.attn_out, *r.mlp_in, *r.mlp_out, *r.head_in]
        return list({id(w): w for w in every}.values())
