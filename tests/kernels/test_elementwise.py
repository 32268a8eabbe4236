"""Norms, gates, soft caps: against float64, and in place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sglang.srt.model.quant.formats import dense

from .support import Float, close, ints, quantized, read_back, same_bits, tensor


def normed(x: Float, weight: Float, eps: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    y = x.astype(np.float64)
    return y / np.sqrt((y**2).mean(-1, keepdims=True) + eps) * weight


@pytest.mark.parametrize("width", [16, 33, 64, 576, 1000])
def test_rms_norm(ops: Any, width: int) -> None:
    rng = np.random.default_rng(width)
    x, delta = rng.standard_normal((2, 9, width), np.float32)
    weight = rng.standard_normal(width).astype(np.float32)
    kept, out = x.copy(), np.full((9, width), 7, np.float32)
    ops.rms_norm(x, weight, out, ints(6), eps=1e-5, delta=delta)
    same_bits(x[:6], kept[:6] + delta[:6])  # the sum stays in x
    same_bits(x[6:], kept[6:])
    close(out[:6], normed(kept[:6] + delta[:6], weight, 1e-5), 1e-6)
    assert (out[6:] == 7).all()


def test_rms_norm_into_its_own_delta(ops: Any) -> None:
    rng = np.random.default_rng(0)
    x, delta = rng.standard_normal((2, 5, 64), np.float32)
    weight, apart = np.ones(64, np.float32), np.zeros((5, 64), np.float32)
    ops.rms_norm(x.copy(), weight, apart, ints(5), eps=1e-6, delta=delta)
    ops.rms_norm(x, weight, delta, ints(5), eps=1e-6, delta=delta)
    same_bits(delta, apart)


def test_rms_norm_of_chosen_rows(ops: Any) -> None:
    """Rows may be asked for twice, in the same call or in the next: x is left as it is."""
    rng = np.random.default_rng(1)
    x, delta = rng.standard_normal((2, 10, 96), np.float32)
    weight, kept = rng.standard_normal(96).astype(np.float32), x.copy()
    idx = ints(9, 2, 2, 0, 5)
    out = np.zeros((5, 96), np.float32)
    for _ in range(2):
        ops.rms_norm(x, weight, out, ints(5), eps=1e-5, delta=delta, row_idx=idx)
        close(out, normed((kept + delta)[idx], weight, 1e-5), 1e-6)
    same_bits(x, kept)
    everything = np.zeros((10, 96), np.float32)
    ops.rms_norm(x, weight, everything, ints(10), eps=1e-5, delta=delta)
    same_bits(out, everything[idx])


@pytest.mark.parametrize("fmt", ["f32", "q8_0"])
def test_rms_norm_to_an_activation(ops: Any, more_threads: list[Any], fmt: str) -> None:
    rng = np.random.default_rng(2)
    x, weight = rng.standard_normal((40, 96), np.float32), rng.standard_normal(96).astype(np.float32)
    host = tensor(rng, fmt, 8, 96)

    def run(some: Any, rows: Float) -> Float:
        activation = some.activation(len(rows), [some.pack([host])])
        some.rms_norm(rows.copy(), weight, activation, ints(len(rows)), eps=1e-5)
        return read_back(some, activation, len(rows))

    out = run(ops, x)
    want = normed(x, weight, 1e-5)
    close(out, quantized(want.astype(np.float32)) if fmt == "q8_0" else want, 1e-6 if fmt == "f32" else 1e-2)
    same_bits(run(ops, x[11:12]), out[11:12])
    for other in more_threads:
        same_bits(run(other, x), out)


def gate_oracle(x: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    x = x.astype(np.float64)
    if kind == "silu":
        return x / (1 + np.exp(-x))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * np.vectorize(math.erfc)(-x / math.sqrt(2))


@pytest.mark.parametrize("kind", ["relu", "relu2"])
def test_rectified_activations(ops: Any, kind: str) -> None:
    x = np.random.default_rng(4).standard_normal((3, 50), np.float32)
    activation = ops.activation(3, [ops.pack([dense("w", np.zeros((1, 50), np.float32))])])
    ops.activate(x, activation, ints(3), fn=kind)
    positive = np.maximum(x, 0)
    close(read_back(ops, activation, 3), positive if kind == "relu" else positive.astype(np.float64) ** 2, 1e-6)


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu"])
def test_gates(ops: Any, kind: str) -> None:
    """Close everywhere, in small results relative to themselves."""
    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -80.0, 80.0, 1e-6, -1e-6]]).astype(np.float32)
    width = len(x)
    activation = ops.activation(1, [ops.pack([dense("w", np.zeros((1, width), np.float32))])])
    gate, up = x[None], np.full((1, width), 2, np.float32)
    ops.gate(gate, up, activation, ints(1), gate_fn=kind)
    out, want = np.zeros((1, width), np.float32), 2 * gate_oracle(x, kind)
    # Read the activation with one-hot columns of a few places only: the identity of this width would be large.
    for start in range(0, width, 512):
        columns = np.zeros((min(512, width - start), width), np.float32)
        columns[np.arange(len(columns)), start + np.arange(len(columns))] = 1
        ops.linear(ops.pack([dense("w", columns)]), activation, out[:, start : start + len(columns)], ints(1))
    error = np.abs(out[0] - want)
    assert (error <= 4e-6 * np.abs(want) + 1e-8).all(), float((error / (np.abs(want) + 1e-8)).max())


def test_gate_reads_column_ranges(ops: Any) -> None:
    rng = np.random.default_rng(3)
    both = rng.standard_normal((6, 100), np.float32)
    activation = ops.activation(6, [ops.pack([dense("w", np.zeros((1, 40), np.float32))])])
    ops.gate(both[:, 10:50], both[:, 60:], activation, ints(6), gate_fn="silu")
    close(read_back(ops, activation, 6), gate_oracle(both[:, 10:50], "silu") * both[:, 60:], 1e-6)


@pytest.mark.parametrize("width", [5, 64, 100])
def test_gate_into_columns(ops: Any, width: int) -> None:
    """What lies beside the columns and below the rows stays."""
    rng = np.random.default_rng(width)
    x, up = (rng.standard_normal((6, width), np.float32) for _ in range(2))
    wide = np.full((7, width + 3), 7, np.float32)
    ops.gate(x, up, wide[:, 1 : 1 + width], ints(6), gate_fn="gelu_tanh")
    close(wide[:6, 1 : 1 + width], gate_oracle(x, "gelu_tanh") * up, 1e-5)
    np.testing.assert_array_equal(wide[6], 7)
    np.testing.assert_array_equal(wide[:, [0, -1]], 7)


@pytest.mark.parametrize("width", [5, 64, 100])
def test_ops_on_residual_streams(ops: Any, width: int) -> None:
    """On column ranges, with rows that do not count, and a row of zeros."""
    rng = np.random.default_rng(width)
    x, like = (rng.standard_normal((4, width + 7), np.float32)[:, :width] for _ in range(2))
    x[1] = 0
    rows = {}
    for name, run in (
        ("scale", lambda a: ops.scale(a, ints(3), by=0.3)),
        ("match_rms", lambda a: ops.match_rms(a, like, ints(3))),
        ("sparsify", lambda a: ops.sparsify(a, ints(3), deviations=0.4)),
    ):
        wide = np.full((4, width + 3), 7, np.float32)
        wide[:, :width] = x
        run(wide[:, :width])
        np.testing.assert_array_equal(wide[3, :width], x[3])
        np.testing.assert_array_equal(wide[:, width:], 7)
        rows[name] = wide[:3, :width]
    x64, like64 = x[:3].astype(np.float64), like[:3].astype(np.float64)
    rms = np.sqrt(np.maximum((x64**2).mean(1), 1e-5))[:, None]
    np.testing.assert_allclose(rows["scale"], x64 * np.float32(0.3), rtol=1e-6)
    np.testing.assert_allclose(rows["match_rms"], x64 * np.sqrt((like64**2).mean(1))[:, None] / rms, rtol=1e-5, atol=1e-6)
    floor = x64.mean(1)[:, None] + 0.4 * x64.std(1)[:, None]
    np.testing.assert_allclose(rows["sparsify"], np.maximum(x64 - floor, 0), rtol=1e-5, atol=1e-5)


def test_soft_cap(ops: Any) -> None:
    x = np.concatenate([np.linspace(-200, 200, 5003), np.logspace(-6, 1, 200)]).astype(np.float32)[None].repeat(3, 0)
    kept = x.copy()
    ops.soft_cap(x, ints(2), cap=30.0)
    want = 30 * np.tanh(kept[:2].astype(np.float64) / 30)
    assert (np.abs(x[:2] - want) <= 1e-6 * np.abs(want) + 1e-9).all()
    same_bits(x[2], kept[2])
    x[0, 7] = np.nan
    ops.soft_cap(x, ints(1), cap=30.0)
    assert np.flatnonzero(np.isnan(x[0])).tolist() == [7]


def test_quantizing_extremes(ops: Any) -> None:
    """Zeros, tiny and huge groups come back as what they are, to an eighth bit."""
    rows = np.stack([np.zeros(64), np.full(64, 1e-35), np.full(64, 3e30), np.linspace(-1e-20, 1e-20, 64)]).astype(np.float32)
    activation = ops.activation(4, [ops.pack([tensor(np.random.default_rng(0), "q8_0", 1, 64)])])
    ops.store(rows, activation, ints(4))
    out = read_back(ops, activation, 4)
    assert (out[:2] == 0).all()
    close(out[2], rows[2], 1e-6)
    close(out[3], rows[3], 1 / 254)
