"""Packs weights for the native kernels, or takes them from where an earlier start has kept them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from sglang_anywhere_kernels import _cpu

from sglang.srt.errors import ModelError
from sglang.srt.model.kernels.ops import Bank, Weight
from sglang.srt.model.quant.formats import HostTensor
from sglang.srt.model.quant.small_blocks import CONVERTED, kernel_blocks

MX4, IQ4, IQ3S, IQ3X, Q3, IQ2, IQ1, Q2, INT4, INT8, BF16, F16, F32 = range(13)  # Kind in csrc/args.h
INTS = set(range(INT8 + 1))
_FORMATS: dict[str, tuple[int, int]] = {  # checkpoint format: (Source in csrc/args.h, what it packs to)
    "f32": (0, F32),
    "f16": (1, F16),
    "bf16": (2, BF16),
    "q4_0": (3, INT4),
    "q4_1": (4, INT4),
    "q5_0": (5, INT8),
    "q5_1": (6, INT8),
    "q8_0": (7, INT8),
    "q4_k": (8, INT4),
    "q5_k": (9, INT8),
    "q6_k": (10, INT8),
    "mxfp4": (11, MX4),
    "iq4_nl": (12, IQ4),
    "iq4_xs": (12, IQ4),
    "iq3_s": (12, IQ3S),
    "iq3_xxs": (12, IQ3X),
    "q3_k": (13, Q3),
    "iq2_s": (13, IQ2),
    "iq2_xs": (13, IQ2),
    "iq2_xxs": (13, IQ2),
    "iq1_m": (13, IQ1),
    "iq1_s": (13, IQ1),
    "q2_k": (14, Q2),
    "tq2_0": (14, Q2),
    "tq1_0": (14, Q2),
}
SMALL = tuple(name for name, (source, _) in _FORMATS.items() if source >= 11)
"""formats of 4 bits and less that are kept as small as they are"""
_PACKED_BITS = {F32: 32.0, F16: 16.0, BF16: 16.0, INT4: 5.0, INT8: 8.5}
_PACKED_BITS |= dict.fromkeys((MX4, IQ4, IQ3S, IQ3X), 4.5) | dict.fromkeys((Q3, IQ2, IQ1), 3.5625) | {Q2: 2.625}
"""of a value, with its share of the scales"""


class KeptWeights(Protocol):
    """Packed weights of an earlier start (weights/repacked)."""

    def take(self, what: str, make: Callable[[Any, int, int], Any]) -> Any:
        """The weight that `make` makes of a file's part: (file, start, num_bytes). None if there is none."""
        ...

    def add(self, what: str, weight: Any) -> None:
        """A weight that was packed."""
        ...


class Packing:
    """Makes weights of one runtime. `kept`: set while a model is loaded, if its weights are kept."""

    def __init__(self, runtime: Any) -> None:
        self.kept: KeptWeights | None = None
        self._runtime = runtime

    def pack(self, parts: Sequence[HostTensor]) -> Weight:
        if not parts or not can_stack(parts):
            raise ModelError(f"these matrices cannot be packed as one: {', '.join(_describe(part) for part in parts)}")
        places = [sum(part.shape[0] for part in parts[:i]) for i in range(len(parts))]
        return self._weight(parts, places, 0)

    def pack_gated(self, gate: HostTensor, up: HostTensor) -> Weight:
        if gate.shape != up.shape or not can_stack([gate, up]):
            raise ModelError(f"these matrices cannot be interleaved: {_describe(gate)}, {_describe(up)}")
        return self._weight([gate, up], [0, 32], gate.shape[0])  # up panels follow gate panels by twos

    def _weight(self, parts: Sequence[HostTensor], places: Sequence[int], gated_features: int) -> Weight:
        """`places`: the first row of each part."""
        rows = sum(part.shape[0] for part in parts)
        shape = _packable_kind(parts[0], rows), rows, parts[0].shape[1], gated_features
        what = describe("gated" if gated_features else "pack", parts)
        found: Weight | None = self._take(what, lambda file, at, size: _cpu.Weight.stored(file, at, size, *shape))
        if found is not None:
            return found
        weight: Weight = _cpu.Weight(self._runtime, *shape)
        for part, first_row in zip(parts, places, strict=True):
            if part.shape[0]:
                self._runtime.pack(weight, _source(part), _FORMATS[part.format][0], part.shape[0], first_row)
        self._add(what, weight)
        return weight

    def pack_experts(self, num_experts: int, read: Callable[[int], Sequence[HostTensor]], *, gated: bool) -> Bank:
        parts = read(0)
        first = parts[0]
        rows, gated_features = (2 * first.shape[0], first.shape[0]) if gated else (first.shape[0], 0)
        kind = _packable_kind(first, rows)
        shape = kind, num_experts, rows, first.shape[1], gated_features
        what = describe("experts", parts, num_experts)
        found: Bank | None = self._take(what, lambda file, at, size: _cpu.Bank.stored(file, at, size, *shape))
        if found is not None:
            return found
        bank: Bank = _cpu.Bank(self._runtime, *shape)
        for e in range(num_experts):
            for i, part in enumerate(read(e) if e else parts):
                if part.shape != first.shape or _kind(part) != kind:
                    raise ModelError(f"{_describe(part)} cannot be packed beside {_describe(first)}: experts have one form")
                self._runtime.pack_expert(bank, e, _source(part), _FORMATS[part.format][0], part.shape[0], 32 * i)
        self._add(what, bank)
        return bank

    def _take(self, what: str, make: Callable[[Any, int, int], Any]) -> Any:
        return None if self.kept is None else self.kept.take(what, make)

    def _add(self, what: str, weight: Any) -> None:
        if self.kept is not None:
            self.kept.add(what, weight)


def _source(part: HostTensor) -> Any:
    """Rows as the kernels pack them."""
    return np.ascontiguousarray(kernel_blocks(part.format, part.data) if part.format in CONVERTED else part.data)


def describe(how: str, parts: Sequence[HostTensor], count: int = 1) -> str:
    """What is packed: names, formats and shapes; `count` experts of such parts."""
    shapes = (f"{part.name} {part.format} {'x'.join(map(str, part.shape))}" for part in parts)
    return f"{how} {count}: {', '.join(shapes)}"


def can_stack(parts: Sequence[HostTensor]) -> bool:
    """Whether the matrices can be packed as one."""
    return len({(_kind(part), part.shape[1]) for part in parts}) == 1


def packed_bits(format_name: str) -> float:
    """Bits of a packed value, by the format of its tensor."""
    return _PACKED_BITS[_FORMATS[format_name][1]] if format_name in _FORMATS else 8.0


def _kind(tensor: HostTensor) -> int:
    if len(tensor.shape) != 2 or tensor.format not in _FORMATS:
        raise ModelError(f"{_describe(tensor)} cannot be packed: a matrix of a known format is needed")
    return _FORMATS[tensor.format][1]


def _packable_kind(like: HostTensor, rows: int) -> int:
    """Of a weight of so many such rows."""
    kind = _kind(like)
    if kind in INTS and like.shape[1] % 32:
        raise ModelError(f"{_describe(like)}: the width of a quantized matrix must be a multiple of 32")
    if rows == 0 or like.shape[1] == 0:
        raise ModelError(f"{_describe(like)} is empty")
    return kind


def _describe(tensor: HostTensor) -> str:
    return f"{tensor.name} ({tensor.format} {list(tensor.shape)})"
