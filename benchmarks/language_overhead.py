"""The cost of the language over posting the same prompts directly to the same server.

python benchmarks/language_overhead.py --url http://localhost:30000

Rounds of both ways alternate, and medians are compared, so that other work on the machine meets both alike. CPU seconds are
those of this process alone.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import threading
import time
from collections.abc import Callable

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint
from sglang.lang.concurrency.background import IO
from sglang.lang.sampling import to_native

PROMPT = "Question {}: name a colour and say why you like it. Answer:"


@sgl.function
def ask(s: ProgramState, i: int) -> None:
    s += PROMPT.format(i) + sgl.gen("answer")


@sgl.function
def fork8(s: ProgramState, i: int) -> None:
    s += f"Number {i}. "
    forks = s.fork(8)
    forks += lambda j: f"Part {j}:" + sgl.gen("part")
    forks.join()
    assert len(s["part"]) == 8


def directly(backend: RuntimeEndpoint, num_programs: int, num_tokens: int) -> None:
    """All prompts at once over the same connections, without the language."""
    params, _ = to_native({"max_new_tokens": num_tokens, "temperature": 0.0, "ignore_eos": True})

    async def post_all() -> None:
        posts = (backend.post("/generate", {"text": PROMPT.format(i), "sampling_params": params}) for i in range(num_programs))
        await asyncio.gather(*posts)

    IO.run(post_all())


def with_programs(backend: RuntimeEndpoint, num_programs: int, num_tokens: int) -> None:
    states = ask.run_batch(
        [(i,) for i in range(num_programs)], backend=backend, max_new_tokens=num_tokens, temperature=0.0, ignore_eos=True
    )
    for state in states:
        state.sync()


def measure(work: Callable[[], None]) -> tuple[float, float]:
    """(wall, CPU) seconds"""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(name: str, backend: RuntimeEndpoint, num_programs: int, num_tokens: int, rounds: int) -> None:
    plain, ours = [], []
    for _ in range(rounds):
        plain.append(measure(lambda: directly(backend, num_programs, num_tokens)))
        ours.append(measure(lambda: with_programs(backend, num_programs, num_tokens)))
    (wall, cpu), (our_wall, our_cpu) = ((statistics.median(x) for x in zip(*rows, strict=True)) for rows in (plain, ours))
    print(
        f"{name}: directly {wall:.3f} s (CPU {cpu:.3f}), language {our_wall:.3f} s (CPU {our_cpu:.3f}): "
        f"{100 * (our_wall / wall - 1):+.1f} %, {1000 * (our_cpu - cpu) / num_programs:.2f} ms CPU a program"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:30000")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forks", type=int, default=0, help="also run so many programs of fork(8), one token a branch")
    given = parser.parse_args()
    sgl.global_config.enable_precache_with_tracing = False  # both ways are to send the same requests
    backend = RuntimeEndpoint(given.url)
    compare("warm-up   ", backend, 64, given.tokens, 1)
    compare("1 program ", backend, 1, 1, 20 * given.rounds)
    compare("64 at once", backend, 64, given.tokens, given.rounds)
    if given.forks:
        before = threading.active_count()
        wall, cpu = measure(
            lambda: fork8.run_batch([(i,) for i in range(given.forks)], backend=backend, max_new_tokens=1) and None
        )
        print(
            f"{given.forks} fork(8): {wall:.2f} s (CPU {cpu:.2f}), {threading.active_count() - before} threads more at the end"
        )


if __name__ == "__main__":
    main()
