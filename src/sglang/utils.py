"""What notebooks and scripts call around a server: start it, wait for it, stop it, print nicely. What else the original has under
this name lies in sglang.compat and is brought when it is asked for."""

from __future__ import annotations

import importlib
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from typing import Any
from urllib.parse import urlsplit

_PORTS = range(30000, 40000)
_POLL_SECONDS = 0.2
_ELSEWHERE = {
    "HttpResponse": "sglang.compat.requests",
    "async_stream_and_merge": "sglang.compat.requests",
    "convert_json_schema_to_str": "sglang.compat.json_regex",
    "download_and_cache_file": "sglang.compat.files",
    "dump_state_text": "sglang.compat.files",
    "encode_image_base64": "sglang.compat.files",
    "get_exception_traceback": "sglang.compat.files",
    "http_request": "sglang.compat.requests",
    "read_jsonl": "sglang.compat.files",
    "stream_and_merge": "sglang.compat.requests",
    "trim_overlap": "sglang.compat.requests",
}
_launched: dict[int, subprocess.Popen[bytes]] = {}
"""servers started here, by port: waiting for one that has ended is hopeless"""


def is_in_ci() -> bool:
    """Whether SGLANG_IS_IN_CI is set to a true value."""
    return os.environ.get("SGLANG_IS_IN_CI", "").lower() in ("1", "true", "yes", "on")


def print_highlight(content: Any) -> None:
    """Prints; in a notebook built by continuous integration, as blue HTML."""
    if is_in_ci() and "IPython" in sys.modules:
        import html

        from IPython.display import HTML, display

        display(HTML(f"<strong style='color: #00008B;'>{html.escape(str(content)).replace(chr(10), '<br>')}</strong>"))
    else:
        print(content)


def launch_server_cmd(command: str, host: str = "0.0.0.0", port: int | None = None) -> tuple[subprocess.Popen[bytes], int]:
    """Starts `command` with `--port` appended and returns (process, port). Without `port`, one that is free on `host` is
    found. `python` at the start of the command means the running interpreter."""
    port = _free_port(host) if port is None else port
    words = shlex.split(command.replace("\\\n", " "))
    if words and words[0] in ("python", "python3"):
        words[0] = sys.executable
    words += ["--port", str(port)]
    # its own session, so that the whole tree can be ended by its group even after the parent has died
    process = _launched[port] = subprocess.Popen(words, start_new_session=True)
    return process, port


def _free_port(host: str) -> int:
    for port in random.sample(_PORTS, 200):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port among {_PORTS.start}..{_PORTS.stop - 1}")


def wait_for_server(base_url: str, timeout: float | None = None, process: subprocess.Popen[bytes] | None = None) -> None:
    """Returns once `GET {base_url}/v1/models` answers. Raises TimeoutError after `timeout` seconds (None: ten minutes), and
    RuntimeError when `process` (or what launch_server_cmd started on that port) has ended."""
    import httpx

    process = process or _launched.get(urlsplit(base_url).port or 0)
    limit = 600.0 if timeout is None else timeout
    deadline = time.monotonic() + limit
    with httpx.Client(verify=base_url.startswith("https"), trust_env=False, timeout=5.0) as client:
        while True:
            if process is not None and process.poll() is not None:
                raise RuntimeError(f"the server process has ended with exit code {process.returncode}; see its output")
            try:
                response = client.get(f"{base_url}/v1/models", headers={"Authorization": "Bearer None"})
                # 401: a server that wants its own key is up, too
                if response.status_code in (200, 401):
                    return
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline:
                raise TimeoutError(f"no server at {base_url} after {limit:g} seconds")
            time.sleep(_POLL_SECONDS)


def terminate_process(process: subprocess.Popen[bytes], grace: float = 5.0) -> None:
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
    for port in [port for port, launched in _launched.items() if launched is process]:
        del _launched[port]


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


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ELSEWHERE})


__all__ = ["is_in_ci", "launch_server_cmd", "print_highlight", "terminate_process", "wait_for_server"]
