"""Mixtures of experts on a GPU: which kernels run (triton/experts.py), and the banks they read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton

from sglang.srt.errors import ModelError
from sglang.srt.model.kernels.cuda.weights import CudaActivation, CudaWeight, describe, kind_of, pack
from sglang.srt.model.kernels.ops import ExpertGate, Routes, Routing
from sglang.srt.model.kernels.triton.common import power_of_two
from sglang.srt.model.kernels.triton.experts import combine_kernel, experts_kernel, heads_kernel, route_kernel
from sglang.srt.model.quant.formats import HostTensor

Tensor = Any  # torch.Tensor
_COLUMNS = 1024
_FEW, _MANY = (16, 64, 64), (64, 64, 64)
"""rows, columns and k of a tile: where an expert has few rows on average, or in float32, and where it has many"""


class CudaBank(CudaWeight):
    """The matrices of experts, one under the other: gate above up, or down."""

    num_experts: int


def pack_bank(num_experts: int, read: Callable[[int], Sequence[HostTensor]], dtype: Any, device: Any) -> CudaBank:
    """Expert by expert into one weight. Raises ModelError if they have not one form."""

    def expert(e: int) -> CudaWeight:
        parts = [part.in_order() for part in read(e)]
        weight = pack(parts, dtype, device, float8=False)
        if e and (kind_of(parts[0], False)[:2] != kind or weight.out_features != rows):
            raise ModelError(f"{describe(parts[0])} cannot be packed beside the first expert's: experts have one form")
        return weight

    first_part = read(0)[0].in_order()
    kind = kind_of(first_part, False)[:2]
    first = expert(0)
    rows = first.out_features

    def room(like: Tensor) -> Tensor:
        return None if like is None else torch.empty((num_experts * rows, *like.shape[1:]), dtype=like.dtype, device=device)

    shape = (num_experts * rows, first.in_features)
    bank = CudaBank(first.form, shape, room(first.data), room(first.scales), room(first.minima), first.group)
    bank.num_experts = num_experts
    for e in range(num_experts):
        weight = expert(e)
        for to, part in ((bank.data, weight.data), (bank.scales, weight.scales), (bank.minima, weight.minima)):
            if to is not None:
                to[e * rows : (e + 1) * rows].copy_(part)
    return bank


class Experts:
    """Owner of the arrays that sorting needs. `scratch`: Products.scratch."""

    def __init__(self, device: Any, dtype: Any, early: dict[str, bool], scratch: Callable[..., Tensor]) -> None:
        self._device, self._dtype, self._early, self._scratch = device, dtype, early, scratch
        self._ids: dict[int, Tensor] = {}

    def route(
        self, logits: Tensor, routes: Routes, rows: Tensor, n: int, how: Routing, bias: Tensor | None, scales: Tensor | None
    ) -> None:
        num_experts, top_k = logits.shape[1], routes.ids.shape[1]
        keys = self._scratch("expert keys", 1, len(routes.order), torch.int32)[0, : n * top_k]
        route_kernel[(n,)](
            logits, bias if bias is not None else logits, scales if scales is not None else logits, routes.ids, routes.weights, keys,
            rows, num_experts, logits.stride(0), how.scale, top_k, how.score == "sigmoid", how.normalize, bias is not None,
            scales is not None, how.num_groups, how.top_groups, how.group_best, power_of_two(num_experts, 2), power_of_two(top_k),
            power_of_two(how.num_groups), **self._early,
        )  # fmt: skip
        if num_experts not in self._ids:
            self._ids[num_experts] = torch.arange(num_experts + 1, dtype=torch.int32, device=self._device)
        sorted_keys, order = torch.sort(keys, stable=True)
        routes.order[: n * top_k].copy_(order)
        routes.starts.copy_(torch.searchsorted(sorted_keys, self._ids[num_experts], out_int32=True))

    def gated(
        self, bank: CudaBank, x: CudaActivation, out: CudaActivation, routes: Routes, rows: Tensor, n: int, gate: ExpertGate,
        bias: Tensor | None,
    ) -> None:  # fmt: skip
        self._launch(bank, x.data, out.data, routes, rows, n, bias, gate)

    def linear(
        self, bank: CudaBank, x: CudaActivation, out: Tensor, routes: Routes, rows: Tensor, n: int, bias: Tensor | None
    ) -> None:
        """What pairs make is kept, and added up by choices: the best first."""
        top_k, width = routes.ids.shape[1], bank.out_features // bank.num_experts
        pairs = self._scratch("expert rows", len(routes.order), width, torch.float32)
        self._launch(bank, x.data, pairs, routes, rows, n, bias, None)
        combine_kernel[(n, triton.cdiv(width, _COLUMNS))](
            pairs, routes.weights, out, rows, top_k, width, out.stride(0), _COLUMNS, **self._early
        )

    def of_heads(self, bank: CudaBank, x: CudaActivation, out: Tensor, rows: Tensor, n: int) -> None:
        """ops.heads_linear."""
        many = self._dtype != torch.float32 and n >= 64
        m_block, n_block, k_block = _MANY if many else _FEW
        width = bank.out_features // bank.num_experts
        heads_kernel[(triton.cdiv(n, m_block), triton.cdiv(width, n_block), bank.num_experts)](
            x.data, bank.data, out, rows, width, bank.in_features, x.data.stride(0), out.stride(0), m_block, n_block, k_block,
            num_warps=4, **self._early,
        )  # fmt: skip

    def _launch(
        self, bank: CudaBank, x: Tensor, out: Tensor, routes: Routes, rows: Tensor, n: int, bias: Tensor | None,
        gate: ExpertGate | None,
    ) -> None:  # fmt: skip
        top_k, num_experts = routes.ids.shape[1], bank.num_experts
        pairs = n * top_k
        many = self._dtype != torch.float32 and pairs >= 32 * num_experts
        m_block, n_block, k_block = _MANY if many else _FEW
        columns = bank.out_features // num_experts // (1 if gate in (None, "relu2") else 2)
        tiles = pairs // m_block + min(pairs, num_experts)
        bits = {"dense": 16, "int4": 4, "int8": 8}[bank.form]
        none = bank.data
        experts_kernel[(tiles, triton.cdiv(columns, n_block))](
            x, bank.data, none if bank.scales is None else bank.scales, none if bank.minima is None else bank.minima,
            none if bias is None else bias, routes.order, routes.starts, out, rows, num_experts, columns, bank.in_features, top_k,
            x.stride(0), out.stride(0), bits, max(bank.group, 1), bank.minima is not None, bias is not None,
            {None: 0, "relu2": 1}.get(gate, 2), gate or "silu", m_block, n_block, k_block, power_of_two(num_experts, 2), num_warps=4, **self._early,
        )  # fmt: skip
