"""Low-rank matrices of adapters (LoRA, arXiv 2106.09685), and which rows of a step have which.

A bank holds the matrices of one linear layer for several adapters, each in a slot. Banks are static: an adapter is written into a slot
between two steps, so tapes and graphs are recorded once.

    rows of a step      0  1  2  3  4  5  6         adapter of each (slot, -1: none)     2 -1  0  2  2 -1  0
    tiles               slot 0: rows 2, 6    slot 2: rows 0, 3, 4                        at most ADAPTER_TILE rows of one slot
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from sglang.srt.model.kernels.kv_runs import release_pages

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int32]
Half = npt.NDArray[np.float16]

ADAPTER_TILE = 16


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to one matrix: scale * b @ (a @ x). a: [rank, in_features], b: [out_features, rank], both float32."""

    a: Float
    b: Float
    scale: float

    @property
    def rank(self) -> int:
        return len(self.a)


class AdapterBank(Protocol):
    """The matrices of one linear layer, whose output is `widths` columns of several matrices side by side, in `num_slots` slots of at
    most `max_rank`. Opaque but for its shape."""

    num_slots: int
    max_rank: int
    in_features: int
    widths: tuple[int, ...]
    num_bytes: int

    def empty(self) -> None:
        """Every slot adds nothing until something is placed there. Gives memory back where that can be. No op that reads the bank may be
        under way."""
        ...


@dataclass(frozen=True)
class RowAdapters:
    """Static int32 arrays that group the rows of a step: rows order[starts[t] : starts[t + 1]] have the adapter in slots[t], for t <
    num_tiles[0]. No row is in two tiles; rows without an adapter are in none."""

    num_tiles: Any  # [1]
    slots: Any  # [max_tiles]
    starts: Any  # [max_tiles + 1]
    order: Any  # [max_rows]


