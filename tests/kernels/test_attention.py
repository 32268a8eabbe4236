"""Attention against float64, and bitwise the same however a request's tokens are divided into steps, and beside any other requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .support import Double, Float, close, ints, meta_of, read_back, same_bits

CONTEXT = 448


@dataclass
class Heads:
    """What a model's attention looks like."""

    q: int
    kv: int
    dim: int
    window: int = 0
    cap: float = 0.0
    sunk: bool = False

    @property
    def sinks(self) -> Float | None:
        """A score of each head: about as large as others, far below, far above."""
        return np.resize(np.array([0.5, -80, 3.0, 120, -1.0], np.float32), self.q) if self.sunk else None

    @property
    def width(self) -> int:
        return (self.q + 2 * self.kv) * self.dim


SHAPES = [
    Heads(9, 3, 64),
    Heads(4, 1, 32, window=37),
    Heads(6, 2, 20),
    Heads(7, 1, 100, window=37, sunk=True),
    Heads(4, 4, 16, cap=3.0),
    Heads(8, 2, 128, window=200, cap=20.0),
    Heads(4, 1, 256),
    Heads(8, 1, 64, sunk=True),
    Heads(6, 2, 96, window=1),
    Heads(35, 1, 16),
]


def rotate(x: Double, positions: npt.NDArray[np.int64], turn: float = 1) -> Double:
    """Half-split rotation of a quarter of the pairs of [n, heads, dim], as `tables` gives it."""
    d = x.shape[-1] // 4
    cos, sin = (t[positions, None].astype(np.float64) for t in tables(x.shape[-1], turn))
    a, b = x[..., :d], x[..., d : 2 * d]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * d :]], -1)


