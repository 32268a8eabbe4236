"""The cost of viewers of the machine (the page's live route): streams with and without a viewer.

    .venv-test/bin/python -m benchmarks.viewer [--pairs 20] [--streams 16] [--tokens 128] [--nodes 20000 [--arriving]]

One server of the default model. A run is that many streams at once; runs with and without a viewer alternate, each first in half of the
pairs. The viewer is a process that reads the live route as the page does. Printed are the medians of the paired ratios, by the clock and
by the processor time of the server and its scheduler.

Without `--nodes` every run begins with an empty prefix cache, and the answers of all runs must be the same. With it the cache has a tree
of that many nodes first, which stays, and every run has prompts of its own: what is cached would be drafted again. A run begins once the
viewer has the whole tree or, with `--arriving`, as soon as it is connected, so that the tree is sent meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from benchmarks.servers import servers, tree_cpu_seconds
from sglang.common.sse import EventReader

TOPICS = ("tides", "glass", "bees", "volcanoes", "maps", "paper", "clocks", "salt", "bridges", "wolves", "rice", "ships")
FIRST_ID, AT_ONCE = 1000, 500
"""of the two tokens that the tree is made of; and how many requests for it are sent together"""
SLOTS_PER_LEAF, LONGEST_PROMPT = 16, 32
"""of the KV pool, which is allocated in runs of slots, at most"""


# --- the viewer ---------------------------------------------------------------------------------------------------------------


def view(url: str) -> None:
    """Reads what viewers are sent until its standard input ends; says when the first event has come, when the whole tree has, and at
    the end how many events did and how many nodes it knows."""
    os.set_blocking(sys.stdin.fileno(), False)
    count, known, is_whole = 0, set[int](), False
    with httpx.stream("POST", f"{url}/page/live", json={}, timeout=60, trust_env=False) as reply:
        events = EventReader()
        for chunk in reply.iter_raw():
            for text in events.feed(chunk):
                event = json.loads(text)
                count += 1
                known.update(node[0] for node in event["nodes"])
                known.difference_update(event["gone"])
                if count == 1:
                    print("looking", flush=True)
                if not event["late"] and not is_whole:
                    is_whole = True
                    print("whole", flush=True)
            if sys.stdin.buffer.read() == b"":
                break
    print(count, len(known), flush=True)


@contextlib.contextmanager
def viewer(url: str, seen: list[tuple[int, int]], arriving: bool) -> Iterator[None]:
    """Somebody looks, and has the whole tree unless they are `arriving`. `seen`: takes (events, nodes) at the end."""
    command = [sys.executable, "-m", "benchmarks.viewer", "--view", url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    for expected in ("looking",) if arriving else ("looking", "whole"):
        if process.stdout.readline() != f"{expected}\n":
            raise RuntimeError("the viewer was not sent the tree")
    yield
    process.stdin.close()
    last = process.stdout.read().splitlines()[-1].split()
    seen.append((int(last[0]), int(last[1])))
    process.wait(30)


# --- a run --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Seconds by the clock and of the processors, and the answers."""

    seconds: float
    cpu: float
    answers: list[list[int]]


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
        events = EventReader()
        async for chunk in reply.aiter_raw():
            for event in events.feed(chunk):
                if event != "[DONE]":
                    ids = json.loads(event)["output_ids"]
    return ids


async def flush(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
        while (await client.post("/flush_cache", json={})).status_code != 200:  # something still runs
            await asyncio.sleep(0.1)


async def run(url: str, pid: int, first: int, args: argparse.Namespace) -> Run:
    """The streams number `first` and on."""
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
        began, cpu = time.monotonic(), tree_cpu_seconds(pid)
        answers = await asyncio.gather(*(answer(client, first + index, args.tokens) for index in range(args.streams)))
        return Run(time.monotonic() - began, tree_cpu_seconds(pid) - cpu, answers)


def plant(url: str, num_nodes: int) -> None:
    """Fills the prefix cache with a binary tree of so many nodes and a few more: the digits of numbers as tokens."""
    num_leaves = num_nodes // 2 + 1
    width = (num_leaves - 1).bit_length()
    prompts = [[FIRST_ID + int(digit) for digit in f"{number:0{width}b}"] for number in range(num_leaves)]
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
        for at in range(0, num_leaves, AT_ONCE):
            body = {"input_ids": prompts[at : at + AT_ONCE], "sampling_params": {"max_new_tokens": 0}}
            client.post("/generate", json=body).raise_for_status()


def compare(url: str, pid: int, args: argparse.Namespace) -> None:
    if args.nodes:
        plant(url, args.nodes)
    plain = asyncio.run(run(url, pid, 0, args))  # warms up
    numbers = itertools.count(args.streams, args.streams)
    ratios, seen = [], list[tuple[int, int]]()
    for pair in range(args.pairs):
        found: dict[bool, Run] = {}
        for watched in (True, False) if pair % 2 else (False, True):
            if not args.nodes:
                asyncio.run(flush(url))
            with viewer(url, seen, args.arriving) if watched else contextlib.nullcontext():
                found[watched] = asyncio.run(run(url, pid, next(numbers) if args.nodes else 0, args))
            if not args.nodes and found[watched].answers != plain.answers:
                sys.exit(
                    f"pair {pair + 1}: the answers {'with' if watched else 'without'} a viewer are not those of the first run"
                )
        if seen[-1][1] < args.nodes:
            sys.exit(f"pair {pair + 1}: the tree is lost, {seen[-1][1]} nodes are left: is there too little memory?")
        ratios.append((found[True].seconds / found[False].seconds, found[True].cpu / found[False].cpu))
        print(
            f"pair {pair + 1}: {found[False].seconds:.2f} s alone, {found[True].seconds:.2f} s watched; processors "
            f"{found[False].cpu:.2f} s and {found[True].cpu:.2f} s; {seen[-1][1]} nodes; load {os.getloadavg()[0]:.1f}",
            file=sys.stderr,
        )
    events, nodes = (statistics.median(column) for column in zip(*seen, strict=True))
    print(
        f"{args.pairs} pairs, {args.streams} streams of {args.tokens} tokens, {events:.0f} events and {nodes:.0f} nodes to the viewer a run"
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
    parser.add_argument("--nodes", type=int, default=0, help="nodes of the prefix tree before the first pair")
    parser.add_argument("--arriving", action="store_true", help="measure while the tree is sent to the viewer")
    parser.add_argument("--view", metavar="URL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.view:
        view(args.view)
        return
    flags = ["--random-seed", "1"]
    if args.nodes:
        num_streams = args.streams * (2 * args.pairs + 1)
        needed = (args.nodes // 2 + 1) * SLOTS_PER_LEAF + num_streams * (args.tokens + LONGEST_PROMPT)
        flags += ["--max-total-tokens", str(needed)]
    with servers(*flags) as (server,):
        compare(server.url, server.process.pid, args)


if __name__ == "__main__":
    main()
