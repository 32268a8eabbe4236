"""Mixers that keep a state of fixed size of what a text holds so far, in the place of K and V of every token."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.model.kernels.ops import Array, Ops
from sglang.srt.model.layers.attention import Attention
from sglang.srt.model.layers.buffers import Readers, StepBuffers
from sglang.srt.model.layers.linear import Linear
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ConvConfig, DeltaConfig, ModelConfig, SelectiveScanConfig, StateSpaceConfig


class ShortConv:
    """out(c * conv(b * x)), where b, c and x are projections of a row (LFM2)."""

    def __init__(
        self, ops: Ops, source: WeightSource, prefix: str, config: ModelConfig, mixer: ConvConfig, readers: Readers
    ) -> None:
        self.ops, self.width = ops, mixer.width
        self.input = Linear(ops, source, {f"{prefix}.in_proj": 3 * mixer.width}, config.hidden_size, mixer.bias)
        self.weight = _taps(ops, source, prefix)
        self.bias: Array | None = ops.array(source.vector(f"{prefix}.conv.bias")) if mixer.bias else None
        self.output = Linear(ops, source, {f"{prefix}.out_proj": config.hidden_size}, mixer.width, mixer.bias)
        readers.attn_in.extend(self.input.weights)
        readers.mixer_out.extend(self.output.weights)
        readers.sites += (self.input.site, self.output.site)

    def __call__(self, step: StepBuffers, kv: Any, out: Array) -> None:
        """`kv`: the layer's StateArrays."""
        b, n = step.recurrent, self.width
        assert b is not None
        self.input(step.attn_in, b.mixed, step.rows, step.adapters)
        before, after, x = (b.mixed[:, i * n : (i + 1) * n] for i in range(3))
        self.ops.short_conv(x, self.weight, kv["conv"], b.out, b.meta, bias=self.bias, before=before, after=after)
        self.output(b.out, out, step.rows, step.adapters)


class DeltaNet:
    """The gated delta rule: q, k and v pass a short convolution; what is read from the state is normalized and gated by z
    (arXiv 2412.06464; Qwen3-Next)."""

    def __init__(
        self, ops: Ops, source: WeightSource, prefix: str, config: ModelConfig, mixer: DeltaConfig, readers: Readers
    ) -> None:
        self.ops, self.mixer, self.eps = ops, mixer, config.norm_eps
        at, heads = prefix, mixer.num_v_heads
        outputs = {f"{at}.in_qkv": mixer.conv_width, f"{at}.in_z": mixer.v_width, f"{at}.in_b": heads, f"{at}.in_a": heads}
        self.input = Linear(ops, source, outputs, config.hidden_size)
        self.weight = _taps(ops, source, prefix)
        self.decay = ops.array(-np.exp(source.vector(f"{prefix}.A_log")))
        self.dt_bias = ops.array(source.vector(f"{prefix}.dt_bias"))
        self.scale = ops.array(source.vector(f"{prefix}.gate_scale.weight"))
        self.output = Linear(ops, source, {f"{prefix}.out_proj": config.hidden_size}, mixer.v_width)
        readers.attn_in.extend(self.input.weights)
        readers.mixer_out.extend(self.output.weights)
        readers.sites += (self.input.site, self.output.site)

    def __call__(self, step: StepBuffers, kv: Any, out: Array) -> None:
        """`kv`: the layer's StateArrays."""
        ops, mixer, b = self.ops, self.mixer, step.recurrent
        assert b is not None and b.core is not None
        self.input(step.attn_in, b.mixed, step.rows, step.adapters)
        ends = np.cumsum([mixer.conv_width, mixer.v_width, 2 * mixer.num_v_heads]).tolist()
        qkv, z, gates = b.mixed[:, : ends[0]], b.mixed[:, ends[0] : ends[1]], b.mixed[:, ends[1] : ends[2]]
        ops.short_conv(qkv, self.weight, kv["conv"], qkv, b.meta, fn="silu")
        decays = (self.decay, self.dt_bias)
        ops.delta_rule(
            qkv, gates, *decays, kv["memory"], b.core, b.meta, step.rows, num_k_heads=mixer.num_k_heads, turns=mixer.turns
        )
        ops.gated_norm(b.core, z, self.scale, b.out, step.rows, eps=self.eps)
        self.output(b.out, out, step.rows, step.adapters)


