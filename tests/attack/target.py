"""The server under attack: what it may use, and how it is watched meanwhile."""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import RunningServer

KEY, OTHER, ADMIN = "key-a", "key-b", "operator"
MAX_PSS_MB = 3072
GROWTH, GROWTH_MB = 1.2, 64
SETTLE_SECONDS = 120.0
"""What a client no longer waits for may still be compiled, at the lowest priority: its end takes as long as the machine is busy."""
PATIENCE = 120.0
PROBE_SECONDS = 0.05
MANY = 64
"""clients at once, before a server counts as warm"""
QUESTION = {"text": "The capital of France is", "sampling_params": {"temperature": 0, "max_new_tokens": 12}}


@dataclass(frozen=True)
class Scale:
    """The size of an attack. `seconds`: duration of a continuous one; `times`: repetitions of a repeated one."""

    seconds: float
    times: int


def mostly_slow(names: Sequence[str], every: int) -> list[Any]:
    """Parameters of a test that is long in sum: but for each `every`th, `pytest -m slow` runs them."""
    return [pytest.param(name, id=name, marks=() if i % every == 0 else pytest.mark.slow) for i, name in enumerate(names)]


@dataclass
class Watch:
    """Measurements during an attack. `health_ms`: latencies of /health, in order."""

    peak_mb: float = 0.0
    health_ms: list[float] = field(default_factory=list)

    @property
    def p99_ms(self) -> float:
        return statistics.quantiles(self.health_ms, n=100)[98] if len(self.health_ms) > 1 else 0.0


