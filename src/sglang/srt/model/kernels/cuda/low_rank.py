"""Banks of adapters in the device's memory, and the launches that add what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton

from sglang.srt.model.kernels.low_rank import ADAPTER_TILE, LowRank, RowAdapters
from sglang.srt.model.kernels.triton.low_rank import low_rank_down_kernel, low_rank_up_kernel

Tensor = Any  # torch.Tensor

RANKS, BLOCK_K, COLUMNS = 16, 128, 64


@dataclass(frozen=True)
class CudaParts:
    """What one adapter adds to each of a bank's matrices, in host memory: A and B in the bank's type, and the scale; None: nothing."""

    parts: list[tuple[Tensor, Tensor, float] | None]


class CudaAdapterBank:
    """In the model's type. a: [slots, parts, max_rank, in_features]; b: [slots, sum of widths, max_rank]."""

    def __init__(self, num_slots: int, max_rank: int, in_features: int, widths: Sequence[int], dtype: Any, device: Any) -> None:
        self.num_slots, self.in_features, self.widths = num_slots, in_features, tuple(widths)
        self.max_rank = -(-max_rank // RANKS) * RANKS
        parts = len(self.widths)
        self._dtype = dtype
        self.a = torch.zeros((num_slots, parts, self.max_rank, in_features), dtype=dtype, device=device)
        self.b = torch.zeros((num_slots, sum(self.widths), self.max_rank), dtype=dtype, device=device)
        self.scales = torch.zeros((num_slots, parts), dtype=torch.float32, device=device)
        self.ranks = torch.zeros((num_slots, parts), dtype=torch.int32, device=device)
        self.num_bytes = int(self.a.nbytes + self.b.nbytes)

    def pack(self, parts: Sequence[LowRank | None]) -> CudaParts:
        """On the host: the device's turn comes when it is placed."""
        return CudaParts([None if part is None else self._pack(part) for part in parts])

    def _pack(self, part: LowRank) -> tuple[Tensor, Tensor, float]:
        a, b = (torch.from_numpy(np.array(values)).to(self._dtype) for values in (part.a, part.b))
        return a, b, part.scale

    def place(self, slot: int, packed: CudaParts) -> None:
        """In the order of the device's work: steps that were launched before still see what was there."""
        first = 0
        for i, (part, width) in enumerate(zip(packed.parts, self.widths, strict=True)):
            rank = 0 if part is None else len(part[0])
            self.ranks[slot, i] = rank
            if part is not None:
                self.scales[slot, i] = part[2]
                self.a[slot, i, :rank].copy_(part[0])
                self.b[slot, first : first + width, :rank].copy_(part[1])
            first += width

    def empty(self) -> None:
        self.ranks.zero_()


class LowRankSums:
    """Launches. `early`: see common.wait_for_inputs."""

    def __init__(self, device: Any, early: dict[str, bool]) -> None:
        self._device, self._early = device, early
        self._h: dict[tuple[int, ...], Tensor] = {}

    def add(self, bank: CudaAdapterBank, x: Tensor, out: Tensor, adapters: RowAdapters, num_tiles: int) -> None:
        """`num_tiles`: at most so many."""
        if not num_tiles:
            return
        parts, tiles = len(bank.widths), (adapters.num_tiles, adapters.slots, adapters.starts, adapters.order)
        h = self._room(len(x), parts, bank.max_rank)
        sizes = x.shape[1], x.stride(0), parts, bank.max_rank
        low_rank_down_kernel[(num_tiles, parts, bank.max_rank // RANKS)](
            x, bank.a, bank.ranks, h, *tiles, *sizes, ADAPTER_TILE, RANKS, BLOCK_K, **self._early
        )
        first = 0
        for part, width in enumerate(bank.widths):
            low_rank_up_kernel[(num_tiles, triton.cdiv(width, COLUMNS))](
                h, bank.b, bank.scales, bank.ranks, out, *tiles, first, width, out.stride(0), part, parts, bank.max_rank,
                first, sum(bank.widths), ADAPTER_TILE, RANKS, COLUMNS, **self._early,
            )  # fmt: skip
            first += width

    def _room(self, *shape: int) -> Tensor:
        """One array for each shape: recorded graphs write there."""
        if shape not in self._h:
            self._h[shape] = torch.empty(shape, dtype=torch.float32, device=self._device)
        return self._h[shape]
