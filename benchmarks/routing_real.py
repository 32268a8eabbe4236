"""The simulation of benchmarks/routing.py against servers: the same requests, routed by the same code, at a tenth of their lengths.

    python -m benchmarks.routing --real [--replicas 2] [--rounds 3]

Each replica is a server of the default model with one thread. First the costs of its steps are measured, by the processor time of its
scheduler, while all replicas do the same; then a closed loop of clients sends the workload to them, by round robin and by prefixes in turn,
as the simulation does with those costs. The throughput by processor time is requests over the time of the replica that took most: what
else the machine does delays it, but hardly changes it. Where there are more busy threads than cores, only that figure means anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import numpy as np

from benchmarks import routing
from benchmarks.routing import CLIENTS, Ids, Prefixes, Request, RoundRobin, simulate
from benchmarks.servers import cpu_seconds, servers
from sglang.common.server_process import descendants
from sglang.common.sse import EventReader

MODEL = "smollm2-135m-instruct"
SMALLER = 10
"""the lengths of the simulated workloads over those of these"""
POOL = 4608
PREFIX, OWN, OUT = 2048 // SMALLER, 128 // SMALLER, 256 // SMALLER
TRIALS = [(1, 100, False), (CLIENTS, 2, False), (CLIENTS, 2, True), (CLIENTS, 30, False), (CLIENTS, 60, True), (4, 100, True)]
"""requests at most, tokens of their answers, whether they share a prefix that is cached"""
WORKLOADS: dict[str, Callable[[int, int], list[Request]]] = {
    "shared prefixes": lambda count, seed: routing.shared(count, seed, PREFIX, OWN, OUT),
    "zipf": lambda count, seed: routing.zipf(count, seed, PREFIX, OWN, OUT),
}


@dataclass
class Replica:
    """A server, and a client of it."""

    pid: int
    client: httpx.AsyncClient

    def seconds(self) -> float:
        """Processor time of its scheduler: the model, and what decides for it."""
        schedulers = [pid for pid, _ in descendants(self.pid) if _is_scheduler(pid)]
        return sum(map(cpu_seconds, schedulers))


def _is_scheduler(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return b"scheduler_process" in file.read()
    return False


@contextlib.contextmanager
def replicas(count: int) -> Iterator[list[Replica]]:
    flags = ["--model-path", MODEL, "--threads", "1"]
    flags += ["--max-total-tokens", str(POOL), "--context-length", "1024", "--speculative-algorithm", "none"]
    flags += ["--max-running-requests", str(routing.MAX_RUNNING), "--chunked-prefill-size", str(routing.CHUNK)]
    limits = httpx.Limits(max_connections=4 * CLIENTS)
    with servers(*flags, count=count) as started:
        yield [
            Replica(server.process.pid, httpx.AsyncClient(base_url=server.url, timeout=3600, limits=limits, trust_env=False))
            for server in started
        ]


async def generate(replica: Replica, prompt: Ids, num_new: int, on_tokens: Callable[[int], None] = lambda _: None) -> None:
    params = {"temperature": 0, "max_new_tokens": num_new, "ignore_eos": True}
    body = {"input_ids": prompt.tolist(), "sampling_params": params, "stream": True}
    before = 0
    async with replica.client.stream("POST", "/generate", json=body) as reply:
        reply.raise_for_status()
        events = EventReader()
        async for piece in reply.aiter_raw():
            for event in events.feed(piece):
                if event != "[DONE]":
                    count = len(json.loads(event)["output_ids"])
                    on_tokens(count - before)
                    before = count
    if before != num_new:
        raise RuntimeError(f"{before} tokens came, and {num_new} were asked for")


async def flush(replica: Replica) -> None:
    while (await replica.client.post("/flush_cache", json={})).status_code != 200:
        await asyncio.sleep(0.05)


# --- costs of steps -----------------------------------------------------------------------------------------------------------


async def costs(all_replicas: list[Replica], rng: np.random.Generator) -> tuple[float, float, float]:
    """(base, prefill, decode) of a step in seconds, means over the replicas, which are measured at the same time."""
    found = await asyncio.gather(*(_costs(replica, rng) for replica in all_replicas))
    base, prefill, decode = (statistics.fmean(column) for column in zip(*found, strict=True))
    return base, prefill, decode


async def _costs(replica: Replica, rng: np.random.Generator) -> tuple[float, float, float]:
    """Least squares over few requests and many, with new prompts and with one that is cached, with short and with long answers."""
    rows, seconds = [], []
    for most, new, is_shared in TRIALS:
        await flush(replica)
        count = min(most, POOL // (PREFIX + OWN + new + 16))
        head = routing._ids(rng, PREFIX)
        prompts = [
            np.concatenate([head if is_shared else routing._ids(rng, PREFIX), routing._ids(rng, OWN)]) for _ in range(count)
        ]
        if is_shared:
            await generate(replica, prompts[0], 1)
        before = replica.seconds()
        await asyncio.gather(*(generate(replica, prompt, new) for prompt in prompts))
        seconds.append(replica.seconds() - before)
        num_prompt = count * (OWN if is_shared else PREFIX + OWN)
        rows.append((math.ceil(num_prompt / routing.CHUNK) + new, num_prompt, count * new))
    solved, *_ = np.linalg.lstsq(np.array(rows), np.array(seconds), rcond=None)
    base, prefill, decode = (max(float(cost), 1e-6) for cost in solved)
    return base, prefill, decode


# --- the workload -------------------------------------------------------------------------------------------------------------


async def run(requests: list[Request], all_replicas: list[Replica], policy: RoundRobin) -> tuple[float, float]:
    """Requests a second, by the clock and by processor time."""
    await asyncio.gather(*map(flush, all_replicas))
    waiting = deque(requests)
    before = [replica.seconds() for replica in all_replicas]
    began = time.monotonic()

    async def ask(request: Request) -> None:
        replica = all_replicas[policy.send(request, [])]
        await generate(replica, request.prompt, len(request.answer), lambda count: policy.progress(request, count))
        policy.end(request)

    async def client() -> None:
        while waiting:
            await ask(waiting.popleft())

    await asyncio.gather(*(client() for _ in range(CLIENTS * len(all_replicas))))
    wall = time.monotonic() - began
    used = [replica.seconds() - seconds for replica, seconds in zip(all_replicas, before, strict=True)]
    return len(requests) / wall, len(requests) / max(used)


async def compare(count: int, rounds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with replicas(count) as all_replicas:
        measured = [await costs(all_replicas, rng) for _ in range(2)][1]  # the first time warms up
        routing.BASE, routing.PREFILL, routing.DECODE = measured
        routing.POOL = POOL
        base, prefill, decode = (1000 * cost for cost in measured)
        print(
            f"a step: {base:.2f} ms, a prompt token {prefill:.3f} ms, an answer's token {decode:.3f} ms; {os.cpu_count()} cores"
        )
        for name, make in WORKLOADS.items():
            for policy in (RoundRobin, Prefixes):
                expected = simulate(make(count, seed), count, policy(count))
                found = [await run(make(count, seed), all_replicas, policy(count)) for _ in range(rounds)]
                clock, cpu = (statistics.median(column) for column in zip(*found, strict=True))
                print(
                    f"{name:18} {count} replicas {policy.__name__:12} simulated {expected.throughput:6.2f}/s, by processor time "
                    f"{cpu:6.2f}/s ({cpu / expected.throughput - 1:+.0%}), by the clock {clock:6.2f}/s",
                    flush=True,
                )
