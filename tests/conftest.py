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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, settings

from sglang.common.server_process import end_process, wait_until

if not Path("/dev/nvidia0").exists():  # Triton reads this when it is first imported, by whichever test
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy machine fails no test, and a run's result depends on the commit alone. New examples: HYPOTHESIS_PROFILE=explore make test
settings.register_profile("same", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job; children would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

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


def package_environ(**more: str) -> dict[str, str]:
    """Environment of a process that imports the package's sources, as of a CPU installation: without torch. Importing it, as
    transformers does where it is installed, takes seconds of every start."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", ""), str(ROOT / "tests" / "cpu_install")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | more


def spawn_server(log: Path, *flags: str, environ: dict[str, str] | None = None, stdin: int | None = None) -> RunningServer:
    """Starts `python -m sglang.launch_server` on a free port, and does not wait. `environ`: variables besides those of this process."""
    port = free_port()
    command = [sys.executable, "-m", "sglang.launch_server", "--port", str(port), *flags]
    environment = os.environ if "xgrammar" in flags else package_environ()  # xgrammar needs torch
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=stdin, stdout=out, stderr=out, env={**environment, **(environ or {})})
    return RunningServer(process, f"http://127.0.0.1:{port}", log)


def wait_ready(server: RunningServer, ready: Callable[[str], bool], seconds: float = START_SECONDS) -> RunningServer:
    """The server, once its log is `ready`."""
    try:
        wait_until(lambda: ready(server.log.read_text()), server.process, seconds, "server")
    except (RuntimeError, TimeoutError) as error:
        end_process(server.process)
        raise RuntimeError(f"the server did not start:\n{server.log.read_text()[-3000:]}") from error
    return server


def start_server(log: Path, *flags: str, model: str = DEFAULT_MODEL, environ: dict[str, str] | None = None) -> RunningServer:
    """`spawn_server`, and waits until it serves."""
    server = spawn_server(log, "--model-path", model, *flags, environ=environ)
    return wait_ready(server, lambda text: "ready to roll" in text)


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