def row_adapter_sizes(max_rows: int, num_slots: int) -> dict[str, int]:
    """Sizes of the arrays of RowAdapters, by name."""
    max_tiles = -(-max_rows // ADAPTER_TILE) + num_slots
    return {"num_tiles": 1, "slots": max_tiles, "starts": max_tiles + 1, "order": max_rows}


def group_rows(row_adapter: Int, out: Mapping[str, Int]) -> int:
    """Writes the arrays of RowAdapters for rows whose slots are `row_adapter` (-1: none). Returns the number of tiles."""
    order = np.argsort(row_adapter, kind="stable")
    order = order[np.searchsorted(row_adapter[order], 0) :]
    slots, counts = np.unique(row_adapter[order], return_counts=True)
    tile, begin = 0, 0
    for slot, count in zip(slots.tolist(), counts.tolist(), strict=True):
        for start in range(begin, begin + count, ADAPTER_TILE):
            out["slots"][tile], out["starts"][tile] = slot, start
            tile += 1
        begin += count
    out["starts"][tile] = begin
    out["num_tiles"][0] = tile
    out["order"][:begin] = order
    return tile


class ReferenceAdapterBank:
    """Float32, as it is written in books."""

    def __init__(self, num_slots: int, max_rank: int, in_features: int, widths: Sequence[int]) -> None:
        self.num_slots, self.max_rank, self.in_features, self.widths = num_slots, max_rank, in_features, tuple(widths)
        self.num_bytes = 0
        self._slots: list[list[LowRank | None]] = []
        self.empty()

    def empty(self) -> None:
        self._slots = [[None] * len(self.widths) for _ in range(self.num_slots)]

    def pack(self, parts: Sequence[LowRank | None]) -> Sequence[LowRank | None]:
        """What `place` takes, of the parts of one adapter in the order of `widths`."""
        return list(parts)

    def place(self, slot: int, packed: Sequence[LowRank | None]) -> None:
        self._slots[slot] = list(packed)

    def add(self, x: Float, out: Float, adapters: RowAdapters) -> None:
        """Row by row: the order of sums is then batch-invariant."""
        for t in range(int(adapters.num_tiles[0])):
            parts = self._slots[int(adapters.slots[t])]
            for row in adapters.order[int(adapters.starts[t]) : int(adapters.starts[t + 1])].tolist():
                first = 0
                for part, width in zip(parts, self.widths, strict=True):
                    if part is not None:
                        out[row, first : first + width] += np.float32(part.scale) * (part.b @ (part.a @ x[row]))
                    first += width


class Blocks:
    """Float16 arrays cut from large blocks: of these the system makes huge pages, so that a step that reads all layers' banks does not
    wait for translations of addresses. They share pages, so these go back to the system once no bank holds anything."""

    SIZE = 16 << 20
    """values"""

    def __init__(self) -> None:
        self._block = np.zeros(0, np.float16)
        self._blocks: list[Half] = []
        self._used: WeakSet[object] = WeakSet()  # banks that hold something

    def take(self, *shape: int) -> Half:
        """Zeros."""
        size = int(np.prod(shape))
        if size > len(self._block):
            self._block = np.zeros(max(size, self.SIZE), np.float16)
            self._blocks.append(self._block)
        taken, self._block = self._block[:size], self._block[-(-size // 32) * 32 :]
        return taken.reshape(shape)

    def note_used(self, bank: object) -> None:
        """It is about to write into its arrays."""
        self._used.add(bank)

    def note_empty(self, bank: object) -> None:
        """It needs nothing of what its arrays hold. All are zeros again after the last one."""
        if bank in self._used:
            self._used.remove(bank)
            for block in () if self._used else self._blocks:
                _clear_pages(block)


def _clear_pages(block: Half) -> None:
    """Fills memory of this process alone with zeros. Linux does that with pages that it is given back, once they are read again."""
    whole = block.view(np.uint8)
    begin, end = release_pages(whole)
    whole[:begin] = 0
    whole[end:] = 0


class PackedAdapterBank:
    """The same in float16, as the C++ kernels read it (csrc/args.h). Matrices are divided by a power of two where their values would
    leave the range in which float16 is exact to 11 bits, and the scale has it."""

    def __init__(self, num_slots: int, max_rank: int, in_features: int, widths: Sequence[int], blocks: Blocks) -> None:
        self.num_slots, self.max_rank, self.in_features, self.widths = num_slots, max_rank, in_features, tuple(widths)
        self._blocks = blocks
        groups, parts = -(-max_rank // 16), len(self.widths)
        self._panels = [-(-width // 16) for width in self.widths]
        self.a = blocks.take(num_slots, parts, groups, -(-in_features // 32) * 32, 16)
        self.b = blocks.take(num_slots, groups * sum(self._panels), 16, 16)
        self.scales = np.zeros((num_slots, parts), np.float32)
        self.ranks = np.zeros((num_slots, parts), np.int32)
        self.columns = np.array(self.widths, np.int32)
        self.a_bits, self.b_bits = self.a.view(np.uint16).ravel(), self.b.view(np.uint16).ravel()
        self.num_bytes = self.a.nbytes + self.b.nbytes

    def pack(self, parts: Sequence[LowRank | None]) -> list[PackedPart | None]:
        """What `place` takes, of the parts of one adapter in the order of `widths`."""
        return [
            None if part is None else _packed(part, self.a.shape[3], panels)
            for part, panels in zip(parts, self._panels, strict=True)
        ]

    def place(self, slot: int, packed: Sequence[PackedPart | None]) -> None:
        """Copies. No op that reads the slot may be under way."""
        self._blocks.note_used(self)
        at = 0
        for i, (part, panels) in enumerate(zip(packed, self._panels, strict=True)):
            self.ranks[slot, i] = 0 if part is None else part.rank
            if part is not None:
                self.scales[slot, i] = part.scale
                self.a[slot, i, : len(part.a)] = part.a
                self.b[slot, at : at + len(part.b)] = part.b
            at += self.a.shape[2] * panels

    def empty(self) -> None:
        self.ranks[:] = 0
        self._blocks.note_empty(self)


@dataclass(frozen=True)
class PackedPart:
    """A LowRank in the layout of a PackedAdapterBank."""

    rank: int
    scale: float
    a: Half  # [groups of 16 ranks, in_features, 16]
    b: Half  # [groups of 16 ranks * panels of 16 columns, 16 ranks, 16 columns]


def _packed(part: LowRank, in_features: int, panels: int) -> PackedPart:
    used = -(-part.rank // 16)
    (a, a_exponent), (b, b_exponent) = _normalized(part.a), _normalized(part.b)
    columns = _panels(b.T, 16 * used, panels).reshape(used, 16, panels, 16).transpose(0, 2, 1, 3)
    return PackedPart(
        part.rank,
        float(np.ldexp(part.scale, a_exponent + b_exponent)),
        np.ascontiguousarray(_panels(a.T, in_features, used).transpose(1, 0, 2)),
        np.ascontiguousarray(columns.reshape(used * panels, 16, 16)),
    )


def _normalized(values: Float) -> tuple[Float, int]:
    """The values by a power of two with the largest between 1/2 and 1, and its exponent."""
    _, exponent = np.frexp(np.abs(values).max(initial=0.0))
    return np.ldexp(values, -int(exponent)), int(exponent)


def _panels(values: Float, rows: int, panels: int) -> Half:
    """[rows, panels, 16], padded with zeros."""
    padded = np.zeros((rows, 16 * panels), np.float16)
    padded[: values.shape[0], : values.shape[1]] = values
    return padded.reshape(rows, panels, 16)
