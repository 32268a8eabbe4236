"""Times the native kernels on a model's shapes with random weights, op by op, against what this machine can do.

    python benchmarks/kernels.py [--threads 2] [--isa avx512_vnni] [--format q4_1] [--shape smollm2-135m] [--repeats 20]
                                 [--kv-cache-dtype int8]

Steps: decode with 1, 16 and 64 requests, and the prefill of prompts; `1@4096` decodes after 4,096 tokens, `512@4096` is the end of such
a prompt. For each op: microseconds in a step (thread 0, its barrier
included; the best of the repeats for each op, so that a busy machine disturbs little), and its share of the limit that it is nearest to:
reading memory, dots of int8 or int4 weights, float32 FMAs. The limits are measured first, on this machine, with loops of several numbers
of independent chains; beside them stands how many instructions a cycle the best loop began. Most processors since 2013 begin two
(AVX-512: some one): where the figure is well below, another process had the core, and shares are too high.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sglang.srt.model.kernels.cpu import CpuOps
from sglang.srt.model.kernels.ops import AttentionMeta
from sglang.srt.model.kernels.packing import packed_bits
from sglang.srt.model.op_tape import OpTape
from sglang.srt.model.quant.formats import FORMATS, HostTensor


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


SHAPES = {
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 64, 49152),
    "llama-1b": Shape(16, 2048, 8192, 32, 8, 64, 128256),
    "gemma3-270m": Shape(18, 640, 2048, 4, 1, 256, 262144),
    "tiny": Shape(2, 64, 128, 4, 2, 16, 512),
}


def random_tensor(rng: np.random.Generator, fmt: str, n: int, k: int) -> HostTensor:
    """A matrix of plausible size in the given format, made of random bits with tame scales."""
    block = FORMATS[fmt]
    if fmt == "f32":
        return HostTensor("w", fmt, (n, k), rng.standard_normal((n, k), np.float32) * 0.05)
    if block.block_len == 1:
        values = (rng.standard_normal((n, k), np.float32) * 0.05).astype(np.float16)
        bits = values.view(np.uint16) if fmt == "f16" else (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return HostTensor("w", fmt, (n, k), bits)
    data = rng.integers(0, 256, (n, k // block.block_len, block.block_bytes), np.uint8)
    half = np.array([0.003, -0.02], np.float16).view(np.uint8)
    scale_at = {"q6_k": 208, "q3_k": 108, "q2_k": 80}.get(fmt, 0)
    if scale_at:
        data[..., scale_at : scale_at + 2] = half[:2]
        data[..., 82:84] = half[2:] if fmt == "q2_k" else data[..., 82:84]
    else:
        data[..., :2] = half[:2]
        if fmt in ("q4_1", "q5_1", "q4_k", "q5_k"):
            data[..., 2:4] = half[2:]
    return HostTensor("w", fmt, (n, k), data.reshape(n, -1))


LANES = {"avx512_vnni": 16, "avx2": 8}
"""values of 32 bits in a register; 4 elsewhere"""
KINDS = {"int8": 0, "float32": 1, "int4": 2}
"""`what` of csrc/kernels/limits.h; bf16 weights are multiplied by float32 FMAs, there are no kernels with bf16 dots"""
CYCLES, VARIANTS = 3, (0, 10, 20)


@dataclass(frozen=True)
class Limits:
    """Operations a second of all threads by kind, bytes a second that they read, and what the loops reached."""

    peaks: dict[str, float]
    bandwidth: float
    clock: float
    per_cycle: dict[str, float]

    def share(self, work: Work, seconds: float) -> str:
        """Of the limit that is nearest."""
        used = {f"of the {kind} peak": ops / self.peaks[kind] for kind, ops in work.ops.items()}
        used["of read bandwidth"] = work.num_bytes / self.bandwidth
        name = max(used, key=lambda each: used[each])
        return f"{used[name] / seconds:6.0%} {name}" if used[name] else ""


@dataclass
class Work:
    """Bytes that an op has to move, and operations it has to do, by kind."""

    num_bytes: float = 0.0
    ops: dict[str, float] = field(default_factory=dict)

    def add(self, num_bytes: float, kind: str | None = None, ops: float = 0.0) -> None:
        self.num_bytes += num_bytes
        if kind is not None:
            self.ops[kind] = self.ops.get(kind, 0.0) + ops


def measure_limits(ops: CpuOps, loops: int = 100_000, tries: int = 20) -> Limits:
    """The best of several tries each. A thread's peak counts as many times as there are threads."""
    no_cache_holds_it = ops.pack([HostTensor("w", "f16", (1 << 16, 1 << 11), np.zeros((1 << 16, 1 << 11), np.uint16))])
    bandwidth = max(ops.runtime.read_bandwidth(no_cache_holds_it, 1) for _ in range(9))
    clock = max(ops.runtime.peak(CYCLES, loops) for _ in range(tries))
    peaks = {
        name: max(ops.runtime.peak(kind + variant, loops) for _ in range(tries) for variant in VARIANTS)
        for name, kind in KINDS.items()
    }
    lanes = LANES.get(ops.runtime.isa, 4)
    a_step = {"float32": 2 * lanes, "int8": 8 * lanes, "int4": 8 * lanes}
    per_cycle = {name: peak / a_step[name] / clock if clock else 0.0 for name, peak in peaks.items()}
    return Limits({name: peak * ops.num_threads for name, peak in peaks.items()}, bandwidth, clock, per_cycle)


