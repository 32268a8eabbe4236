"""Feed-forward layers, a decoder's usual channel mixers."""

from __future__ import annotations

from statistics import NormalDist
from typing import Protocol

from sglang.srt.model.kernels.ops import Array, Ops, Weight
from sglang.srt.model.layers.adapters import AdapterSite
from sglang.srt.model.layers.buffers import Readers, StepBuffers
from sglang.srt.model.layers.linear import Linear
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ModelConfig


class ChannelMixer(Protocol):
    """Mixes the channels of each row: step.mlp_in -> out. `needs_gate_up`: whether it writes step.gate_up."""

    needs_gate_up: bool

    def __call__(self, step: StepBuffers, out: Array) -> None: ...


class GatedMLP:
    """down @ (f(gate @ x) * (up @ x))  (arXiv 2002.05202). Gate and up are one fused op where they pack together and have no
    bias."""

    def __init__(
        self,
        ops: Ops,
        source: WeightSource,
        prefix: str,
        config: ModelConfig,
        readers: Readers,
        *,
        sparsity: float = 0.0,
    ) -> None:
        """`sparsity`: the share of a row's gates that would become 0 if they were normally distributed."""
        self.ops = ops
        self.deviations = NormalDist().inv_cdf(sparsity) if sparsity else None
        self.activation = config.gate
        self.gate_scale, self.scale = config.mlp_scales
        self.width = config.intermediate_size
        shape = (config.intermediate_size, config.hidden_size)
        names = {f"{prefix}.gate_proj": self.width, f"{prefix}.up_proj": self.width}
        gate, up = (source.tensor(f"{name}.weight", shape) for name in names)
        self.fused: Weight | None = None
        self.split: Linear | None = None
        if ops.can_stack([gate, up]) and not config.mlp_bias:
            self.fused, self.site = ops.pack_gated(gate, up), AdapterSite(ops, names, config.hidden_size)
            readers.mlp_in.append(self.fused)
        else:
            self.split = Linear(ops, source, names, config.hidden_size, config.mlp_bias)
            self.site = self.split.site
            readers.mlp_in.extend(self.split.weights)
        self.is_plain = self.deviations is None and self.gate_scale == 1
        self.needs_gate_up = self.fused is None or not self.is_plain
        self.down = Linear(ops, source, {f"{prefix}.down_proj": config.hidden_size}, self.width, config.mlp_bias)
        readers.mlp_out.extend(self.down.weights)
        readers.sites += (self.site, self.down.site)

    def __call__(self, step: StepBuffers, out: Array) -> None:
        if self.fused is not None and step.adapters is None and self.is_plain:
            self.ops.gated_linear(self.fused, step.mlp_in, step.mlp_out[self.width], step.rows, gate=self.activation)
        else:
            self._in_two(step)
        self.down(step.mlp_out[self.width], out, step.rows, step.adapters)
        if self.scale != 1:
            self.ops.scale(out, step.rows, by=self.scale)

    def _in_two(self, step: StepBuffers) -> None:
        """Gate and up, then their product: the same bits, with room for adapters between."""
        assert step.gate_up is not None
        if self.split is not None:
            self.split(step.mlp_in, step.gate_up, step.rows, step.adapters)
        else:
            assert self.fused is not None
            self.ops.linear(self.fused, step.mlp_in, step.gate_up, step.rows)
            self.site(step.mlp_in, step.gate_up, step.adapters)
        gate, up = step.gate_up[:, : self.width], step.gate_up[:, self.width : 2 * self.width]
        if self.gate_scale != 1:
            self.ops.scale(gate, step.rows, by=self.gate_scale)
        if self.deviations is not None:
            self.ops.sparsify(gate, step.rows, deviations=self.deviations)
        self.ops.gate(gate, up, step.mlp_out[self.width], step.rows, gate_fn=self.activation)


class PlainMLP:
    """down @ f(up @ x)."""

    needs_gate_up = True

    def __init__(self, ops: Ops, source: WeightSource, prefix: str, config: ModelConfig, readers: Readers) -> None:
        assert config.plain is not None
        self.ops, self.activation, self.width = ops, config.plain, config.intermediate_size
        self.up = Linear(ops, source, {f"{prefix}.up_proj": self.width}, config.hidden_size, config.mlp_bias)
        self.down = Linear(ops, source, {f"{prefix}.down_proj": config.hidden_size}, self.width, config.mlp_bias)
        readers.mlp_in.extend(self.up.weights)
        readers.mlp_out.extend(self.down.weights)
        readers.sites += (self.up.site, self.down.site)

    def __call__(self, step: StepBuffers, out: Array) -> None:
        assert step.gate_up is not None
        inner = step.gate_up[:, : self.width]
        self.up(step.mlp_in, inner, step.rows, step.adapters)
        self.ops.activate(inner, step.mlp_out[self.width], step.rows, fn=self.activation)
        self.down(step.mlp_out[self.width], out, step.rows, step.adapters)


def create_mlp(ops: Ops, source: WeightSource, prefix: str, config: ModelConfig, readers: Readers) -> GatedMLP | PlainMLP:
    """The feed-forward layer that the config asks for."""
    return (GatedMLP if config.plain is None else PlainMLP)(ops, source, prefix, config, readers)