def pss_of(pid: int) -> float:
    """Megabytes of a process, its share of what it has in common with others; 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


class Target:
    """A server and a client of it. The client's key is `KEY`, where the server asks for keys."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        host, port = server.url.removeprefix("http://").split(":")
        self.address = (host, int(port))
        headers = {"Authorization": f"Bearer {KEY}"}
        limits = httpx.Limits(max_connections=None)
        self.client = httpx.Client(base_url=server.url, headers=headers, timeout=PATIENCE, trust_env=False, limits=limits)
        self._use_all_memory()
        self._meet_clients()
        self.answer = self.ask()
        self.scheduler = self.schedulers()
        self.log_len = 0
        self.warm_mb = self.settled_mb()

    def close(self) -> None:
        self.client.close()
        self.server.process.kill()
        self.server.process.wait()

    def _use_all_memory(self) -> None:
        """Prompts that fill the KV pool once: a server that has worked for a while holds all of it."""
        info = self.client.get("/get_server_info").json()
        length = min(info["max_total_num_tokens"], info["max_req_input_len"], 2048) - 8
        for first in range(5, 6 + info["max_total_num_tokens"] // length):
            body = {"input_ids": [first] * length, "sampling_params": {"max_new_tokens": 1}}
            assert self.client.post("/generate", json=body).status_code == 200

    def _meet_clients(self) -> None:
        """Many honest ones at once: connections and batches take memory the first time."""
        with ThreadPoolExecutor(MANY) as pool:
            replies = list(pool.map(lambda _: self.post("/generate", QUESTION), range(4 * MANY)))
        assert {reply.status_code for reply in replies} == {200}
        self._meet_constraints()

    def _meet_constraints(self) -> None:
        """An engine's tables, what forks children, and who checks answers are there from the first constraint on."""
        schema = json.dumps(
            {"type": "object", "properties": {"a": {"type": "integer", "not": {"const": 3}}}, "required": ["a"]}
        )
        for i, constraint in enumerate([{"json_schema": schema}, {"regex": "[a-z]+"}, {"ebnf": 'root ::= "a" | "b"'}] * 4):
            body = {"text": "x" * (i + 1), "sampling_params": {"max_new_tokens": 24, **constraint}}
            assert self.post("/generate", body).status_code == 200

    # --- asking ---------------------------------------------------------------------------------------------------------------

    def ask(self) -> str:
        """An honest client's question; its answer is always the same."""
        reply = self.client.post("/generate", json=QUESTION)
        assert reply.status_code == 200, reply.text
        text: str = reply.json()["text"]
        return text

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    def post_bytes(self, path: str, body: bytes, key: str = KEY) -> httpx.Response:
        return self.client.post(
            path, content=body, headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        )

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def head(self, path: str, *lines: str, method: str = "POST", key: str | None = KEY) -> bytes:
        """The beginning of a request, for those who write their own."""
        all_lines = [f"{method} {path} HTTP/1.1", f"Host: {self.address[0]}:{self.address[1]}", *lines]
        if key is not None:
            all_lines.append(f"Authorization: Bearer {key}")
        return "\r\n".join([*all_lines, "", ""]).encode()

    def flood(self, pieces: Iterator[bytes], seconds: float, max_bytes: int = 400 << 20) -> int:
        """Sends on a new connection and reads nothing, until time is up or the server hangs up. Returns the bytes sent."""
        sent, end = 0, time.monotonic() + seconds
        with self.connect() as connection:
            connection.settimeout(0.5)
            for piece in pieces:
                if time.monotonic() > end or sent > max_bytes:
                    break
                with contextlib.suppress(TimeoutError):
                    try:
                        sent += connection.send(piece)
                    except (BrokenPipeError, ConnectionResetError):
                        break
        return sent

    def load(self) -> int:
        """Requests that run or wait."""
        (found,) = self.client.get("/get_load").json()
        number: int = found["num_reqs"]
        return number

    # --- looking ----------------------------------------------------------------------------------------------------------------

    def pids(self) -> list[int]:
        """The server and all its descendants."""
        found, left = [], [self.server.process.pid]
        while left:
            pid = left.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    left += map(int, (task / "children").read_text().split())
        return found

    def schedulers(self) -> list[int]:
        """Process ids of schedulers: another one after an attack means that one died."""
        found = []
        for pid in self.pids():
            with contextlib.suppress(OSError):
                if b"scheduler_process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def pss_mb(self) -> float:
        """Memory of all processes, what they share counted once."""
        return sum(map(pss_of, self.pids()))

    def kept(self) -> str:
        """Who keeps memory, and whether the caches were flushed."""
        flushed = self.client.post("/flush_cache", headers={"Authorization": f"Bearer {ADMIN}"})
        sizes = []
        for pid in self.pids():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                name = next((word for word in words if word.startswith("sglang.")), str(pid))
                sizes.append(f"{name} {pss_of(pid):.0f} MB")
        return f"{', '.join(sizes)}; flushing gave {flushed.status_code} {flushed.text[:200]}"

    @contextlib.contextmanager
    def watched(self) -> Iterator[Watch]:
        """Samples memory and health during an attack."""
        watch, done = Watch(), threading.Event()

        def sample_memory() -> None:
            while not done.wait(0.2):
                watch.peak_mb = max(watch.peak_mb, self.pss_mb())

        probe = [
            sys.executable,
            str(Path(__file__).with_name("health_probe.py")),
            *map(str, (*self.address, PROBE_SECONDS, PATIENCE)),
        ]
        memory = threading.Thread(target=sample_memory, daemon=True)
        memory.start()
        with subprocess.Popen(probe, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as health:
            try:
                yield watch
            finally:
                done.set()
                said, _ = health.communicate(timeout=PATIENCE)
                memory.join(PATIENCE)
                watch.health_ms += map(float, said.split())
        assert health.returncode == 0, "/health did not answer"

    def check(self, watch: Watch) -> None:
        """Fails unless the server is as well as before."""
        assert self.server.process.poll() is None, "the server died"
        before, self.scheduler = self.scheduler, self.schedulers()
        assert self.scheduler == before, "the scheduler died"
        assert watch.peak_mb < MAX_PSS_MB, f"it took {watch.peak_mb:.0f} MB"
        assert self.ask() == self.answer
        limit = max(self.warm_mb * GROWTH, self.warm_mb + GROWTH_MB)
        end = time.monotonic() + SETTLE_SECONDS
        while (kept_mb := self.settled_mb()) > limit and time.monotonic() < end:
            time.sleep(1)
        assert kept_mb <= limit, f"it keeps {kept_mb:.0f} MB of {self.warm_mb:.0f}: {self.kept()}"
        assert "Traceback" not in self.new_log(), "a traceback in the log"

    def new_log(self) -> str:
        """The server's log since the last attack."""
        text = self.server.log.read_text(errors="replace")
        new, self.log_len = text[self.log_len :], len(text)
        return new

    def settled_mb(self) -> float:
        headers = {"Authorization": f"Bearer {ADMIN}"}
        self.client.post("/flush_cache", headers=headers)
        return self.pss_mb()