class Model:
    """The ops of a llama-like forward pass on static buffers, recorded once."""

    def __init__(self, ops: CpuOps, shape: Shape, fmt: str, max_rows: int, max_reqs: int, context_len: int) -> None:
        self.ops, self.shape, self.max_reqs = ops, shape, max_reqs
        rng = np.random.default_rng(0)
        s = shape
        qkv = (s.heads + 2 * s.kv_heads) * s.head_dim
        attn = s.heads * s.head_dim
        start = time.perf_counter()
        made: dict[tuple[int, int], HostTensor] = {}

        def tensor(n: int, k: int) -> HostTensor:
            if (n, k) not in made:
                made[n, k] = random_tensor(rng, fmt, n, k)
            return made[n, k]

        for n, k in ((qkv, s.hidden), (s.hidden, attn), (s.mlp, s.hidden), (s.hidden, s.mlp)):
            tensor(n, k)
        head = random_tensor(rng, fmt if FORMATS[fmt].block_len == 1 else "q8_0", s.vocab, s.hidden)
        made_s = time.perf_counter() - start
        start = time.perf_counter()
        self.layers = [
            (
                ops.pack([tensor(qkv, s.hidden)]),
                ops.pack([tensor(s.hidden, attn)]),
                ops.pack_gated(tensor(s.mlp, s.hidden), tensor(s.mlp, s.hidden)),
                ops.pack([tensor(s.hidden, s.mlp)]),
            )
            for _ in range(s.layers)
        ]
        self.head = ops.pack([head])
        self.weight_bytes = sum(w.num_bytes for layer in self.layers for w in layer) + self.head.num_bytes
        print(f"random weights {made_s:.2f} s, packed {self.weight_bytes / 1e6:.1f} MB in {time.perf_counter() - start:.3f} s")
        per_req = -(-context_len // 16) * 16
        self.kv = ops.kv_layers(s.layers, per_req * max_reqs, s.kv_heads, s.head_dim)

        def ints(n: int) -> np.ndarray:
            return np.zeros(n, np.int32)

        self.ids, self.positions, self.slots, self.rows = ints(max_rows), ints(max_rows), ints(max_rows), ints(1)
        self.head_idx, self.head_rows = ints(max_reqs), ints(1)
        runs = rng.permutation(per_req * max_reqs // 16).reshape(max_reqs, -1)
        table = (runs[:, :, None] * 16 + np.arange(16)).reshape(max_reqs, per_req).astype(np.int32)
        self.meta = AttentionMeta(ints(1), ints(max_reqs), ints(max_reqs), ints(max_reqs), ints(max_reqs), table)
        x = np.zeros((max_rows, s.hidden), np.float32)
        delta = np.zeros((max_rows, s.hidden), np.float32)
        qkv_rows = np.zeros((max_rows, qkv), np.float32)
        self.logits = np.zeros((max_reqs, s.vocab), np.float32)
        norm = np.ones(s.hidden, np.float32)
        angle = np.arange(per_req)[:, None] * 10000.0 ** (-np.arange(s.head_dim // 2) / (s.head_dim // 2))
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        acts = [ops.activation(max_rows, [w]) for w in self.layers[0]]
        last = ops.activation(max_reqs, [self.head])
        self.tape = OpTape()
        with self.tape.record(ops):
            ops.embedding(self.head, self.ids, x, self.rows)
            for i, (wqkv, wo, wgu, wdown) in enumerate(self.layers):
                ops.rms_norm(x, norm, acts[0], self.rows, eps=1e-5, delta=delta if i else None)
                ops.linear(wqkv, acts[0], qkv_rows, self.rows)
                ops.rope_store(
                    qkv_rows, self.kv[i], self.positions, self.slots, self.rows,
                    num_heads=s.heads, cos=cos, sin=sin, q_scale=s.head_dim**-0.5,
                )  # fmt: skip
                ops.attention(qkv_rows, self.kv[i], acts[1], self.meta, num_heads=s.heads)
                ops.linear(wo, acts[1], delta, self.rows)
                ops.rms_norm(x, norm, acts[2], self.rows, eps=1e-5, delta=delta)
                ops.gated_linear(wgu, acts[2], acts[3], self.rows, gate="silu")
                ops.linear(wdown, acts[3], delta, self.rows)
            ops.rms_norm(x, norm, last, self.head_rows, eps=1e-5, delta=delta, row_idx=self.head_idx)
            ops.linear(self.head, last, self.logits, self.head_rows)
        # linear ops in the order of the tape, for the shares
        self.linears = [w for layer in self.layers for w in layer] + [self.head]

    def set_step(self, batch: list[tuple[int, int]]) -> None:
        """batch: (new tokens, length after them) of each request."""
        row = 0
        for i, (new, length) in enumerate(batch):
            at = slice(row, row + new)
            self.ids[at] = 17 + i
            self.positions[at] = np.arange(length - new, length)
            self.slots[at] = self.meta.req_to_token[i, length - new : length]
            self.meta.req_pool_idx[i], self.meta.q_start[i] = i, row
            self.meta.q_len[i], self.meta.seq_lens[i] = new, length
            row += new
            self.head_idx[i] = row - 1
        self.rows[0], self.meta.num_reqs[0], self.head_rows[0] = row, len(batch), len(batch)


def work_of(model: Model, name: str, batch: list[tuple[int, int]], weight: Any, kind: str) -> Work:
    """What one op of a step has to do. `weight`: of linear layers; `kind`: of their operations."""
    s, work = model.shape, Work()
    rows = sum(new for new, _ in batch)
    hidden = 4.0 * rows * s.hidden
    qkv = 4.0 * rows * (s.heads + 2 * s.kv_heads) * s.head_dim
    if weight is not None:
        n = len(batch) if weight is model.head else rows
        work.add(weight.num_bytes, kind, 2.0 * n * weight.in_features * weight.out_features)
    elif name == "attention":
        positions = sum(new * (length - new) + new * (new + 1) / 2 for new, length in batch)
        kept = float(sum(length for _, length in batch) * model.ops.kv_bytes_per_token(s.kv_heads, s.head_dim))
        work.add(kept + 4.0 * rows * s.heads * s.head_dim, "float32", 4.0 * positions * s.heads * s.head_dim)
    elif name == "rms_norm":
        work.add(3 * hidden)
    elif name == "rope_store":
        work.add(2 * qkv)
    elif name == "embedding":
        work.add(2 * hidden)
    return work


def measure(model: Model, title: str, batch: list[tuple[int, int]], repeats: int, limits: Limits, kind: str) -> None:
    model.set_step(batch)
    model.tape.replay()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        model.tape.replay()
        times.append(time.perf_counter() - start)
    rows = sum(new for new, _ in batch)
    best, median = min(times), sorted(times)[len(times) // 2]
    profiles = []
    for _ in range(repeats):
        model.tape.clear_profile()
        start = time.perf_counter()
        profiles.append(model.tape.profile())
        unit = (time.perf_counter() - start) / sum(t for _, t in profiles[-1]) * 1e6
    # Each op's best: on a shared machine all else measures CPU contention.
    profile = [(ops[0][0], min(ticks for _, ticks in ops)) for ops in zip(*profiles, strict=True)]
    print(f"\n{title}: best {best * 1e3:.2f} ms, median {median * 1e3:.2f} ms, {rows / median:.0f} rows/s")
    totals: dict[str, float] = defaultdict(float)
    work: dict[str, Work] = {}
    linear = iter(model.linears)
    for name, spent in profile:
        weight = next(linear) if name in ("linear", "gated_linear") else None
        label = name if weight is None else f"{name} {weight.in_features}->{weight.out_features}"
        totals[label] += spent * unit
        mine = work_of(model, name, batch, weight, "int8" if weight is model.head and kind == "int4" else kind)
        whole = work.setdefault(label, Work())
        whole.add(mine.num_bytes)
        for each, count in mine.ops.items():
            whole.add(0.0, each, count)
    for label, us in sorted(totals.items(), key=lambda item: -item[1]):
        print(f"  {label:28} {us:9.0f} us {limits.share(work[label], us * 1e-6)}")


def first_touch(ops: CpuOps, megabytes: int = 128) -> float:
    """Seconds that the system takes to bring 2 MB of K and V that nobody has written to yet, the median."""
    slot_bytes = ops.kv_bytes_per_token(4, 64)
    piece = (2 << 20) // slot_bytes
    layers, took = ops.kv_layers(1, (megabytes // 2) * piece, 4, 64), []
    for start in range(0, (megabytes // 2) * piece, piece):
        begun = time.perf_counter()
        ops.touch_kv(layers, start, start + piece)
        took.append(time.perf_counter() - begun)
    return float(np.median(took))


def read_step(step: str) -> tuple[str, list[tuple[int, int]]]:
    """`64`, `1024`, `1@4096` or `512@4096` to a title and (new tokens, length after them) of each request."""
    count, _, length = step.partition("@")
    n = int(count)
    if n < 128:
        return f"decode, {n} requests, {length or 192} tokens each", [(1, int(length or 192))] * n
    if length and int(length) < n:
        raise SystemExit(f"{step}: the length must be at least {n}")
    return f"prompt of {length}, its last {n}" if length else f"prompt of {n}", [(n, int(length or n))]


def kind_of(fmt: str) -> str:
    """The operations of a format's kernels."""
    bits = packed_bits(fmt)
    return "int4" if bits == 5 else "int8" if bits == 8.5 else "float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--isa")
    parser.add_argument("--format", default="q4_1", choices=sorted(FORMATS))
    parser.add_argument("--shape", default="smollm2-135m", choices=sorted(SHAPES))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--kv-cache-dtype", default="float16", choices=("float16", "int8", "fp8_e4m3"))
    parser.add_argument(
        "--steps", default="1,16,64,128,1024", help="requests that decode; 128 and more: a prompt's length; N@LENGTH"
    )
    args = parser.parse_args()
    ops = CpuOps(args.threads, args.isa, kv_form=args.kv_cache_dtype)
    print(f"{ops.name}, {ops.num_threads} threads")
    steps = [read_step(step) for step in args.steps.split(",")]
    num_rows, num_reqs = max(sum(new for new, _ in batch) for _, batch in steps), max(len(batch) for _, batch in steps)
    model = Model(
        ops, SHAPES[args.shape], args.format, num_rows, num_reqs, max(length for _, batch in steps for _, length in batch)
    )
    limits = measure_limits(ops)
    print(f"reads {limits.bandwidth / 1e9:.1f} GB/s; {limits.clock / 1e9:.2f} GHz")
    for name, peak in limits.peaks.items():
        print(f"{name} peak {peak / 1e9:.0f} G operations/s, {limits.per_cycle[name]:.2f} steps of a register a cycle")
    print(f"2 MB of K and V come in {first_touch(ops) * 1e3:.2f} ms")
    for title, batch in steps:
        measure(
            model, title, batch, args.repeats if batch[0][0] == 1 else max(3, args.repeats // 4), limits, kind_of(args.format)
        )


if __name__ == "__main__":
    main()
