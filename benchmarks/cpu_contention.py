"""Speed beside a program that burns one core: ours on one thread and on all, llama.cpp likewise.

    .venv-test/bin/python -m benchmarks.cpu_contention [--env llama_cpp=FOLDER] [--repeats 5] [--workload W1]

The load is a process that counts, bound to one core where the system can do that. Runs alternate between quiet and
disturbed and between the engines; medians of seconds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
from pathlib import Path

from benchmarks.peers import ANSWER_SECONDS, ROOT, Engine, EngineFailed, local_file, note, python_of, start
from benchmarks.workloads import SHAPES


def burn() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    while True:
        pass


def run(engine: Engine, workload: str, repetition: int, disturbed: bool) -> float:
    load = multiprocessing.get_context("spawn").Process(target=burn, daemon=True)
    if disturbed:
        load.start()
    try:
        return float(engine.ask({"workload": workload, "repetition": repetition}, ANSWER_SECONDS)["seconds"])
    finally:
        if disturbed:
            load.kill()
            load.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", action="append", default=[], metavar="llama_cpp=FOLDER", help="an environment that exists")
    parser.add_argument("--engines", default="ours,llama_cpp")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--workload", default="W1", choices=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "src"))
    environments = {name: Path(folder) for name, _, folder in (e.partition("=") for e in args.env)}
    model = local_file(args.model)
    cases = [(name, threads) for name in args.engines.split(",") for threads in (1, os.cpu_count() or 2)]
    engines = {(n, t): start(n, python_of(n, environments), model, t) for n, t in cases}
    seconds: dict[tuple[tuple[str, int], bool], list[float]] = {}
    for repetition in range(args.repeats + 1):
        for disturbed in (False, True):
            for case in cases if repetition % 2 else reversed(cases):
                if case not in engines:
                    continue
                try:
                    took = run(engines[case], args.workload, repetition, disturbed)
                except EngineFailed as error:
                    note(f"{case[0]} on {case[1]} is left out from here on: {error}")
                    engines.pop(case).stop()
                    continue
                if repetition:
                    seconds.setdefault((case, disturbed), []).append(took)
        note(f"repetition {repetition}/{args.repeats}")
    for engine in engines.values():
        engine.stop()
    print("| engine | threads | alone s | under CPU contention s |\n|---|--:|--:|--:|")
    for case in engines:
        alone, beside = (statistics.median(seconds[case, disturbed]) for disturbed in (False, True))
        print(f"| {case[0]} | {case[1]} | {alone:.3f} | {beside:.3f} |")
    if ("ours", 1) in engines and cases[1] in engines:
        share = statistics.median(seconds[("ours", 1), False]) / statistics.median(seconds[cases[1], True])
        print(f"\nours on {cases[1][1]} threads under CPU contention: {share:.2f} of its own speed on one thread alone")


if __name__ == "__main__":
    main()
