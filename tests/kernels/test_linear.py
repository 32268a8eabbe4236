"""Packed weights and linear layers: every format against float64, and batch-invariant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sglang.srt.errors import ModelError
from sglang.srt.model.quant.formats import HostTensor

from .support import (
    EXACT_FORMATS,
    FLOAT_FORMATS,
    INT_FORMATS,
    ROUNDED_SCALES,
    Double,
    Float,
    close,
    ints,
    quantized,
    read_back,
    same_bits,
    tensor,
)

ALL_FORMATS = INT_FORMATS + FLOAT_FORMATS
KIND_FORMATS = ("q4_1", "q8_0", "iq4_nl", "f32", "f16", "bf16")
"""One format for each kind of packed matrix."""


def multiply(ops: Any, weight: Any, x: Float, bias: Float | None = None, max_rows: int | None = None) -> Float:
    n = len(x)
    activation = ops.activation(max_rows or n, [weight])
    ops.store(x, activation, ints(n))
    out = np.zeros((n, weight.out_features), np.float32)
    ops.linear(weight, activation, out, ints(n), bias=bias)
    return out


def inputs(fmt: str, x: Float) -> Double:
    return quantized(x) if fmt in INT_FORMATS else x.astype(np.float64)


@pytest.mark.parametrize("fmt", ALL_FORMATS)
def test_packed_values(ops: Any, fmt: str) -> None:
    """embedding reads the packed matrix: the very values, or within the rounding that packing costs."""
    rng = np.random.default_rng(1)
    host = tensor(rng, fmt, 53, 512)
    weight = ops.pack([host])
    assert (weight.out_features, weight.in_features) == (53, 512)
    ids = rng.permutation(53).astype(np.int32)
    out = np.zeros((53, 512), np.float32)
    ops.embedding(weight, ids, out, ints(53))
    want = host.dequantize()[ids]
    if fmt in EXACT_FORMATS:
        np.testing.assert_array_equal(out, want)
    elif fmt in ROUNDED_SCALES:  # of q4_k: its scales of 6 bits times a half, rounded to a half
        groups, got = want.reshape(-1, 32), out.reshape(-1, 32)
        assert (np.abs(got - groups).max(1) <= 2**-9 * np.abs(groups).max(1) + 1e-4).all()
    else:  # eight bits for the largest of 32
        groups, got = want.reshape(-1, 32), out.reshape(-1, 32)
        assert (np.abs(got - groups).max(1) <= np.abs(groups).max(1) * (0.51 / 127) + 1e-6).all()


def test_embedding_scales_and_survives_bad_ids(ops: Any) -> None:
    weight = ops.pack([tensor(np.random.default_rng(2), "f32", 5, 20)])
    out = np.zeros((4, 20), np.float32)
    ops.embedding(weight, ints(-7, 0, 4, 99), out, ints(4), scale=2.0)
    same_bits(out[0], out[1])
    same_bits(out[2], out[3])
    plain = np.zeros((1, 20), np.float32)
    ops.embedding(weight, ints(4), plain, ints(1))
    same_bits(out[2], 2 * plain[0])


@pytest.mark.parametrize("fmt", ALL_FORMATS)
@pytest.mark.parametrize("rows", [1, 6, 7, 31])
def test_accuracy(ops: Any, fmt: str, rows: int) -> None:
    rng = np.random.default_rng(rows)
    weight = ops.pack([tensor(rng, fmt, 75, 768)])
    values = np.zeros((75, 768), np.float32)
    ops.embedding(weight, np.arange(75, dtype=np.int32), values, ints(75))
    x = rng.standard_normal((rows, 768), np.float32)
    x[:, 5] *= 30
    close(multiply(ops, weight, x), inputs(fmt, x) @ values.T.astype(np.float64), 3e-6)


@pytest.mark.parametrize("fmt", KIND_FORMATS)
@pytest.mark.parametrize(("n", "k"), [(1, 32), (16, 64), (17, 96), (33, 32), (160, 1056), (1040, 64)])
def test_shapes(ops: Any, fmt: str, n: int, k: int) -> None:
    """Any number of rows of the weight; nothing outside the output's columns and rows is touched."""
    rng = np.random.default_rng(n)
    host = tensor(rng, fmt, n, k)
    weight = ops.pack([host])
    x, bias = rng.standard_normal((9, k), np.float32), rng.standard_normal(n).astype(np.float32)
    wide = np.full((12, n + 9), 7, np.float32)
    activation = ops.activation(12, [weight])
    ops.store(x, activation, ints(9))
    ops.linear(weight, activation, wide[:, 4 : 4 + n], ints(9), bias=bias)
    close(wide[:9, 4 : 4 + n], inputs(fmt, x) @ host.dequantize().T.astype(np.float64) + bias, 3e-6)
    assert (wide[9:] == 7).all() and (wide[:, :4] == 7).all() and (wide[:, 4 + n :] == 7).all()


