"""What the prefix cache on disk saves after a restart, and what writing it costs.

    .venv-test/bin/python -m benchmarks.prefix_disk [--layers 24] [--quantization int8] [--threads 1] [--prompt 2048]
                                                  [--repeats 5] [--parts restart writing]

Without --layers the default model; with it, as many layers of the shape of SmolLM2-1.7B with random weights.

restart   one engine writes prompts and ends; another one answers them, and prompts that nobody has seen, in turn: first token from the
          files over first token computed, by the clock and by the processor time of the process. `cold`: the files are not in the page
          cache (posix_fadvise)
writing   four requests decode while four prompts are asked for twice, which has them written: processor time of all of it with writing
          over that without, in turn
idle      processor time of the second after that, in per cent of one core
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.draft_model import SHAPE, show
from benchmarks.watched_engine import WatchedEngine
from sglang.srt.config import DEFAULT_MODEL
from sglang.srt.scheduler.cache.disk.store import RETRY_SECONDS, RecordStore

LOWEST_ID, HIGHEST_ID = 1000, 40000
NUM_DECODING, NUM_NEW, NUM_ASKED, ASKED_LEN = 4, 96, 4, 256
WAIT_SECONDS = 120.0
SETTLE_SECONDS = 0.5


class Watched(WatchedEngine):
    @property
    def store(self) -> RecordStore:
        store: RecordStore = self.scheduler._restoring._tier.store
        return store


def prompt(seed: str, length: int) -> list[int]:
    return random.Random(seed).choices(range(LOWEST_ID, HIGHEST_ID), k=length)


def timed(engine: Watched, ids: list[int]) -> tuple[float, float, int]:
    """Processor time and seconds to the first token, and how much of the prompt was cached."""
    cpu, clock = time.process_time(), time.perf_counter()
    meta = engine.generate(input_ids=ids, sampling_params={"max_new_tokens": 1, "temperature": 0})["meta_info"]
    return time.process_time() - cpu, time.perf_counter() - clock, meta["cached_tokens"]


def wait_written(engine: Watched, num: int) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while engine.store.num_written < num and time.monotonic() < until:
        time.sleep(0.01)


def drop_pages(folder: Path) -> None:
    """The files leave the page cache, as far as the system heeds that."""
    for path in folder.glob("*/*.kv"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def restart(flags: dict[str, Any], folder: Path, length: int, repeats: int) -> None:
    engine = Watched(**flags)
    names = [f"{kind} {i}" for kind in ("cached", "cold") for i in range(repeats)]
    for name in names:
        for _ in range(2):  # the second request has it written
            timed(engine, prompt(name, length))
    wait_written(engine, len(names) * ((length - 1) // 16))
    engine.shutdown()
    engine = Watched(**flags)
    timed(engine, prompt("warm up", length))
    ratios: dict[str, list[float]] = {}
    for i in range(repeats):
        computed_cpu, computed, cached = timed(engine, prompt(f"new {i}", length))
        assert cached == 0
        for kind in ("cached", "cold"):
            if kind == "cold":
                drop_pages(folder)
            cpu, clock, cached = timed(engine, prompt(f"{kind} {i}", length))
            assert cached >= (length - 1) // 16 * 16, f"{cached} of {length} tokens came from the disk"
            ratios.setdefault(f"{kind}, by the clock", []).append(clock / computed)
            ratios.setdefault(f"{kind}, by processor", []).append(cpu / computed_cpu)
    engine.shutdown()
    for name, found in ratios.items():
        print(show(f"restart, {length} tokens: {name}", found), flush=True)


def load(engine: Watched, name: str) -> float:
    """Processor time of requests that decode, and of others whose prompts are asked for twice."""
    engine.flush_cache()
    asked = [prompt(f"{name} asked {i}", ASKED_LEN) for i in range(NUM_ASKED)]
    stream = [prompt(f"{name} stream {i}", 16) for i in range(NUM_DECODING)]
    one = {"max_new_tokens": 1, "temperature": 0}
    params = [{"max_new_tokens": NUM_NEW, "temperature": 0, "ignore_eos": True}] * NUM_DECODING + [one] * NUM_ASKED
    cpu = time.process_time()
    engine.generate(input_ids=asked, sampling_params=one)
    engine.generate(input_ids=stream + asked, sampling_params=params)
    time.sleep(SETTLE_SECONDS)  # what is being written counts
    return time.process_time() - cpu


def writing(flags: dict[str, Any], repeats: int) -> None:
    engine = Watched(**flags, speculative_algorithm="none")
    load(engine, "warm up")
    ratios = []
    for i in range(repeats):
        took = {}
        for writes in (True, False) if i % 2 else (False, True):
            engine.store._retry_at = 0.0 if writes else time.monotonic() + 10 * RETRY_SECONDS
            before = engine.store.num_written
            took[writes] = load(engine, f"{writes} {i}")
            assert (engine.store.num_written - before >= NUM_ASKED * (ASKED_LEN // 16 - 1)) == writes
        ratios.append(took[True] / took[False])
    print(show(f"writing {NUM_ASKED} prompts of {ASKED_LEN} tokens: processor time over that without", ratios), flush=True)
    cpu = time.process_time()
    time.sleep(1.0)
    print(f"idle afterwards: {100 * (time.process_time() - cpu):.1f} % of a core", flush=True)
    engine.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--quantization", choices=("int8", "int4"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--parts", nargs="+", choices=("restart", "writing"), default=["restart", "writing"])
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "cache")
        flags: dict[str, Any] = {"model_path": DEFAULT_MODEL, "cache_dir": str(folder), "cache_disk": 16 << 30}
        if args.layers:
            model = Path(name, "model")
            model.mkdir()
            (model / "config.json").write_text(json.dumps({**SHAPE, "num_hidden_layers": args.layers}))
            flags |= {"model_path": str(model), "load_format": "dummy", "skip_tokenizer_init": True}
        flags |= {
            "random_seed": 1,
            "threads": args.threads,
            "quantization": args.quantization,
            "weights_cache": "off",
            "max_total_tokens": max(4 * args.prompt, 8192),
        }
        if "restart" in args.parts:
            restart(flags, folder, args.prompt, args.repeats)
        if "writing" in args.parts:
            writing(flags, args.repeats)


if __name__ == "__main__":
    main()
