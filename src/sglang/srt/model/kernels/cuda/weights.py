"""Matrices on a GPU: dense in the model's type, int4 and int8 levels with a scale and a minimum for each group (the layout is in
triton/linear.py), float8 with a scale for each row. Activations, and the KV pool of a layer.

    f32 f16 bf16                     dense
    q4_0 q4_1 q4_k                   4 bits, groups of 32
    q5_0 q5_1 q5_k q8_0              8 bits, groups of 32
    q6_k                             8 bits, groups of 16
    f8                               float8 where the GPU multiplies it, else dense

Scales and minima are float16, to which those of q4_k, q5_k and q6_k, being products, are rounded; float32 for float32 models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sglang.srt.errors import ModelError
from sglang.srt.model.quant.formats import FORMATS, HostTensor

Tensor = Any  # torch.Tensor
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Levels = tuple[npt.NDArray[Any], Floats, Floats | None]
"""levels [rows, k] (uint8 of 4 bits, or int8), scales [rows, groups], minima [rows, groups] or None"""

FORM: dict[str, tuple[str, int, bool]] = {  # format: (form, group, has minima)
    "f32": ("dense", 0, False),
    "f16": ("dense", 0, False),
    "bf16": ("dense", 0, False),
    "f8": ("f8", 0, False),
    "q4_0": ("int4", 32, True),
    "q4_1": ("int4", 32, True),
    "q4_k": ("int4", 32, True),
    "q5_0": ("int8", 32, False),
    "q5_1": ("int8", 32, True),
    "q5_k": ("int8", 32, True),
    "q8_0": ("int8", 32, False),
    "q6_k": ("int8", 16, False),
}


def packed_bits(format_name: str, dtype: Any) -> float:
    """See Ops.packed_bits."""
    form = FORM[format_name][0] if format_name in FORM else "int8"
    return {"int4": 5.0, "int8": 8.5, "f8": 8.0, "dense": float(8 * torch.empty((), dtype=dtype).element_size())}[form]


class CudaWeight:
    """`data`: dense [n, k]; int4 uint8 [n, k / 2]; int8 [n, k]; f8 [n, k]. `scales`: [n, k / group], f8: [n]. `order`: int32 [k],
    which column of the matrix each of int4 and int8 is; None: they are in order."""

    def __init__(
        self,
        form: str,
        shape: tuple[int, int],
        data: Tensor,
        scales: Tensor = None,
        minima: Tensor = None,
        group: int = 0,
        order: Tensor = None,
    ) -> None:
        self.form, self.group = form, group
        self.out_features, self.in_features = shape
        self.data, self.scales, self.minima, self.order = data, scales, minima, order
        self.num_bytes = sum(t.numel() * t.element_size() for t in (data, scales, minima) if t is not None)

    @property
    def bits(self) -> int:
        return 4 if self.form == "int4" else 8


class CudaActivation:
    """Rows in the model's type."""

    def __init__(self, max_rows: int, width: int, dtype: Any, device: Any) -> None:
        self.width = width
        self.data = torch.zeros((max_rows, width), dtype=dtype, device=device)


class CudaKV:
    """One layer's K and V, [num_kv_heads, num_slots, head_dim]: a run of slots of one head is one piece of memory. `pool`: of all
    layers, [num_layers, 2, num_kv_heads, num_slots, head_dim]."""

    def __init__(self, pool: Any, layer: int) -> None:
        self.pool = pool
        self.num_kv_heads, self.head_dim = pool.shape[2], pool.shape[4]
        self.k, self.v = pool[layer]


def kv_layers(shape: tuple[int, ...], dtype: Any, device: Any) -> list[CudaKV]:
    """The pool of so many layers, together: a run of slots of all of them is one copy."""
    pool = torch.zeros(shape, dtype=dtype, device=device)
    return [CudaKV(pool, i) for i in range(shape[0])]