@pytest.mark.parametrize("k", [1, 7, 40, 131])
@pytest.mark.parametrize("fmt", FLOAT_FORMATS)
def test_float_widths(ops: Any, fmt: str, k: int) -> None:
    """Float formats take any depth."""
    rng = np.random.default_rng(k)
    host = tensor(rng, fmt, 19, k)
    x = rng.standard_normal((30, k), np.float32)
    close(multiply(ops, ops.pack([host]), x), x.astype(np.float64) @ host.dequantize().T.astype(np.float64), 3e-6)


@pytest.mark.parametrize(("fmt", "k"), [*((fmt, 704) for fmt in KIND_FORMATS), ("q3_k", 768), ("q2_k", 768)])
def test_rows_do_not_depend_on_the_batch(ops: Any, more_threads: list[Any], fmt: str, k: int) -> None:
    """Alone, at any place, in any batch, with more room, on any number of threads: the same bits."""
    rng = np.random.default_rng(3)
    host = tensor(rng, fmt, 200, k)  # more than one block of k
    x, bias = rng.standard_normal((390, k), np.float32), rng.standard_normal(200).astype(np.float32)
    weight = ops.pack([host])
    everything = multiply(ops, weight, x, bias)
    for start, end in ((0, 1), (5, 6), (3, 9), (0, 7), (11, 35), (2, 27), (100, 293), (389, 390)):
        same_bits(multiply(ops, weight, x[start:end], bias), everything[start:end])
    same_bits(multiply(ops, weight, x[:4], bias, max_rows=50), everything[:4])
    for other in more_threads:
        same_bits(multiply(other, other.pack([host]), x, bias), everything)


@pytest.mark.parametrize("gate", ["silu", "gelu_tanh", "gelu"])
@pytest.mark.parametrize("fmt", KIND_FORMATS)
def test_gated_linear_is_linear_then_gate(ops: Any, fmt: str, gate: str) -> None:
    rng = np.random.default_rng(4)
    features, k = 96, 128
    tensors = tensor(rng, fmt, features, k), tensor(rng, fmt, features, k)
    fused, plain = ops.pack_gated(*tensors), ops.pack(tensors)
    assert fused.out_features == plain.out_features == 2 * features
    for reader_format in ("q8_0", "f32"):
        reader = ops.pack([tensor(rng, reader_format, 40, features)])
        for rows in (1, 5, 8, 200):
            x = ops.activation(rows, [fused])
            ops.store(rng.standard_normal((rows, k), np.float32), x, ints(rows))
            results = []
            for way in range(2):
                hidden, out = ops.activation(rows, [reader]), np.zeros((rows, 40), np.float32)
                if way == 0:
                    ops.gated_linear(fused, x, hidden, ints(rows), gate=gate)
                else:
                    both = np.zeros((rows, 2 * features), np.float32)
                    ops.linear(plain, x, both, ints(rows))
                    ops.gate(both[:, :features], both[:, features:], hidden, ints(rows), gate_fn=gate)
                ops.linear(reader, hidden, out, ints(rows))
                results.append(out)
            same_bits(*results)


def test_gated_linear_of_odd_width(ops: Any) -> None:
    """Hidden features need not fill a group where the next layer is float."""
    rng = np.random.default_rng(5)
    gate, up = tensor(rng, "f32", 45, 33), tensor(rng, "f32", 45, 33)
    weight, reader = ops.pack_gated(gate, up), ops.pack([tensor(rng, "f32", 3, 45)])
    x = rng.standard_normal((7, 33), np.float32)
    activation, hidden = ops.activation(7, [weight]), ops.activation(7, [reader])
    ops.store(x, activation, ints(7))
    ops.gated_linear(weight, activation, hidden, ints(7), gate="silu")
    g, u = (x.astype(np.float64) @ t.dequantize().T for t in (gate, up))
    close(read_back(ops, hidden, 7), g / (1 + np.exp(-g)) * u, 3e-6)


@pytest.mark.parametrize("formats", [("q4_1", "q4_0", "q4_k"), ("q8_0", "q6_k", "q5_0"), ("f16", "f16"), ("f32", "f32")])
def test_stacking(ops: Any, formats: tuple[str, ...]) -> None:
    """A stack of matrices, their seams inside panels, gives what each gives alone."""
    rng = np.random.default_rng(6)
    parts = [tensor(rng, fmt, n, 256) for fmt, n in zip(formats, (21, 40, 5), strict=False)]
    assert ops.can_stack(parts)
    x = rng.standard_normal((3, 256), np.float32)
    same_bits(multiply(ops, ops.pack(parts), x), np.concatenate([multiply(ops, ops.pack([p]), x) for p in parts], axis=1))


