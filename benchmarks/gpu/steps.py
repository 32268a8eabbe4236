"""Single steps of the 7B shape against what the machine can do: decode at several batch sizes, prefill, the host's gap.

The limit of a step is the larger of two times: its bytes (weights once, the KV that it reads) over the measured copy bandwidth,
its floating point operations over the measured matmul rate.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.serving import Driven
from benchmarks.gpu.shapes import QWEN25_7B, tiny_of, write_model
from sglang.srt.config import DeviceOptions, MemoryOptions, ModelOptions
from sglang.srt.forward_batch import ForwardBatch, SampleSpec
from sglang.srt.model.kernels.cuda.linear import Products
from sglang.srt.model.worker import LocalWorker, create_worker
from sglang.srt.sampling_params import SamplingParams

Wait = Callable[[], Any]


@dataclass(frozen=True)
class Sizes:
    """`batches` decode at `context` tokens; `prompts` of `context_prefill` tokens are computed `together` at a time."""

    batches: tuple[int, ...]
    context: int
    prompts: int
    prompt_len: int
    together: int
    repeats: int
    gap_batch: int
    shared_reqs: int
    per: int = 10
    """steps that are enqueued back to back"""


FULL = Sizes((1, 64, 256), 1024, 8, 4096, 2, 30, 32, 64)
SMALL = Sizes((1, 3), 24, 2, 24, 1, 1, 2, 3, 1)


class Bench:
    """A worker, its table of slots, and steps over it. `bits` of a weight: of the layers', of the head's."""

    def __init__(self, worker: LocalWorker, config: dict[str, Any], sizes: Sizes, bits: tuple[float, float]) -> None:
        self.worker, self.config, self.sizes, self.bits = worker, config, sizes, bits
        self.table = np.zeros((worker.info.max_running_requests, worker.info.context_len), np.int32)

    def bind(self) -> None:
        """Takes the worker for single steps."""
        self.worker.bind(self.table)

    def use_fixed_order(self) -> None:
        """Deterministic mode from here on, on the same weights: they are packed alike in both modes, but for float8."""
        ops: Any = self.worker.ops
        ops.deterministic = ops._attention._deterministic = True
        ops._products = Products(ops.device, ops.dtype, True, ops._early)
        self.bind()

    @property
    def fetch_all(self) -> Callable[[], None]:
        """Waits until the device has nothing left to do."""
        ops: Any = self.worker.ops
        nothing = ops.empty((1,), "int32")
        return lambda: ops.fetch(nothing).result()

    def params(self) -> tuple[int, int]:
        """(multiplied by every row, of the head)."""
        c = self.config
        hidden, head_dim = c["hidden_size"], c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
        attention = hidden * head_dim * (2 * c["num_attention_heads"] + 2 * c["num_key_value_heads"])
        return c["num_hidden_layers"] * (attention + 3 * hidden * c["intermediate_size"]), c["vocab_size"] * hidden

    def lay_out(self, num_reqs: int, length: int) -> None:
        """Slots for so many sequences, run by run."""
        width = -(-length // 16) * 16
        for i in range(num_reqs):
            self.table[i, : min(width, self.table.shape[1])] = np.arange(i * width, i * width + width)[: self.table.shape[1]]

    def decode_batch(self, num_reqs: int, length: int, specs: list[SampleSpec]) -> ForwardBatch:
        """Everyone's token at position length - 1; ids are those sampled last."""
        every = np.arange(num_reqs, dtype=np.int32)
        positions = np.full(num_reqs, length - 1, np.int32)
        return ForwardBatch(
            input_ids=np.full(num_reqs, 5, np.int32),
            positions=positions,
            out_cache_loc=self.table[every, positions],
            req_pool_idx=every,
            q_start=every,
            q_len=np.ones(num_reqs, np.int32),
            seq_lens=positions + np.int32(1),
            sample_rows=every,
            samples=specs,
            previous=every,
        )

    def prefill_batch(self, num_reqs: int, length: int, specs: list[SampleSpec]) -> ForwardBatch:
        every = np.arange(num_reqs, dtype=np.int32)
        positions = np.tile(np.arange(length, dtype=np.int32), num_reqs)
        rows = np.repeat(every, length)
        return ForwardBatch(
            input_ids=(positions * 7 + rows) % np.int32(self.config["vocab_size"]),
            positions=positions,
            out_cache_loc=self.table[rows, positions],
            req_pool_idx=every,
            q_start=every * np.int32(length),
            q_len=np.full(num_reqs, length, np.int32),
            seq_lens=np.full(num_reqs, length, np.int32),
            sample_rows=every * np.int32(length) + np.int32(length - 1),
            samples=specs,
        )

    def seconds(self, run: Callable[[], Wait], repeats: int, per: int) -> float:
        """Of one run: median over `repeats` of `per` runs enqueued back to back."""
        sync, found = self.fetch_all, []
        for i in range(repeats + 1):
            sync()
            began = time.perf_counter()
            for _ in range(per):
                run()
            sync()
            if i:
                found.append((time.perf_counter() - began) / per)
        return statistics.median(found)

    def enqueue(self, batch: ForwardBatch) -> Wait:
        self.worker.forward(batch)
        return self.worker.begin_sample(batch, None)


