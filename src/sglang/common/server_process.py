"""Servers as child processes: finding a free port, waiting until they answer, and stopping them with all their children."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

POLL_SECONDS = 0.1


def free_port(host: str, ports: Iterable[int]) -> int:
    """The first free port of `ports`. Raises RuntimeError."""
    for port in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"none of the ports tried on {host} is free")


def notice_silence(connection: Any, seconds: int) -> None:
    """Has a TCP connection end when the other machine gives no sign for so long; a process that is frozen there does not count.
    `connection`: a socket, or what an event loop gives for one."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", seconds // 3),
        ("TCP_KEEPINTVL", max(seconds // 6, 1)),
        ("TCP_KEEPCNT", 4),
        ("TCP_USER_TIMEOUT", seconds * 1000),
    ):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def how_it_ended(status: int) -> str:
    """A process's exit status in words; negative: the signal."""
    if status == -signal.SIGKILL:
        return "was killed (SIGKILL), as the system does with a process when memory runs out"
    if status < 0:
        return (
            f"was ended by {signal.Signals(-status).name}"
            if -status in set(signal.Signals)
            else f"was ended by signal {-status}"
        )
    return f"has ended with exit code {status}"


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[Any] | None, timeout: float, what: str) -> None:
    """Returns once `ready()`. Raises TimeoutError after `timeout` seconds, and RuntimeError when `process` has ended."""
    deadline = time.monotonic() + timeout
    while True:
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"the server process {how_it_ended(process.returncode)}; see its output")
        if ready():
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} after {timeout:g} seconds")
        time.sleep(POLL_SECONDS)


def wait_for_answer(
    url: str,
    process: subprocess.Popen[Any] | None,
    timeout: float,
    *,
    statuses: Collection[int] = (200,),
    headers: Mapping[str, str] | None = None,
    request_timeout: float = 30.0,
) -> None:
    """wait_until a GET of `url` is answered with one of `statuses`."""
    import httpx

    with httpx.Client(verify=url.startswith("https"), trust_env=False, timeout=request_timeout, headers=headers) as client:

        def ready() -> bool:
            try:
                return client.get(url).status_code in statuses
            except httpx.TransportError:
                return False

        wait_until(ready, process, timeout, f"answer of {url}")


def end_process(process: subprocess.Popen[Any], grace: float = 5.0) -> None:
    """Ends the process and all its descendants: politely, and after `grace` seconds by force."""
    tree = descendants(process.pid)
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            pass
    for pid, started in tree:
        kill(pid, started)
    if process.poll() is None:
        process.kill()
    process.wait()


def kill(pid: int, started: str) -> None:
    """Kills `pid` if it still is the process that was seen (numbers are used again)."""
    if _start_time(pid) == started:
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def descendants(root: int) -> list[tuple[int, str]]:
    """(pid, start time) of all processes below `root`, without `root`."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return [(pid, _start_time(pid)) for pid in found]


def _parents() -> list[tuple[int, int]]:
    """(pid, parent) of every process."""
    if os.path.isdir("/proc/self"):
        return [(int(name), int(stat[1])) for name in os.listdir("/proc") if name.isdigit() and (stat := _stat(int(name)))]
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
    return [(int(pid), int(parent)) for pid, parent in (line.split() for line in listing.splitlines())]


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat behind the command's name: state, parent, ..."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def _start_time(pid: int) -> str:
    if not os.path.isdir("/proc/self"):
        shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return shown.stdout.strip()
    stat = _stat(pid)
    return stat[19] if stat else ""