def test_what_does_not_stack(ops: Any) -> None:
    rng = np.random.default_rng(7)
    one, other = tensor(rng, "q4_1", 16, 64), tensor(rng, "q8_0", 16, 64)
    assert not ops.can_stack([one, other])
    assert not ops.can_stack([one, tensor(rng, "q4_1", 16, 96)])
    with pytest.raises(ModelError, match="q8_0"):
        ops.pack([one, other])
    with pytest.raises(ModelError, match="interleaved"):
        ops.pack_gated(one, tensor(rng, "q4_1", 32, 64))


def test_bad_matrices(ops: Any) -> None:
    rng = np.random.default_rng(8)
    with pytest.raises(ModelError, match="known format"):
        ops.pack([HostTensor("odd", "nvfp4", (4, 256), np.zeros((4, 110), np.uint8))])
    with pytest.raises(ModelError, match="empty"):
        ops.pack([HostTensor("none", "f32", (0, 8), np.zeros((0, 8), np.float32))])
    with pytest.raises(ValueError, match="do not fit"):
        ops.pack([HostTensor("short", "q8_0", (4, 64), np.zeros((4, 34), np.uint8))])
    with pytest.raises(ModelError, match="matrix"):
        ops.pack([HostTensor("vector", "f32", (4,), rng.standard_normal(4, np.float32))])


def test_read_only_sources(ops: Any) -> None:
    """Mapped files are read only."""
    host = tensor(np.random.default_rng(9), "f32", 20, 30)
    host.data.setflags(write=False)
    out = np.zeros((20, 30), np.float32)
    ops.embedding(ops.pack([host]), np.arange(20, dtype=np.int32), out, ints(20))
    np.testing.assert_array_equal(out, host.data)


def test_one_activation_for_readers_of_both_kinds(ops: Any) -> None:
    rng = np.random.default_rng(10)
    weights = [ops.pack([tensor(rng, fmt, 12, 64)]) for fmt in ("q4_1", "bf16")]
    x = rng.standard_normal((5, 64), np.float32)
    shared = ops.activation(5, weights)
    ops.store(x, shared, ints(5))
    for weight in weights:
        out = np.zeros((5, 12), np.float32)
        ops.linear(weight, shared, out, ints(5))
        same_bits(out, multiply(ops, weight, x))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("fmt", KIND_FORMATS)
def test_nan_is_not_lost(ops: Any, fmt: str, bad: float) -> None:
    """A row that holds a NaN gives NaN (the sampler reports it), and other rows do not change."""
    rng = np.random.default_rng(11)
    weight = ops.pack([tensor(rng, fmt, 32, 64)])
    x = rng.standard_normal((7, 64), np.float32)
    good = multiply(ops, weight, x)
    x[3, 40] = bad
    out = multiply(ops, weight, x)
    assert not np.isfinite(out[3]).any()
    same_bits(np.delete(out, 3, 0), np.delete(good, 3, 0))


def test_row_counts_are_bounded(ops: Any) -> None:
    """A count beyond the buffers, or below zero, does no harm."""
    weight = ops.pack([tensor(np.random.default_rng(12), "q4_1", 32, 64)])
    x = ops.activation(4, [weight])
    ops.store(np.ones((4, 64), np.float32), x, ints(1000))
    out = np.full((6, 32), 5, np.float32)
    ops.linear(weight, x, out, ints(1000))
    assert (out[4:] == 5).all() and (out[:4] != 5).any()
    out[:] = 5
    ops.linear(weight, x, out, ints(-3))
    ops.linear(weight, x, out, ints(0))
    assert (out == 5).all()


@pytest.mark.parametrize("fmt", KIND_FORMATS)
@pytest.mark.parametrize(("rows", "whole"), [(1, 0), (7, 7), (31, 5), (31, 12), (230, 20)])
def test_some_blocks_of_columns(ops: Any, fmt: str, rows: int, whole: int) -> None:
    """The same bits where something is wanted, and nothing is written elsewhere."""
    rng = np.random.default_rng(rows + whole)
    weight = ops.pack([tensor(rng, fmt, 201, 96)])
    x = rng.standard_normal((rows, 96), np.float32)
    want = multiply(ops, weight, x)
    activation = ops.activation(rows, [weight])
    ops.store(x, activation, ints(rows))
    blocks = np.zeros(13, np.int32)
    blocks[:3] = 0, 7, 12  # the last has columns that do not exist
    out = np.full((rows, 201), 5, np.float32)
    ops.linear_blocks(weight, activation, out, ints(rows), ints(whole), ints(3), blocks)
    same_bits(out[:whole], want[:whole])
    columns = [*range(16), *range(112, 128), *range(192, 201)]
    same_bits(np.ascontiguousarray(out[whole:, columns]), np.ascontiguousarray(want[whole:, columns]))
    assert (np.delete(out[whole:], columns, axis=1) == 5).all()
