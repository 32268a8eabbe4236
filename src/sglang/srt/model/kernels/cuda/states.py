"""Ops on states of recurrent and convolutional layers on a GPU (see kernels/states.StateOps)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
import triton

from sglang.srt.model.kernels.cuda.weights import CudaActivation
from sglang.srt.model.kernels.states import ConvFn, StateMeta
from sglang.srt.model.kernels.triton import states as kernels
from sglang.srt.model.kernels.triton.common import power_of_two

Tensor = Any  # torch.Tensor
CHANNELS, COLUMNS = 128, 32
"""of a program"""


class CudaStates:
    """The part of CudaOps that has to do with states."""

    dtype: Any
    device: Any
    _most: Callable[..., int]
    _shapes: dict[int, Any]

    def short_conv(
        self,
        x: Tensor,
        weight: Tensor,
        state: Tensor,
        out: Any,
        meta: StateMeta,
        *,
        bias: Tensor | None = None,
        fn: ConvFn = "",
        before: Tensor | None = None,
        after: Tensor | None = None,
    ) -> None:
        """Where `out` is x, rows go through other memory: a program reads rows that another result would have replaced."""
        taps, channels = weight.shape
        to = out.data if isinstance(out, CudaActivation) else out
        same = to.data_ptr() == x.data_ptr()
        given = torch.empty_like(to) if same else to
        none = weight
        kernels.short_conv_kernel[(self._reqs(meta), triton.cdiv(channels, CHANNELS))](
            x, weight, none if bias is None else bias, none if before is None else before, none if after is None else after,
            state, given, *_arrays(meta), channels, x.stride(0), 0 if before is None else before.stride(0),
            0 if after is None else after.stride(0), given.stride(0), taps, fn == "silu", bias is not None, before is not None,
            after is not None, CHANNELS,
        )  # fmt: skip
        if same:
            to[:, :channels].copy_(given[:, :channels])

    def delta_rule(
        self,
        qkv: Tensor,
        gates: Tensor,
        decay: Tensor,
        dt_bias: Tensor,
        state: Tensor,
        out: Tensor,
        meta: StateMeta,
        rows: Tensor,
        *,
        num_k_heads: int,
        turns: bool = False,
    ) -> None:
        _, num_v_heads, k_dim, v_dim = state.shape
        kernels.delta_rule_kernel[(self._reqs(meta), num_v_heads, triton.cdiv(v_dim, COLUMNS))](
            qkv, gates, decay, dt_bias, state, out, *_arrays(meta), num_k_heads, num_v_heads, k_dim, v_dim, qkv.stride(0),
            gates.stride(0), out.stride(0), k_dim**-0.5, turns, power_of_two(k_dim), COLUMNS,
        )  # fmt: skip

    def state_space(
        self,
        xbc: Tensor,
        gates: Tensor,
        decay: Tensor,
        dt_bias: Tensor,
        skip: Tensor,
        state: Tensor,
        out: Tensor,
        meta: StateMeta,
        rows: Tensor,
        *,
        num_groups: int,
        step_limits: tuple[float, float],
    ) -> None:
        _, num_heads, state_dim, head_dim = state.shape
        kernels.state_space_kernel[(self._reqs(meta), num_heads, triton.cdiv(head_dim, COLUMNS))](
            xbc, gates, decay, dt_bias, skip, state, out, *_arrays(meta), num_groups, num_heads, state_dim, head_dim, xbc.stride(0),
            gates.stride(0), out.stride(0), *step_limits, power_of_two(state_dim), COLUMNS,
        )  # fmt: skip

    def selective_scan(
        self,
        x: Tensor,
        dt: Tensor,
        bc: Tensor,
        z: Tensor,
        decay: Tensor,
        dt_bias: Tensor,
        skip: Tensor,
        state: Tensor,
        out: CudaActivation,
        meta: StateMeta,
        rows: Tensor,
    ) -> None:
        state_dim, channels = decay.shape
        kernels.selective_scan_kernel[(self._reqs(meta), triton.cdiv(channels, COLUMNS))](
            x, dt, bc, z, decay, dt_bias, skip, state, out.data, *_arrays(meta), state_dim, channels, x.stride(0), dt.stride(0),
            bc.stride(0), z.stride(0), out.data.stride(0), power_of_two(state_dim), COLUMNS,
        )  # fmt: skip

    def gated_norm(
        self,
        x: Tensor,
        gate: Tensor,
        weight: Tensor,
        out: CudaActivation,
        rows: Tensor,
        *,
        eps: float,
        group: int = 0,
        gate_first: bool = False,
    ) -> None:
        if n := self._most(rows, x, gate, out.data):
            head = group or len(weight)
            kernels.gated_norm_kernel[(n, out.width // head)](
                x, gate, weight, out.data, rows, head, x.stride(0), gate.stride(0), out.data.stride(0), eps, len(weight) > head,
                gate_first, power_of_two(head),
            )  # fmt: skip

    def float_activation(self, max_rows: int, width: int) -> CudaActivation:
        return CudaActivation(max_rows, width, self.dtype, self.device)

    def sigmoid_gate(self, x: CudaActivation, gate: Tensor, out: CudaActivation, rows: Tensor) -> None:
        if n := self._most(rows, x.data, gate, out.data):
            kernels.sigmoid_gate_kernel[(n, triton.cdiv(out.width, 1024))](
                x.data, gate, out.data, rows, out.width, x.data.stride(0), gate.stride(0), out.data.stride(0), 1024
            )

    def _reqs(self, meta: StateMeta) -> int:
        """The most requests that a step may have: programs without one end at once."""
        shape = self._shapes.get(meta.num_reqs.data_ptr())
        return len(meta.q_start) if shape is None else min(len(meta.q_start), max(shape[1].num_reqs, 1))


def _arrays(meta: StateMeta) -> tuple[Tensor, ...]:
    return tuple(getattr(meta, field.name) for field in fields(StateMeta))
