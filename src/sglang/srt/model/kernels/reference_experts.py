"""The ops on mixtures of experts in plain NumPy (see ops.Ops): the documentation in code, and the oracle of tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from sglang.srt.model.kernels.ops import ExpertGate, Gate, Routes, Routing
from sglang.srt.model.kernels.reference_linear import Float, ReferenceActivation, ReferenceWeight, apply_gate, matmul
from sglang.srt.model.quant.formats import HostTensor

CLAMP = np.float32(7)
"""of clamped_silu"""


class ReferenceBank:
    """A dense matrix for each expert: gate above up, or down."""

    def __init__(self, num_experts: int, read: Callable[[int], Sequence[HostTensor]]) -> None:
        self.experts = [ReferenceWeight(np.concatenate([part.dequantize() for part in read(e)])) for e in range(num_experts)]
        self.num_experts = num_experts
        self.in_features = self.experts[0].in_features
        self.out_features = sum(weight.out_features for weight in self.experts)
        self.num_bytes = sum(weight.num_bytes for weight in self.experts)


def route(logits: Float, routes: Routes, n: int, how: Routing, bias: Float | None, scales: Float | None = None) -> None:
    """ops.route for the first n rows."""
    num_experts, top_k = logits.shape[1], routes.ids.shape[1]
    x = logits[:n]
    if how.score == "sigmoid":
        scores = np.float32(1) / (np.float32(1) + np.exp(-np.maximum(x, np.float32(-80))))
    else:
        e = np.exp(x - x.max(axis=1, keepdims=True))
        scores = e / e.sum(axis=1, keepdims=True, dtype=np.float32)
    choice = scores if bias is None else scores + bias
    if how.top_groups < how.num_groups:
        choice = np.where(_in_best_groups(choice, how), choice, np.float32(-np.inf))
    ids = np.argsort(-choice, axis=1, kind="stable")[:, :top_k]
    weights = np.take_along_axis(scores, ids, axis=1)
    if how.normalize:
        tiny = np.float32(1e-20 if how.score == "sigmoid" else 0)
        weights = weights / (weights.sum(axis=1, keepdims=True, dtype=np.float32) + tiny)
    weights = weights * np.float32(how.scale)
    routes.ids[:n], routes.weights[:n] = ids, weights if scales is None else weights * scales[ids]
    routes.order[: n * top_k] = np.argsort(ids, axis=None, kind="stable")
    routes.starts[0], routes.starts[1:] = 0, np.cumsum(np.bincount(ids.ravel(), minlength=num_experts))


def _in_best_groups(choice: Float, how: Routing) -> npt.NDArray[np.bool_]:
    """[n, num_experts]."""
    n, num_experts = choice.shape
    groups = np.sort(choice.reshape(n, how.num_groups, -1), axis=2)
    best = np.argsort(-groups[:, :, -how.group_best :].sum(axis=2), axis=1, kind="stable")[:, : how.top_groups]
    kept = np.zeros((n, how.num_groups), bool)
    np.put_along_axis(kept, best, True, axis=1)
    return np.repeat(kept, num_experts // how.num_groups, axis=1)


def gated_experts(
    bank: ReferenceBank,
    x: ReferenceActivation,
    out: ReferenceActivation,
    routes: Routes,
    n: int,
    gate: ExpertGate,
    bias: Float | None,
) -> None:
    """ops.gated_experts for the first n rows."""
    for e, places, rows in _each_expert(routes, n):
        both = matmul(bank.experts[e], x.data[rows])
        if bias is not None:
            both += bias[e]
        if gate == "relu2":
            out.data[places] = np.square(np.maximum(both, np.float32(0)))
            continue
        half = both.shape[1] // 2
        out.data[places] = _gated(both[:, :half], both[:, half:], gate)


def _gated(gate: Float, up: Float, kind: Gate | Literal["clamped_silu"]) -> Float:
    if kind != "clamped_silu":
        return apply_gate(gate, kind) * up
    gate, up = np.minimum(gate, CLAMP), np.clip(up, -CLAMP, CLAMP)
    result: Float = (
        gate / (np.float32(1) + np.exp(-np.maximum(np.float32(1.702) * gate, np.float32(-80)))) * (up + np.float32(1))
    )
    return result


def experts_linear(bank: ReferenceBank, x: ReferenceActivation, out: Float, routes: Routes, n: int, bias: Float | None) -> None:
    """ops.experts_linear for the first n rows: added up by ascending expert."""
    width = bank.experts[0].out_features
    out[:n, :width] = 0
    weights = routes.weights.reshape(-1)
    for e, places, rows in _each_expert(routes, n):
        result = matmul(bank.experts[e], x.data[places])
        out[rows, :width] += weights[routes.order[places], None] * (result if bias is None else result + bias[e])


def heads_linear(bank: ReferenceBank, x: ReferenceActivation, out: Float, n: int) -> None:
    """ops.heads_linear for the first n rows."""
    k, width = bank.in_features, bank.experts[0].out_features
    for h, weight in enumerate(bank.experts):
        out[:n, h * width : (h + 1) * width] = matmul(weight, np.ascontiguousarray(x.data[:n, h * k : (h + 1) * k]))


def _each_expert(routes: Routes, n: int) -> Iterator[tuple[int, slice, npt.NDArray[np.int32]]]:
    """(expert, its places among the sorted pairs, the rows there) of every expert that has any."""
    top_k, ends = routes.ids.shape[1], np.minimum(routes.starts, n * routes.ids.shape[1])
    for e in np.flatnonzero(np.diff(ends)).tolist():
        places = slice(int(ends[e]), int(ends[e + 1]))
        yield e, places, routes.order[places] // top_k