def form_of(part: HostTensor, float8: bool) -> tuple[str, int, bool]:
    """Raises ModelError for what cannot be packed. `float8`: whether the device multiplies it."""
    if len(part.shape) != 2 or part.format not in FORM:
        raise ModelError(f"{describe(part)} cannot be packed: a matrix of a known format is needed")
    form = FORM[part.format]
    if form[0] in ("int4", "int8") and part.shape[1] % 32:
        raise ModelError(f"{describe(part)}: the width of a quantized matrix must be a multiple of 32")
    if form[0] == "f8" and not (float8 and part.shape[0] % 16 == 0 and part.shape[1] % 16 == 0):
        return "dense", 0, False
    return form


def kind_of(part: HostTensor, float8: bool) -> tuple[Any, ...]:
    """Properties that all parts of one weight share: form, width, order of columns."""
    return form_of(part, float8), part.shape[1], None if part.order is None else part.order.tobytes()


def pack(parts: Sequence[HostTensor], dtype: Any, device: Any, float8: bool) -> CudaWeight:
    """The matrices one under the other. Raises ModelError if they have no form in common."""
    kinds = {kind_of(part, float8) for part in parts}
    if len(kinds) != 1:
        raise ModelError(f"these matrices cannot be packed as one: {', '.join(map(describe, parts))}")
    (form, _, _), width, _ = kinds.pop()
    rows = sum(part.shape[0] for part in parts)
    if rows == 0 or width == 0:
        raise ModelError(f"{describe(parts[0])} is empty")
    if form == "dense":
        return CudaWeight("dense", (rows, width), torch.cat([dense_tensor(part, dtype, device) for part in parts]))
    if form == "f8":
        data = torch.cat([torch.from_numpy(np.ascontiguousarray(p.data)).to(device) for p in parts])
        scales = torch.cat([_row_scales(part, device) for part in parts])
        return CudaWeight("f8", (rows, width), data.view(torch.float8_e4m3fn), scales)
    scale_type = torch.float32 if dtype == torch.float32 else torch.float16
    return _pack_levels(parts, (rows, width), FORM[parts[0].format], scale_type, device)


def _row_scales(part: HostTensor, device: Any) -> Tensor:
    scale = getattr(part, "scale", None)
    values = np.ones(part.shape[0], np.float32) if scale is None else np.asarray(scale, np.float32).reshape(-1)
    return torch.from_numpy(np.ascontiguousarray(np.broadcast_to(values, (part.shape[0],)))).to(device)


def _pack_levels(
    parts: Sequence[HostTensor], shape: tuple[int, int], kind: tuple[str, int, bool], scale_type: Any, device: Any
) -> CudaWeight:
    form, group, has_min = kind
    found = [levels_of(part) for part in parts]
    stacked: list[npt.NDArray[Any]] = [_nibbles_together(levels) if form == "int4" else levels for levels, _, _ in found]
    data = torch.cat([torch.from_numpy(np.ascontiguousarray(levels)).to(device) for levels in stacked])
    scales = torch.cat([_scales(scale, scale_type, device) for _, scale, _ in found])
    minima = torch.cat([_scales(least, scale_type, device) for _, _, least in found if least is not None]) if has_min else None
    order = parts[0].order
    columns = None if order is None else torch.from_numpy(order).to(device)
    return CudaWeight(form, shape, data, scales, minima, group, columns)


def _scales(values: Floats, dtype: Any, device: Any) -> Tensor:
    if dtype == torch.float16:
        values = np.clip(values, -65504, 65504)
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype).to(device)


