"""AVX-512 and AVX2 go through the same roundings: a whole layer gives the same bits on both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sglang.srt.model.kernels import cpu

from .support import Float, ints, meta_of, same_bits, tensor


def layer(ops: Any, fmt: str) -> Float:
    rng = np.random.default_rng(0)
    heads, kv_heads, dim, hidden, rows, length = 6, 2, 32, 192, 21, 300
    width = (heads + 2 * kv_heads) * dim
    qkv_w = ops.pack([tensor(rng, fmt, width, hidden)])
    gate_up = ops.pack_gated(tensor(rng, fmt, 96, hidden), tensor(rng, fmt, 96, hidden))
    down = ops.pack([tensor(rng, "q8_0", hidden, 96)])
    x, norm, n = rng.standard_normal((rows, hidden), np.float32), np.ones(hidden, np.float32), ints(rows)
    entry, hidden_in, mlp_in = ops.activation(rows, [qkv_w]), ops.activation(rows, [gate_up]), ops.activation(rows, [down])
    kv, table = ops.kv_layers(1, 304, kv_heads, dim)[0], np.arange(304, dtype=np.int32)[None]
    old = rng.standard_normal((length - rows, width), np.float32)
    angle = np.arange(304)[:, None] * 0.5 ** np.arange(dim // 2)
    rope = {"cos": np.cos(angle).astype(np.float32), "sin": np.sin(angle).astype(np.float32)}
    at = np.arange(length, dtype=np.int32)
    ops.rope_store(old, kv, at[:-rows].copy(), at[:-rows].copy(), ints(length - rows), num_heads=heads, q_scale=1.0, **rope)
    qkv, out = np.zeros((rows, width), np.float32), np.zeros((rows, hidden), np.float32)
    ops.rms_norm(x, norm, entry, n, eps=1e-5)
    ops.linear(qkv_w, entry, qkv, n)
    qkv /= np.float32(np.abs(qkv).max())
    ops.rope_store(qkv, kv, at[-rows:].copy(), at[-rows:].copy(), n, num_heads=heads, q_scale=1.0, **rope)
    ops.attention(qkv, kv, hidden_in, meta_of(table, [(0, rows, length)]), num_heads=heads, soft_cap=5.0)
    ops.gated_linear(gate_up, hidden_in, mlp_in, n, gate="gelu")
    ops.linear(down, mlp_in, out, n)
    return out


FORMATS = [(fmt, "float16") for fmt in ("q4_1", "q8_0", "f32", "bf16", "f16")] + [("q4_1", "int8"), ("q8_0", "fp8_e4m3")]


@pytest.mark.parametrize(("fmt", "kv_form"), FORMATS)
def test_same_bits(fmt: str, kv_form: str) -> None:
    if "avx512_vnni" not in cpu.usable_isas():
        pytest.skip("needs a processor with AVX-512 VNNI")
    best, avx2 = cpu.CpuOps(2, "avx512_vnni", kv_form=kv_form), cpu.CpuOps(1, "avx2", kv_form=kv_form)
    same_bits(layer(best, fmt), layer(avx2, fmt))


@pytest.mark.parametrize(("fmt", "kv_form"), FORMATS)
def test_portable_is_close(fmt: str, kv_form: str) -> None:
    """Without a fused multiply-add only the last bits may differ, and what rounding to 8 bits makes of them."""
    best, portable = (layer(cpu.CpuOps(1, isa, kv_form=kv_form), fmt) for isa in (None, "portable"))
    assert np.abs(best - portable).max() <= 2e-2 * np.abs(best).max()
    assert np.median(np.abs(best - portable)) <= 1e-3 * np.abs(best).max()
