"""Media in the decoder: rows of encoders in place of token embeddings, and positions with several axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sglang.srt.errors import ModelError
from sglang.srt.model.kernels.ops import Array, Ops
from sglang.srt.model.layers.buffers import StepBuffers
from sglang.srt.model.layers.rope import Rope
from sglang.srt.model.model_config import ModelConfig


@dataclass(frozen=True)
class StepRope(Rope):
    """Rotation by positions of several axes: `MediaSeam` has made a table of the step's rows."""

    def of_step(self, step: StepBuffers) -> tuple[Rope, Array]:
        assert step.media is not None
        return Rope(step.media.cos, step.media.sin), step.every


class MediaSeam:
    """Runs right after the token embedding."""

    def __init__(self, ops: Ops, config: ModelConfig, rope: Rope) -> None:
        self.ops = ops
        self.rope = rope
        assert config.vision is not None
        self.hidden_size, self.num_deep = config.hidden_size, len(config.vision.deep_layers)
        if self.num_deep >= config.num_layers:
            raise ModelError(f"{self.num_deep} layers of the encoder go into the decoder, which has {config.num_layers} layers")
        self.axes = ops.array(np.array(config.rope_axes, np.int32)) if config.rope_axes else None

    def __call__(self, step: StepBuffers) -> None:
        media = step.media
        assert media is not None
        self.ops.overlay(step.x, media.embeds[:, : self.hidden_size], media.index, step.rows)
        if self.axes is not None:
            self.ops.select_rope(self.rope.cos, self.rope.sin, media.positions, self.axes, media.cos, media.sin, step.rows)

    def after_layer(self, i: int, step: StepBuffers) -> None:
        """Adds what the encoder's middle layers say to the output of the decoder's first ones (DeepStack)."""
        if i >= self.num_deep:
            return
        media = step.media
        assert media is not None
        columns = media.embeds[:, self.hidden_size * (i + 1) : self.hidden_size * (i + 2)]
        self.ops.overlay(step.delta, columns, media.index, step.rows, add=True)
