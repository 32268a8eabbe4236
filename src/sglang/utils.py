"""Helpers for notebooks and scripts: start a server, wait for it, stop it, print. Other names of the original's sglang.utils are in
sglang.compat and are imported on first use."""

from __future__ import annotations

import importlib
import os
import random
import shlex
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit

from sglang.common.server_process import end_process, free_port, wait_for_answer

PORTS = range(30000, 40000)
_ELSEWHERE = {
    "HttpResponse": "sglang.compat.requests",
    "async_stream_and_merge": "sglang.compat.requests",
    "convert_json_schema_to_str": "sglang.compat.json_regex",
    "download_and_cache_file": "sglang.compat.files",
    "dump_state_text": "sglang.compat.files",
    "encode_image_base64": "sglang.compat.files",
    "encode_video_base64": "sglang.compat.files",
    "execute_shell_command": "sglang.compat.servers",
    "get_exception_traceback": "sglang.compat.files",
    "http_request": "sglang.compat.requests",
    "read_jsonl": "sglang.compat.files",
    "stream_and_merge": "sglang.compat.requests",
    "trim_overlap": "sglang.compat.requests",
}
_launched: dict[int, subprocess.Popen[bytes]] = {}
"""servers started here, by port: wait_for_server sees when one has ended"""


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
    port = free_port(host, random.sample(PORTS, 200)) if port is None else port
    words = shlex.split(command.replace("\\\n", " "))
    if words and words[0] in ("python", "python3"):
        words[0] = sys.executable
    words += ["--port", str(port)]
    # its own session, so that the whole tree can be ended by its group even after the parent has died
    process = _launched[port] = subprocess.Popen(words, start_new_session=True)
    return process, port


def wait_for_server(base_url: str, timeout: float | None = None, process: subprocess.Popen[bytes] | None = None) -> None:
    """Returns once `GET {base_url}/v1/models` answers. Raises TimeoutError after `timeout` seconds (None: ten minutes), and
    RuntimeError when `process` (or what launch_server_cmd started on that port) has ended."""
    process = process or _launched.get(urlsplit(base_url).port or 0)
    wait_for_answer(
        f"{base_url}/v1/models",
        process,
        600.0 if timeout is None else timeout,
        statuses=(200, 401),  # 401: a server that wants its own key is up, too
        headers={"Authorization": "Bearer None"},
        request_timeout=5.0,
    )


def terminate_process(process: subprocess.Popen[bytes], grace: float = 5.0) -> None:
    """Ends the process and all its descendants: politely, and after `grace` seconds by force."""
    end_process(process, grace)
    for port in [port for port, launched in _launched.items() if launched is process]:
        del _launched[port]


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ELSEWHERE})


__all__ = ["is_in_ci", "launch_server_cmd", "print_highlight", "terminate_process", "wait_for_server"]
