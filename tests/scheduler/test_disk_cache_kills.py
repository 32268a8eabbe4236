"""kill -9 at any moment: whatever is in the folder afterwards is right, and the next server goes on with it.

.venv-test/bin/python -m pytest -m slow tests/scheduler/test_disk_cache_kills.py     (a minute or two)
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sglang.srt.scheduler.cache.disk.store import DiskRoom
from tests.scheduler.disk_server import Server, ask, ids

NUM_KILLS = 50
NUM_PROMPTS = 40
ROOM = DiskRoom(96 << 10, least_free=0, segment_bytes=16 << 10)
"""so little that segments are deleted all the time"""


def prompt(i: int) -> list[int]:
    """Some share beginnings."""
    return ids(48 + 8 * (i % 3), i % 7) + ids(40, 100 + i)


def serve(folder: Path, seed: int) -> None:
    """Answers for ever: what it computes is written, read, evicted. Each answer is the oracle's."""
    rng = random.Random(seed)
    server = Server(folder, room=ROOM, check=False)
    print("ready", flush=True)
    while True:
        server.ask(ask(prompt(rng.randrange(NUM_PROMPTS))))


def nursery(folder: Path) -> None:
    """Forks a server for every line it reads, tells its process and waits for its end: nothing is imported again."""
    for seed, _ in enumerate(sys.stdin):
        pid = os.fork()
        if not pid:
            try:
                serve(folder, seed)
            finally:
                print("failed", flush=True)
                os._exit(1)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print("killed" if os.WIFSIGNALED(status) else f"ended with {status}", flush=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments(tmp_path: Path) -> None:
    folder, rng, num_cached = tmp_path / "cache", random.Random(11), 0
    code = f"from pathlib import Path; from {__name__} import nursery; nursery(Path({str(folder)!r}))"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdin is not None and parent.stdout is not None
    for i in range(NUM_KILLS):
        print(file=parent.stdin, flush=True)
        pid, ready = sorted((parent.stdout.readline().strip(), parent.stdout.readline().strip()))
        assert ready == "ready", "what the last one left must not stop this one"
        time.sleep(rng.random() * 0.4)
        os.kill(int(pid), signal.SIGKILL)
        assert parent.stdout.readline().strip() == "killed"
        if i % 10 == 9:  # look at all of it; `ask` compares with the oracle
            server = Server(folder, room=ROOM)
            assert server.tier.store.writes, "the lock went with the process"
            num_cached += sum(server.cached(ask(prompt(k))) for k in range(NUM_PROMPTS))
            assert server.stats.disk["damaged"] <= 1, "at most the record that was being written"
            server.kill()
    parent.stdin.close()
    parent.wait()
    assert num_cached > 0