def memory_for(s: Sizes) -> MemoryOptions:
    each = -(-(s.context + 1) // 16) * 16
    reqs = max(*s.batches, s.gap_batch)
    # requests of `shared_prefix` without its cache, and some room
    tokens = max(reqs * each, s.together * s.prompt_len + 16, (s.shared_reqs + 1) * (s.prompt_len + 80))
    chunk = s.together * s.prompt_len
    return MemoryOptions(max_total_tokens=-(-tokens // 16) * 16, max_running_requests=reqs, chunked_prefill_size=chunk)


def open_bench(device: str, kernels: str, tiny: bool, graphs: bool, folder: Path) -> Bench:
    """The 7B shape in its own type."""
    sizes, config = (SMALL, tiny_of(QWEN25_7B)) if tiny else (FULL, QWEN25_7B)
    memory = memory_for(sizes)
    graph_max = (memory.max_running_requests or 0) if graphs else 0
    worker = create_worker(
        ModelOptions(str(write_model(folder / "7b", config)), load_format="dummy"),
        DeviceOptions(device=device, kernels=kernels, graph_max_reqs=graph_max),  # type: ignore[arg-type]
        memory,
    )
    bits = 16 if config["dtype"] == "bfloat16" else 32
    return Bench(worker, config, sizes, (bits, bits))


def specs_of(num: int) -> list[SampleSpec]:
    return [SampleSpec(SamplingParams(temperature=0.0), i, [1], []) for i in range(num)]


def decode(bench: Bench, machine: dict[str, float], num_reqs: int) -> dict[str, Any]:
    """One decode step, device time: steps follow each other without waiting for ids."""
    s = bench.sizes
    bench.lay_out(num_reqs, s.context)
    batch = bench.decode_batch(num_reqs, s.context, specs_of(num_reqs))
    bench.enqueue(bench.decode_batch(num_reqs, s.context, batch.samples))()
    took = bench.seconds(lambda: bench.enqueue(batch), s.repeats, s.per)
    body, head = bench.params()
    c = bench.config
    head_dim = c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
    num_bytes = (body * bench.bits[0] + head * bench.bits[1]) / 8 + num_reqs * s.context * bench.worker.info.kv_bytes_per_token
    flops = 2 * num_reqs * (body + head)
    flops += 4 * num_reqs * s.context * c["num_hidden_layers"] * c["num_attention_heads"] * head_dim
    limits = num_bytes / machine["copy_bytes_per_s"], flops / machine["matmul_flops_per_s"]
    return {
        "batch": num_reqs,
        "context": s.context,
        "step_ms": took * 1e3,
        "tokens_per_s": num_reqs / took,
        "limit_ms": max(limits) * 1e3,
        "limited_by": "bytes" if limits[0] >= limits[1] else "flops",
        "share_of_limit": max(limits) / took,
    }


def prefill(bench: Bench, machine: dict[str, float]) -> dict[str, Any]:
    """All prompts, `together` at a time."""
    s = bench.sizes
    bench.lay_out(s.together, s.prompt_len)
    batch = bench.prefill_batch(s.together, s.prompt_len, specs_of(s.together))
    took = bench.seconds(lambda: bench.enqueue(batch), max(2, s.repeats // 6), s.prompts // s.together)
    took *= s.prompts // s.together
    body, head = bench.params()
    c = bench.config
    head_dim = c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
    attention = 2 * c["num_hidden_layers"] * c["num_attention_heads"] * head_dim * s.prompt_len**2  # half of all pairs
    flops = s.prompts * (2 * s.prompt_len * body + 2 * head + attention)
    return {
        "prompts": s.prompts,
        "prompt_len": s.prompt_len,
        "seconds": took,
        "tokens_per_s": s.prompts * s.prompt_len / took,
        "tflops": flops / took / 1e12,
        "share_of_matmul_rate": flops / took / machine["matmul_flops_per_s"],
    }


def profiles(bench: Bench) -> Iterator[dict[str, Any]]:
    """What one step of each kind spends in each kernel, as the profiler sees it; nothing where there is no GPU. `idle_us`: between
    the first kernel's begin and the last one's end, but in none of them."""
    import torch

    s = bench.sizes
    if bench.worker.ops.device.type != "cuda":  # type: ignore[attr-defined]
        return
    for num_reqs in s.batches:
        bench.lay_out(num_reqs, s.context)
        decoded = bench.decode_batch(num_reqs, s.context, specs_of(num_reqs))
        yield {"step": f"decode, batch {num_reqs}", **_profile(torch, partial(bench.enqueue, decoded))}
    bench.lay_out(s.together, s.prompt_len)
    prompts = bench.prefill_batch(s.together, s.prompt_len, specs_of(s.together))
    yield {"step": f"prefill, {s.together} x {s.prompt_len}", **_profile(torch, partial(bench.enqueue, prompts))}


def _profile(torch: Any, run: Callable[[], Wait]) -> dict[str, Any]:
    run()()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()()
        torch.cuda.synchronize()
    spans = [(e.time_range.start, e.time_range.end, e.name) for e in profile.events() if e.device_type.name == "CUDA"]
    by_name: dict[str, list[float]] = {}
    busy = reached = 0.0
    for begin, end, name in sorted(spans):
        by_name.setdefault(name[:60], []).append(end - begin)
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    most = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    whole = reached - min(spans)[0] if spans else 0.0
    kernels = [{"name": name, "launches": len(took), "us": round(sum(took), 1)} for name, took in most]
    return {"us": whole, "idle_us": whole - busy, "kernels": kernels}


def scheduler_gap(bench: Bench) -> dict[str, Any]:
    """How much longer a decode step takes under the whole scheduler than on the device alone, same batch and lengths. Binds the
    worker."""
    s = bench.sizes
    new, n = (64, s.gap_batch) if s is FULL else (4, s.gap_batch)
    start = s.context - new
    prompts = [[(i * 31 + j) % 190 + 5 for j in range(start)] for i in range(n)]
    step = Driven(bench.worker).decode_seconds(prompts, new)
    bench.bind()
    middle = start + new // 2
    bench.lay_out(n, s.context)
    batch = bench.decode_batch(n, middle, specs_of(n))
    alone = bench.seconds(lambda: bench.enqueue(batch), max(2, s.repeats // 3), s.per)
    return {"batch": n, "step_ms": step * 1e3, "device_ms": alone * 1e3, "gap_share": max(0.0, 1 - alone / step)}
