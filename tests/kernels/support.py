"""Helpers of the kernel tests: tensors of every format, exact models of the roundings, comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.model.kernels.ops import AttentionMeta
from sglang.srt.model.quant.formats import FORMATS, HostTensor, dense

Float = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]

SCALE_AT = {"iq4_nl": 0, "iq4_xs": 0, "iq3_s": 0, "iq3_xxs": 0, "q3_k": 108, "iq2_s": 0, "iq2_xs": 0, "iq2_xxs": 0, "iq1_s": 0}
SCALE_AT |= {"q2_k": 80, "tq1_0": 52, "tq2_0": 64}
"""Where the half precision numbers of the smallest blocks are."""
SMALL_FORMATS = (*SCALE_AT, "iq1_m")
INT_FORMATS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k", "mxfp4", *SMALL_FORMATS)
FLOAT_FORMATS = ("f32", "f16", "bf16")
ROUNDED_SCALES = ("q4_k", "iq4_xs", "iq3_s", "iq3_xxs")
EXACT_FORMATS = (
    "q4_0",
    "q4_1",
    "q5_0",
    "q8_0",
    "mxfp4",
    "f32",
    "f16",
    "bf16",
    *(f for f in SMALL_FORMATS if f not in ROUNDED_SCALES),
)
"""Formats whose packed form holds the same values."""
F16_SCALES = {"q4_0": 1, "q4_1": 2, "q5_0": 1, "q5_1": 2, "q8_0": 1, "q4_k": 2, "q5_k": 2}
"""How many half precision numbers a block starts with."""


def tensor(rng: np.random.Generator, fmt: str, n: int, k: int) -> HostTensor:
    """A random matrix [n, k] in a format: any bits, with scales that are numbers."""
    block = FORMATS[fmt]
    if block.block_len == 1:
        return dense("w", rng.standard_normal((n, k), np.float32), fmt)
    data = rng.integers(0, 256, (n, k // block.block_len, block.block_bytes), np.uint8)
    scales = (rng.standard_normal((*data.shape[:2], 2)) * 0.05).astype(np.float16).view(np.uint8)
    if fmt == "q6_k":
        data[..., 208:210] = scales[..., :2]
    elif fmt == "iq1_m":
        bits = scales[..., :2].copy().view(np.uint16)
        words = data[..., 48:56].view(np.uint16)
        words[:] = (words & 0xFFF) | (bits >> np.array([0, 4, 8, 12], np.uint16) & 15) << 12
    elif fmt in SCALE_AT:
        width = 4 if fmt == "q2_k" else 2
        data[..., SCALE_AT[fmt] : SCALE_AT[fmt] + width] = scales[..., :width]
    elif fmt == "mxfp4":
        data[..., 0] = rng.integers(116, 127, data.shape[:2])
    else:
        data[..., : 2 * F16_SCALES[fmt]] = scales[..., : 2 * F16_SCALES[fmt]]
    return HostTensor("w", fmt, (n, k), data.reshape(n, -1))


def quantized(x: Float) -> Double:
    """What int8 activations hold: groups of 32 rounded to multiples of a 127th of their largest."""
    groups = x.reshape(*x.shape[:-1], -1, 32)
    top = np.abs(groups).max(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        inverse = np.where(top > 1e-30, np.float32(127) / top, np.float32(0))
    whole = np.rint(groups * inverse)
    return (whole.astype(np.float64) * (top * np.float32(1 / 127)).astype(np.float64)).reshape(x.shape)


def ints(*values: Any) -> npt.NDArray[np.int32]:
    return np.array(values, np.int32).reshape(-1)


def close(got: npt.NDArray[Any], want: npt.NDArray[Any], tolerance: float) -> None:
    """The largest difference is at most `tolerance` of the largest value."""
    scale = max(float(np.abs(want).max()), 1e-30)
    worst = float(np.abs(got.astype(np.float64) - want).max())
    assert worst <= tolerance * scale, f"differs by {worst / scale:.2e} of the largest value"


def same_bits(a: Float, b: Float) -> None:
    assert a.shape == b.shape
    different = np.flatnonzero(a.view(np.int32) != b.view(np.int32))
    assert not len(different), f"{len(different)} of {a.size} values differ in their bits, first at {different[0]}"


def read_back(ops: Any, activation: Any, rows: int) -> Float:
    """The rows of an activation, by multiplying with the identity (of a kind that reads it as it is)."""
    width = activation.width
    eye = np.eye(width, dtype=np.float32)
    for fmt in ("f32", "q8_0"):
        weight = ops.pack([dense("eye", eye) if fmt == "f32" else _eye_q8(width)])
        out = np.zeros((rows, width), np.float32)
        try:
            ops.linear(weight, activation, out, ints(rows))
        except ValueError:
            continue
        return out
    raise AssertionError("an activation of neither kind")


def _eye_q8(width: int) -> HostTensor:
    data = np.zeros((width, width // 32, 34), np.uint8)
    data[:, :, :2] = np.array([1], np.float16).view(np.uint8)
    for i in range(width):
        data[i, i // 32, 2 + i % 32] = 1
    return HostTensor("eye", "q8_0", (width, width), data.reshape(width, -1))


def meta_of(table: npt.NDArray[np.int32], requests: Sequence[tuple[int, int, int]], max_reqs: int = 0) -> AttentionMeta:
    """requests: (row of the table, new tokens, length after them)."""
    n = max(len(requests), max_reqs, 1)
    arrays = [np.zeros(n, np.int32) for _ in range(4)]
    row = 0
    for i, (idx, new, length) in enumerate(requests):
        for array, value in zip(arrays, (idx, row, new, length), strict=True):
            array[i] = value
        row += new
    return AttentionMeta(ints(len(requests)), *arrays, table)
