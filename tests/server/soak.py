"""Soak: a server under load of every kind for a long time, its scheduler killed now and then. What must hold at the end:

- no request was lost: each got an answer, a refusal, or (around a kill) an error that says what happened;
- the server's memory is flat, its open files are as many as before, KV slots add up, no process is left.

    scripts/soak [--minutes 30] [--concurrency 64] [--kill-every 300]         prints a report; status 1 if something is wrong
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import RunningServer, start_server
from tests.server.test_soak import constrained, invalid, plain, several, too_long

PATIENCE = 180.0
"""seconds after which a request counts as lost"""
SAMPLE_SECONDS = 2.0
KINDS = {"plain": 25, "stream": 20, "chat": 15, "leave": 15, "constrained": 10, "several": 5, "long": 3, "invalid": 7}


class Lost(Exception):
    """A request that got no proper end."""


@dataclass
class Report:
    """What was seen. `server_mb` and `scheduler_mb` are (seconds since the start, resident megabytes)."""

    outcomes: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    kills: int = 0
    recoveries: list[float] = field(default_factory=list)
    server_mb: list[tuple[float, float]] = field(default_factory=list)
    scheduler_mb: list[tuple[float, float]] = field(default_factory=list)
    files_before: int = 0
    files_after: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    tracebacks: int = 0

    def growth(self) -> float:
        """Of the server process: the last fifth against the second fifth, as a share."""
        values = [mb for _, mb in self.server_mb]
        fifth = max(len(values) // 5, 1)
        return statistics.median(values[-fifth:]) / statistics.median(values[fifth : 2 * fifth] or values) - 1

    def problems(self, max_growth: float) -> list[str]:
        found = [f"lost: {what}" for what in self.lost[:10]]
        if self.growth() > max_growth:
            found.append(f"the server's memory grew by {self.growth():.1%}")
        if self.files_after > self.files_before + 8:
            found.append(f"{self.files_before} open files became {self.files_after}")
        s = self.state
        if s.get("num_used_tokens") or s.get("num_free_tokens", 0) + s.get("num_cached_tokens", 0) != s.get("max_total_tokens"):
            found.append(f"KV slots do not add up: {s}")
        if s.get("num_inflight"):
            found.append(f"{s['num_inflight']} requests are still remembered")
        if self.tracebacks:
            found.append(f"{self.tracebacks} tracebacks in the log")
        return found

    def as_dict(self) -> dict[str, Any]:
        mb = [mb for _, mb in self.server_mb]
        return {
            "requests": sum(self.outcomes.values()),
            "outcomes": dict(self.outcomes),
            "lost": len(self.lost),
            "kills": self.kills,
            "seconds_to_recover": [round(s, 2) for s in self.recoveries],
            "server_mb": {"first": mb[0], "median": statistics.median(mb), "last": mb[-1]} if mb else {},
            "scheduler_mb_max": max((m for _, m in self.scheduler_mb), default=0.0),
            "server_memory_growth": round(self.growth(), 4) if mb else 0.0,
            "files": [self.files_before, self.files_after],
            "state": self.state,
        }


class Soak:
    """One run against one server."""

    def __init__(self, server: RunningServer, seconds: float, concurrency: int, kill_every: float, seed: int = 0) -> None:
        self._server = server
        self._seconds = seconds
        self._concurrency = concurrency
        self._kill_every = kill_every
        self._rng = random.Random(seed)
        self._killed_at = -1e9
        self.report = Report()

    async def run(self) -> Report:
        limits = httpx.Limits(max_connections=self._concurrency, max_keepalive_connections=self._concurrency)
        timeout = httpx.Timeout(PATIENCE, connect=30)
        report = self.report
        async with httpx.AsyncClient(base_url=self._server.url, timeout=timeout, limits=limits, trust_env=False) as client:
            self._client = client
            await client.post("/generate", json=plain(self._rng))
            began = time.monotonic()
            end = began + self._seconds
            sampler, killer = asyncio.create_task(self._sample(began)), asyncio.create_task(self._kill(end))
            workers = [self._work(random.Random(self._rng.getrandbits(32)), end) for _ in range(self._concurrency)]
            await asyncio.gather(*workers)
            sampler.cancel()
            await asyncio.gather(sampler, return_exceptions=True)
            await asyncio.wait_for(killer, PATIENCE)  # the last of the killed ones is replaced, too
        await asyncio.sleep(0.5)  # closed connections are noticed
        report.state = await self._idle_state()
        report.files_after = self._num_files()
        report.tracebacks = self._server.log.read_text().count("Traceback")
        return report

    async def _work(self, rng: random.Random, end: float) -> None:
        while time.monotonic() < end:
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            try:
                outcome = await self._ask(kind, rng)
            except Lost as error:
                self.report.lost.append(f"{kind}: {error}")
                outcome = "lost"
            except httpx.HTTPError as error:
                self.report.lost.append(f"{kind}: {type(error).__name__} {error}")
                outcome = "lost"
            self.report.outcomes[outcome] += 1
            if outcome == "failed":
                await asyncio.sleep(rng.random())

    async def _ask(self, kind: str, rng: random.Random) -> str:
        if kind in ("stream", "leave", "chat"):
            return await self._stream(kind, rng)
        makers = {"plain": plain, "constrained": constrained, "several": several, "long": too_long, "invalid": invalid}
        reply = await self._client.post("/generate", json=makers[kind](rng))
        if kind in ("long", "invalid") and 400 <= reply.status_code < 500:
            return "refused"
        return self._judge(reply.status_code, reply.text)

    def _judge(self, status: int, text: str) -> str:
        """An error of ours is right only around a kill, and says what happened."""
        if status == 200:
            return "answered"
        recent = time.monotonic() - self._killed_at < 60
        if status in (500, 503) and recent and json.loads(text)["error"]["message"]:
            return "failed"
        raise Lost(f"status {status}: {text[:200]}")

    async def _stream(self, kind: str, rng: random.Random) -> str:
        body: dict[str, Any] = plain(rng) | {"stream": True}
        path = "/generate"
        if kind == "chat":
            path = "/v1/chat/completions"
            message = {"role": "user", "content": f"Say {rng.randrange(100)}"}
            body = {"messages": [message], "max_tokens": rng.randrange(1, 20), "stream": True}
        elif kind == "leave":
            body["sampling_params"]["max_new_tokens"] = 300
        lines: list[str] = []
        async with self._client.stream("POST", path, json=body) as reply:
            if reply.status_code != 200:
                return self._judge(reply.status_code, (await reply.aread()).decode())
            async for line in reply.aiter_lines():
                lines += [line] if line else []
                if kind == "leave" and len(lines) > 3:
                    return "left"
        if not lines or lines[-1] != "data: [DONE]":
            raise Lost(f"a stream ended with {lines[-1:]}")
        if any(line.startswith('data: {"error"') for line in lines):
            return self._judge(500, lines[-2].removeprefix("data: "))
        return "streamed"

    # --- around the requests ------------------------------------------------------------------------------------------------

    async def _kill(self, end: float) -> None:
        while time.monotonic() + self._kill_every < end:
            await asyncio.sleep(self._kill_every)
            self._killed_at = killed = time.monotonic()
            for pid in self._server.children():
                os.kill(pid, signal.SIGKILL)
            self.report.kills += 1
            await asyncio.sleep(0.2)
            while (await self._client.get("/health")).status_code != 200:
                await asyncio.sleep(0.1)
            self.report.recoveries.append(time.monotonic() - killed)

    async def _sample(self, began: float) -> None:
        self.report.files_before = self._num_files()
        while True:
            now = time.monotonic() - began
            self.report.server_mb.append((now, _resident_mb(self._server.process.pid)))
            self.report.scheduler_mb += [(now, _resident_mb(pid)) for pid in self._server.children()]
            await asyncio.sleep(SAMPLE_SECONDS)

    def _num_files(self) -> int:
        """Open files of the server process, sockets not counted: their number is that of the clients who are connected."""
        return sum(not _is_socket(link) for link in Path(f"/proc/{self._server.process.pid}/fd").iterdir())

    async def _idle_state(self) -> dict[str, Any]:
        """The scheduler's counts once nothing runs."""
        deadline = time.monotonic() + 60
        async with httpx.AsyncClient(base_url=self._server.url, timeout=30, trust_env=False) as client:
            while True:
                state: dict[str, Any] = (await client.get("/get_server_info")).json()["internal_states"][0]
                busy = state["num_running"] + state["num_waiting"] + state["num_grammar_waiting"] + state["num_inflight"]
                if not busy or time.monotonic() > deadline:
                    return state
                await asyncio.sleep(0.2)


def _is_socket(link: Path) -> bool:
    try:
        return os.readlink(link).startswith("socket:")
    except FileNotFoundError:
        return True


def _resident_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--kill-every", type=float, default=300.0, metavar="SECONDS")
    parser.add_argument("--max-growth", type=float, default=0.05, metavar="SHARE", help="of the server's memory")
    args, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(Path(folder) / "log", *flags)
        try:
            report = asyncio.run(Soak(server, args.minutes * 60, args.concurrency, args.kill_every).run())
        finally:
            server.stop()
    print(json.dumps(report.as_dict(), indent=2))
    problems = report.problems(args.max_growth)
    print("\n".join(problems) if problems else "all good")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
