"""Gemma 4: a layer ends with what it makes of its row of the token (layers/layer_inputs.py), and with a number that multiplies x.
Experts, where there are any, stand beside the feed-forward layer."""

from __future__ import annotations

from sglang.srt.model.kernels.ops import Array, Ops, Weight
from sglang.srt.model.layers.buffers import StepBuffers
from sglang.srt.model.layers.experts import Experts
from sglang.srt.model.layers.layer_inputs import InputGate, LayerInputs, buffers_of
from sglang.srt.model.layers.mlp import ChannelMixer, create_mlp
from sglang.srt.model.layers.norm import RMSNorm, create_norm
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.models.decoder import Decoder
from sglang.srt.model.models.layer import Half, Layer, Mixer, Place, SerialLayer


class BesideExperts:
    """out = after_mlp(mlp(step.mlp_in)) + after(experts(before(x))); the router reads x by a norm of its own. Uses step.delta."""

    def __init__(self, place: Place) -> None:
        ops, source, config, at = place.ops, place.source, place.config, f"{place.prefix}.mlp"
        self.ops = ops
        self.mlp = create_mlp(ops, source, at, config, place.readers)
        self.experts = Experts(ops, source, at, config, place.readers)
        self.needs_gate_up = self.mlp.needs_gate_up
        self.router_norm = RMSNorm(ops, source, f"{at}.router_norm", config.norm_eps, config.hidden_size**-0.5)
        self.after_mlp, self.before, self.after = (
            RMSNorm(ops, source, f"{place.prefix}.{name}", config.norm_eps)
            for name in ("post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2")
        )

    def __call__(self, step: StepBuffers, out: Array) -> None:
        self.mlp(step, out)
        self.after_mlp(out, step.delta, step.rows)
        self.router_norm(step.x, step.mlp_in, step.rows)
        self.experts.choose(step)
        self.before(step.x, step.mlp_in, step.rows)
        self.experts.compute(step, out)
        self.after(out, out, step.rows)
        self.ops.overlay(out, step.delta, step.every, step.rows, add=True)


class Gemma4Layer(SerialLayer):
    """`all_inputs` makes the rows of all layers. The layer's own scale is part of what it adds last; x gets it beside."""

    def __init__(self, place: Place, mixer: Mixer, channels: ChannelMixer, all_inputs: LayerInputs | None) -> None:
        super().__init__(place, mixer, channels)
        ops, source, config, at = place.ops, place.source, place.config, place.prefix
        self.ops, self.index, self.is_last = ops, place.index, place.index == config.num_layers - 1
        self.scale = float(source.vector(f"{at}.layer_scalar")[0]) if config.layer_scales else 1.0
        self.all_inputs, self.input_gate = all_inputs, None
        if all_inputs is not None:
            self.input_gate = InputGate(ops, source, at, config, place.readers, scale=self.scale)
        else:
            after = create_norm(ops, source, f"{at}.post_feedforward_layernorm", config, config.norm_eps, self.scale)
            self.feeding = Half(ops, self.feeding.before, after)

    def feed(self, step: StepBuffers, delta: Array | None) -> None:
        super().feed(step, delta)
        if self.input_gate is not None and self.all_inputs is not None:
            b = buffers_of(step)
            self.ops.overlay(step.x, step.delta, step.every, step.rows, add=True)
            row = b.last if self.is_last else self.all_inputs.of_layer(b, self.index)
            self.input_gate(step, step.x, row, step.delta)
        if self.scale != 1.0:
            self.ops.scale(step.x, step.rows, by=self.scale)


class Gemma4(Decoder):
    def __init__(self, ops: Ops, source: WeightSource, config: ModelConfig, num_positions: int) -> None:
        self._inputs: LayerInputs | None = None
        super().__init__(ops, source, config, num_positions)

    def create_layer(self, place: Place) -> Layer:
        if self.config.layer_inputs is not None and self._inputs is None:
            self._inputs = LayerInputs(place.ops, place.source, self.config, self.readers)
        return Gemma4Layer(place, self.create_mixer(place), self.create_channels(place), self._inputs)

    def create_channels(self, place: Place) -> ChannelMixer:
        experts = self.config.experts
        return BesideExperts(place) if experts is not None and experts.layers[place.index] else super().create_channels(place)

    def embedded(self, step: StepBuffers) -> None:
        if self._inputs is not None:
            self._inputs(step)

    def finish(self, step: StepBuffers) -> None:
        """`head` has seen to the last layer's rows already; otherwise all are wanted."""
        if self._inputs is not None and step.rows is not step.head_rows:
            b = buffers_of(step)
            self.ops.overlay(b.last, self._inputs.of_layer(b, self.config.num_layers - 1), step.every, step.rows)
        super().finish(step)

    def head(self, step: StepBuffers) -> None:
        if self._inputs is not None:
            b = buffers_of(step)
            own = self._inputs.of_layer(b, self.config.num_layers - 1)
            self.ops.gather_rows(own, step.head_row_idx, b.last, step.head_rows)
        super().head(step)

    @property
    def weights(self) -> list[Weight]:
        r = self.readers
        table = [self._inputs.table] if self._inputs is not None else []
        return [*super().weights, *table, *r.layer_in, *r.layer_out]
