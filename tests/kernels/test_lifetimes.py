"""Ends of all kinds while ops are on their way: each program runs in its own process, which must end as programs do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# `attention` is in the step because it uses work buffers, which are the op set's and not arrays of the caller's: for heads of 48 the
# rows. `steps` counts the steps that were done.
PRELUDE = """
import gc, multiprocessing, os, sys, threading, time
from tests.kernels.extension import use_chosen_build
use_chosen_build()
import numpy as np
from sglang.srt.model.kernels import cpu
from sglang.srt.model.op_tape import OpTape
from tests.kernels.support import ints, meta_of, tensor

ROWS, HEADS, DIM = 256, 8, 48

class Work:
    def __init__(self, threads=2, ahead=True):
        self.ops = ops = cpu.CpuOps(threads, ahead=ahead)
        rng = np.random.default_rng(0)
        width = HEADS * DIM
        self.weight = ops.pack([tensor(rng, "q8_0", width, width)])
        self.qkv = rng.standard_normal((ROWS, 3 * width), np.float32)
        self.kv = ops.kv_layers(1, 512, HEADS, DIM)[0]
        self.table = np.arange(512, dtype=np.int32).reshape(1, 512)
        self.meta = meta_of(self.table, [(0, ROWS, ROWS)])
        self.x, self.out = ops.activation(ROWS, [self.weight]), np.zeros((ROWS, width), np.float32)
        self.steps = np.zeros((1, 1), np.float32)
        self.rows = ints(ROWS)
        self.tape = OpTape()
        with self.tape.record(ops):
            for _ in range(10):
                ops.attention(self.qkv, self.kv, self.x, self.meta, num_heads=HEADS)
                ops.linear(self.weight, self.x, self.out, self.rows)

    def begin(self, steps=4):
        for _ in range(steps):
            self.tape.replay()
            self.ops.adjust(self.steps, ints(0, 1), ints(0), np.ones(1, np.float32), np.ones(1, np.float32))
        return self.ops.fetch(self.out)

def wait_for(child):
    for _ in range(9000):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hangs"
"""


PATIENCE = 800 if "SGLANG_TEST_CPU_EXTENSION" in os.environ else 240
"""seconds: the sanitizers' builds are slow, and other work on the machine must not look like a hang"""


