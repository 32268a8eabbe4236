"""Every op of the CUDA set against the NumPy reference on the same numbers, over types and shapes.

A case is a function of an op set: it makes its arrays through the set and returns what the ops made, on the host. It runs on both
sets.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import numpy as np

from sglang.srt.model.kernels.ops import AttentionMeta, StepShape
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.quant.blocks import bf16_bits, bf16_values
from sglang.srt.model.quant.formats import HostTensor, dense, quantize_q4_1, quantize_q8_0

Floats = Any  # float32 array
Case = Callable[["Side"], list[Any]]
Finding = dict[str, Any]
BARS = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}
F8_BAR = 5e-2
"""where inputs are rounded to 3 bits of fraction"""
EXACT = ("argmax", "top_k", "sample", "same")
"""what these choose, or find, must be equal"""


class Side:
    """One op set, and how a case talks to it. `rounded`: inputs hold no more than the CUDA set's type does."""

    def __init__(self, ops: Any, dtype: str) -> None:
        self.ops = ops
        self.dtype = dtype

    def rng(self, *seed: int) -> np.random.Generator:
        return np.random.default_rng(seed)

    def values(self, *shape: int, seed: int = 0, scale: float = 1.0) -> Floats:
        x = self.rng(seed, *shape).standard_normal(shape, np.float32) * np.float32(scale)
        if self.dtype == "bfloat16":
            return bf16_values(bf16_bits(x))
        return x.astype(np.float16).astype(np.float32) if self.dtype == "float16" else x

    def hidden(self, x: Floats) -> Any:
        out = self.ops.empty(x.shape, "hidden")
        self.ops.write(out, x)
        return out

    def array(self, x: Any) -> Any:
        return self.ops.array(np.ascontiguousarray(x))

    def ints(self, *values: Any) -> Any:
        return self.array(np.array(values, np.int32).reshape(-1))

    def rows(self, n: int) -> Any:
        rows = self.ints(n)
        self.ops.bound(rows, n)
        return rows

    def matrix(self, fmt: str, n: int, k: int, seed: int = 0) -> HostTensor:
        """`fmt` "plain": the set's own type."""
        x = self.rng(seed, n, k).standard_normal((n, k), np.float32) * np.float32(k**-0.5)
        if fmt == "q4_1":
            return quantize_q4_1("w", x)
        if fmt == "f8":
            data = self.rng(seed, n, k).integers(0, 0x70, (n, k)).astype(np.uint8)  # up to 128, no NaN
            data |= (x < 0).astype(np.uint8) << 7
            return HostTensor("w", "f8", (n, k), data, np.full(n, k**-0.5 / 16, np.float32))
        return quantize_q8_0("w", x) if fmt == "q8_0" else dense("w", x, self.plain())

    def plain(self) -> str:
        return {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[self.dtype]

    def activation(self, x: Floats) -> Any:
        reader = self.ops.pack([dense("w", np.zeros((16, x.shape[1]), np.float32), self.plain())])
        out = self.ops.activation(len(x), [reader])
        self.ops.write(out.data, x)
        return out

    def read(self, x: Any) -> Any:
        kept = getattr(x, "data", x) if hasattr(x, "width") else x
        return np.array(self.ops.fetch(kept).result())


# --- cases --------------------------------------------------------------------------------------------------------------------


def norm(n: int, width: int) -> Case:
    def run(s: Side) -> list[Any]:
        x, out = s.array(s.values(n, width)), s.hidden(np.zeros((n, width), np.float32))
        weight, delta = s.array(s.values(width, seed=1)), s.hidden(s.values(n, width, seed=2))
        s.ops.rms_norm(x, weight, out, s.rows(n), eps=1e-6, delta=delta)
        first = s.read(out)
        s.ops.rms_norm(x, weight, out, s.rows(1), eps=1e-6, row_idx=s.ints(*[n - 1] * n))
        s.ops.layer_norm(x, weight, weight, delta, s.rows(n), eps=1e-6)
        return [s.read(x), first, s.read(out), s.read(delta)]

    return run


def linear(fmt: str, rows: int, n: int, k: int) -> Case:
    def run(s: Side) -> list[Any]:
        weight = s.ops.pack([s.matrix(fmt, n, k), s.matrix(fmt, 16, k, 3)])
        out, x = s.hidden(np.zeros((rows, n + 16), np.float32)), s.activation(s.values(rows, k, seed=1))
        s.ops.linear(weight, x, out, s.rows(rows), bias=s.array(s.values(n + 16, seed=2)))
        return [s.read(out)]

    return run


def every_size(fmt: str, n: int, k: int) -> Case:
    """All the kernels among which the fastest is taken for few rows."""

    def run(s: Side) -> list[Any]:
        weight, rows = s.ops.pack([s.matrix(fmt, n, k)]), 7
        x, zeros = s.activation(s.values(rows, k, seed=1)), np.zeros((rows, n), np.float32)
        is_gated = fmt == "plain"
        if hasattr(s.ops, "_products"):
            found = _by_size(s, weight, x, zeros, None)
            return found + _by_size(s, weight, x, zeros[:, : n // 2], "silu") if is_gated else found
        out, half = s.hidden(zeros), s.activation(zeros[:, : n // 2])
        s.ops.linear(weight, x, out, s.rows(rows), bias=s.array(s.values(n, seed=2)))
        if not is_gated:
            return [s.read(out)] * NUM_SIZES[fmt]
        s.ops.gated_linear(weight, x, half, s.rows(rows), gate="silu")
        return [s.read(out)] * NUM_SIZES[fmt] + [s.read(half)] * NUM_SIZES[fmt]

    return run


NUM_SIZES = {"plain": 10, "q4_1": 8, "q8_0": 8}


def _by_size(s: Side, weight: Any, x: Any, zeros: Floats, fn: str | None) -> list[Any]:
    """The result of each size; what one row alone makes is put together of all rows."""
    from sglang.srt.model.kernels.cuda.linear import candidates_for

    launch, made = s.ops._products._launch, []
    bias = s.array(s.values(zeros.shape[1], seed=2)) if fn is None else None
    for group in ("one", "few", "some"):
        for sizes in candidates_for(weight, group):
            out = s.hidden(zeros)
            for row in range(len(zeros)) if group == "one" else (0,):
                some, count = _Rows(x.data[row:]), 1 if group == "one" else len(zeros)
                launch(sizes, weight, some, out[row:], s.ints(count), count, bias, fn)
            made.append(s.read(out))
    return made


class _Rows:
    """Some rows of an activation."""

    def __init__(self, data: Any) -> None:
        self.data = data


def gated(fmt: str, rows: int, n: int, k: int, gate: str) -> Case:
    def run(s: Side) -> list[Any]:
        weight = s.ops.pack_gated(s.matrix(fmt, n, k), s.matrix(fmt, n, k, 3))
        x, out = s.activation(s.values(rows, k, seed=1)), s.activation(np.zeros((rows, n), np.float32))
        s.ops.gated_linear(weight, x, out, s.rows(rows), gate=gate)
        return [s.read(out)]

    return run


def same_products(fmt: str, n: int, k: int) -> Case:
    """Deterministic mode: whether a row has the same bits among 700, 200, 40, 7 and alone."""

    def run(s: Side) -> list[Any]:
        counts = (700, 200, 40, 7, 1)
        if not hasattr(s.ops, "_products"):
            return [np.ones((len(counts), 2))]
        weight = s.ops.pack_gated(s.matrix(fmt, n, k), s.matrix(fmt, n, k, 3))
        x, made = s.activation(s.values(counts[0], k, seed=1)), []
        for count in counts:
            gated, plain = s.activation(np.zeros((count, n), np.float32)), s.hidden(np.zeros((count, 2 * n), np.float32))
            s.ops.gated_linear(weight, x, gated, s.rows(count), gate="silu")
            s.ops.linear(weight, x, plain, s.rows(count))
            made.append([s.read(gated), s.read(plain)])
        return [
            np.array([[np.array_equal(a, b[: len(a)]) for a, b in zip(some, made[0], strict=True)] for some in made], float)
        ]

    return run


def embedding(fmt: str, n: int, k: int) -> Case:
    def run(s: Side) -> list[Any]:
        weight, out = s.ops.pack([s.matrix(fmt, n, k)]), s.array(np.zeros((7, k), np.float32))
        s.ops.embedding(weight, s.ints(0, n - 1, 3, 3, 1, 2, n // 2), out, s.rows(7), scale=1.5)
        return [s.read(out)]

    return run


def elementwise(n: int, width: int) -> Case:
    def run(s: Side) -> list[Any]:
        made = []
        both, out = s.hidden(s.values(n, 2 * width, scale=3)), s.activation(np.zeros((n, width), np.float32))
        for fn in ("silu", "gelu_tanh", "gelu"):
            s.ops.gate(both[:, :width], both[:, width:], out, s.rows(n), gate_fn=fn)
            made.append(s.read(out))
        for fn in ("silu", "gelu", "quick_gelu"):
            s.ops.activate(both[:, :width], out, s.rows(n), fn=fn)
            made.append(s.read(out))
        s.ops.store(both[:, width:], out, s.rows(n))
        x = s.array(s.values(n, width, scale=20))
        s.ops.soft_cap(x, s.rows(n), cap=30.0)
        return [*made, s.read(out), s.read(x)]

    return run


def images(n: int, width: int) -> Case:
    def run(s: Side) -> list[Any]:
        x, source = s.array(s.values(n, width)), s.array(s.values(n, width, seed=1))
        index = s.rng(1).integers(-1, n, n).astype(np.int32)
        s.ops.overlay(x, source, s.array(index), s.rows(n))
        s.ops.overlay(x, source, s.array(index[::-1]), s.rows(n), add=True)
        gathered, blended = (s.array(np.zeros((n, width), np.float32)) for _ in range(2))
        s.ops.gather_rows(source, s.array(np.maximum(index, 0)), gathered, s.rows(n))
        which = s.rng(2).integers(0, n, (n, 4)).astype(np.int32)
        s.ops.blend_rows(source, s.array(which), s.array(s.values(n, 4, seed=5)), blended, s.rows(n))
        tables = [s.array(s.values(64, 16, seed=i)) for i in (6, 7)]
        made = [s.array(np.zeros((n, 16), np.float32)) for _ in range(2)]
        positions = s.rng(3).integers(0, 64, (3, n)).astype(np.int32)
        s.ops.select_rope(*tables, s.array(positions), s.ints(*[0, 1, 2, 1] * 4), *made, s.rows(n))
        s.ops.rotate(x, *made, s.rows(n), num_heads=width // 32, head_dim=32)
        return [s.read(a) for a in (x, gathered, blended, *made)]

    return run


@dataclass(frozen=True)
class Heads:
    heads: int
    kv_heads: int
    dim: int


def attention(h: Heads, requests: tuple[tuple[int, int], ...], window: int = 0, cap: float = 0.0) -> Case:
    """requests: (new rows, length). K and V of what came before go in through rope_store as well, a request at a time."""

    def run(s: Side) -> list[Any]:
        longest, width = max(length for _, length in requests), (h.heads + 2 * h.kv_heads) * h.dim
        runs = -(-longest // 16)
        order = s.rng(9).permutation(runs * len(requests)).reshape(len(requests), runs).astype(np.int32)
        table = (order[:, :, None] * 16 + np.arange(16, dtype=np.int32)).reshape(len(requests), -1)
        kv = s.ops.kv_layers(1, runs * len(requests) * 16, h.kv_heads, h.dim)[0]
        angles = np.arange(longest)[:, None] * (1e4 ** (-np.arange(h.dim // 2) / (h.dim // 2)))
        turn = {"cos": s.array(np.cos(angles).astype(np.float32)), "sin": s.array(np.sin(angles).astype(np.float32))}

        def store(rows: Any, positions: Any, slots: Any) -> Any:
            qkv = s.hidden(rows)
            given = (s.array(positions.astype(np.int32)), s.array(slots.astype(np.int32)))
            s.ops.rope_store(qkv, kv, *given, s.rows(len(rows)), num_heads=h.heads, q_scale=h.dim**-0.5, **turn)
            return qkv

        for i, (new, length) in enumerate(requests):
            old = length - new
            if old:
                store(s.values(old, width, seed=20 + i), np.arange(old), table[i, :old])
        rows = [s.values(new, width, seed=50 + i) for i, (new, _) in enumerate(requests)]
        places = [np.arange(length - new, length) for new, length in requests]
        qkv = store(np.concatenate(rows), np.concatenate(places), np.concatenate([table[i, p] for i, p in enumerate(places)]))
        return [s.read(qkv), _attend(s, h, qkv, kv, table, requests, window, cap)]

    return run


def _attend(s: Side, h: Heads, qkv: Any, kv: Any, table: Any, requests: Any, window: int, cap: float) -> Any:
    new = np.array([n for n, _ in requests], np.int32)
    lengths = np.array([n for _, n in requests], np.int32)
    starts = (np.cumsum(new) - new).astype(np.int32)
    which = np.arange(len(requests), dtype=np.int32)
    there = s.ops.table(table)
    s.ops.sync_table(there, table, which, lengths)
    meta = AttentionMeta(s.ints(len(requests)), s.array(which), s.array(starts), s.array(new), s.array(lengths), there)
    total = int(new.sum())
    s.ops.bound_step(meta, StepShape(total, len(requests), int(new.max())))
    out = s.activation(np.zeros((total, h.heads * h.dim), np.float32))
    s.ops.attention(qkv, kv, out, meta, num_heads=h.heads, window=window, soft_cap=cap)
    return s.read(out)


def same_attention(h: Heads, length: int) -> Case:
    """Deterministic mode: whether a prompt's last row has the same bits computed with the whole prompt, with eight before it, alone,
    and decoded among 40 requests."""

    def run(s: Side) -> list[Any]:
        num, width = 40, (h.heads + 2 * h.kv_heads) * h.dim
        if not hasattr(s.ops, "_products"):
            return [np.ones(4)]
        table = np.arange(num * length, dtype=np.int32).reshape(num, length)
        kv = s.ops.kv_layers(1, num * length, h.kv_heads, h.dim)[0]
        still = {
            "cos": s.array(np.ones((length, h.dim // 2), np.float32)),
            "sin": s.array(np.zeros((length, h.dim // 2), np.float32)),
        }
        rows = []
        for i in range(num):
            qkv = s.hidden(s.values(length, width, seed=i))
            places = (s.array(np.arange(length, dtype=np.int32)), s.array(table[i]))
            s.ops.rope_store(qkv, kv, *places, s.rows(length), num_heads=h.heads, q_scale=h.dim**-0.5, **still)
            rows.append(s.read(qkv))
        last = [_attend(s, h, s.hidden(rows[0][-new:]), kv, table, ((new, length),), 0, 0.0)[-1] for new in (length, 9, 1)]
        together = s.hidden(np.stack([one[-1] for one in rows]))
        last.append(_attend(s, h, together, kv, table, ((1, length),) * num, 0, 0.0)[0])
        return [np.array([np.array_equal(one, last[0]) for one in last], float)]

    return run


def segments(heads: int, dim: int, lengths: tuple[int, ...]) -> Case:
    def run(s: Side) -> list[Any]:
        total = sum(lengths)
        qkv, out = s.array(s.values(total, 3 * heads * dim)), s.array(np.zeros((total, heads * dim), np.float32))
        starts = s.ints(0, *np.cumsum(lengths).tolist())
        s.ops.segment_attention(qkv, starts, out, begin=0, end=total, num_heads=heads, head_dim=dim, scale=dim**-0.5)
        return [s.read(out)]

    return run


def logits(op: str, rows: int, vocab: int) -> Case:
    def run(s: Side) -> list[Any]:
        host = s.rng(rows, vocab).standard_normal((rows, vocab), np.float32) * np.float32(4)
        x, words = s.array(host), -(-vocab // 32)
        ids, floats = np.zeros(rows, np.int32), np.zeros(rows, np.float32)
        if op == "adjust":
            ends = np.arange(rows + 1, dtype=np.int32) * 5
            which = s.rng(1).integers(0, vocab, 5 * rows).astype(np.int32)
            for i in range(rows):  # an id counts once in a row
                which[5 * i : 5 * i + 5] = s.rng(2, i).choice(vocab, 5, replace=False)
            s.ops.adjust(x, ends, which, np.full(5 * rows, 1.3, np.float32), np.full(5 * rows, -0.5, np.float32))
            return [s.read(x)]
        if op == "mask":
            bits = s.rng(3).integers(0, 1 << 32, (rows, words), np.uint32)
            s.ops.mask(x, np.arange(rows, dtype=np.int32), bits)
            return [np.maximum(s.read(x), -1e30)]
        if op == "argmax":
            s.ops.argmax(x, rows, ids)
            return [ids]
        if op == "log_sum_exp":
            s.ops.log_sum_exp(x, rows, floats)
            return [floats]
        if op == "top_k":
            best, values = np.zeros((rows, 20), np.int32), np.zeros((rows, 20), np.float32)
            s.ops.top_k(x, rows, 20, best, values)
            return [best, values]
        u = s.rng(4).random(rows, np.float32)
        mixed = [np.resize(np.array(v, t), rows) for v, t in (([0, 0.7, 1.3], "f4"), ([0, 40], "i4"), ([1, 0.9, 0.5], "f4"))]
        s.ops.sample(x, rows, *mixed, np.resize(np.array([0, 0.05], np.float32), rows), u, ids)
        return [ids]

    return run


# --- which cases --------------------------------------------------------------------------------------------------------------


def cases(tiny: bool) -> Iterator[tuple[str, Case]]:
    """(op and shape, case). `tiny`: what Triton's interpreter does in a few seconds."""
    formats = ("plain", "q4_1") if tiny else ("plain", "q8_0", "q4_1")
    for n, width in ((3, 96),) if tiny else ((1, 64), (33, 896), (300, 3584), (7, 8192)):
        yield f"rms_norm, layer_norm [{n}, {width}]", norm(n, width)
        yield f"gates, store, soft_cap [{n}, {width}]", elementwise(n, width)
        yield f"overlay, gather, blend, select_rope, rotate [{n}, {width}]", images(n, width)
    for fmt in formats:
        for rows, n, k in ((3, 32, 64),) if tiny else ((1, 3584, 3584), (5, 896, 4864), (64, 4608, 3584), (700, 1024, 1024)):
            yield f"linear {fmt} [{rows}, {k}] x [{k}, {n}]", linear(fmt, rows, n, k)
            yield f"gated_linear {fmt} [{rows}, {k}] x [{k}, {n}]", gated(fmt, rows, n, k, "silu" if n % 3 else "gelu_tanh")
        yield f"embedding {fmt}", embedding(fmt, 100, 64 if tiny else 3584)
    for n, k in ((40, 1024),) if tiny else ((4608, 3584), (896, 4864)):
        for fmt in NUM_SIZES:
            yield f"products of few rows, every size, {fmt} [{k}, {n}]", every_size(fmt, n, k)
    for rows, n, k in ((3, 32, 64),) if tiny else ((5, 3584, 1024), (64, 4608, 3584)):
        yield f"linear f8 [{rows}, {k}] x [{k}, {n}]", linear("f8", rows, n, k)
    yield from _attention_cases(tiny)
    for op in ("adjust", "mask", "argmax", "log_sum_exp", "top_k", "sample"):
        for rows, vocab in ((3, 515),) if tiny else ((1, 32000), (64, 151936), (9, 262208)):
            yield f"{op} [{rows}, {vocab}]", logits(op, rows, vocab)


def _attention_cases(tiny: bool) -> Iterator[tuple[str, Case]]:
    mixed = ((1, 40), (9, 33), (1, 1)) if tiny else ((1, 1500), (200, 700), (1, 17), (33, 33), (1, 129), (16, 2000))
    shapes = [Heads(4, 2, 16)] if tiny else [Heads(28, 4, 128), Heads(9, 3, 64), Heads(8, 8, 80), Heads(4, 1, 256)]
    for h in shapes:
        name = f"{h.heads}/{h.kv_heads} heads of {h.dim}"
        yield f"rope_store, attention {name}", attention(h, mixed)
        yield f"attention, window and soft cap {name}", attention(h, mixed, window=13 if tiny else 512, cap=20.0)
    if not tiny:
        yield "same bits: attention 28/4 heads of 128", same_attention(shapes[0], 1500)
        for fmt in ("plain", "q4_1", "q8_0"):
            yield f"same bits: linear, gated_linear {fmt}", same_products(fmt, 4608, 3584)
    yield "segment_attention", segments(2, 16, (5, 1, 20)) if tiny else segments(16, 80, (300, 1, 1024, 64))


# --- the section --------------------------------------------------------------------------------------------------------------


def error_of(want: list[Any], got: list[Any]) -> float:
    """The relative error (of the norms) of the worst result, or a quarter of the largest difference over the largest value,
    whichever is more: no single value may stray far either."""
    worst = 0.0
    for a, b in zip(want, got, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        real = np.abs(a) < 1e29  # what a mask forbids is below that on both sides
        a, b = np.where(real, a, np.clip(a, -1, 1)), np.where(real | (np.abs(b) < 1e29), b, np.clip(b, -1, 1))
        difference = np.abs(a - b)
        if not np.isfinite(difference).all():
            return float("inf")
        norm = float(np.linalg.norm(difference)) / max(float(np.linalg.norm(a)), 1e-30)
        largest = float(difference.max(initial=0)) / max(float(np.abs(a).max(initial=0)), 1e-30)
        worst = max(worst, norm, largest / 4)
    return worst


TASK = tuple[str, int]
"""a type and the number of a case"""


def check_ops(device: str, tiny: bool, workers: int) -> Iterator[Finding]:
    """A finding for each case, type and mode. With `workers` above 1 so many processes share the cases: most of the time goes
    into compiling kernels and into the reference. What kills a process is one more finding."""
    types = ("float32", "bfloat16") if tiny else ("bfloat16", "float32", "float16")
    tasks = [(dtype, i) for dtype in types for i in range(len(list(cases(tiny))))]
    if workers > 1:
        yield from _share_out(tasks, device, tiny, workers)
        return
    checker = Checker(device, tiny)
    for task in tasks:
        yield from checker.check(task)


class Checker:
    """The op sets of one process, made as they are asked for."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.tiny = device, tiny
        self._cases = list(cases(tiny))
        self._made: dict[tuple[str, bool], Any] = {}

    def ops(self, dtype: str, deterministic: bool) -> Any:
        from sglang.srt.model.kernels.cuda.ops import create_cuda_ops

        key = dtype, deterministic
        if key not in self._made:
            self._made[key] = create_cuda_ops(self.device, dtype, deterministic=deterministic)
        return self._made[key]

    def check(self, task: TASK) -> Iterator[Finding]:
        """In both modes where they differ."""
        dtype, number = task
        name, case = self._cases[number]
        want = case(Side(ReferenceOps(), dtype))
        modes = (False, True) if any(word in name for word in ("linear", "attention")) and not self.tiny else (False,)
        modes = (True,) if name.startswith("same bits") else modes
        for deterministic in modes:
            yield {**finding_of(task, name, deterministic), **self._result(want, name, case, dtype, deterministic)}

    def _result(self, want: list[Any], name: str, case: Case, dtype: str, deterministic: bool) -> Finding:
        try:
            ops = self.ops(dtype, deterministic)
            error = error_of(want, case(Side(ops, dtype)))
        except Exception as problem:  # noqa: BLE001  one op that fails must not hide the others
            return {"ok": False, "problem": f"{type(problem).__name__}: {problem}"[:500]}
        bar = 0.0 if name.split()[0] in EXACT else BARS[dtype]
        if "f8" in name and "f8" in ops.formats:
            bar = F8_BAR
        return {"ok": error <= max(bar, 1e-9), "error": error, "bar": bar}


def finding_of(task: TASK, name: str, deterministic: bool = False) -> Finding:
    return {"op": name, "dtype": task[0], "deterministic": deterministic}


# --- several processes --------------------------------------------------------------------------------------------------------


def _work(answers: Any, tasks: list[TASK], device: str, tiny: bool) -> None:
    """Sends findings, and after each task whether the process can go on: an error of the device ends all it may do."""
    checker = Checker(device, tiny)
    for task in tasks:
        well = True
        for finding in checker.check(task):
            answers.send(finding)
            well = well and "CUDA error" not in finding.get("problem", "")
        answers.send(well)
        if not well:
            return


class Lane:
    """A process and the tasks that it still has to do."""

    def __init__(self, tasks: list[TASK], device: str, tiny: bool) -> None:
        self.tasks, self.given, self.well = tasks, (device, tiny), True
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.answers, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(theirs, self.tasks, *self.given), daemon=True)
        self.process.start()
        theirs.close()


def _share_out(tasks: list[TASK], device: str, tiny: bool, workers: int) -> Iterator[Finding]:
    names = [name for name, _ in cases(tiny)]
    lanes = [Lane(tasks[i::workers], device, tiny) for i in range(workers)]
    while lanes:
        ready = connection.wait([lane.answers for lane in lanes])
        for lane in [lane for lane in lanes if lane.answers in ready]:
            try:
                answer = lane.answers.recv()
            except EOFError:
                if lane.tasks and lane.well:
                    task = lane.tasks.pop(0)
                    yield {**finding_of(task, names[task[1]]), "ok": False, "problem": "the process died"}
                lane.well = True
                if lane.tasks:
                    lane.start()
                else:
                    lanes.remove(lane)
                continue
            if isinstance(answer, bool):
                lane.tasks.pop(0)
                lane.well = answer
            else:
                yield answer
