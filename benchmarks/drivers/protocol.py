"""The loop of a driver process. Stands alone: it runs where our package is not installed.

<- {"model": PATH, "threads": N}            -> {"version": ..., "load_seconds": ...}
<- {"workload": "W1", "repetition": 3}      -> {"seconds": ..., "first_token": ..., "num_tokens": ..., "rss_mib": ...}
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Protocol

from benchmarks.workloads import Workload, make_workload


class Driver(Protocol):
    """One engine. `run` returns the seconds to the first token of the first request and to the end of all."""

    version: str

    def load(self, model: str, threads: int) -> None: ...

    def run(self, workload: Workload) -> tuple[float, float]: ...


def rss_mib() -> float:
    """Resident memory of this process and its children, in MiB."""
    pids = [os.getpid()]
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as children:
                pids += map(int, children.read().split())
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/statm") as statm:
            total += int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total / 2**20


def main(driver: Driver) -> None:
    """Serves commands until standard input closes. Whatever the engine prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    for line in sys.stdin:
        command = json.loads(line)
        start = time.perf_counter()
        if "model" in command:
            driver.load(command["model"], command["threads"])
            answer({"version": driver.version, "load_seconds": time.perf_counter() - start})
            continue
        workload = make_workload(command["workload"], command["repetition"])
        first, seconds = driver.run(workload)
        answer({"seconds": seconds, "first_token": first, "num_tokens": workload.num_new_tokens, "rss_mib": rss_mib()})
