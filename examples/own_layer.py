"""A family with its own layers: the feed-forward layer runs before attention as well as after it."""

from __future__ import annotations

from sglang.srt.model.kernels.ops import Array, KVLayer
from sglang.srt.model.layers.buffers import StepBuffers
from sglang.srt.model.models.decoder import Decoder
from sglang.srt.model.models.layer import Layer, Place, SerialLayer


class TwiceFedLayer(SerialLayer):
    """x += mlp(norm(x));  x += attention(norm(x));  x += mlp(norm(x))"""

    def attend(self, step: StepBuffers, kv: KVLayer, delta: Array | None) -> None:
        self.feeding(step, delta, step.mlp_in, self.channels)  # leaves its addition in step.delta
        super().attend(step, kv, step.delta)


class TwiceFed(Decoder):
    def create_layer(self, place: Place) -> Layer:
        return TwiceFedLayer(place, self.create_mixer(place), self.create_channels(place))
