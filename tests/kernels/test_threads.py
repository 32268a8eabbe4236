"""The thread pool: callers from several threads, forked children, idleness."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy as np
import pytest

from sglang.srt.errors import ConfigError
from sglang.srt.model.kernels import cpu

from .support import Float, ints, same_bits, tensor


def work(ops: Any, weight: Any, x: Float) -> Float:
    activation, out = ops.activation(len(x), [weight]), np.zeros((len(x), weight.out_features), np.float32)
    ops.store(x, activation, ints(len(x)))
    ops.linear(weight, activation, out, ints(len(x)))
    return out


@pytest.fixture(scope="module")
def three() -> Any:
    return cpu.CpuOps(3)


def test_names() -> None:
    assert "portable" in cpu.usable_isas()
    assert cpu.CpuOps(1, "portable").name == "cpu portable"
    assert cpu.CpuOps(1).name == f"cpu {cpu.usable_isas()[0]}"
    assert 1 <= cpu.default_threads() <= (os.cpu_count() or 1)
    assert cpu.CpuOps().num_threads == cpu.default_threads()


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_bad_thread_counts(threads: int) -> None:
    with pytest.raises(ConfigError, match="threads"):
        cpu.CpuOps(threads)


def test_unknown_instruction_set() -> None:
    with pytest.raises(ConfigError, match="portable"):
        cpu.CpuOps(1, "sparc")


def test_callers_from_several_threads(three: Any) -> None:
    """One op set may be called from anywhere; runs take turns."""
    rng = np.random.default_rng(0)
    weight, x = three.pack([tensor(rng, "q4_1", 256, 256)]), rng.standard_normal((5, 256), np.float32)
    want, wrong = work(three, weight, x), []

    def many() -> None:
        for _ in range(50):
            if not np.array_equal(work(three, weight, x), want):
                wrong.append(1)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(thread.is_alive() for thread in threads)


def test_giving_up_threads_changes_nothing(three: Any) -> None:
    """With more threads than cores the pool gives some up; results stay the same through it all."""
    rng = np.random.default_rng(1)
    weight, x = three.pack([tensor(rng, "q4_1", 2048, 512)]), rng.standard_normal((64, 512), np.float32)
    three.runtime.set_adaptive(False)
    want = work(three, weight, x)
    three.runtime.set_adaptive(True)
    for _ in range(60):
        same_bits(work(three, weight, x), want)
    assert 1 <= three.runtime.active_threads <= 3


def test_a_forked_child_can_go_on(three: Any) -> None:
    """The child has no threads but its own, and must neither hang nor differ."""
    rng = np.random.default_rng(2)
    weight, x = three.pack([tensor(rng, "q8_0", 64, 64)]), rng.standard_normal((3, 64), np.float32)
    want = work(three, weight, x)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if np.array_equal(work(three, weight, x), want) else 1)
    deadline = time.monotonic() + 30
    done, status = os.waitpid(pid, os.WNOHANG)
    while not done and time.monotonic() < deadline:
        time.sleep(0.01)
        done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert done and os.waitstatus_to_exitcode(status) == 0


def test_idle_threads_use_no_processor() -> None:
    ops = cpu.CpuOps(4)
    weight = ops.pack([tensor(np.random.default_rng(3), "q8_0", 64, 64)])
    work(ops, weight, np.ones((2, 64), np.float32))
    time.sleep(0.1)  # longer than they spin
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.05