def run(program: str, code: int = 0) -> str:
    """What a program prints; it must end with `code` in time and complain of nothing."""
    done = subprocess.run([sys.executable, "-c", PRELUDE + program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == code, done.stderr[-3000:]
    assert "leaked" not in done.stderr and "terminate" not in done.stderr
    return done.stdout


# ---- dropping and leaving ---------------------------------------------------------------------------------------------------------
def test_an_op_set_is_dropped_while_it_works() -> None:
    """All started work is done, whatever references remain, in any order of deletion."""
    program = """
for names in ("ops tape", "tape ops", "weight x kv ops tape", "ops"):
    for threads in (1, 2, 4):
        work = Work(threads)
        want = work.begin().result()
        work.out[:] = work.steps[:] = 0
        work.begin()
        out, steps = work.out, work.steps
        for name in names.split():
            delattr(work, name)
        del work
        gc.collect()
        assert np.array_equal(out, want) and steps == 4, "what was started has been done"
print("done")
"""
    assert run(program) == "done\n"


@pytest.mark.parametrize("leave", ["pass", "sys.exit(0)", "del work; gc.collect()", "os._exit(0)"])
def test_the_interpreter_is_left_while_ops_run(leave: str) -> None:
    run(f"work = Work(3)\nfetch = work.begin(20)\n{leave}")


@pytest.mark.parametrize("ahead", [False, True])
def test_daemon_threads_are_in_a_call_at_the_end(ahead: bool) -> None:
    """The interpreter ends such threads when they come back; that must not abort the process."""
    program = f"""
def go(work):
    while True:
        work.begin(1).result()
        work.ops.touch_kv([work.kv], 0, 512)

for _ in range(3):
    threading.Thread(target=go, args=(Work(2, {ahead}),), daemon=True).start()
time.sleep(0.2)
"""
    for _ in range(2):
        run(program)


def test_an_exception_ends_the_program() -> None:
    with pytest.raises(AssertionError, match="KeyError"):
        run("work = Work(2)\nwork.begin(20)\nraise KeyError('the end')")
    run("work = Work(2)\nwork.begin(20)\nraise KeyError('the end')", code=1)


@pytest.mark.skipif("SGLANG_TEST_CPU_EXTENSION" in os.environ, reason="sanitizers need address space of their own")
def test_no_more_threads() -> None:
    """A system that has no threads left is an error, not the end."""
    program = """
import resource
cpu.CpuOps(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (800 << 20),) * 2)  # 4 MB of scratch a thread, and a stack of 8 MB
try:
    cpu.CpuOps(120)
except RuntimeError as error:
    print(error)
"""
    assert "unavailable" in run(program)


# ---- forks --------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("leave", ["sys.exit(0)", "os._exit(0)", "del work, fetch; gc.collect(); sys.exit(0)"])
def test_a_child_leaves(leave: str) -> None:
    """With nothing on its way and with jobs on their way, having used ops and not."""
    program = f"""
for threads, steps, uses in [(threads, steps, uses) for threads in (1, 2, 4) for steps in (0, 20) for uses in (False, True)]:
    work = Work(threads)
    want = work.begin(2).result().copy()
    fetch = work.begin(steps)
    child = os.fork()
    if child == 0:
        if uses:
            assert np.array_equal(work.begin(2).result(), want)
        {leave}
    code = wait_for(child)
    assert code == 0, code
    assert np.array_equal(fetch.result(), want), "the parent's jobs go on"
"""
    run(program)


def test_what_was_on_its_way_is_lost_in_the_child() -> None:
    """It says so, and what was finished before is still there; so it is in a child's child."""
    program = """
work = Work(2)
early = work.begin(1)
want = early.result().copy()
late = work.begin(40)

def check(depth):
    assert np.array_equal(early.result(), want)
    try:
        late.result()
        sys.exit("no error")
    except RuntimeError as error:
        assert "forked" in str(error), error
    mine = work.begin(2)
    assert np.array_equal(mine.result(), want)
    if depth:
        child = os.fork()
        if child == 0:
            assert np.array_equal(mine.result(), want)
            check(depth - 1)
            sys.exit(0)
        assert wait_for(child) == 0

child = os.fork()
if child == 0:
    check(2)
    sys.exit(0)
assert wait_for(child) == 0
assert np.array_equal(late.result(), want)
"""
    run(program)


def test_multiprocessing() -> None:
    program = """
context = multiprocessing.get_context("fork")
work = Work(3)
want = work.begin().result().copy()

def same(steps):
    return bool(np.array_equal(work.begin(steps).result(), want))

fetch = work.begin(20)
with context.Pool(2) as pool:
    assert pool.map(same, [1, 2, 3, 4]) == [True] * 4
process = context.Process(target=same, args=(1,))
process.start()
process.join(30)
assert process.exitcode == 0
assert np.array_equal(fetch.result(), want)
"""
    run(program)


def test_threads_of_a_child_compute_as_well() -> None:
    """The child's pool is whole: its threads, and callers from several of its threads."""
    program = """
work = Work(3)
want = work.begin().result().copy()
child = os.fork()
if child == 0:
    wrong = []
    def ask():
        for _ in range(5):
            if not np.array_equal(work.begin(1).result(), want):
                wrong.append(1)
    threads = [threading.Thread(target=ask) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    end = time.monotonic() + 20
    while len(os.listdir("/proc/self/task")) != 3 and time.monotonic() < end:
        time.sleep(0.001)  # the system lets a joined thread go a moment later
    assert work.ops.num_threads == 3 and len(os.listdir("/proc/self/task")) == 3
    sys.exit(len(wrong))
assert wait_for(child) == 0
"""
    run(program)
