"""On Ray: replicas whose ranks are on several nodes, and replicas that come and go with the load. Each test has its own cluster.

.venv-cluster/bin/pip install --editable '.[srt,distributed]'
.venv-cluster/bin/python -m pytest -m "cluster and slow" tests/cluster/test_ray_scale.py
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.conftest import SEED, start_several
from tests.cluster.test_ray import processes_of, servers_of
from tests.cluster.test_replicas import said
from tests.cluster.test_several import wait_for
from tests.conftest import RunningServer, start_server
from tests.server.test_processes import wait_dead

pytest.importorskip("ray", reason="needs an environment with [distributed]: see above")
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

LONG: dict[str, Any] = {"text": "a b", "sampling_params": {"max_new_tokens": 200, "temperature": 0, "ignore_eos": True}}


@contextlib.contextmanager
def gateway(model: Path, log: Path, *flags: str) -> Iterator[tuple[RunningServer, Path]]:
    """A gateway with a cluster of its own, and the folder by which its processes are known."""
    folder = Path(f"/tmp/sgl-{os.getpid()}-{log.parent.name[-4:]}")  # Ray's sockets need short paths
    folder.mkdir()
    environ = {"TMPDIR": str(folder), "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    common = ("--model-path", str(model), "--served-model-name", "alpha", "--ray", "auto", "--replica-cpus", "0.5")
    server = start_several(log, *common, *flags, *SEED, environ=environ, seconds=400)
    try:
        yield server, folder
    finally:
        pids = processes_of(folder)
        server.process.send_signal(signal.SIGINT)
        server.process.wait(120)
        wait_dead(pids)


def ranks_of(folder: Path) -> list[int]:
    """Ranks of other nodes than the first."""
    found = []
    for pid in processes_of(folder):
        with contextlib.suppress(OSError):
            if b"sglang.srt.model.distributed.follower" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def test_a_replica_on_two_nodes(models: dict[str, Path], tmp_path: Path) -> None:
    """The bits of two ranks on one machine, also when a rank of the other node dies in the middle."""
    pytest.importorskip("torch")
    alone = start_server(tmp_path / "alone", *SEED, "--tp-size", "2", model=str(models["alpha"]))
    try:
        expected = said(alone.url, "/generate", LONG)
    finally:
        assert alone.stop() == 0
    with gateway(models["alpha"], tmp_path / "log", "--tp-size", "2", "--nnodes", "2") as (server, folder):
        assert len(ranks_of(folder)) == 1
        assert said(server.url, "/generate", LONG) == expected

        def kill(count: int) -> None:
            if count == 5:
                os.kill(ranks_of(folder)[0], signal.SIGKILL)

        assert said(server.url, "/generate", LONG, kill) == expected


def test_replicas_come_with_the_load_and_go_after_their_requests(models: dict[str, Path], tmp_path: Path) -> None:
    flags = ("--max-replicas", "2", "--target-requests", "1", "--replica-idle", "5")
    with gateway(models["alpha"], tmp_path / "log", *flags) as (server, folder):
        assert len(servers_of(folder)) == 1
        expected = said(server.url, "/generate", LONG)
        stop = threading.Event()
        replies: list[Any] = []

        def ask() -> None:
            while not stop.is_set():
                replies.append(said(server.url, "/generate", LONG))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(servers_of(folder)) == 2, 300)
        stop.set()
        for thread in threads:
            thread.join(300)
        long = LONG | {"sampling_params": LONG["sampling_params"] | {"max_new_tokens": 3000}}
        both = [threading.Thread(target=lambda: replies.append(len(said(server.url, "/generate", long)["ids"]))) for _ in "ab"]
        for thread in both:  # of which one runs where it is about to be removed
            thread.start()
        wait_for(lambda: len(servers_of(folder)) == 1, 300)
        for thread in both:
            thread.join(300)
        assert replies.count(3000) == 2 and all(reply in (expected, 3000) for reply in replies)
        assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
