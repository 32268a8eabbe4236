"""What adapters cost: processor time of decode steps with and without them, in interleaved pairs.

    .venv-test/bin/python -m benchmarks.adapters [--rounds 12] [--steps 24] [--threads 1] [--layers 24]

On the default model, or with --layers on random int4 weights of SmolLM2-1.7B's shape, adapters of rank 16 on all matrices: one request with one adapter, and sixteen with eight, against the same requests of
the base model. "beside" is the base's part: a step of eight base and eight adapted requests against the mean of sixteen of each kind.
With --llama-cpp FOLDER, an environment that has llama-cpp-python, its steps are measured in turn with ours, on GGUF adapters of the same
shapes (those of 8 adapters are a call each there). Times are of the process (user and system), so that what else runs on the machine counts little; the least of the rounds is shown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.draft_model import SHAPE
from sglang.srt.checkpoint.resolve import resolve_model
from sglang.srt.config import DEFAULT_MODEL, AdapterOptions, MemoryOptions, ModelOptions
from sglang.srt.forward_batch import ForwardBatch, SampleSpec
from sglang.srt.model.kernels.cpu import CpuOps
from sglang.srt.model.kernels.low_rank import LowRank
from sglang.srt.model.weights.loader import Checkpoint, load_checkpoint
from sglang.srt.model.worker import LocalWorker, worker_from
from sglang.srt.sampling_params import SamplingParams

RANK, NUM_ADAPTERS, PROMPT_LEN = 16, 8, 64


def open_model(layers: int) -> Checkpoint:
    """The default model; with `layers` the shape of the 1.7B one with so many."""
    if not layers:
        return load_checkpoint(resolve_model(DEFAULT_MODEL), ModelOptions(DEFAULT_MODEL))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({**SHAPE, "num_hidden_layers": layers}))
        return load_checkpoint(resolve_model(folder), ModelOptions(folder, load_format="dummy", quantization="int4"))


def open_worker(threads: int, layers: int = 0) -> LocalWorker:
    """A model with eight random adapters in its slots."""
    ops = CpuOps(threads)
    checkpoint = open_model(layers)
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


def write_gguf(path: Path, checkpoint: Checkpoint, seed: int) -> None:
    """An adapter for the default model as llama.cpp reads it."""
    import gguf

    config, rng = checkpoint.config, np.random.default_rng(seed)
    hidden, inner, kv = config.hidden_size, config.intermediate_size, config.num_kv_heads * config.head_dim
    shapes = {"attn_q": (hidden, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden), "attn_output": (hidden, hidden)}
    shapes |= {"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1e-3)
    for layer in range(config.num_layers):
        for name, (rows, width) in shapes.items():
            for side, shape in (("a", (RANK, width)), ("b", (rows, RANK))):
                writer.add_tensor(f"blk.{layer}.{name}.weight.lora_{side}", rng.standard_normal(shape).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compare(steps: Steps, environment: Path, rounds: int, num_steps: int, threads: int) -> None:
    """Prints llama.cpp's steps beside ours."""
    ours: dict[str, tuple[int, list[int] | None]] = {"base": (1, None), "one": (1, [0]), "each": (8, list(range(8)))}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.gguf" for i in range(NUM_ADAPTERS)]
        for i, path in enumerate(paths):
            write_gguf(path, open_model(0), i)
        model = str(resolve_model(DEFAULT_MODEL).path)
        command = [str(environment / "bin" / "python"), "-m", "benchmarks.drivers.adapters_llama_cpp", model, str(threads)]
        ratios: dict[str, list[float]] = {name: [] for name in ours}
        with subprocess.Popen([*command, *map(str, paths)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
            assert peer.stdin is not None and peer.stdout is not None
            for _ in range(rounds + 1):
                mine = {name: steps.seconds(*case, num_steps) for name, case in ours.items()}
                peer.stdin.write(f"{num_steps}\n")
                peer.stdin.flush()
                theirs = json.loads(peer.stdout.readline())
                for name in ours:
                    ratios[name].append(theirs[name] / mine[name])
            peer.stdin.close()
    for name, found in ratios.items():
        print(
            f"llama.cpp's time over ours, {name:6}{float(np.median(found[1:])):6.2f} ({min(found[1:]):.2f} to {max(found[1:]):.2f})"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Processor time of steps with adapters, beside that of the base model.")
    parser.add_argument("--rounds", type=int, default=12, help="how often each case is measured, in turn (default: 12)")
    parser.add_argument("--steps", type=int, default=24, help="steps of a measurement (default: 24)")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads; waiting counts as time where there are more (default: 1)"
    )
    parser.add_argument("--layers", type=int, default=0, help="of the 1.7B shape, which has 24; default: the default model")
    parser.add_argument("--llama-cpp", type=Path, metavar="FOLDER", help="an environment with it: its steps beside ours, alone")
    args = parser.parse_args()
    steps = Steps(open_worker(args.threads, args.layers))
    if args.llama_cpp is not None:
        compare(steps, args.llama_cpp, args.rounds, args.steps, args.threads)
        return 0
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
