"""Servers for benchmarks, each on a free port of this machine, and the processor time of processes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from sglang.common.server_process import descendants, end_process, wait_for_answer

HOST = "127.0.0.1"
START_SECONDS = 300.0


@dataclass(frozen=True)
class Server:
    """`python -m sglang.launch_server`."""

    process: subprocess.Popen[bytes]
    url: str


@contextlib.contextmanager
def servers(*flags: str, count: int = 1) -> Iterator[list[Server]]:
    """So many servers with these flags, which answer; they end with the block."""
    started: list[Server] = []
    try:
        for _ in range(count):
            port = free_port()
            command = [sys.executable, "-m", "sglang.launch_server", "--port", str(port), "--log-level", "warning", *flags]
            started.append(Server(subprocess.Popen(command, stdin=subprocess.DEVNULL), f"http://{HOST}:{port}"))
        for server in started:
            wait_for_answer(f"{server.url}/health", server.process, START_SECONDS)
        yield started
    finally:
        for server in started:
            end_process(server.process)


def free_port() -> int:
    """One that the system chooses."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """Processor seconds of one process; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree_cpu_seconds(root: int) -> float:
    """Processor seconds of a process and its descendants."""
    return sum(map(cpu_seconds, [root, *(pid for pid, _ in descendants(root))]))
