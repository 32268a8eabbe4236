"""Starting, waiting for and stopping servers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sglang.test.test_utils import is_in_ci
from sglang.utils import launch_server_cmd, print_highlight, terminate_process, wait_for_server

from .native_server import NativeServer

SERVER = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import subprocess, time
from native_server import NativeServer
port = int(sys.argv[sys.argv.index("--port") + 1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
import asyncio
server = NativeServer()
async def main():
    running = await asyncio.start_server(server._serve, "127.0.0.1", port)
    async with running:
        await running.serve_forever()
asyncio.run(main())
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_launch_wait_terminate(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    process, port = launch_server_cmd(f"python {script}")
    assert 30000 <= port < 40000
    wait_for_server(f"http://localhost:{port}", timeout=30)
    child = int(capfd.readouterr().out.split()[0])
    assert alive(child)
    terminate_process(process)
    deadline = time.monotonic() + 5
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is not None and not alive(child)
    terminate_process(process)  # twice is no harm


def test_a_server_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    process, port = launch_server_cmd('python -c "raise SystemExit(3)"')
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="exit code 3"):
        wait_for_server(f"http://localhost:{port}")
    assert time.monotonic() - started < 30
    terminate_process(process)


def test_waiting_ends() -> None:
    with pytest.raises(TimeoutError, match=r"after 0\.3 seconds"):
        wait_for_server("http://127.0.0.1:9", timeout=0.3)
    with NativeServer() as server:
        wait_for_server(server.url, timeout=5)


def test_a_given_port() -> None:
    process, port = launch_server_cmd(f"{sys.executable} -c 'pass'", port=31234)
    assert port == 31234
    process.wait(30)
    terminate_process(process)


def test_print_highlight(capsys: pytest.CaptureFixture[str]) -> None:
    print_highlight({"a": 1})
    assert capsys.readouterr().out == "{'a': 1}\n"


def test_is_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_IS_IN_CI", raising=False)
    assert is_in_ci() is False
    monkeypatch.setenv("SGLANG_IS_IN_CI", "true")
    assert is_in_ci() is True


def test_a_leaked_state_does_not_keep_the_process_alive() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import sglang as sgl\n"
        "from native_server import NativeServer\n"
        "server = NativeServer().__enter__(); server.delay = 600\n"
        "backend = sgl.RuntimeEndpoint.__new__(sgl.RuntimeEndpoint)\n"
        "server.delay = 0; backend = sgl.RuntimeEndpoint(server.url); server.delay = 600\n"
        "@sgl.function\n"
        "def program(s):\n"
        "    s += 'p' + sgl.gen('x')\n"
        "leaked = [program.run(backend=backend, stream=stream) for stream in (False, True)]\n"
        "print('end')\n"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, here], capture_output=True, text=True, timeout=30, env=dict(os.environ), check=False
    )
    assert done.stdout == "end\n" and done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
