"""Llama 3.2 Vision (arXiv 2407.21783, section 7): Llama with additional layers that attend to images.

    x += tanh(g) * attention(norm(x), images);  x += tanh(h) * mlp(norm(x))       for rows with an image; others are unchanged

A row attends to the last image before it, or to all images of a run of adjacent ones. Rows before the first image skip these layers
(as in the original; transformers lets them attend to all images, later ones included).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sglang.srt.model.kernels.ops import Array, KVLayer
from sglang.srt.model.layers.buffers import StepBuffers
from sglang.srt.model.layers.linear import Linear
from sglang.srt.model.layers.mlp import GatedMLP
from sglang.srt.model.layers.norm import RMSNorm
from sglang.srt.model.models.decoder import Decoder
from sglang.srt.model.models.layer import Layer, Place


class CrossLayer:
    """Called like other layers, with the pool of its images. `attend` is all of it, and leaves nothing to be added."""

    is_split = False

    def __init__(self, place: Place) -> None:
        ops, source, prefix, config, readers = place.ops, place.source, place.prefix, place.config, place.readers
        self.ops, self.config, self.eps = ops, config, config.norm_eps
        at, width = f"{prefix}.cross_attn", config.num_heads * config.head_dim
        self.input_norm = RMSNorm(ops, source, f"{prefix}.input_layernorm", self.eps)
        self.q = Linear(ops, source, {f"{at}.q_proj": width}, config.hidden_size)
        # the scale of scores is part of it
        self.q_norm = ops.array(source.vector(f"{at}.q_norm.weight") * np.float32(config.head_dim**-0.5))
        self.output = Linear(ops, source, {f"{at}.o_proj": config.hidden_size}, width)
        self.post_attention_norm = RMSNorm(ops, source, f"{prefix}.post_attention_layernorm", self.eps)
        self.mlp = GatedMLP(ops, source, f"{prefix}.mlp", config, readers)
        self.needs_gate_up = self.mlp.needs_gate_up
        self.gates = [float(np.tanh(source.vector(f"{prefix}.cross_attn_{name}_gate")[0])) for name in ("attn", "mlp")]
        self.shares: list[Array] = []
        readers.attn_in.extend(self.q.weights)
        readers.attn_out.extend(self.output.weights)

    def feed(self, step: StepBuffers, delta: Array | None) -> None: ...

    def attend(self, step: StepBuffers, kv: KVLayer, delta: Array | None) -> None:
        cross, ops = step.cross, self.ops
        assert cross is not None
        if delta is not None:
            ops.overlay(step.x, delta, step.every, step.rows, add=True)
        if not self.shares:
            self.shares = [ops.array(np.full((len(step.every), 1), gate, np.float32)) for gate in self.gates]
        inner = replace(step, rows=cross.rows, adapters=None)
        ops.gather_rows(step.x, cross.take, cross.x, cross.rows)
        self.input_norm(cross.x, step.attn_in, cross.rows)
        self.q(step.attn_in, cross.q, cross.rows)
        by_head, attn_out = (-1, self.config.head_dim), step.attn_out[self.q.ends[-1]]
        ops.rms_norm(cross.q.reshape(by_head), self.q_norm, cross.normed.reshape(by_head), cross.head_rows, eps=self.eps)
        ops.attention(cross.normed, kv, attn_out, cross.meta, num_heads=self.config.num_heads)
        self.output(attn_out, step.delta, cross.rows)
        self._scale(step, 0)
        self.post_attention_norm(cross.x, step.mlp_in, cross.rows, delta=cross.scaled)
        self.mlp(inner, step.delta)
        self._scale(step, 1)
        ops.overlay(cross.x, cross.scaled, step.every, cross.rows, add=True)
        ops.overlay(step.x, cross.x, cross.back, step.rows)

    def _scale(self, step: StepBuffers, gate: int) -> None:
        """cross.scaled = tanh(gate) * step.delta."""
        cross = step.cross
        assert cross is not None
        self.ops.blend_rows(step.delta, step.every.reshape(-1, 1), self.shares[gate], cross.scaled, cross.rows)


class Mllama(Decoder):
    """Llama with a CrossLayer wherever the config says. `kv` of `body` are those of the other layers."""

    def create_layer(self, place: Place) -> Layer:
        return CrossLayer(place) if place.index in self.config.cross_layers else super().create_layer(place)

    def body(self, step: StepBuffers, kv: Sequence[KVLayer]) -> None:
        assert self.media is not None and step.cross is not None
        self.embedding(step)
        self.media(step)
        own, others = iter(kv), iter(step.cross.memory.layers)
        delta: Array | None = None
        for layer in self.layers:
            is_cross = isinstance(layer, CrossLayer)
            layer.attend(step, next(others if is_cross else own), delta)
            delta = None if is_cross else step.delta
            if layer is not self.layers[-1]:
                layer.feed(step, delta)
        if delta is not None:
            self.settle(step)