def tables(dim: int, turn: float = 1) -> tuple[Float, Float]:
    angle = turn * np.arange(CONTEXT)[:, None] * 0.7 ** np.arange(dim // 4)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


class Run:
    """One layer's KV and the steps that fill it. `scatter` breaks blocks of positions over several runs of slots. `turn`: 0 for no
    rotation."""

    def __init__(self, ops: Any, heads: Heads, requests: int, scatter: bool = False, seed: int = 0, turn: float = 1) -> None:
        self.ops, self.heads, self.turn = ops, heads, turn
        rng = np.random.default_rng(seed)
        blocks = CONTEXT // 16
        runs = rng.permutation(2 * requests * blocks).astype(np.int32).reshape(requests, blocks, 2)
        cuts = rng.integers(1, 16, (requests, blocks)) if scatter else np.full((requests, blocks), 16)
        lanes = np.arange(16)
        chosen = np.where(lanes < cuts[..., None], runs[..., :1], runs[..., 1:])
        self.table = np.ascontiguousarray((chosen * 16 + lanes).reshape(requests, CONTEXT).astype(np.int32))
        self.layers = ops.kv_layers(3, 2 * requests * CONTEXT, heads.kv, heads.dim)
        self.kv = self.layers[1]
        self.done = [0] * requests

    def step(self, qkv: dict[int, Float]) -> dict[int, Float]:
        """New rows of some requests in one call; returns their outputs."""
        ops, heads = self.ops, self.heads
        rows = np.concatenate(list(qkv.values()))
        at = [np.arange(self.done[i], self.done[i] + len(x)) for i, x in qkv.items()]
        slots = np.concatenate([self.table[i, p] for i, p in zip(qkv, at, strict=True)])
        positions = np.concatenate(at).astype(np.int32)
        n = ints(len(rows))
        cos, sin = tables(heads.dim, self.turn)
        buffer = rows.copy()
        ops.rope_store(buffer, self.kv, positions, slots, n, num_heads=heads.q, cos=cos, sin=sin, q_scale=heads.dim**-0.5)
        for i, x in qkv.items():
            self.done[i] += len(x)
        meta = meta_of(self.table, [(i, len(x), self.done[i]) for i, x in qkv.items()])
        out = self.output(len(rows))
        ops.attention(buffer, self.kv, out, meta, num_heads=heads.q, window=heads.window, soft_cap=heads.cap, sinks=heads.sinks)
        result = read_back(ops, out, len(rows))
        ends = np.cumsum([len(x) for x in qkv.values()])[:-1]
        return dict(zip(qkv, np.split(result, ends), strict=True))

    def output(self, rows: int) -> Any:
        from sglang.srt.model.quant.formats import dense

        width = self.heads.q * self.heads.dim
        return self.ops.activation(rows, [self.ops.pack([dense("reader", np.zeros((1, width), np.float32))])])


def half(x: Double) -> Double:
    return x.astype(np.float16).astype(np.float64)


def oracle(heads: Heads, qkv: Float, keep: Callable[[Double], Double] = half, turn: float = 1) -> Double:
    """A request's outputs in float64, K and V rounded as the pool keeps them."""
    n = len(qkv)
    x = qkv.astype(np.float64).reshape(n, -1, heads.dim)
    at = np.arange(n)
    q = rotate(x[:, : heads.q], at, turn) * heads.dim**-0.5
    k = keep(rotate(x[:, heads.q : heads.q + heads.kv], at, turn))
    v = keep(x[:, heads.q + heads.kv :])
    group = heads.q // heads.kv
    scores = np.einsum("ihd,jhd->hij", q, np.repeat(k, group, 1))
    if heads.cap:
        scores = heads.cap * np.tanh(scores / heads.cap)
    seen = at[None] <= at[:, None]
    if heads.window:
        seen &= at[None] > at[:, None] - heads.window
    scores = np.where(seen, scores, -np.inf)
    if heads.sinks is not None:
        scores = np.concatenate([scores, np.broadcast_to(heads.sinks[:, None, None], (heads.q, n, 1))], -1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = (weights / weights.sum(-1, keepdims=True))[..., :n]
    return np.einsum("hij,jhd->ihd", weights, np.repeat(v, group, 1)).reshape(n, -1)


def feed(run: Run, i: int, qkv: Float, pieces: Sequence[int]) -> Float:
    """A request alone, in steps of the given sizes."""
    ends = np.cumsum(pieces)
    assert ends[-1] == len(qkv)
    return np.concatenate([run.step({i: part})[i] for part in np.split(qkv, ends[:-1])])


def random_rows(heads: Heads, n: int, seed: int = 0) -> Float:
    return np.random.default_rng(seed).standard_normal((n, heads.width), np.float32)


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("heads", SHAPES, ids=str)
def test_accuracy(ops: Any, heads: Heads, scatter: bool) -> None:
    qkv = random_rows(heads, 300)
    got = feed(Run(ops, heads, 2, scatter), 1, qkv, [150, 1, 1, 20, 128])
    # K is rounded to half precision after a rotation in float32: now and then to the other neighbour than in float64
    close(got, oracle(heads, qkv), 5e-4)
    error = np.abs(got - oracle(heads, qkv))
    assert np.median(error) < 2e-5


@pytest.mark.parametrize("heads", SHAPES[:6], ids=str)
def test_steps_do_not_matter(ops: Any, more_threads: list[Any], heads: Heads) -> None:
    """At once, in chunks, token by token, in other slots, on other numbers of threads: the same bits."""
    qkv = random_rows(heads, 290)
    whole = feed(Run(ops, heads, 1), 0, qkv, [290])
    for pieces in ([128, 162], [1, 127, 129, 33], [250] + [1] * 40, [16] * 18 + [2], [5, 3, 200, 7, 75]):
        same_bits(feed(Run(ops, heads, 2, seed=5), 1, qkv, pieces), whole)
    same_bits(feed(Run(ops, heads, 1, scatter=True), 0, qkv, [270, 1, 1, 18]), whole)
    for other in more_threads:
        same_bits(feed(Run(other, heads, 1), 0, qkv, [140, 1, 149]), whole)


@pytest.mark.parametrize("heads", SHAPES[:6], ids=str)
def test_other_requests_do_not_matter(ops: Any, heads: Heads) -> None:
    """Decode and extend rows of many requests in one call: each gets what it gets alone."""
    lengths = [1, 17, 128, 129, 200, 255, 256, 300, 310, 16]
    qkv = [random_rows(heads, n + 3, seed=n) for n in lengths]
    alone = [feed(Run(ops, heads, 1), 0, x, [len(x)]) for x in qkv]
    run = Run(ops, heads, len(lengths))
    first = run.step({i: qkv[i][:n] for i, n in enumerate(lengths) if i % 2})
    second = run.step({i: (qkv[i][n : n + 1] if i % 2 else qkv[i][: n + 1]) for i, n in enumerate(lengths)})
    third = run.step({i: qkv[i][n + 1 :] for i, n in enumerate(lengths)})
    for i in range(len(lengths)):
        parts = [first[i]] if i % 2 else []
        same_bits(np.concatenate([*parts, second[i], third[i]]), alone[i])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_schedule(ops: Any, data: st.DataObject) -> None:
    """Three requests, cut and mixed at random."""
    heads = data.draw(st.sampled_from(SHAPES[:6]), label="heads")
    lengths = data.draw(st.lists(st.integers(1, 180), min_size=3, max_size=3), label="lengths")
    qkv = [random_rows(heads, n, seed=n) for n in lengths]
    run = Run(ops, heads, 3, scatter=data.draw(st.booleans(), label="scatter"))
    got: list[list[Float]] = [[], [], []]
    while any(run.done[i] < lengths[i] for i in range(3)):
        step = {}
        for i in range(3):
            left = lengths[i] - run.done[i]
            take = data.draw(st.integers(0, left), label="rows") if left else 0
            if take:
                step[i] = qkv[i][run.done[i] : run.done[i] + take]
        if not step:
            i = next(i for i in range(3) if run.done[i] < lengths[i])
            step = {i: qkv[i][run.done[i] :]}
        for i, rows in run.step(step).items():
            got[i].append(rows)
    for i in range(3):
        same_bits(np.concatenate(got[i]), feed(Run(ops, heads, 1), 0, qkv[i], [lengths[i]]))


def test_long_context(ops: Any) -> None:
    """More chunks than threads, decode over all of them; equal values make the answer known."""
    heads = Heads(2, 1, 16)
    context, kv = 20000, ops.kv_layers(1, 20000, 1, 16)[0]
    table = np.arange(context, dtype=np.int32)[None]
    rows = np.ones((512, heads.width), np.float32)
    cos, sin = np.ones((context, 8), np.float32), np.zeros((context, 8), np.float32)
    for start in range(0, context - 512, 512):
        at = np.arange(start, start + 512, dtype=np.int32)
        ops.rope_store(rows.copy(), kv, at, at, ints(512), num_heads=2, cos=cos, sin=sin, q_scale=1.0)
    out = Run(ops, heads, 1).output(1)
    length = (context - 512) // 512 * 512
    ops.attention(rows[:1], kv, out, meta_of(table, [(0, 1, length)]), num_heads=2)
    close(read_back(ops, out, 1), np.ones((1, 32)), 1e-5)


def test_memory_that_is_touched_keeps_what_it_holds(ops: Any) -> None:
    heads = Heads(4, 2, 32)
    qkv = random_rows(heads, 61)
    whole = feed(Run(ops, heads, 1), 0, qkv, [61])
    run = Run(ops, heads, 1)
    first = run.step({0: qkv[:40]})[0]
    for start, end in ((0, CONTEXT), (5, 17), (2 * CONTEXT - 3, 10 * CONTEXT), (-20, 0), (30, 20)):
        ops.touch_kv([run.kv], start, end)
    same_bits(np.concatenate([first, run.step({0: qkv[40:]})[0]]), whole)


def test_what_stale_slots_hold_does_not_matter(ops: Any) -> None:
    """Positions beyond a row's own, or before its window, may hold anything, even NaN."""
    for heads in (Heads(4, 2, 32), Heads(4, 2, 32, window=20)):
        qkv = random_rows(heads, 61)
        clean, dirty = Run(ops, heads, 1), Run(ops, heads, 1)
        poison = np.full((CONTEXT - 1, heads.width), np.float32(3e38))
        dirty.step({0: poison})
        dirty.done = [0]
        same_bits(feed(dirty, 0, qkv, [60, 1]), feed(clean, 0, qkv, [60, 1]))


def test_wild_tables_do_no_harm(ops: Any) -> None:
    """Slots, table rows and lengths out of bounds must not lead out of memory."""
    heads = Heads(4, 2, 32)
    run = Run(ops, heads, 2)
    run.table[:] = np.random.default_rng(0).integers(-(2**31), 2**31 - 1, run.table.shape, np.int32)
    qkv = random_rows(heads, 30)
    out = run.output(30)
    for requests in ([(0, 30, 40)], [(7, 1, 20)], [(-4, 2, 9)], [(0, 5, 3)], [(0, 31, 31)], [(0, -1, 9)], [(0, 1, 10**9)]):
        ops.attention(qkv, run.kv, out, meta_of(run.table, requests), num_heads=4)
    meta = meta_of(run.table, [(0, 1, 1)])
    meta.num_reqs[0] = 10**6
    ops.attention(qkv, run.kv, out, meta, num_heads=4)
    cos, sin = tables(32)
    wild = ints(*([-5, 10**9] * 15))
    ops.rope_store(qkv, run.kv, wild, wild, ints(30), num_heads=4, cos=cos, sin=sin, q_scale=1.0)


def test_head_norms(ops: Any) -> None:
    """rope_store with norms equals normalizing first."""
    heads, n = Heads(4, 2, 48), 20
    rng = np.random.default_rng(0)
    qkv, q_norm, k_norm = random_rows(heads, n), *rng.standard_normal((2, 48), np.float32)
    x = qkv.reshape(n, -1, 48).astype(np.float64)
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3)
    normed[:, :4] *= q_norm
    normed[:, 4:6] *= k_norm
    normed[:, 6:] = x[:, 6:]
    cos, sin = tables(48)
    run, at = Run(ops, heads, 1), np.arange(n, dtype=np.int32)
    buffer = qkv.copy()
    ops.rope_store(
        buffer, run.kv, at, run.table[0, :n].copy(), ints(n), num_heads=4, cos=cos, sin=sin, q_scale=0.5,
        q_norm=q_norm, k_norm=k_norm, eps=1e-3,
    )  # fmt: skip
    close(buffer.reshape(n, -1, 48)[:, :4], rotate(normed[:, :4], at) * 0.5, 1e-6)
    out = run.output(n)
    ops.attention(buffer / np.float32(0.5) * np.float32(48**-0.5), run.kv, out, meta_of(run.table, [(0, n, n)]), num_heads=4)
    close(read_back(ops, out, n), oracle(heads, normed.reshape(n, -1).astype(np.float32)), 5e-4)


@pytest.mark.parametrize("dim", [20, 48])
def test_q_alone(ops: Any, dim: int) -> None:
    """In a column range: the same bits as with k and v, and nothing is stored."""
    heads, n = Heads(4, 2, dim), 20
    qkv, (q_norm, k_norm) = random_rows(heads, n), np.random.default_rng(1).standard_normal((2, dim), np.float32)
    cos, sin = tables(dim)
    run, at = Run(ops, heads, 1), np.arange(n, dtype=np.int32)
    whole, buffer = qkv.copy(), qkv.copy()
    slots = run.table[0, :n].copy()
    more = {"num_heads": 4, "cos": cos, "sin": sin, "q_scale": 0.5, "q_norm": q_norm, "k_norm": k_norm, "eps": 1e-3}
    ops.rope_store(whole, run.kv, at, slots, ints(n), **more)
    stored = run.output(n)
    meta = meta_of(run.table, [(0, n, n)])
    ops.attention(whole, run.kv, stored, meta, num_heads=4)
    ops.rope_store(buffer[:, : 4 * dim], run.kv, at, slots, ints(n), q_only=True, **more)
    np.testing.assert_array_equal(buffer[:, : 4 * dim], whole[:, : 4 * dim])
    np.testing.assert_array_equal(buffer[:, 4 * dim :], qkv[:, 4 * dim :])
    again = run.output(n)
    ops.attention(buffer[:, : 4 * dim], run.kv, again, meta, num_heads=4)
    np.testing.assert_array_equal(read_back(ops, again, n), read_back(ops, stored, n))


def test_norms_after_rotation_and_a_growing_scale(ops: Any) -> None:
    """A head of 20 values, so that vectors end inside it: rotate, normalize, scale by a table of positions."""
    heads, n = Heads(4, 2, 20), 20
    rng = np.random.default_rng(0)
    qkv, q_norm, k_norm = random_rows(heads, n), *rng.standard_normal((2, 20), np.float32)
    growth = rng.random(CONTEXT, np.float32) + np.float32(0.5)
    cos, sin = tables(20)
    run, at = Run(ops, heads, 1), np.arange(n, dtype=np.int32)
    buffer = qkv.copy()
    ops.rope_store(
        buffer, run.kv, at, run.table[0, :n].copy(), ints(n), num_heads=4, cos=cos, sin=sin, q_scale=0.5,
        q_norm=q_norm, k_norm=k_norm, eps=1e-3, norm_last=True, q_growth=growth,
    )  # fmt: skip
    x = rotate(qkv.reshape(n, -1, 20).astype(np.float64)[:, :4], at)
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * q_norm
    close(buffer.reshape(n, -1, 20)[:, :4], normed * 0.5 * growth[:n, None, None], 1e-6)


def test_int8_output_is_the_rounded_float_output(ops: Any) -> None:
    """What a quantized layer reads is the float result, quantized as `store` does it."""
    from .support import tensor

    heads = Heads(6, 2, 16)
    rng = np.random.default_rng(3)
    weight = ops.pack([tensor(rng, "q8_0", 30, 96)])
    run, qkv = Run(ops, heads, 1), random_rows(heads, 40)
    plain = run.step({0: qkv})[0]
    run.done = [0]
    run.output = lambda rows: ops.activation(rows, [weight])  # type: ignore[method-assign]
    n, results = ints(40), np.zeros((2, 40, 30), np.float32)
    stored, direct = ops.activation(40, [weight]), ops.activation(40, [weight])
    ops.store(plain, stored, n)
    cos, sin = tables(16)
    buffer, at = qkv.copy(), np.arange(40, dtype=np.int32)
    ops.rope_store(buffer, run.kv, at, run.table[0, :40].copy(), n, num_heads=6, cos=cos, sin=sin, q_scale=0.25)
    ops.attention(buffer, run.kv, direct, meta_of(run.table, [(0, 40, 40)]), num_heads=6)
    for activation, out in zip((stored, direct), results, strict=True):
        ops.linear(weight, activation, out, n)
    same_bits(results[0], results[1])
