"""The cost of viewers of the machine (the page's live route): streams with and without a viewer.

    .venv-test/bin/python -m benchmarks.viewer [--pairs 20] [--streams 16] [--tokens 128]

One server of the default model. A run is that many streams at once, on an empty prefix cache; runs with and without a viewer alternate,
each first in half of the pairs. The viewer is a process that reads the live route as the page does. Printed are the medians of the paired
ratios, by the clock and by the processor time of the server and its scheduler; the answers of all runs must be the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from sglang.common.server_process import descendants, end_process, free_port, wait_for_answer
from sglang.common.sse import EventStream

TOPICS = ("tides", "glass", "bees", "volcanoes", "maps", "paper", "clocks", "salt", "bridges", "wolves", "rice", "ships")
START_SECONDS = 300.0


# --- the viewer ---------------------------------------------------------------------------------------------------------------


def view(url: str) -> None:
    """Reads what viewers are sent until its standard input ends; says when the first event has come, and at the end how many did."""
    os.set_blocking(sys.stdin.fileno(), False)
    count = 0
    with httpx.stream("POST", f"{url}/page/live", json={}, timeout=60, trust_env=False) as reply:
        events = EventStream()
        for chunk in reply.iter_raw():
            for event in events.feed(chunk):
                json.loads(event)
                count += 1
                if count == 1:
                    print("looking", flush=True)
            if sys.stdin.buffer.read() == b"":
                break
    print(count, flush=True)


@contextlib.contextmanager
def viewer(url: str, counts: list[int]) -> Iterator[None]:
    """Somebody looks."""
    command = [sys.executable, "-m", "benchmarks.viewer", "--view", url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    if process.stdout.readline() != "looking\n":
        raise RuntimeError("the viewer was sent nothing")
    yield
    process.stdin.close()
    counts.append(int(process.stdout.readline()))
    process.wait(30)


# --- a run --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Seconds by the clock and of the processors, and the answers."""

    seconds: float
    cpu: float
    answers: list[list[int]]


def cpu_seconds(root: int) -> float:
    """Processor seconds of a process and its descendants."""
    ticks = 0
    for pid in [root, *(pid for pid, _ in descendants(root))]:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def answer(client: httpx.AsyncClient, index: int, tokens: int) -> list[int]:
    """The ids of one stream."""
    topic = TOPICS[index % len(TOPICS)]
    body = {
        "text": f"Chapter {index + 1}. What everybody should know about {topic}, and why",
        "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True},
        "stream": True,
    }
    ids: list[int] = []
    async with client.stream("POST", "/generate", json=body) as reply:
        reply.raise_for_status()
        events = EventStream()
        async for chunk in reply.aiter_raw():
            for event in events.feed(chunk):
                if event != "[DONE]":
                    ids = json.loads(event)["output_ids"]
    return ids


async def run(url: str, pid: int, streams: int, tokens: int) -> Run:
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
        while (await client.post("/flush_cache", json={})).status_code != 200:  # something still runs
            await asyncio.sleep(0.1)
        began, cpu = time.monotonic(), cpu_seconds(pid)
        answers = await asyncio.gather(*(answer(client, index, tokens) for index in range(streams)))
        return Run(time.monotonic() - began, cpu_seconds(pid) - cpu, answers)


def compare(url: str, pid: int, args: argparse.Namespace) -> None:
    plain = asyncio.run(run(url, pid, args.streams, args.tokens))  # warms up
    expected, ratios, counts = plain.answers, [], list[int]()
    for pair in range(args.pairs):
        found: dict[bool, Run] = {}
        for watched in (True, False) if pair % 2 else (False, True):
            with viewer(url, counts) if watched else contextlib.nullcontext():
                found[watched] = asyncio.run(run(url, pid, args.streams, args.tokens))
            if found[watched].answers != expected:
                sys.exit(
                    f"pair {pair + 1}: the answers {'with' if watched else 'without'} a viewer are not those of the first run"
                )
        ratios.append((found[True].seconds / found[False].seconds, found[True].cpu / found[False].cpu))
        print(f"pair {pair + 1}: {found[False].seconds:.2f} s alone, {found[True].seconds:.2f} s watched", file=sys.stderr)
    print(
        f"{args.pairs} pairs, {args.streams} streams of {args.tokens} tokens, {statistics.median(counts):.0f} events to the viewer a run"
    )
    for name, column in zip(("clock", "processor time"), zip(*ratios, strict=True), strict=True):
        low, middle, high = statistics.quantiles(column, n=4)
        print(
            f"{name}: {100 * (middle - 1):+.1f} % with a viewer (quartiles {100 * (low - 1):+.1f} to {100 * (high - 1):+.1f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--view", metavar="URL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.view:
        view(args.view)
        return
    port = free_port("127.0.0.1", range(31000, 31100))
    command = [
        sys.executable,
        "-m",
        "sglang.launch_server",
        "--port",
        str(port),
        "--random-seed",
        "1",
        "--log-level",
        "warning",
    ]
    server = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for_answer(f"{url}/health", server, START_SECONDS)
        compare(url, server.pid, args)
    finally:
        end_process(server)


if __name__ == "__main__":
    main()