class StateSpace:
    """Mamba 2: x, B and C pass a short convolution; what is read from the state is gated by z, and usually normalized
    (arXiv 2405.21060)."""

    def __init__(
        self, ops: Ops, source: WeightSource, prefix: str, config: ModelConfig, mixer: StateSpaceConfig, readers: Readers
    ) -> None:
        self.ops, self.mixer, self.eps = ops, mixer, config.norm_eps
        columns = mixer.width + mixer.conv_width + mixer.num_heads
        self.input = Linear(ops, source, {f"{prefix}.in_proj": columns}, config.hidden_size, mixer.in_bias)
        of_groups, scales = mixer.num_groups * mixer.state_dim, mixer.scales or (1.0,) * 5
        self.z_scale, self.step_scale = scales[0], scales[4]
        self.weight = _taps(ops, source, prefix, np.repeat(scales[1:4], [mixer.width, of_groups, of_groups]))
        self.bias: Array | None = ops.array(source.vector(f"{prefix}.conv.bias")) if mixer.conv_bias else None
        self.decay = ops.array(-np.exp(source.vector(f"{prefix}.A_log")))
        self.dt_bias, self.skip = (ops.array(source.vector(f"{prefix}.{name}")) for name in ("dt_bias", "D"))
        self.scale: Array | None = ops.array(source.vector(f"{prefix}.gate_scale.weight")) if mixer.norm else None
        self.output = Linear(ops, source, {f"{prefix}.out_proj": config.hidden_size}, mixer.width, mixer.out_bias)
        readers.attn_in.extend(self.input.weights)
        readers.mixer_out.extend(self.output.weights)
        readers.sites += (self.input.site, self.output.site)

    def __call__(self, step: StepBuffers, kv: Any, out: Array) -> None:
        """`kv`: the layer's StateArrays."""
        ops, mixer, b = self.ops, self.mixer, step.recurrent
        assert b is not None and b.core is not None
        self.input(step.attn_in, b.mixed, step.rows, step.adapters)
        start = mixer.width + mixer.conv_width
        z, xbc, gates = b.mixed[:, : mixer.width], b.mixed[:, mixer.width : start], b.mixed[:, start:]
        for columns, by in ((z, self.z_scale), (gates[:, : mixer.num_heads], self.step_scale)):
            if by != 1:
                ops.scale(columns, step.rows, by=by)
        ops.short_conv(xbc, self.weight, kv["conv"], xbc, b.meta, bias=self.bias, fn="silu")
        ops.state_space(
            xbc,
            gates,
            self.decay,
            self.dt_bias,
            self.skip,
            kv["memory"],
            b.core,
            b.meta,
            step.rows,
            num_groups=mixer.num_groups,
            step_limits=mixer.step_limits,
        )
        if self.scale is None:
            ops.gate(z, b.core, b.out, step.rows, gate_fn="silu")
        else:
            group, first = mixer.width // mixer.num_groups, mixer.norm == "gate_first"
            ops.gated_norm(b.core, z, self.scale, b.out, step.rows, eps=self.eps, group=group, gate_first=first)
        self.output(b.out, out, step.rows, step.adapters)


