"""Ops on states by the native kernels (see states.StateOps)."""

from __future__ import annotations

from typing import Any

from sglang_anywhere_kernels import _cpu

from sglang.srt.model.kernels.states import Array, ConvFn, StateMeta


class CpuStates:
    """The part of CpuOps that has to do with states."""

    runtime: Any

    def short_conv(
        self,
        x: Array,
        weight: Array,
        state: Array,
        out: Array,
        meta: StateMeta,
        *,
        bias: Array | None = None,
        fn: ConvFn = "",
        before: Array | None = None,
        after: Array | None = None,
    ) -> None:
        self.runtime.short_conv(x, weight, _flat(state), len(state), out, meta, bias, fn == "silu", before, after)

    def delta_rule(
        self,
        qkv: Array,
        gates: Array,
        decay: Array,
        dt_bias: Array,
        state: Array,
        out: Array,
        meta: StateMeta,
        rows: Array,
        *,
        num_k_heads: int,
        turns: bool = False,
    ) -> None:
        num_slots, num_v_heads, k_dim, v_dim = state.shape
        shape = (num_slots, num_k_heads, num_v_heads, k_dim, v_dim)
        self.runtime.delta_rule(qkv, gates, decay, dt_bias, _flat(state), *shape, out, meta, rows, turns)

    def state_space(
        self,
        xbc: Array,
        gates: Array,
        decay: Array,
        dt_bias: Array,
        skip: Array,
        state: Array,
        out: Array,
        meta: StateMeta,
        rows: Array,
        *,
        num_groups: int,
        step_limits: tuple[float, float],
    ) -> None:
        num_slots, num_heads, state_dim, head_dim = state.shape
        shape = (num_slots, num_groups, num_heads, state_dim, head_dim)
        self.runtime.state_space(xbc, gates, decay, dt_bias, skip, _flat(state), *shape, out, meta, rows, *step_limits)

    def selective_scan(
        self,
        x: Array,
        dt: Array,
        bc: Array,
        z: Array,
        decay: Array,
        dt_bias: Array,
        skip: Array,
        state: Array,
        out: Any,
        meta: StateMeta,
        rows: Array,
    ) -> None:
        self.runtime.selective_scan(x, dt, bc, z, decay, dt_bias, skip, _flat(state), len(state), out, meta, rows)

    def gated_norm(
        self,
        x: Array,
        gate: Array,
        weight: Array,
        out: Any,
        rows: Array,
        *,
        eps: float,
        group: int = 0,
        gate_first: bool = False,
    ) -> None:
        self.runtime.gated_norm(x, gate, weight, out, rows, eps, group or len(weight), gate_first)

    def float_activation(self, max_rows: int, width: int) -> Any:
        return _cpu.Activation(max_rows, width, False, True)

    def sigmoid_gate(self, x: Any, gate: Array, out: Any, rows: Array) -> None:
        self.runtime.sigmoid_gate(x, gate, out, rows)


def _flat(state: Array) -> Array:
    """[slots, values of a state]: the same memory."""
    return state.reshape(len(state), -1)
