"""Fixtures of the whole suite: a real server with the default model, in its own process."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, settings

from sglang.common.server_process import wait_until

if not Path("/dev/nvidia0").exists():  # Triton reads this when it is first imported, by whichever test
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")  # a busy machine fails no test

ROOT = Path(__file__).parent.parent
DEFAULT_MODEL = "smollm2-135m-instruct"
START_SECONDS = 240.0


def pytest_sessionstart() -> None:
    """Without the kernels' package everything would be computed with NumPy, for hours; older ones fail in odd ways."""
    if importlib.util.find_spec("sglang_anywhere_kernels") is None:
        pytest.exit(f"the kernels are not installed: {sys.executable} -m pip install --no-deps -e ./csrc -e .", 3)
    built = importlib.util.find_spec("sglang_anywhere_kernels._cpu")
    sources = [*(ROOT / "csrc").glob("*.*"), *(ROOT / "csrc/simd").iterdir(), *(ROOT / "csrc/kernels").iterdir()]
    code = [path.stat().st_mtime for path in sources if path.suffix in (".cpp", ".h")]
    if built is not None and built.origin is not None and Path(built.origin).stat().st_mtime < max(code):
        pytest.exit(f"the kernels are older than csrc/: scripts/build_kernels {sys.executable}", 3)


@pytest.fixture(autouse=True)
def plain_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test sees the log as it is before an engine or a server sets it up, whatever a test before has done."""
    logger = logging.getLogger("sglang")
    level = logger.level
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "handlers", [])
    logger.setLevel(logging.NOTSET)
    yield
    logger.setLevel(level)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RunningServer:
    """A server process of the tests."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def children(self) -> list[int]:
        """Process ids of the server's live children."""
        found: list[int] = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # the thread has ended
                found += map(int, (task / "children").read_text().split())
        return found

    def scheduler(self) -> int:
        """Process id of its scheduler, once there is one: other children work on constraints and pictures."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            for pid in self.children():
                with contextlib.suppress(OSError):
                    if b"sglang.srt.process.scheduler_process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        return pid
            assert time.monotonic() < deadline, "there is no scheduler"
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 30.0) -> int:
        """Signals it and waits. Returns its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout)


def start_server(log: Path, *flags: str, model: str = DEFAULT_MODEL, environ: dict[str, str] | None = None) -> RunningServer:
    """Starts `python -m sglang.launch_server` and waits until it is ready. `environ`: variables besides those of this process."""
    port = free_port()
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", model, "--port", str(port), *flags]
    environment = (
        os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])} | (environ or {})
    )
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    server = RunningServer(process, f"http://127.0.0.1:{port}", log)
    try:
        wait_until(lambda: "ready to roll" in log.read_text(), process, START_SECONDS, "server")
    except (RuntimeError, TimeoutError) as error:
        process.kill()
        raise RuntimeError(f"the server did not start:\n{log.read_text()[-3000:]}") from error
    return server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The default model behind HTTP, one for the whole session."""
    running = start_server(tmp_path_factory.mktemp("server") / "log", "--random-seed", "1")
    yield running
    running.process.terminate()
    running.process.wait(30)


@pytest.fixture()
def http(server: RunningServer) -> Iterator[httpx.Client]:
    """A client of `server`."""
    with httpx.Client(base_url=server.url, timeout=120, trust_env=False) as client:
        yield client
