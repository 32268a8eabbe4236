"""Mixtures of experts as a channel mixer: every row is computed by the few experts that its router chooses (arXiv 2101.03961), and by
those that all rows share (arXiv 2401.06066).

    out = sum over chosen e of weight_e * down_e(f(gate_e x) * up_e x)   (+ shared(x), perhaps times a sigmoid)

Of families with plain feed-forward layers an expert is down_e(relu(up_e x)^2).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sglang.srt.model.kernels.ops import Array, Bank, ExpertGate, Ops, Routing
from sglang.srt.model.layers.buffers import ExpertBuffers, Readers, StepBuffers
from sglang.srt.model.layers.linear import Linear
from sglang.srt.model.layers.mlp import create_mlp
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ExpertsConfig, ModelConfig
from sglang.srt.model.quant.formats import HostTensor, quantize_q8_0

ONE_EXPERT = Routing("sigmoid", normalize=False)
"""turns a logit into its sigmoid"""


class Experts:
    """Reads step.mlp_in. The matrices of all experts of a layer are two banks, gate with up (or up alone) and down."""

    def __init__(self, ops: Ops, source: WeightSource, prefix: str, config: ModelConfig, readers: Readers) -> None:
        experts = config.experts
        assert experts is not None
        self.ops, self.routing = ops, experts.routing
        assert config.plain in (None, "relu2")
        self.gate: ExpertGate = experts.gate or config.gate if config.plain is None else "relu2"
        first = ("gate_proj", "up_proj") if config.plain is None else ("up_proj",)
        self.router = Linear(ops, source, {f"{prefix}.gate": experts.count}, config.hidden_size, experts.router_bias)
        self.choice_bias = ops.array(source.vector(f"{prefix}.gate.e_score_correction_bias")) if experts.choice_bias else None
        self.scales = ops.array(source.vector(f"{prefix}.gate.expert_scale")) if experts.beside else None
        at = f"{prefix}.experts"
        width, hidden = experts.width, config.hidden_size
        self.gates = _pack(ops, source, at, experts, dict.fromkeys(first, (width, hidden)), gated=config.plain is None)
        self.down = _pack(ops, source, at, experts, {"down_proj": (hidden, width)}, gated=False)
        self.gate_bias = _biases(ops, source, at, experts, first)
        self.down_bias = _biases(ops, source, at, experts, ("down_proj",))
        readers.mlp_in.extend([*self.router.weights, self.gates])
        readers.expert_out.append(self.down)
        self.shared = Shared(ops, source, prefix, config, readers) if experts.shared_width else None
        self.needs_gate_up = self.shared is not None and self.shared.mlp.needs_gate_up

    def __call__(self, step: StepBuffers, out: Array) -> None:
        self.choose(step)
        self.compute(step, out)

    def choose(self, step: StepBuffers) -> None:
        """Leaves each row's experts in the buffers."""
        assert step.experts is not None
        b = step.experts
        self.router(step.mlp_in, b.logits, step.rows)
        self.ops.route(b.logits, b.routes, step.rows, how=self.routing, bias=self.choice_bias, scales=self.scales)

    def compute(self, step: StepBuffers, out: Array) -> None:
        ops, b = self.ops, step.experts
        assert b is not None
        ops.gated_experts(self.gates, step.mlp_in, b.hidden, b.routes, step.rows, gate=self.gate, bias=self.gate_bias)
        ops.experts_linear(self.down, b.hidden, out, b.routes, step.rows, bias=self.down_bias)
        if self.shared is not None:
            ops.overlay(out, self.shared(step, b), step.every, step.rows, add=True)


class Shared:
    """The experts that every row has, as one feed-forward layer; with a gate of its own, times the sigmoid of that."""

    def __init__(self, ops: Ops, source: WeightSource, prefix: str, config: ModelConfig, readers: Readers) -> None:
        experts = config.experts
        assert experts is not None
        self.ops = ops
        own = Readers(mlp_in=readers.mlp_in, mlp_out=readers.shared_out, sites=readers.sites)
        narrow = replace(config, intermediate_size=experts.shared_width)
        self.mlp = create_mlp(ops, source, f"{prefix}.shared_experts", narrow, own)
        self.gate: Linear | None = None
        if experts.shared_gate:
            self.gate = Linear(ops, source, {f"{prefix}.shared_expert_gate": 1}, config.hidden_size)
            readers.mlp_in.extend(self.gate.weights)

    def __call__(self, step: StepBuffers, b: ExpertBuffers) -> Array:
        """The rows that it leaves in the buffers."""
        assert b.shared is not None and b.shared_out is not None
        self.mlp(replace(step, mlp_out={self.mlp.width: b.shared_out}), b.shared)
        if self.gate is None:
            return b.shared
        assert b.gate is not None
        self.gate(step.mlp_in, b.gate.logits, step.rows)
        self.ops.route(b.gate.logits, b.gate.routes, step.rows, how=ONE_EXPERT)
        self.ops.blend_rows(b.shared, b.gate.index, b.gate.routes.weights, b.gate.out, step.rows)
        return b.gate.out


def _pack(
    ops: Ops, source: WeightSource, at: str, experts: ExpertsConfig, matrices: dict[str, tuple[int, int]], gated: bool
) -> Bank:
    """Expert by expert, so that a model is never in memory twice. Gate and up that do not pack together become q8_0 both."""

    def read(e: int) -> list[HostTensor]:
        parts = [source.tensor(f"{at}.{e}.{name}.weight", shape) for name, shape in matrices.items()]
        return parts if ops.can_stack(parts) else [quantize_q8_0(part.name, part.dequantize()) for part in parts]

    return ops.pack_experts(experts.count, read, gated=gated)


def _biases(ops: Ops, source: WeightSource, at: str, experts: ExpertsConfig, names: tuple[str, ...]) -> Array | None:
    """[num_experts, sum of their rows]."""
    if not experts.bias:
        return None
    rows = [np.concatenate([source.vector(f"{at}.{e}.{name}.bias") for name in names]) for e in range(experts.count)]
    return ops.array(np.stack(rows))
