"""An op set that computes one rank's part: the base's ops, but for embeddings and for linear layers whose inputs are cut by
ranks. What those make is a part of a sum, and is added up over the ranks at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sglang.srt.model.distributed.sharding import SUMMED, Shard
from sglang.srt.model.kernels.low_rank import AdapterBank, RowAdapters
from sglang.srt.model.kernels.ops import Activation, Array, Bank, Ops, Routes, Weight
from sglang.srt.model.quant.formats import HostTensor

_NATIVE_RECORDING = ("begin_tape", "end_tape")
"""A native tape could not hold the sums; the tape keeps Python calls instead (op_tape.py)."""


def shard_ops(base: Ops, shard: Shard) -> Ops:
    return cast(Ops, ShardedOps(base, shard))


class ShardedOps:
    """The base's ops, save for those that are defined here."""

    def __init__(self, base: Ops, shard: Shard) -> None:
        self._base = base
        self._shard = shard
        self._ranks = shard.ranks
        self._summed: set[int] = set()
        self._weights: list[Weight] = []  # keeps what `_summed` names alive
        self._bounds: dict[int, int] = {}
        self._banks: dict[int, tuple[AdapterBank, Array]] = {}  # of layers whose sums are added up, and room for a part
        self.deterministic = base.deterministic and shard.ranks.deterministic
        self.runs_ahead = hasattr(base, "capture")  # on a CPU every sum over ranks waits for what is to be added

    def __getattr__(self, name: str) -> Any:
        if name in _NATIVE_RECORDING:
            raise AttributeError(name)
        return getattr(self._base, name)

    def pack(self, parts: Sequence[HostTensor]) -> Weight:
        weight = self._base.pack(parts)
        if parts[0].name.endswith(SUMMED):
            self._summed.add(id(weight))
            self._weights.append(weight)
        return weight

    def adapter_bank(
        self, num_slots: int, max_rank: int, in_features: int, widths: Sequence[int], *, name: str = ""
    ) -> AdapterBank:
        bank = self._base.adapter_bank(num_slots, max_rank, in_features, widths)
        if f"{name}.weight".endswith(SUMMED):
            self._banks[id(bank)] = bank, None
        return bank

    def bound(self, rows: Array, num_rows: int) -> None:
        self._bounds[id(rows)] = num_rows
        self._base.bound(rows, num_rows)

    def take_sampled(self, ids: Array, previous: Array, sampled: Array, rows: Array) -> None:
        """The ids are rows of this rank's embedding."""
        self._base.take_sampled(ids, previous, self._shard.local_ids(sampled), rows)

    def embedding(self, weight: Weight, ids: Array, out: Array, rows: Array, *, scale: float = 1.0) -> None:
        """All ranks but one look up their row of zeros."""
        self._base.embedding(weight, ids, out, rows, scale=scale)
        self._ranks.sum_rows(out[: self._bounds.get(id(rows), len(out))])

    def experts_linear(
        self, bank: Bank, x: Activation, out: Array, routes: Routes, rows: Array, *, bias: Array | None = None
    ) -> None:
        self._base.experts_linear(bank, x, out, routes, rows, bias=bias)
        self._ranks.sum_rows(out[: self._bounds.get(id(rows), len(out))])

    def linear(self, weight: Weight, x: Activation, out: Array, rows: Array, *, bias: Array | None = None) -> None:
        self._base.linear(weight, x, out, rows, bias=bias)
        if id(weight) in self._summed:
            self._ranks.sum_rows(out[: self._bounds.get(id(rows), len(out))])

    def low_rank(self, bank: AdapterBank, x: Activation, out: Array, adapters: RowAdapters) -> None:
        """Where columns of A are cut by ranks, what each makes is a part of a sum, too."""
        if id(bank) not in self._banks:
            self._base.low_rank(bank, x, out, adapters)
            return
        _, part = self._banks[id(bank)]
        if part is None or len(part) < len(out):
            part = self._base.empty((len(out), sum(bank.widths)), "hidden")
            self._banks[id(bank)] = bank, part
        n = self._bounds.get(id(adapters.order), len(out))
        part[:n] = 0
        self._base.low_rank(bank, x, part, adapters)
        self._ranks.sum_rows(part[:n])
        out[:n] += part[:n]
