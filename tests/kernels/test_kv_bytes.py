"""K and V in 8 bits: what is stored is what the reference stores, attention over it is exact, and the same bits however it came about."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sglang.srt.model.kernels import cpu
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.kernels.reference_kv import LARGEST, to_bytes
from sglang.srt.model.quant.float8 import F8_VALUES

from .support import Double, Float, close, ints, meta_of, same_bits
from .test_attention import CONTEXT, SHAPES, Heads, Run, feed, oracle, random_rows

FORMS = ["int8", "fp8_e4m3"]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture(params=FORMS)
def byte_ops(request: pytest.FixtureRequest, ops: Any) -> Any:
    return cpu.CpuOps(2, ops.runtime.isa, kv_form=request.param)


def values_of(x: Any, form: str) -> Double:
    """What is left of rows of values."""
    data, scales = to_bytes(x.astype(np.float32), form)
    values = F8_VALUES[data] if form == "fp8_e4m3" else data.astype(np.float32)
    return values.astype(np.float64) * scales[..., None].astype(np.float64)


def hard_rows(heads: Heads, n: int) -> Float:
    """Rows of many sizes: tiny, huge, all zero, with one value that is far larger, with infinities and no numbers."""
    rng = np.random.default_rng(7)
    rows = random_rows(heads, n) * (10.0 ** rng.integers(-12, 5, (n, 1))).astype(np.float32)
    rows[3] = 0
    rows[5, ::7] *= 1000
    rows[6] = 1e-33
    rows[8, 2::9] = np.inf
    rows[9, 4::11] = np.nan
    return rows


@pytest.mark.parametrize("heads", [Heads(2, 2, 64), Heads(3, 1, 20)], ids=str)
def test_the_stored_bytes_are_the_references(byte_ops: Any, heads: Heads) -> None:
    form, n = byte_ops.kv_form, 48
    rows, slots = hard_rows(heads, n), np.random.default_rng(1).permutation(n).astype(np.int32)
    cos, sin = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
    stored = []
    for ops in (byte_ops, ReferenceOps(form)):
        layers = ops.kv_layers(2, n, heads.kv, heads.dim)
        more = {"num_heads": heads.q, "cos": cos, "sin": sin, "q_scale": 1.0}
        with np.errstate(invalid="ignore"):
            ops.rope_store(rows.copy(), layers[1], np.zeros(n, np.int32), slots, ints(n), **more)
        stored.append((ops.kv_runs(layers), layers[1]))
    runs, kv = stored[0][0], stored[1][1]
    padded = -(-heads.dim // 16) * 16
    half = heads.kv * padded * 16
    for run in range(n // 16):
        record = np.full(runs.run_bytes, 7, np.uint8)
        runs.read(np.arange(16 * run, 16 * run + 16, dtype=np.int32), record)
        layer = record.reshape(2, -1)[1]
        k = layer[:half].reshape(heads.kv, padded, 16).transpose(2, 0, 1)
        v = layer[half : 2 * half].reshape(heads.kv, 16, padded).swapaxes(0, 1)
        scales = layer[2 * half :].view(np.float32).reshape(heads.kv, 2, 16)
        at = slice(16 * run, 16 * run + 16)
        for found, wanted in ((k, kv.k), (v, kv.v)):
            np.testing.assert_array_equal(found[..., : heads.dim], wanted[at].view(np.uint8))
            assert not found[..., heads.dim :].any()
        times = 256 if form == "fp8_e4m3" else 1  # the native kernels read 2^-8 of a number
        np.testing.assert_array_equal(scales.transpose(1, 2, 0), np.stack(kv.scales)[:, at] * np.float32(times))


def test_every_byte_is_read_as_what_it_means(byte_ops: Any) -> None:
    """One position with weight 1: attention gives its V."""
    form, heads = byte_ops.kv_form, Heads(1, 1, 128)
    codes = np.setdiff1d(np.arange(256), [0x7F, 0xFF] if form == "fp8_e4m3" else [128]).astype(np.uint8)
    exact = F8_VALUES[codes] if form == "fp8_e4m3" else codes.view(np.int8).astype(np.float32)
    for part in np.split(np.resize(exact, 384), 3):
        row = np.concatenate([np.zeros(256, np.float32), part])
        row[-1] = LARGEST[form]  # the scale is 1
        got = feed(Run(byte_ops, heads, 1), 0, row[None], [1])
        np.testing.assert_array_equal(got[0], row[256:])


@pytest.mark.parametrize("heads", SHAPES, ids=str)
def test_accuracy(byte_ops: Any, heads: Heads) -> None:
    """Against float64 over the values that are stored; not turned, so that these are the same."""
    qkv = random_rows(heads, 170)
    wanted = oracle(heads, qkv, lambda x: values_of(x, byte_ops.kv_form), turn=0)
    for scatter in (False, True):
        close(feed(Run(byte_ops, heads, 2, scatter, turn=0), 1, qkv, [150, 1, 1, 18]), wanted, 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_reference_is_as_accurate(form: str) -> None:
    heads, qkv = SHAPES[2], random_rows(SHAPES[2], 170)
    wanted = oracle(heads, qkv, lambda x: values_of(x, form), turn=0)
    close(feed(Run(ReferenceOps(form), heads, 2, True, turn=0), 1, qkv, [150, 1, 1, 18]), wanted, 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_rounding_error_is_what_eight_bits_cost(form: str) -> None:
    x = np.random.default_rng(0).standard_normal((1000, 64), np.float32)
    error = np.sqrt(np.mean((values_of(x, form) - x) ** 2))
    assert error < (0.007 if form == "int8" else 0.03)


@pytest.mark.parametrize("heads", [SHAPES[0], SHAPES[1], SHAPES[2]], ids=str)
def test_steps_do_not_matter(byte_ops: Any, heads: Heads) -> None:
    qkv = random_rows(heads, 290)
    whole = feed(Run(byte_ops, heads, 1), 0, qkv, [290])
    for pieces in ([1, 127, 129, 33], [250] + [1] * 40, [5, 3, 200, 7, 75]):
        same_bits(feed(Run(byte_ops, heads, 2, seed=5), 1, qkv, pieces), whole)
    same_bits(feed(Run(byte_ops, heads, 1, scatter=True), 0, qkv, [270, 1, 1, 18]), whole)
    one = cpu.CpuOps(1, byte_ops.runtime.isa, kv_form=byte_ops.kv_form)
    same_bits(feed(Run(one, heads, 1), 0, qkv, [140, 1, 149]), whole)


def test_other_requests_do_not_matter(byte_ops: Any) -> None:
    heads, lengths = SHAPES[0], [1, 17, 128, 255, 300, 16]
    qkv = [random_rows(heads, n + 3, seed=n) for n in lengths]
    alone = [feed(Run(byte_ops, heads, 1), 0, x, [len(x)]) for x in qkv]
    run = Run(byte_ops, heads, len(lengths))
    first = run.step({i: qkv[i][:n] for i, n in enumerate(lengths) if i % 2})
    second = run.step({i: (qkv[i][n : n + 1] if i % 2 else qkv[i][: n + 1]) for i, n in enumerate(lengths)})
    third = run.step({i: qkv[i][n + 1 :] for i, n in enumerate(lengths)})
    for i in range(len(lengths)):
        parts = [first[i]] if i % 2 else []
        same_bits(np.concatenate([*parts, second[i], third[i]]), alone[i])


def test_what_stale_slots_hold_does_not_matter(byte_ops: Any) -> None:
    for heads in (Heads(4, 2, 32), Heads(4, 2, 32, window=20)):
        qkv = random_rows(heads, 61)
        clean, dirty = Run(byte_ops, heads, 1), Run(byte_ops, heads, 1)
        dirty.step({0: np.full((CONTEXT - 1, heads.width), np.float32(3e38))})
        dirty.done = [0]
        same_bits(feed(dirty, 0, qkv, [60, 1]), feed(clean, 0, qkv, [60, 1]))


def test_wild_tables_do_no_harm(byte_ops: Any) -> None:
    heads = Heads(4, 2, 32)
    run = Run(byte_ops, heads, 2)
    run.table[:] = np.random.default_rng(0).integers(-(2**31), 2**31 - 1, run.table.shape, np.int32)
    qkv, out = random_rows(heads, 30), run.output(30)
    for requests in ([(0, 30, 40)], [(7, 1, 20)], [(-4, 2, 9)], [(0, 31, 31)], [(0, 1, 10**9)]):
        byte_ops.attention(qkv, run.kv, out, meta_of(run.table, requests), num_heads=4)


def test_half_the_bytes(byte_ops: Any) -> None:
    plain = cpu.CpuOps(1)
    for heads, dim in ((3, 64), (8, 128), (1, 256)):
        assert byte_ops.kv_bytes_per_token(heads, dim) <= 0.532 * plain.kv_bytes_per_token(heads, dim)
        layer = byte_ops.kv_layers(1, 64, heads, dim)[0]
        assert layer.num_bytes == 64 * byte_ops.kv_bytes_per_token(heads, dim)


def test_other_forms_are_refused() -> None:
    with pytest.raises(ValueError, match="kept as float16, int8 or fp8_e4m3, not as float8"):
        cpu.CpuOps(1, kv_form="float8").kv_layers(1, 16, 1, 16)
