"""Ops on states in plain NumPy (see states.StateOps): the documentation in code, and the oracle of tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sglang.srt.model.kernels.reference_linear import Float, Int, ReferenceActivation, apply_gate
from sglang.srt.model.kernels.states import ConvFn, StateMeta


class ReferenceStates:
    """The part of ReferenceOps that has to do with states."""

    def short_conv(
        self,
        x: Float,
        weight: Float,
        state: Float,
        out: Any,
        meta: StateMeta,
        *,
        bias: Float | None = None,
        fn: ConvFn = "",
        before: Float | None = None,
        after: Float | None = None,
    ) -> None:
        taps, channels = weight.shape
        rows = out.data if isinstance(out, ReferenceActivation) else out
        for walk in _walks(meta):
            last = walk.load(state)
            for i in walk.rows():
                u = x[i, :channels] if before is None else before[i, :channels] * x[i, :channels]
                seen = np.concatenate([last, u[None]])
                y = seen[0] * weight[0]
                for j in range(1, taps):
                    y = y + seen[j] * weight[j]
                y = y if bias is None else y + bias
                y = apply_gate(y, "silu") if fn == "silu" else y
                rows[i, :channels] = y if after is None else after[i, :channels] * y
                last = seen[1:]
                walk.note(state, last)

    def delta_rule(
        self,
        qkv: Float,
        gates: Float,
        decay: Float,
        dt_bias: Float,
        state: Float,
        out: Float,
        meta: StateMeta,
        rows: Int,
        *,
        num_k_heads: int,
        turns: bool = False,
    ) -> None:
        _, num_v_heads, k_dim, v_dim = state.shape
        width, heads = num_k_heads * k_dim, np.arange(num_v_heads)
        k_head = heads % num_k_heads if turns else heads // (num_v_heads // num_k_heads)
        prepare_delta(qkv, gates, decay, dt_bias, int(rows[0]), (num_k_heads, k_dim))
        for walk in _walks(meta):
            s = walk.load(state)
            for i in walk.rows():
                q, k = (qkv[i, at : at + width].reshape(num_k_heads, k_dim)[k_head][:, :, None] for at in (0, width))
                v = qkv[i, 2 * width : 2 * width + num_v_heads * v_dim].reshape(num_v_heads, v_dim)
                beta, keep = gates[i, :num_v_heads, None], gates[i, num_v_heads : 2 * num_v_heads, None]
                delta = (v - keep * (s * k).sum(axis=1)) * beta
                s = keep[:, :, None] * s + k * delta[:, None, :]
                out[i, : num_v_heads * v_dim] = (s * q).sum(axis=1).ravel()
                walk.note(state, s)

    def state_space(
        self,
        xbc: Float,
        gates: Float,
        decay: Float,
        dt_bias: Float,
        skip: Float,
        state: Float,
        out: Float,
        meta: StateMeta,
        rows: Int,
        *,
        num_groups: int,
        step_limits: tuple[float, float],
    ) -> None:
        _, heads, state_dim, head_dim = state.shape
        width, shared = heads * head_dim, num_groups * state_dim
        prepare_steps(gates[: int(rows[0])], decay, dt_bias, step_limits)
        for walk in _walks(meta):
            s = walk.load(state)
            for i in walk.rows():
                x = xbc[i, :width].reshape(heads, 1, head_dim)
                b, c = (
                    np.repeat(xbc[i, at : at + shared].reshape(num_groups, state_dim, 1), heads // num_groups, axis=0)
                    for at in (width, width + shared)
                )
                step, keep = gates[i, :heads, None, None], gates[i, heads : 2 * heads, None, None]
                s = keep * s + b * (step * x)
                out[i, :width] = ((s * c).sum(axis=1) + skip[:, None] * x[:, 0]).ravel()
                walk.note(state, s)

    def selective_scan(
        self,
        x: Float,
        dt: Float,
        bc: Float,
        z: Float,
        decay: Float,
        dt_bias: Float,
        skip: Float,
        state: Float,
        out: ReferenceActivation,
        meta: StateMeta,
        rows: Int,
    ) -> None:
        state_dim, channels = decay.shape
        steps = dt[: int(rows[0]), :channels]
        steps[:] = softplus(steps + dt_bias)
        for walk in _walks(meta):
            s = walk.load(state)
            for i in walk.rows():
                u, b, c = x[i, :channels], bc[i, :state_dim, None], bc[i, state_dim : 2 * state_dim, None]
                s = np.exp(decay * steps[i]) * s + b * (steps[i] * u)
                out.data[i] = ((s * c).sum(axis=0) + skip * u) * apply_gate(z[i, :channels], "silu")
                walk.note(state, s)

    def gated_norm(
        self,
        x: Float,
        gate: Float,
        weight: Float,
        out: ReferenceActivation,
        rows: Int,
        *,
        eps: float,
        group: int = 0,
        gate_first: bool = False,
    ) -> None:
        n, width = int(rows[0]), out.width
        gates = apply_gate(gate[:n, :width], "silu")
        values = x[:n, :width] * gates if gate_first else x[:n, :width]
        groups = values.reshape(n, -1, group or len(weight))
        scale = np.float32(1) / np.sqrt(np.mean(groups * groups, axis=-1, keepdims=True, dtype=np.float32) + np.float32(eps))
        normal = (groups * scale).reshape(n, -1) * np.tile(weight, width // len(weight))
        out.data[:n] = normal if gate_first else normal * gates

    def float_activation(self, max_rows: int, width: int) -> ReferenceActivation:
        return ReferenceActivation(max_rows, width)

    def sigmoid_gate(self, x: ReferenceActivation, gate: Float, out: ReferenceActivation, rows: Int) -> None:
        n = int(rows[0])
        out.data[:n] = sigmoid(gate[:n, : x.width]) * x.data[:n]


def prepare_delta(qkv: Float, gates: Float, decay: Float, dt_bias: Float, n: int, heads: tuple[int, int]) -> None:
    """In place, of the first n rows: heads of q and k get their lengths, b becomes the sigmoid, a how much of the state stays."""
    num_k_heads, k_dim = heads
    for part, length in ((0, np.float32(k_dim**-0.5)), (1, np.float32(1))):
        x = qkv[:n, part * num_k_heads * k_dim : (part + 1) * num_k_heads * k_dim]
        by_head = x.reshape(n, num_k_heads, k_dim)
        norm = np.sqrt((by_head * by_head).sum(axis=-1, keepdims=True) + np.float32(1e-6))
        x[:] = (by_head * (length / norm)).reshape(n, -1)
    num_v_heads = len(decay)
    b, a = gates[:n, :num_v_heads], gates[:n, num_v_heads : 2 * num_v_heads]
    b[:] = sigmoid(b)
    a[:] = np.exp(decay * softplus(a + dt_bias))


def prepare_steps(gates: Float, decay: Float, dt_bias: Float, limits: tuple[float, float]) -> None:
    """In place: each head's dt becomes its step, and beside that stands how much of the state stays."""
    heads = len(decay)
    gates[:, :heads] = np.clip(softplus(gates[:, :heads] + dt_bias), *map(np.float32, limits))
    gates[:, heads : 2 * heads] = np.exp(decay * gates[:, :heads])


