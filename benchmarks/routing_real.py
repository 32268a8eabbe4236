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
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import numpy as np

from benchmarks import routing
from benchmarks.routing import CLIENTS, Ids, Prefixes, Request, RoundRobin, simulate
from benchmarks.viewer import cpu_seconds
from sglang.common.server_process import descendants, end_process, free_port, wait_for_answer
from sglang.common.sse import EventReader

MODEL = "smollm2-135m-instruct"
SMALLER = 10
"""the lengths of the simulated workloads over those of these"""
POOL = 4608
PREFIX, OWN, OUT = 2048 // SMALLER, 128 // SMALLER, 256 // SMALLER
START_SECONDS = 300.0
TRIALS = [(1, 100, False), (CLIENTS, 2, False), (CLIENTS, 2, True), (CLIENTS, 30, False), (CLIENTS, 60, True), (4, 100, True)]
"""requests at most, tokens of their answers, whether they share a prefix that is cached"""
WORKLOADS: dict[str, Callable[[int, int], list[Request]]] = {
    "shared prefixes": lambda count, seed: routing.shared(count, seed, PREFIX, OWN, OUT),
    "zipf": lambda count, seed: routing.zipf(count, seed, PREFIX, OWN, OUT),
}


@dataclass
class Server:
    """A replica."""

    process: subprocess.Popen[bytes]
    client: httpx.AsyncClient

    def seconds(self) -> float:
        """Processor time of its scheduler: the model, and what decides for it."""
        schedulers = [pid for pid, _ in descendants(self.process.pid) if _is_scheduler(pid)]
        return sum(map(cpu_seconds, schedulers))


def _is_scheduler(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return b"scheduler_process" in file.read()
    return False


@contextlib.contextmanager
def servers(count: int) -> Iterator[list[Server]]:
    started = []
    try:
        for i in range(count):
            port = free_port("127.0.0.1", range(31000 + 100 * i, 31100 + 100 * i))
            flags = ["--model-path", MODEL, "--port", str(port), "--threads", "1", "--log-level", "warning"]
            flags += ["--max-total-tokens", str(POOL), "--context-length", "1024", "--speculative-algorithm", "none"]
            flags += ["--max-running-requests", str(routing.MAX_RUNNING), "--chunked-prefill-size", str(routing.CHUNK)]
            process = subprocess.Popen([sys.executable, "-m", "sglang.launch_server", *flags], stdin=subprocess.DEVNULL)
            started.append((process, f"http://127.0.0.1:{port}"))
        for process, url in started:
            wait_for_answer(f"{url}/health", process, START_SECONDS)
        limits = httpx.Limits(max_connections=4 * CLIENTS)
        yield [
            Server(process, httpx.AsyncClient(base_url=url, timeout=3600, limits=limits, trust_env=False))
            for process, url in started
        ]
    finally:
        for process, _ in started:
            end_process(process)


async def generate(server: Server, prompt: Ids, num_new: int, on_tokens: Callable[[int], None] = lambda _: None) -> None:
    params = {"temperature": 0, "max_new_tokens": num_new, "ignore_eos": True}
    body = {"input_ids": prompt.tolist(), "sampling_params": params, "stream": True}
    before = 0
    async with server.client.stream("POST", "/generate", json=body) as reply:
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


async def flush(server: Server) -> None:
    while (await server.client.post("/flush_cache", json={})).status_code != 200:
        await asyncio.sleep(0.05)


# --- costs of steps -----------------------------------------------------------------------------------------------------------


async def costs(all_servers: list[Server], rng: np.random.Generator) -> tuple[float, float, float]:
    """(base, prefill, decode) of a step in seconds, means over the servers, which are measured at the same time."""
    found = await asyncio.gather(*(_costs(server, rng) for server in all_servers))
    base, prefill, decode = (statistics.fmean(column) for column in zip(*found, strict=True))
    return base, prefill, decode


async def _costs(server: Server, rng: np.random.Generator) -> tuple[float, float, float]:
    """Least squares over few requests and many, with new prompts and with one that is cached, with short and with long answers."""
    rows, seconds = [], []
    for most, new, is_shared in TRIALS:
        await flush(server)
        count = min(most, POOL // (PREFIX + OWN + new + 16))
        head = routing._ids(rng, PREFIX)
        prompts = [
            np.concatenate([head if is_shared else routing._ids(rng, PREFIX), routing._ids(rng, OWN)]) for _ in range(count)
        ]
        if is_shared:
            await generate(server, prompts[0], 1)
        before = server.seconds()
        await asyncio.gather(*(generate(server, prompt, new) for prompt in prompts))
        seconds.append(server.seconds() - before)
        num_prompt = count * (OWN if is_shared else PREFIX + OWN)
        rows.append((math.ceil(num_prompt / routing.CHUNK) + new, num_prompt, count * new))
    solved, *_ = np.linalg.lstsq(np.array(rows), np.array(seconds), rcond=None)
    base, prefill, decode = (max(float(cost), 1e-6) for cost in solved)
    return base, prefill, decode


# --- the workload -------------------------------------------------------------------------------------------------------------


async def run(requests: list[Request], all_servers: list[Server], policy: RoundRobin) -> tuple[float, float]:
    """Requests a second, by the clock and by processor time."""
    await asyncio.gather(*map(flush, all_servers))
    waiting = deque(requests)
    before = [server.seconds() for server in all_servers]
    began = time.monotonic()

    async def ask(request: Request) -> None:
        server = all_servers[policy.send(request, [])]
        await generate(server, request.prompt, len(request.answer), lambda count: policy.progress(request, count))
        policy.end(request)

    async def client() -> None:
        while waiting:
            await ask(waiting.popleft())

    await asyncio.gather(*(client() for _ in range(CLIENTS * len(all_servers))))
    wall = time.monotonic() - began
    used = [server.seconds() - seconds for server, seconds in zip(all_servers, before, strict=True)]
    return len(requests) / wall, len(requests) / max(used)


async def compare(count: int, rounds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with servers(count) as all_servers:
        measured = [await costs(all_servers, rng) for _ in range(2)][1]  # the first time warms up
        routing.BASE, routing.PREFILL, routing.DECODE = measured
        routing.POOL = POOL
        base, prefill, decode = (1000 * cost for cost in measured)
        print(
            f"a step: {base:.2f} ms, a prompt token {prefill:.3f} ms, an answer's token {decode:.3f} ms; {os.cpu_count()} cores"
        )
        for name, make in WORKLOADS.items():
            for policy in (RoundRobin, Prefixes):
                expected = simulate(make(count, seed), count, policy(count))
                found = [await run(make(count, seed), all_servers, policy(count)) for _ in range(rounds)]
                clock, cpu = (statistics.median(column) for column in zip(*found, strict=True))
                print(
                    f"{name:18} {count} replicas {policy.__name__:12} simulated {expected.throughput:6.2f}/s, by processor time "
                    f"{cpu:6.2f}/s ({cpu / expected.throughput - 1:+.0%}), by the clock {clock:6.2f}/s",
                    flush=True,
                )
