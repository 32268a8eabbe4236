"""Starting, stopping, dying: what an operator sees of the processes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.conftest import DEFAULT_MODEL, free_port, package_environ, start_server


def launch(*flags: str) -> subprocess.CompletedProcess[str]:
    environment = package_environ()
    command = [sys.executable, "-m", "sglang.launch_server", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode not in (0, None)
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1 and "Traceback" not in result.stderr, result.stderr
    return errors[0]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_dead(pids: list[int], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while any(alive(p) for p in pids):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.05)


def test_unknown_flag_names_the_nearest() -> None:
    assert "--port" in one_line(launch("--prot", "1"))


def test_bad_model_is_one_line() -> None:
    assert "no-such-folder" in one_line(launch("--model-path", "./no-such-folder", "--port", str(free_port())))


def test_not_a_model_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchForCausalLM"]}')
    line = one_line(launch("--model-path", str(tmp_path), "--port", str(free_port())))
    assert "NoSuchForCausalLM" in line


def test_busy_port_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "--port" in one_line(launch("--port", str(taken.getsockname()[1])))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_running_requests_and_leaves_no_process(tmp_path: Path, number: int) -> None:
    server = start_server(tmp_path / "log")
    pids = [server.process.pid, *server.children()]
    replies: list[httpx.Response] = []
    body = {"text": "A story:", "sampling_params": {"max_new_tokens": 8000, "ignore_eos": True}}
    thread = threading.Thread(target=lambda: replies.append(httpx.post(f"{server.url}/generate", json=body, timeout=60)))
    thread.start()
    time.sleep(1.0)
    assert server.stop(number) == 0
    thread.join(30)
    assert replies and "shutting down" in replies[0].text
    wait_dead(pids)


def test_killing_the_server_takes_the_scheduler_along(tmp_path: Path) -> None:
    server = start_server(tmp_path / "log")
    pids = server.children()
    server.process.kill()
    server.process.wait()
    wait_dead(pids)


def test_the_log_has_the_documents_lines(tmp_path: Path) -> None:
    server = start_server(tmp_path / "log", "--decode-log-interval", "4")
    body = {"text": "A story:", "sampling_params": {"max_new_tokens": 20, "ignore_eos": True}}
    httpx.post(f"{server.url}/generate", json=body, timeout=60)
    server.stop()
    log = server.log.read_text()
    for piece in (
        "server_args=ServerArgs(model_path=",
        "Load weight begin.",
        "Load weight end.",
        "KV Cache is allocated.",
        "max_total_num_tokens=",
        "Prefill batch. #new-seq: 1, #new-token:",
        "Decode batch. #running-req: 1, #token:",
        "GET /v1/models",
        "The server is fired up and ready to roll!",
    ):
        assert piece in log, piece


def test_the_default_model_is_served_without_flags() -> None:
    from sglang.srt.server_args import ServerArgs

    assert ServerArgs().model_path == DEFAULT_MODEL
