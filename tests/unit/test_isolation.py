"""Jobs in child processes: a child that fails costs one job and nothing else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from sglang.srt.process.isolation import Cancelled, Isolated, IsolationError, Limits, Patience

ENTRY = "tests.unit.isolated_work:prepare"


@pytest.fixture(scope="module")
def isolated() -> Iterator[Isolated]:
    pool = Isolated(ENTRY, b"setup", Limits(memory=128 << 20, cpu_seconds=1, seconds=3))
    yield pool
    pool.close()


def test_replies_of_any_size(isolated: Isolated) -> None:
    for size in (0, 1, 100_000, 20_000_000):
        data = os.urandom(size)
        assert isolated.run(b"echo " + data) == data


def test_every_job_has_its_own_process(isolated: Isolated) -> None:
    assert len({isolated.run(b"pid") for _ in range(5)} | {str(os.getpid()).encode()}) == 6


@pytest.mark.parametrize(
    "payload, reason",
    [
        (b"raise", "failed: no good"),
        (b"segv", "crashed"),
        (b"abort", "crashed, or needed more than 128 MB"),
        (b"memory 1000000000", "needed more than 128 MB"),
        (b"spin", "took more than (1 s of processor time|3 s)"),  # 3 s where others have the processor
        (b"sleep 60", "took more than 3 s"),
        (b"stop", "took more than 3 s"),
    ],
)
def test_what_a_job_does_to_itself(isolated: Isolated, payload: bytes, reason: str) -> None:
    with pytest.raises(IsolationError, match=f"^{reason}$"):
        isolated.run(payload)
    assert isolated.run(b"echo still here") == b"still here"


def test_a_cancelled_job_ends_at_once_and_so_does_its_child(isolated: Isolated) -> None:
    job = isolated.submit()
    threading.Timer(0.2, job.cancel).start()
    with pytest.raises(Cancelled):
        job.result(b"sleep 60")
    pid = job.pid
    assert pid is not None
    while os.path.exists(f"/proc/{pid}"):
        time.sleep(0.01)


def test_a_fork_server_that_died_is_replaced(isolated: Isolated) -> None:
    assert isolated.run(b"echo a") == b"a"
    isolated._process.kill()  # type: ignore[union-attr]
    isolated._process.wait()  # type: ignore[union-attr]
    assert isolated.run(b"echo b") == b"b"


def test_many_threads_at_once(isolated: Isolated) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda i=i: found.append(isolated.run(b"echo %d" % i))) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found, key=int) == [b"%d" % i for i in range(32)]


def test_it_rests_and_comes_again() -> None:
    pool = Isolated(ENTRY, lambda: b"setup", Limits(memory=128 << 20, cpu_seconds=1, seconds=3), num_spare=2)
    pid = int(pool.run(b"pid"))
    pool.rest()
    assert not os.path.exists(f"/proc/{pid}") and pool._process is None
    assert pool.run(b"echo again") == b"again"
    pool.close()


def test_callers_decide_whether_a_late_job_goes_on(isolated: Isolated) -> None:
    assert isolated.submit().result(b"sleep 0.2", patience=Patience(0.05, lambda: True)) == b"done"
    job = isolated.submit()
    with pytest.raises(Cancelled):
        job.result(b"spin", patience=Patience(0.05, lambda: job.step_back() is not None))
    assert isolated.submit().result(b"echo quick", patience=Patience(5.0, lambda: False)) == b"quick"


def test_nothing_is_left_when_it_is_closed() -> None:
    pool = Isolated(ENTRY, b"setup", Limits(memory=128 << 20, cpu_seconds=1, seconds=3), num_spare=2)
    pids = [int(pool.run(b"pid"))]
    pool.close()
    for pid in pids:
        assert not os.path.exists(f"/proc/{pid}")
    with pytest.raises(IsolationError, match="shutting down"):
        pool.submit()


# --- children that do several jobs --------------------------------------------------------------------------------------------


@pytest.fixture
def diligent() -> Iterator[Isolated]:
    pool = Isolated(ENTRY, b"setup", Limits(memory=128 << 20, cpu_seconds=1, seconds=3, jobs=4))
    yield pool
    pool.close()


def pids(pool: Isolated, count: int) -> list[bytes]:
    return [pool.run(b"pid") for _ in range(count)]


def test_a_child_does_as_many_jobs_as_it_may(diligent: Isolated) -> None:
    found = pids(diligent, 12)
    assert found[:4] == [found[0]] * 4 and found[4:8] == [found[4]] * 4 and len(set(found)) == 3


@pytest.mark.parametrize("payload", [b"raise", b"segv", b"memory 1000000000", b"spin", b"sleep 60"])
def test_limits_hold_in_each_of_them_and_what_fails_is_the_last(diligent: Isolated, payload: bytes) -> None:
    (first,) = set(pids(diligent, 2))
    with pytest.raises(IsolationError):
        diligent.run(payload)
    assert first not in pids(diligent, 2)


def test_time_is_counted_for_each(diligent: Isolated) -> None:
    """Waiting for a job is none of the next one's time, nor is what others took."""
    (first,) = {diligent.run(b"pid"), diligent.run(b"sleep 1.6") and diligent.run(b"pid")}
    time.sleep(1.6)
    assert diligent.run(b"sleep 1.6") == b"done" and first


def test_one_that_holds_more_than_before_ends(diligent: Isolated) -> None:
    first = diligent.run(b"pid")
    assert diligent.run(b"keep 1000000") == b"done"
    assert diligent.run(b"pid") == first
    assert diligent.run(b"keep 40000000") == b"done"
    assert diligent.run(b"pid") != first


def test_one_whose_job_was_cancelled_or_put_back_ends(diligent: Isolated) -> None:
    first, job = diligent.run(b"pid"), diligent.submit()
    threading.Timer(0.2, job.step_back).start()
    assert job.result(b"sleep 0.5") == b"done"
    assert diligent.run(b"pid") != first
    late = diligent.submit()
    assert late.result(b"pid")
    late.cancel()
    assert diligent.run(b"echo a") == b"a", "a cancel that comes too late harms nobody"


def test_those_of_a_fork_server_that_rests_are_not_kept(diligent: Isolated) -> None:
    job = diligent.submit()
    diligent.rest()
    diligent.start()
    with pytest.raises(IsolationError):
        job.result(b"sleep 1")
    assert diligent.run(b"echo a") == b"a"


def test_parts_come_while_the_child_goes_on(isolated: Isolated) -> None:
    parts: list[bytes] = []
    assert isolated.submit().result(b"parts 0", on_part=parts.append) == b"end" and parts[0] == b"one"
    joined = bytearray()
    assert isolated.submit().result(b"parts 0", parts=joined) == b"end" and joined.startswith(b"one")
    parts.clear()
    job = isolated.submit()
    with pytest.raises(Cancelled):
        job.result(b"parts 60", on_part=parts.append, patience=Patience(0.05, lambda: len(parts) < 2))
    assert len(parts) == 2, "patience has no end before there is a part"


def test_what_takes_a_part_may_end_the_job(isolated: Isolated) -> None:
    def refuse(part: bytes) -> None:
        raise ValueError(part.decode())

    job = isolated.submit()
    with pytest.raises(ValueError, match="one"):
        job.result(b"parts 60", on_part=refuse)
    pid = job.pid
    assert pid is not None
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{pid}")
