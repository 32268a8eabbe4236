"""Rows of tokens for each layer (Gemma 3n, Gemma 4): beside its embedding, a token brings a short row for every layer, mixed with
what a projection makes of the embedding. A layer ends with

    x += norm(project(f(gate @ x) * row of the layer))
"""

from __future__ import annotations

import math

import numpy as np

from sglang.srt.model.kernels.ops import Array, Ops
from sglang.srt.model.layers.buffers import LayerInputBuffers, Readers, StepBuffers
from sglang.srt.model.layers.linear import Linear
from sglang.srt.model.layers.norm import RMSNorm
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.quant.formats import HostTensor, dense

TABLE = "model.embed_tokens_per_layer"
PROJECTION = "model.per_layer_model_projection"
NORM = "model.per_layer_projection_norm"


class LayerInputs:
    """The rows of all layers, from step.input_ids and step.x as it is before the first layer: (norm(P x) + rows of the table)
    / sqrt(2)."""

    def __init__(self, ops: Ops, source: WeightSource, config: ModelConfig, readers: Readers) -> None:
        assert config.layer_inputs is not None
        self.ops, self.width, self.num_layers = ops, config.layer_inputs.width, config.num_layers
        total, known = self.width * self.num_layers, config.layer_inputs.vocab_size
        table = [source.tensor(f"{TABLE}.weight", (known, total))]
        if known < config.vocab_size:
            table.append(table[0].take_rows(np.zeros(config.vocab_size - known, np.intp)))
        self.table = ops.pack(table)
        self.projection = Linear(ops, source, {PROJECTION: total}, config.hidden_size)
        readers.layer_in.extend(self.projection.weights)
        # P x is divided by sqrt(hidden_size) before the norm: that of eps is the same
        self.eps = config.norm_eps * config.hidden_size
        self.norm = ops.array(source.vector(f"{NORM}.weight") * np.float32(0.5**0.5))
        self.scale = math.sqrt(self.width / 2)

    def __call__(self, step: StepBuffers) -> None:
        ops, b = self.ops, buffers_of(step)
        ops.store(step.x, b.x, step.rows)
        self.projection(b.x, b.inputs, step.rows)
        for i in range(self.num_layers):
            columns = self.of_layer(b, i)
            ops.rms_norm(columns, self.norm, columns, step.rows, eps=self.eps)
        ops.embedding(self.table, step.input_ids, b.tokens, step.rows, scale=self.scale)
        ops.overlay(b.inputs, b.tokens, step.every, step.rows, add=True)

    def of_layer(self, b: LayerInputBuffers, layer: int) -> Array:
        return b.inputs[:, layer * self.width : (layer + 1) * self.width]


class InputGate:
    """What a layer makes of its rows: `out` = norm(project(f(gate @ x) * row)). `columns` multiply x, channel by channel."""

    def __init__(
        self,
        ops: Ops,
        source: WeightSource,
        prefix: str,
        config: ModelConfig,
        readers: Readers,
        *,
        scale: float = 1.0,
        columns: np.ndarray | None = None,
    ) -> None:
        """`scale` multiplies the result."""
        assert config.layer_inputs is not None
        self.ops, self.activation, width = ops, config.gate, config.layer_inputs.width
        name, shape = f"{prefix}.per_layer_input_gate", (width, config.hidden_size)
        tensor = source.tensor(f"{name}.weight", shape)
        self.gate = ops.pack([tensor if columns is None else _scaled(tensor, columns)])
        self.project = Linear(ops, source, {f"{prefix}.per_layer_projection": config.hidden_size}, width)
        readers.layer_in.append(self.gate)
        readers.layer_out.extend(self.project.weights)
        self.norm = RMSNorm(ops, source, f"{prefix}.post_per_layer_input_norm", config.norm_eps, scale)

    def __call__(self, step: StepBuffers, x: Array, row: Array, out: Array) -> None:
        """Uses step.branch."""
        ops, b = self.ops, buffers_of(step)
        ops.store(x, b.x, step.rows)
        ops.linear(self.gate, b.x, b.gate, step.rows)
        ops.gate(b.gate, row, b.gated, step.rows, gate_fn=self.activation)
        self.project(b.gated, step.branch, step.rows)
        self.norm(step.branch, out, step.rows)


def buffers_of(step: StepBuffers) -> LayerInputBuffers:
    assert step.layer_inputs is not None
    return step.layer_inputs


def _scaled(tensor: HostTensor, columns: np.ndarray) -> HostTensor:
    """The matrix with its columns multiplied."""
    return dense(tensor.name, tensor.dequantize() * columns, tensor.format if tensor.is_dense else "bf16")
