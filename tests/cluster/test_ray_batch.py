"""`sglang batch --ray`: the answers of a run on one server, also when a server dies in the middle, and the end of one that cannot start.

.venv-cluster/bin/pip install --editable '.[srt,ray-data]'
.venv-cluster/bin/python -m pytest -m "cluster and slow" tests/cluster/test_ray_batch.py
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang.commands.batch import batch
from tests.cluster.conftest import SEED
from tests.cluster.test_batch_command import answers, line, write
from tests.cluster.test_ray import processes_of
from tests.conftest import RunningServer
from tests.server.test_processes import wait_dead

pytest.importorskip("ray.data", reason="needs an environment with [ray-data]: see above")
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """For the temporary files of Ray, whose sockets need short paths."""
    path = Path(f"/tmp/sgl-{os.getpid()}-{time.monotonic_ns() % 10**6}")
    path.mkdir()
    yield path
    wait_dead(processes_of(path))


def run(folder: Path, model: Path, source: Path, output: Path, *flags: str) -> subprocess.Popen[str]:
    environ = os.environ | {"TMPDIR": str(folder), "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "sglang.cli", "batch", str(model), "-i", str(source), "-o", str(output), "--ray", "auto"]
    command += [*flags, "--window", "4", "--", *SEED]
    return subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)


def servers_of(folder: Path) -> list[int]:
    return [
        pid for pid in processes_of(folder) if b"sglang.launch_server" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    ]


def test_answers_are_those_of_one_server_also_when_one_dies(
    alone: RunningServer, models: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    lines = [line(f"r{i} \u00e4", max_tokens=80, ignore_eos=True) for i in range(60)]
    source = write(tmp_path / "in", [*lines, line("half a pair \ud800")])
    expected, output = tmp_path / "expected", tmp_path / "out"
    assert batch(["-i", str(source), "-o", str(expected), "--url", alone.url]) == 1  # one line is refused
    process = run(folder, models["alpha"], source, output, "--workers", "2", "--worker-cpus", "0.5")
    killed: list[int] = []

    def kill() -> None:
        while not output.exists() or not output.stat().st_size:
            time.sleep(0.05)
        if found := servers_of(folder):
            os.kill(found[0], signal.SIGKILL)
            killed.append(found[0])

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    _, said = process.communicate(timeout=500)
    assert process.returncode == 1 and "1 of 61 requests failed" in said, said[-3000:]
    assert killed and answers(output) == answers(expected)


def test_a_server_that_cannot_start(folder: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in", [line("a")])
    process = run(folder, tmp_path / "nothing.gguf", source, tmp_path / "out")
    _, said = process.communicate(timeout=500)
    assert process.returncode == 1
    assert "sglang batch: error: " in said and "nothing.gguf" in said.splitlines()[-1], said[-3000:]
