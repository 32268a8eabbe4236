"""What adapters cost: processor time of decode steps with and without them, in interleaved pairs.

    .venv-test/bin/python -m benchmarks.adapters [--rounds 12] [--steps 24] [--threads 1]

On the default model, adapters of rank 16 on all matrices: one request with one adapter, and sixteen with eight, against the same requests of
the base model. "beside" is the base's part: a step of eight base and eight adapted requests against the mean of sixteen of each kind.
Times are of the process (user and system), so that what else runs on the machine counts little; the least of the rounds is shown.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np

from sglang.srt.checkpoint.resolve import resolve_model
from sglang.srt.config import DEFAULT_MODEL, AdapterOptions, MemoryOptions, ModelOptions
from sglang.srt.forward_batch import ForwardBatch, SampleSpec
from sglang.srt.model.kernels.cpu import CpuOps
from sglang.srt.model.kernels.low_rank import LowRank
from sglang.srt.model.weights.loader import load_checkpoint
from sglang.srt.model.worker import LocalWorker, worker_from
from sglang.srt.sampling_params import SamplingParams

RANK, NUM_ADAPTERS, PROMPT_LEN = 16, 8, 64


def open_worker(threads: int) -> LocalWorker:
    """The default model with eight random adapters in its slots."""
    ops = CpuOps(threads)
    checkpoint = load_checkpoint(resolve_model(DEFAULT_MODEL), ModelOptions(DEFAULT_MODEL))
    memory = MemoryOptions(max_total_tokens=8192, max_running_requests=16, chunked_prefill_size=1024)
    options = AdapterOptions(max_loras_per_batch=NUM_ADAPTERS, max_rank=RANK, at_run_time=True)
    worker = worker_from(checkpoint, checkpoint.config, ops, memory, adapters=options)
    rng = np.random.default_rng(0)
    for site in worker._model.readers.sites:
        assert site.bank is not None
        for slot in range(NUM_ADAPTERS):
            parts = [
                LowRank(
                    rng.standard_normal((RANK, site.in_features), np.float32), rng.standard_normal((n, RANK), np.float32), 1e-3
                )
                for n in site.widths
            ]
            ops.place_adapter(site.bank, slot, ops.pack_adapter(site.bank, parts))
    return worker


class Steps:
    """Decode steps of sixteen requests that have read their prompts."""

    def __init__(self, worker: LocalWorker) -> None:
        self._worker = worker
        self._table = np.zeros((16, worker.info.context_len), np.int32)
        worker.bind(self._table)
        rng = np.random.default_rng(1)
        for row in range(16):
            self._table[row, :256] = np.arange(row * 256, row * 256 + 256)
            self._run([row], [PROMPT_LEN], [0], rng.integers(10, 40000, PROMPT_LEN).astype(np.int32), None)

    def _run(self, rows: list[int], lengths: list[int], starts: list[int], ids: Any, slots: list[int] | None) -> None:
        positions = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]).astype(np.int32)
        owners = np.repeat(rows, lengths)
        ends = np.cumsum(lengths).astype(np.int32)
        batch = ForwardBatch(
            ids, positions, self._table[owners, positions], np.array(rows, np.int32), ends - np.array(lengths, np.int32),
            np.array(lengths, np.int32), (np.array(starts) + lengths).astype(np.int32), ends - 1,
            [SampleSpec(SamplingParams(temperature=0.0), 0, [1], []) for _ in rows],
        )  # fmt: skip
        batch.row_adapter = None if slots is None else np.repeat(slots, lengths).astype(np.int32)
        self._worker.forward(batch)
        self._worker.sample(batch, None)

    def seconds(self, num_reqs: int, slots: list[int] | None, num_steps: int) -> float:
        """Processor time of a step."""
        rows, ids = list(range(num_reqs)), np.full(num_reqs, 1000, np.int32)
        began = time.process_time()
        for step in range(num_steps):
            self._run(rows, [1] * num_reqs, [PROMPT_LEN + step % 64] * num_reqs, ids, slots)
        return (time.process_time() - began) / num_steps


CASES: dict[str, tuple[int, list[int] | None]] = {
    "1 request, base": (1, None),
    "1 request, 1 adapter": (1, [0]),
    "16 requests, base": (16, None),
    "16 requests, 8 adapters": (16, [i % NUM_ADAPTERS for i in range(16)]),
    "16 requests, 1 adapter": (16, [0] * 16),
    "16 requests, half base": (16, [-1 if i % 2 else i // 2 for i in range(16)]),
}
PAIRS = (
    ("1 request, 1 adapter", "1 request, base"),
    ("16 requests, 8 adapters", "16 requests, base"),
    ("16 requests, 1 adapter", "16 requests, base"),
    ("16 requests, half base", "16 requests, base"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Processor time of steps with adapters, beside that of the base model.")
    parser.add_argument("--rounds", type=int, default=12, help="how often each case is measured, in turn (default: 12)")
    parser.add_argument("--steps", type=int, default=24, help="steps of a measurement (default: 24)")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads; waiting counts as time where there are more (default: 1)"
    )
    args = parser.parse_args()
    steps = Steps(open_worker(args.threads))
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(args.rounds + 1):  # the first warms up
        for name, (num_reqs, slots) in CASES.items():
            times[name].append(steps.seconds(num_reqs, slots, args.steps))
    for name, found in times.items():
        print(f"{name:26}{1e3 * min(found[1:]):8.3f} ms a step (median {1e3 * float(np.median(found[1:])):.3f})")
    for adapted, base in PAIRS:
        ratios = [a / b for a, b in zip(times[adapted][1:], times[base][1:], strict=True)]
        least = min(times[adapted][1:]) / min(times[base][1:])
        print(f"{adapted:26}{least:8.3f} x {base} (median of pairs {float(np.median(ratios)):.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
