"""The cost of Python: the time of a decode step through the whole engine over the time of its tapes alone.

    .venv-test/bin/python -m benchmarks.engine_overhead [--batch 1,16,64] [--rounds 5]

Every eighth step is waited for and its two tapes are replayed once more with the step's own arrays, which changes nothing: that is
the bare step, taken in the same moment and at the same length of context as the steps around it. The steps between two such
replays are the engine's, from the third on: by then the engine is as far ahead again as it was. Medians, and the fastest quarter, which other programs on the machine disturb least; the processor seconds
count all threads of the process.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sglang
from benchmarks.workloads import HIGHEST_ID, LOWEST_ID

EVERY, SETTLED = 8, 3
PROMPT_LEN, NUM_NEW = 64, 128


@dataclass
class Clock:
    """Wraps the tapes of a runner. A step is one call of the body and one of the head, of `rows` rows each; both may return
    before they are done."""

    runner: Any
    finish: Callable[[], None]
    rows: int = 0
    last: float = 0.0
    count: int = 0
    periods: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        programs = self.runner._plain
        self.body: Callable[[], None] = programs.body
        self.head: Callable[[], None] = programs.head
        programs.body, programs.head = self.run_body, self.run_head
        self.begun = 0.0

    def run_body(self) -> None:
        self.begun = time.perf_counter()
        self.body()

    def run_head(self) -> None:
        self.head()
        if self.runner._step.inputs.host["rows"][0] != self.rows:  # a step of prompts
            self.last = 0.0
            return
        if self.last and self.count % EVERY >= SETTLED:
            self.periods.append(self.begun - self.last)
        self.last = self.begun
        self.count += 1
        if self.count % EVERY == 0:
            self.finish()
            start = time.perf_counter()
            self.body()
            self.head()
            self.finish()
            self.bare.append(time.perf_counter() - start)
            self.last = 0.0


class Watched(sglang.Engine):
    """Remembers its scheduler."""

    def _run(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        super()._run(scheduler)


async def generate(engine: sglang.Engine, batch: int, round_: int) -> None:
    import random

    rng = random.Random(f"{batch} {round_}")
    params = {"max_new_tokens": NUM_NEW, "temperature": 0, "ignore_eos": True}

    async def one() -> None:
        ids = [rng.randrange(LOWEST_ID, HIGHEST_ID) for _ in range(PROMPT_LEN)]
        async for _ in await engine.async_generate(input_ids=ids, sampling_params=params, stream=True):
            pass

    await asyncio.gather(*(one() for _ in range(batch)))


def fast(values: list[float]) -> float:
    """The first quartile, in ms."""
    return 1000 * statistics.quantiles(values, n=4)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--batch", default="1,16,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    engine = Watched(model_path=args.model, threads=args.threads)
    print("| batch | step ms: median (fast) | bare tapes | over bare: median (fast) | CPU s / s |")
    print("|--:|--:|--:|--:|--:|")
    asyncio.run(generate(engine, 1, -1))
    worker = engine.scheduler._worker
    clock = Clock(worker._runner, worker.finish)
    for batch in map(int, args.batch.split(",")):
        clock.rows, clock.last = batch, 0.0
        for values in (clock.periods, clock.bare):
            values.clear()
        wall, cpu = time.perf_counter(), time.process_time()
        for round_ in range(args.rounds):
            asyncio.run(generate(engine, batch, round_))
        share = (time.process_time() - cpu) / (time.perf_counter() - wall)
        cells = [f"{1000 * statistics.median(v):.2f} ({fast(v):.2f})" for v in (clock.periods, clock.bare)]
        over = statistics.median(clock.periods) / statistics.median(clock.bare) - 1
        over_fast = fast(clock.periods) / fast(clock.bare) - 1
        print(f"| {batch} | {' | '.join(cells)} | {over:.1%} ({over_fast:.1%}) | {share:.2f} |")
        sys.stdout.flush()
    engine.shutdown()


if __name__ == "__main__":
    main()