def sigmoid(x: Float) -> Float:
    result: Float = np.float32(1) / (np.float32(1) + np.exp(-np.maximum(x, np.float32(-80))))
    return result


def softplus(x: Float) -> Float:
    result: Float = np.where(x > 20, x, np.log1p(np.exp(np.minimum(x, np.float32(20)))))
    return result


class _Walk:
    """One request's way through a step."""

    def __init__(self, meta: StateMeta, r: int) -> None:
        self._source, self._target = int(meta.source[r]), int(meta.target[r])
        self._start, self._len = int(meta.q_start[r]), int(meta.q_len[r])
        first, last = int(meta.save_starts[r]), int(meta.save_starts[r + 1])
        saves = zip(meta.save_rows[first:last].tolist(), meta.save_slots[first:last].tolist(), strict=True)
        self._saves = list(saves)
        self._done = 0

    def load(self, state: Float) -> Float:
        return np.zeros(state.shape[1:], np.float32) if self._source < 0 else state[self._source].copy()

    def rows(self) -> range:
        return range(self._start, self._start + self._len)

    def note(self, state: Float, value: Float) -> None:
        """`value` after the next row."""
        self._done += 1
        for at, slot in self._saves:
            if at == self._done:
                state[slot] = value
        if self._done == self._len:
            state[self._target] = value


def _walks(meta: StateMeta) -> Iterator[_Walk]:
    return (_Walk(meta, r) for r in range(int(meta.num_reqs[0])))