def _nibbles_together(levels: Bytes) -> Bytes:
    """[n, k] levels of 4 bits to [n, k / 2] bytes: of each 32, the first 16 in the low halves."""
    n, k = levels.shape
    blocks = levels.reshape(n, k // 32, 2, 16)
    low: Bytes = blocks[:, :, 0]
    high: Bytes = np.left_shift(blocks[:, :, 1], 4)
    return np.bitwise_or(low, high).reshape(n, k // 2)


def dense_tensor(part: HostTensor, dtype: Any, device: Any) -> Tensor:
    """The matrix in `dtype`; 16-bit data of the same type is moved as it is."""
    if part.format in ("bf16", "f16"):
        bits = np.ascontiguousarray(part.data).view(np.int16).reshape(part.shape)
        if not bits.flags.writeable or device.type == "cpu":  # a mapped file; on the CPU, memory that others may change
            bits = bits.copy()
        return torch.from_numpy(bits).to(device).view(torch.bfloat16 if part.format == "bf16" else torch.float16).to(dtype)
    return torch.from_numpy(np.array(part.dequantize(), np.float32)).to(device=device, dtype=dtype)


def describe(tensor: HostTensor) -> str:
    return f"{tensor.name} ({tensor.format} {list(tensor.shape)})"


# --- levels, scales and minima of the block formats (quant/blocks.py says what the bytes mean) ----------------------------------


def levels_of(part: HostTensor) -> Levels:
    """value = scale * level + minimum, for any format of blocks."""
    layout = FORMATS[part.format]
    rows, width = part.shape
    blocks = np.ascontiguousarray(part.data).reshape(-1, layout.block_bytes)
    levels, scale, least = _SPLIT[part.format](blocks)
    flat = (rows, -1)
    return levels.reshape(rows, width), scale.reshape(flat), None if least is None else least.reshape(flat)


def _half(blocks: Bytes, at: int) -> Floats:
    column: Floats = np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)
    return column


def _four(packed: Bytes) -> Bytes:
    """[n, 16] bytes to [n, 32] levels."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _five(blocks: Bytes, bits_at: int) -> npt.NDArray[np.int8]:
    fifth = np.unpackbits(blocks[:, bits_at : bits_at + 4], axis=1, bitorder="little")
    return (_four(blocks[:, bits_at + 4 :]) | (fifth << 4)).astype(np.int8)


def _split_q4_0(blocks: Bytes) -> Levels:
    scale = _half(blocks, 0)
    return _four(blocks[:, 2:]), scale, scale * np.float32(-8)


def _split_q4_1(blocks: Bytes) -> Levels:
    return _four(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2)


def _split_q5_0(blocks: Bytes) -> Levels:
    return _five(blocks, 2) - np.int8(16), _half(blocks, 0), None


def _split_q5_1(blocks: Bytes) -> Levels:
    return _five(blocks, 4), _half(blocks, 0), _half(blocks, 2)


def _split_q8_0(blocks: Bytes) -> Levels:
    return np.ascontiguousarray(blocks[:, 2:]).view(np.int8), _half(blocks, 0), None


def _six_bits(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scales and minima of the 8 groups of a q4_k or q5_k block, [n, 8] each."""
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([a & 63, (c & 15) | (a >> 6 << 4)], axis=1).astype(np.float32)
    minima = np.concatenate([b & 63, (c >> 4) | (b >> 6 << 4)], axis=1).astype(np.float32)
    return _half(blocks, 0) * scales, -_half(blocks, 2) * minima


def _split_q4_k(blocks: Bytes) -> Levels:
    quads = blocks[:, 16:].reshape(-1, 4, 1, 32)
    levels = np.concatenate([quads & 15, quads >> 4], axis=2)
    return levels.reshape(len(blocks), 256), *_six_bits(blocks)


def _split_q5_k(blocks: Bytes) -> Levels:
    quads = blocks[:, 48:].reshape(-1, 4, 1, 32)
    low = np.concatenate([quads & 15, quads >> 4], axis=2).reshape(-1, 8, 32)
    fifth = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    return (low | (fifth << 4)).astype(np.int8).reshape(len(blocks), 256), *_six_bits(blocks)


def _split_q6_k(blocks: Bytes) -> Levels:
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 15
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    levels = (low.reshape(-1, 256) | (high.reshape(-1, 256) << 4)).astype(np.int16) - 32
    return levels.astype(np.int8), _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32), None


_SPLIT: dict[str, Callable[[Bytes], Levels]] = {
    "q4_0": _split_q4_0,
    "q4_1": _split_q4_1,
    "q5_0": _split_q5_0,
    "q5_1": _split_q5_1,
    "q8_0": _split_q8_0,
    "q4_k": _split_q4_k,
    "q5_k": _split_q5_k,
    "q6_k": _split_q6_k,
}
