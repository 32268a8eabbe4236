"""Bidirectional attention inside segments against float64, and bitwise the same wherever a call begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .support import Double, Float, close, ints, same_bits

STARTS = ints(0, 3, 4, 530, 600)
ROWS, HEADS = 600, 3


def expected(qkv: Float, dim: int, scale: float, window: int, bias: Float | None) -> Double:
    out = np.zeros((ROWS, HEADS * dim))
    parts = qkv.astype(np.float64).reshape(ROWS, 3, HEADS, dim)
    for low, high in zip(STARTS[:-1], STARTS[1:], strict=True):
        at = np.arange(high - low)
        away = at[None] - at[:, None]
        for h in range(HEADS):
            q, k, v = (parts[low:high, i, h] for i in range(3))
            scores = scale * q @ k.T
            if bias is not None:
                reach = bias.shape[1] // 2
                scores = scores + bias[h].astype(np.float64)[np.clip(away, -reach, reach) + reach]
            if window:
                scores = np.where(abs(away) <= window, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[low:high, h * dim : (h + 1) * dim] = weights @ v / weights.sum(axis=1, keepdims=True)
    return out


@pytest.mark.parametrize(
    ("dim", "window", "reach"),
    [(64, 0, None), (20, 1, None), (32, 37, None), (48, 300, 7), (16, 5000, 128), (64, 0, 0), (8, 255, 200)],
)
def test_windows_and_biases(ops: Any, more_threads: list[Any], dim: int, window: int, reach: int | None) -> None:
    rng = np.random.default_rng([dim, window])
    qkv = rng.standard_normal((ROWS, 3 * HEADS * dim), np.float32)
    bias = None if reach is None else rng.standard_normal((HEADS, 2 * reach + 1), np.float32)

    def attend(one: Any, begin: int, end: int) -> Float:
        out = np.zeros((ROWS, HEADS * dim), np.float32)
        one.segment_attention(
            qkv, STARTS, out, begin=begin, end=end, num_heads=HEADS, head_dim=dim, scale=0.2, window=window, bias=bias
        )
        return out

    whole = attend(ops, 0, ROWS)
    close(whole, expected(qkv, dim, 0.2, window, bias), 2e-6)
    same_bits(attend(ops, 50, 333)[50:333], whole[50:333])
    for other in more_threads:
        same_bits(attend(other, 0, ROWS), whole)


def test_arguments_that_do_not_fit(ops: Any) -> None:
    x, out = np.zeros((8, 48), np.float32), np.zeros((8, 16), np.float32)
    common = {"begin": 0, "end": 8, "num_heads": 2, "head_dim": 8, "scale": 1.0}
    for bias in (np.zeros((1, 3), np.float32), np.zeros((2, 4), np.float32)):
        with pytest.raises(ValueError, match="bias"):
            ops.segment_attention(x, ints(0, 8), out, **common, bias=bias)
    with pytest.raises(ValueError, match="window"):
        ops.segment_attention(x, ints(0, 8), out, **common, window=-1)
