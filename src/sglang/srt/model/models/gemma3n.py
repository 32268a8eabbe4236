"""Gemma 3n: several residual streams (AltUp, arXiv 2301.13310), a low-rank layer beside attention (LAuReL, arXiv 2411.07501), and
rows of tokens for each layer.

    streams -> predictions, by weights that the first stream chooses
    y = attention and feed-forward layer of the first prediction
    streams = predictions + weights that y chooses * (y - first prediction)
    all streams but the first += what the layer makes of its row of the token
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sglang.srt.model.kernels.ops import Array, KVLayer, Ops, Weight
from sglang.srt.model.layers.buffers import StepBuffers, StreamBuffers
from sglang.srt.model.layers.layer_inputs import InputGate, LayerInputs, buffers_of
from sglang.srt.model.layers.linear import Linear
from sglang.srt.model.layers.mlp import ChannelMixer, GatedMLP
from sglang.srt.model.layers.norm import RMSNorm
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.models.decoder import Decoder
from sglang.srt.model.models.layer import Layer, Mixer, Place
from sglang.srt.model.quant.formats import dense

HALF = 0.5**0.5


class Router:
    """Weights for the streams, chosen by one row: coefficients @ tanh(router @ norm(row) / hidden_size) + constants."""

    def __init__(self, place: Place, count: int) -> None:
        self.ops, self.count, config, at = place.ops, count, place.config, f"{place.prefix}.altup"
        ops, source, readers = place.ops, place.source, place.readers
        self.norm = RMSNorm(ops, source, f"{at}.router_norm", config.norm_eps, 1.0 / config.hidden_size)
        self.router = Linear(ops, source, {f"{at}.modality_router": count}, config.hidden_size)
        # stream i as it is predicted: itself, and its coefficients with every stream
        self.predict = ops.pack([source.tensor(f"{at}.prediction_coefs.weight", (count * count, count))])
        self.as_it_is = ops.array(np.eye(count, dtype=np.float32).reshape(-1))
        # stream i as it is corrected: 1 of the prediction, c + 1 of the layer's output, -(c + 1) of the first prediction
        correct = source.tensor(f"{at}.correction_coefs.weight", (count, count))
        c = correct.dequantize()
        rows = np.stack([np.zeros_like(c), c, -c], axis=1).reshape(3 * count, count)
        self.correct = ops.pack([dense(correct.name, rows, correct.format if correct.is_dense else "f32")])
        self.by_one = ops.array(np.tile(np.array([1, 1, -1], np.float32), count))
        readers.stream_in.extend(self.router.weights)
        readers.mode_in.extend([self.predict, self.correct])

    def weigh(self, step: StepBuffers, b: StreamBuffers, x: Array, *, correct: bool) -> None:
        """Leaves them in b.corrections or b.weights."""
        ops = self.ops
        self.norm(x, b.rows_in, step.rows)
        self.router(b.rows_in, b.modes, step.rows)
        ops.soft_cap(b.modes, step.rows, cap=1.0)
        ops.store(b.modes, b.modes_in, step.rows)
        if correct:
            ops.linear(self.correct, b.modes_in, b.corrections, step.rows, bias=self.by_one)
        else:
            ops.linear(self.predict, b.modes_in, b.weights, step.rows, bias=self.as_it_is)


class LowRankLayer:
    """rows += norm(right @ left @ rows), of rows that step.attn_in holds as well."""

    def __init__(self, place: Place, rank: int) -> None:
        ops, source, config, at = place.ops, place.source, place.config, f"{place.prefix}.laurel"
        self.ops = ops
        self.left = Linear(ops, source, {f"{at}.linear_left": rank}, config.hidden_size)
        self.right = Linear(ops, source, {f"{at}.linear_right": config.hidden_size}, rank)
        self.norm = RMSNorm(ops, source, f"{at}.post_laurel_norm", config.norm_eps)
        place.readers.attn_in.extend(self.left.weights)
        place.readers.low_rank_in.extend(self.right.weights)

    def __call__(self, step: StepBuffers, b: StreamBuffers, rows: Array) -> None:
        self.left(step.attn_in, b.low_rank, step.rows)
        self.ops.store(b.low_rank, b.low_rank_in, step.rows)
        self.right(b.low_rank_in, step.branch, step.rows)
        self.norm(step.branch, step.delta, step.rows)
        self.ops.overlay(rows, step.delta, step.every, step.rows, add=True)


class Gemma3nLayer:
    """`attend` is all of it: the streams lie in step.streams, and step.x is left alone."""

    is_split = False

    def __init__(self, place: Place, mixer: Mixer, channels: ChannelMixer, all_inputs: LayerInputs) -> None:
        ops, source, config, at = place.ops, place.source, place.config, place.prefix
        streams = config.streams
        assert streams is not None
        self.ops, self.index, self.count, self.all_inputs = ops, place.index, streams.count, all_inputs
        self.router = Router(place, streams.count)
        self.low_rank = LowRankLayer(place, streams.rank)
        self.mixer, self.channels = mixer, channels
        self.needs_gate_up = channels.needs_gate_up
        self.before_mixer, self.before_channels = place.norm("input"), place.norm("pre_feedforward")
        self.after_mixer, self.after_channels = place.norm("post_attention"), place.norm("post_feedforward")
        columns = source.vector(f"{at}.altup.correct_output_scale") if streams.scaled else None
        self.input_gate = InputGate(ops, source, at, config, place.readers, columns=columns)

    def feed(self, step: StepBuffers, delta: Array | None) -> None: ...

    def attend(self, step: StepBuffers, kv: KVLayer, delta: Array | None) -> None:
        b, ops, rows = streams_of(step), self.ops, step.rows
        self.router.weigh(step, b, b.stream(0), correct=False)
        for i in range(self.count):
            ops.blend_rows(b.streams, b.of_all, b.weights[:, i * self.count : (i + 1) * self.count], b.prediction(i), rows)
        self._compute(step, b, kv)
        self.router.weigh(step, b, b.prediction(self.count), correct=True)
        for i in range(self.count):
            ops.blend_rows(b.predicted, b.of_three[i], b.corrections[:, 3 * i : 3 * i + 3], b.stream(i), rows)
        self.input_gate(step, b.stream(0), self.all_inputs.of_layer(buffers_of(step), self.index), step.delta)
        for i in range(1, self.count):
            ops.overlay(b.stream(i), step.delta, step.every, rows, add=True)

    def _compute(self, step: StepBuffers, b: StreamBuffers, kv: KVLayer) -> None:
        """The layer as others have it, from the first prediction to the row behind the predictions."""
        ops, rows, y = self.ops, step.rows, b.prediction(self.count)
        self.before_mixer(b.prediction(0), b.beside, rows)
        ops.store(b.beside, step.attn_in, rows)
        self.low_rank(step, b, b.beside)
        self.mixer(step, kv, step.branch)
        self.after_mixer(step.branch, step.delta, rows)
        ops.overlay(y, b.prediction(0), step.every, rows)
        for addition in (step.delta, b.beside):
            ops.overlay(y, addition, step.every, rows, add=True)
        ops.scale(y, rows, by=HALF)
        self.before_channels(y, step.mlp_in, rows)
        self.channels(step, step.branch)
        self.after_channels(step.branch, step.delta, rows)
        ops.overlay(y, step.delta, step.every, rows, add=True)


class Gemma3n(Decoder):
    def __init__(self, ops: Ops, source: WeightSource, config: ModelConfig, num_positions: int) -> None:
        self._inputs: LayerInputs | None = None
        super().__init__(ops, source, config, num_positions)
        assert config.streams is not None
        shape, others = (config.hidden_size, config.hidden_size), range(config.streams.count - 1)
        self.spread, self.gather = (
            [ops.pack([source.tensor(f"model.{name}.{i}.weight", shape)]) for i in others]
            for name in ("altup_projections", "altup_unembed_projections")
        )
        self.readers.stream_in.extend([*self.spread, *self.gather])

    def create_layer(self, place: Place) -> Layer:
        if self._inputs is None:
            self._inputs = LayerInputs(place.ops, place.source, self.config, self.readers)
        return Gemma3nLayer(place, self.create_mixer(place), self.create_channels(place), self._inputs)

    def create_channels(self, place: Place) -> ChannelMixer:
        sparsity = self.config.sparsity[place.index] if self.config.sparsity else 0.0
        return GatedMLP(place.ops, place.source, f"{place.prefix}.mlp", place.config, self.readers, sparsity=sparsity)

    def body(self, step: StepBuffers, kv: Sequence[KVLayer]) -> None:
        assert self._inputs is not None
        b, ops = streams_of(step), self.ops
        self.embedding(step)
        self._inputs(step)
        ops.overlay(b.stream(0), step.x, step.every, step.rows)
        ops.store(step.x, b.rows_in, step.rows)
        for i, weight in enumerate(self.spread, 1):
            ops.linear(weight, b.rows_in, step.branch, step.rows)
            ops.overlay(b.stream(i), step.branch, step.every, step.rows)
            ops.match_rms(b.stream(i), b.stream(0), step.rows)
        for layer, layer_kv in zip(self.layers, kv, strict=True):
            layer.attend(step, layer_kv, None)
        ops.overlay(step.x, b.stream(0), step.every, step.rows)
        for i, weight in enumerate(self.gather, 1):
            ops.store(b.stream(i), b.rows_in, step.rows)
            ops.linear(weight, b.rows_in, step.branch, step.rows)
            ops.match_rms(step.branch, b.stream(0), step.rows)
            ops.overlay(step.x, step.branch, step.every, step.rows, add=True)
        ops.scale(step.x, step.rows, by=1.0 / (len(self.gather) + 1))

    @property
    def weights(self) -> list[Weight]:
        r = self.readers
        table = [self._inputs.table] if self._inputs is not None else []
        return list(
            {id(w): w for w in [*super().weights, *table, *r.layer_in, *r.layer_out, *r.stream_in, *r.mode_in]}.values()
        )


def streams_of(step: StepBuffers) -> StreamBuffers:
    assert step.streams is not None
    return step.streams
