"""Ops on states of fixed size: what recurrent and convolutional layers keep of a text, in place of K and V.

A layer's states are arrays with a slot for each text, as the KV pool has one for each token. An op reads a request's state from one
slot, goes through its rows one after the other, and leaves the new state in another slot or the same one. On the way it copies the
state to further slots ("saves"), after as many rows as the scheduler wants.

    rows of a request     r0  r1  r2  r3  r4  r5
    source: slot 7 ->     |           |       | -> target: slot 3
                                      | save after 3 rows: slot 9

Rows are taken strictly in order, so a result does not depend on how a text was cut into steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Array = Any
ConvFn = Literal["", "silu"]


@dataclass(frozen=True)
class StateMeta:
    """Static int32 arrays that say which rows are whose (as AttentionMeta), and where states are. Request r's saves are numbers
    save_starts[r] .. save_starts[r + 1] - 1, ascending by rows."""

    num_reqs: Array  # [1]
    q_start: Array  # [max_reqs]
    q_len: Array  # [max_reqs]
    source: Array  # [max_reqs] -1: the text begins, its state is zero
    target: Array  # [max_reqs]
    save_starts: Array  # [max_reqs + 1]
    save_rows: Array  # [max_saves] rows of the request before the state that is saved, from 1 on
    save_slots: Array  # [max_saves]


def state_meta_sizes(max_reqs: int) -> dict[str, int]:
    """Sizes of the arrays that only StateMeta has, by name."""
    saves = max_saves(max_reqs)
    return {"source": max_reqs, "target": max_reqs, "save_starts": max_reqs + 1, "save_rows": saves, "save_slots": saves}


def max_saves(max_reqs: int) -> int:
    """Saves that a step may have."""
    return 4 * max_reqs


class StateOps(Protocol):
    """The part of ops.Ops that has to do with states. `state` arguments have a slot as the first index."""

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
        """A convolution over each request's rows, channel by channel: with u = before * x (x alone if None),
        out[i] = after * fn(bias + sum over j of weight[j] * u[i - taps + 1 + j]). x, before, after: [max_rows, channels], possibly
        column ranges; weight: [taps, channels]; state: [slots, taps - 1, channels], the u of the last rows. `out`: an array of rows, which may
        be x, or an Activation."""
        ...

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
        """The gated delta rule (arXiv 2412.06464). state: [slots, num_v_heads, k_dim, v_dim]; of each head of v, with S its state, q and
        k of the head of k that it shares with its neighbours (with `turns` head h of v has head h % num_k_heads), both of length 1 (q divided by sqrt(k_dim) besides), and b, a of `gates`:

            S = exp(decay softplus(a + dt_bias)) S;  S += k (sigmoid(b) (v - S' k))';  out = S' q

        qkv: [max_rows, 2 * num_k_heads * k_dim + num_v_heads * v_dim]; gates: [max_rows, 2 * num_v_heads], b before a; both are
        overwritten. decay, dt_bias: [num_v_heads]; out: [max_rows, num_v_heads * v_dim]."""
        ...

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
        """Mamba 2's state space (arXiv 2405.21060). state: [slots, num_heads, state_dim, head_dim]; of each head, with S its state, B and
        C those of its group of neighbours, and d = softplus(dt + dt_bias) within step_limits:

            S = exp(decay d) S + B (d x)';  out = S' C + skip x

        xbc: [max_rows, num_heads * head_dim + 2 * num_groups * state_dim], heads of x, then B and C of each group; gates: [max_rows,
        2 * num_heads], dt first, overwritten with d and exp(decay d). decay, dt_bias, skip: [num_heads]; out: [max_rows, num_heads *
        head_dim]."""
        ...

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
        """Mamba 1's state space (arXiv 2312.00752). state: [slots, state_dim, channels]; with S a state, B and C the halves of a row of bc,
        and d = softplus(dt + dt_bias):

            S = exp(decay d) S + B (d x)';  out = (S' C + skip x) silu(z)

        x, dt, z: [max_rows, channels]; dt is overwritten; bc: [max_rows, 2 * state_dim]; decay: [state_dim, channels]; dt_bias, skip:
        [channels]; out: an Activation."""
        ...

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
        """out[i] = RMS norm of each group of x[i] * weight * silu(gate[i]), or with `gate_first` the norm of x[i] * silu(gate[i]). x, gate:
        [max_rows, groups * n]; weight: [n] for all groups, or [groups * n]; group: n, if it is not weight's length; out: an Activation."""
        ...

    def float_activation(self, max_rows: int, width: int) -> Any:
        """An Activation in full precision, which `attention` can write and `sigmoid_gate` can read."""
        ...

    def sigmoid_gate(self, x: Any, gate: Array, out: Any, rows: Array) -> None:
        """out[i] = sigmoid(gate[i]) * x[i]. x: of `float_activation`; gate: [max_rows, width]; out: another Activation."""
        ...


STATE_OPS = ("short_conv", "delta_rule", "state_space", "selective_scan", "gated_norm", "sigmoid_gate")
"""those that are recorded"""

StateArrays = Mapping[str, Array]
"""the states of one layer, by name"""
