"""The cost of a request of the language in this process: our HTTP/1.1 transport against httpx's own, on a running server.

python benchmarks/http_client.py --url http://localhost:30000

Rounds of both alternate, and medians of the processor seconds of this process are compared. A request asks for one token.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable

import httpx

from sglang.lang.backend.http import HttpPolicy, HttpServer
from sglang.lang.concurrency.background import IO

CONNECTIONS = 256
BODY = {"text": "The capital of France is", "sampling_params": {"max_new_tokens": 1, "temperature": 0}}


class HttpxServer(HttpServer):
    """The same calls over httpx's connection pool."""

    def _transport(self) -> httpx.AsyncBaseTransport | None:
        return None


def cpu_per_request(server: HttpServer, requests: int, at_once: int) -> float:
    """Seconds."""

    async def lane(count: int) -> None:
        for _ in range(count):
            await server.post("/generate", BODY)

    async def all_lanes() -> None:
        await asyncio.gather(*(lane(requests // at_once) for _ in range(at_once)))

    began = time.process_time()
    IO.run(all_lanes())
    return (time.process_time() - began) / requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:30000")
    parser.add_argument("--requests", type=int, default=512, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    makers: dict[str, Callable[..., HttpServer]] = {"ours": HttpServer, "httpx": HttpxServer}
    servers = {name: make(args.url, None, None, HttpPolicy(max_connections=CONNECTIONS)) for name, make in makers.items()}
    for at_once in (1, 16, CONNECTIONS):
        costs: dict[str, list[float]] = {name: [] for name in servers}
        for server in servers.values():
            cpu_per_request(server, at_once, at_once)  # connections
        for _ in range(args.rounds):
            for name, server in servers.items():
                costs[name].append(cpu_per_request(server, max(args.requests, 2 * at_once), at_once))
        per_second = {name: 1 / statistics.median(found) for name, found in costs.items()}
        ratio = statistics.median(b / a for a, b in zip(costs["ours"], costs["httpx"], strict=True))
        shown = ", ".join(f"{name} {rate:.0f}" for name, rate in per_second.items())
        print(f"{at_once:4} at once: requests a processor second: {shown} ({ratio:.2f} times)")
    for server in servers.values():
        IO.run(server.close())


if __name__ == "__main__":
    main()