class SelectiveScan:
    """Mamba 1: x passes a short convolution, and makes the steps, B and C of its own way through the state; the result is gated by z
    (Jamba)."""

    def __init__(
        self, ops: Ops, source: WeightSource, prefix: str, config: ModelConfig, mixer: SelectiveScanConfig, readers: Readers
    ) -> None:
        self.ops, self.mixer, self.eps, width = ops, mixer, config.norm_eps, mixer.width
        self.input = Linear(ops, source, {f"{prefix}.in_proj": 2 * width}, config.hidden_size, mixer.bias)
        self.weight = _taps(ops, source, prefix)
        self.bias: Array | None = ops.array(source.vector(f"{prefix}.conv.bias")) if mixer.conv_bias else None
        self.parameters = Linear(ops, source, {f"{prefix}.x_proj": mixer.dt_rank + 2 * mixer.state_dim}, width)
        self.steps = Linear(ops, source, {f"{prefix}.dt_proj": width}, mixer.dt_rank)
        decay = -np.exp(source.tensor(f"{prefix}.A_log").dequantize()).T
        self.decay = ops.array(np.ascontiguousarray(decay))
        self.dt_bias, self.skip = (ops.array(source.vector(f"{prefix}.{name}")) for name in ("dt_proj.bias", "D"))
        self.norms = [ops.array(source.vector(f"{prefix}.{name}_norm.weight")) for name in ("dt", "b", "c")]
        self.output = Linear(ops, source, {f"{prefix}.out_proj": config.hidden_size}, width, mixer.bias)
        readers.attn_in.extend(self.input.weights)
        readers.scan_in.extend(self.parameters.weights)
        readers.scan_low.extend(self.steps.weights)
        readers.mixer_out.extend(self.output.weights)
        readers.sites += (self.input.site, self.parameters.site, self.steps.site, self.output.site)

    def __call__(self, step: StepBuffers, kv: Any, out: Array) -> None:
        """`kv`: the layer's StateArrays."""
        ops, mixer, b, rows = self.ops, self.mixer, step.recurrent, step.rows
        assert b is not None and b.scan_in is not None and b.scan_low is not None
        ends = np.cumsum([0, mixer.width, mixer.width, mixer.dt_rank, mixer.state_dim, mixer.state_dim, mixer.width]).tolist()
        x, z, low, of_b, of_c, dt = (b.mixed[:, start:end] for start, end in zip(ends[:-1], ends[1:], strict=True))
        self.input(step.attn_in, b.mixed[:, : ends[2]], rows, step.adapters)
        ops.short_conv(x, self.weight, kv["conv"], x, b.meta, bias=self.bias, fn="silu")
        ops.store(x, b.scan_in, rows)
        self.parameters(b.scan_in, b.mixed[:, ends[2] : ends[5]], rows, step.adapters)
        for values, to, weight in zip((low, of_b, of_c), (b.scan_low, of_b, of_c), self.norms, strict=True):
            ops.rms_norm(values, weight, to, rows, eps=self.eps)
        self.steps(b.scan_low, dt, rows, step.adapters)
        bc = b.mixed[:, ends[3] : ends[5]]
        ops.selective_scan(x, dt, bc, z, self.decay, self.dt_bias, self.skip, kv["memory"], b.out, b.meta, rows)
        self.output(b.out, out, rows, step.adapters)


RecurrentMixer = ShortConv | DeltaNet | StateSpace | SelectiveScan


class Beside:
    """Attention and another mixer, each with a factor, on the same rows (Falcon-H1)."""

    def __init__(self, ops: Ops, attention: Attention, mixer: RecurrentMixer, scales: tuple[float, float]) -> None:
        self.ops, self.attention, self.mixer, self.scales = ops, attention, mixer, scales

    def __call__(self, step: StepBuffers, kv: Any, out: Array) -> None:
        """`kv`: the layer's KVLayer and its StateArrays."""
        assert step.recurrent is not None and step.recurrent.beside is not None
        beside = step.recurrent.beside
        self.mixer(step, kv[1], beside)
        self.attention(step, kv[0], out)
        for rows, by in zip((out, beside), self.scales, strict=True):
            if by != 1:
                self.ops.scale(rows, step.rows, by=by)
        self.ops.overlay(out, beside, step.every, step.rows, add=True)


def _taps(ops: Ops, source: WeightSource, prefix: str, scales: npt.ArrayLike = 1.0) -> Array:
    """[taps, channels]; `scales` multiply what the convolution reads."""
    taps = source.tensor(f"{prefix}.conv.weight").dequantize().T * np.asarray(scales, np.float32)
    return ops.array(np.ascontiguousarray(taps))


def create_recurrent(ops: Ops, source: WeightSource, prefix: str, config: ModelConfig, readers: Readers) -> RecurrentMixer:
    """The mixer that the config asks for."""
    assert config.recurrent is not None
    mixer = config.recurrent.mixer
    if isinstance(mixer, ConvConfig):
        return ShortConv(ops, source, prefix, config, mixer, readers)
    if isinstance(mixer, StateSpaceConfig):
        return StateSpace(ops, source, prefix, config, mixer, readers)
    if isinstance(mixer, SelectiveScanConfig):
        return SelectiveScan(ops, source, prefix, config, mixer, readers)
    return DeltaNet(ops, source, prefix, config, mixer, readers)
