"""The gain of speculation from the prefix tree when a program runs again, and its cost where nothing repeats.

    .venv-test/bin/python -m benchmarks.reruns [--model smollm2-135m-instruct] [--repeats 7] [--cells tutorial_cells.py]

reruns      programs at temperature 0, each run twice: steps and seconds of the second run over those of the first. The first run
            finds an empty cache; `prompts cached` is the same with speculation switched off, which only the cache makes faster.
            --cells: the tutorial's cells 3 to 12 as well, all of them one after the other
no repeats  answers to random prompts, sampled at temperature 1, one by one and 16 at once: processor time with speculation over that
            without it, two engines in turn

Fails if a rerun takes more than 0.4 times the steps of its first run.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sglang as sgl
from benchmarks.structured import CHARACTER
from benchmarks.watched_engine import WatchedEngine

LOWEST_ID, HIGHEST_ID = 1000, 40000
PROMPT_LEN, NUM_NEW, AT_ONCE = 96, 96, 16
MOST_STEPS = 0.4
TIPS = ["balanced diet", "regular exercise", "sleep", "water", "friends", "books", "music", "walking"]


class Watched(WatchedEngine):
    @property
    def num_steps(self) -> int:
        steps: int = self.scheduler._stats.num_steps
        return steps


# --- programs that run again ------------------------------------------------------------------------------------------------------


@sgl.function
def two_turns(s: Any) -> None:
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user("Give me a list of three countries and their capitals.")
    s += sgl.assistant(sgl.gen("first", max_tokens=96, temperature=0))
    s += sgl.user("Which of them is the largest, and why do you think so?")
    s += sgl.assistant(sgl.gen("second", max_tokens=96, temperature=0))


@sgl.function
def eight_forks(s: Any) -> None:
    s += sgl.system("You write short paragraphs.")
    forks = s.fork(len(TIPS))
    for fork, tip in zip(forks, TIPS, strict=True):
        fork += sgl.user(f"Expand this tip into a paragraph: {tip}.")
        fork += sgl.assistant(sgl.gen("paragraph", max_tokens=80, temperature=0))
    for fork in forks:
        s += fork["paragraph"]


@sgl.function
def character(s: Any, name: str) -> None:
    s += name + " is a character in Harry Potter. Please fill in the following information about this character.\n"
    s += sgl.gen("json", max_tokens=256, regex=CHARACTER, temperature=0)


PROGRAMS: dict[str, Callable[[], Any]] = {
    "two turns of a chat": two_turns.run,
    "8 forks": eight_forks.run,
    "a character as JSON": lambda: character.run("Hermione Granger"),
}


CELLS = range(3, 13)
IMPORTS = """
from sglang import assistant, assistant_begin, assistant_end, function, system, user
from sglang.utils import print_highlight
"""


def tutorial(path: Path) -> Callable[[], Any]:
    """The cells, whose `gen` has temperature 0. What they print is not shown."""
    spec = importlib.util.spec_from_file_location("tutorial_cells", path)
    assert spec is not None and spec.loader is not None, f"{path} is no Python file"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    code = module.cells()

    def run() -> None:
        names: dict[str, Any] = {"__name__": "__tutorial__", "gen": functools.partial(sgl.gen, temperature=0)}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for text in (IMPORTS, *(code[number] for number in CELLS)):
                exec(compile(text, "<cell>", "exec", dont_inherit=True), names)

    return run


def run_twice(engine: Watched, run: Callable[[], Any]) -> list[tuple[int, float]]:
    """(steps, seconds) of a first run and of a second."""
    engine.flush_cache()
    found = []
    for _ in range(2):
        steps, began = engine.num_steps, time.perf_counter()
        if (state := run()) is not None:
            state.sync()
        found.append((engine.num_steps - steps, time.perf_counter() - began))
    return found


def reruns(engines: dict[str, Watched], programs: dict[str, Callable[[], Any]], repeats: int) -> bool:
    """Whether all reruns took few steps."""
    is_good = True
    print(
        "| program | steps: first, again | steps: ratio | seconds: ratio | prompts cached: ratio of seconds |\n|---|--:|--:|--:|--:|"
    )
    for name, run in programs.items():
        ratios: dict[str, list[float]] = {key: [] for key in engines}
        for _ in range(repeats):
            for key, engine in engines.items():
                sgl.set_default_backend(engine)
                (first_steps, first), (second_steps, second) = run_twice(engine, run)
                ratios[key].append(second / first)
                if key == "on":
                    steps = first_steps, second_steps
                    is_good &= second_steps <= MOST_STEPS * first_steps
        medians = {key: statistics.median(values) for key, values in ratios.items()}
        print(
            f"| {name} | {steps[0]}, {steps[1]} | {steps[1] / steps[0]:.2f} | {medians['on']:.2f} | {medians['none']:.2f} |",
            flush=True,
        )
    return is_good


# --- answers that do not repeat anything ------------------------------------------------------------------------------------------


def seconds_for(engine: Watched, seed: int, at_once: int) -> float:
    rng = random.Random(seed)
    prompts = [[rng.randrange(LOWEST_ID, HIGHEST_ID) for _ in range(PROMPT_LEN)] for _ in range(at_once)]
    params = [
        {"max_new_tokens": NUM_NEW, "temperature": 1.0, "ignore_eos": True, "sampling_seed": seed + i} for i in range(at_once)
    ]
    began = time.process_time()
    engine.generate(input_ids=prompts, sampling_params=params)
    return time.process_time() - began


def no_repeats(engines: dict[str, Watched], repeats: int) -> None:
    print("\n| requests at once | processor time with speculation over that without, quartiles |\n|--:|--:|")
    for at_once in (1, AT_ONCE):
        ratios = []
        for i in range(repeats):
            order = list(engines)[:: 1 if i % 2 else -1]
            took = {key: seconds_for(engines[key], 1000 * at_once + i, at_once) for key in order}
            ratios.append(took["on"] / took["none"])
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"| {at_once} | {middle:.3f} ({low:.3f} to {high:.3f}) |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cells", type=Path, help="tutorial_cells.py of the documents")
    args = parser.parse_args()
    engines = {
        "on": Watched(model_path=args.model),
        "none": Watched(model_path=args.model, speculative_algorithm="none", disable_jump_forward=True),
    }
    programs = PROGRAMS | ({"the tutorial's cells": tutorial(args.cells)} if args.cells else {})
    try:
        is_good = reruns(engines, programs, args.repeats)
        no_repeats(engines, 2 * args.repeats)
    finally:
        for engine in engines.values():
            engine.shutdown()
    if not is_good:
        sys.exit(f"a rerun took more than {MOST_STEPS} times the steps of its first run")


if __name__ == "__main__":
    main()
