"""Engines' long calls: what they return and raise comes back, and their threads have the lowest priority."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from sglang.srt.scheduler.grammar.low_priority import LOWEST_PRIORITY, LowPriorityThreads


def test_results_and_errors_come_back() -> None:
    threads = LowPriorityThreads(2)
    assert threads.run(divmod, 7, 2) == (3, 1)
    assert threads.run(int, "12", base=16) == 18
    with pytest.raises(ZeroDivisionError):
        threads.run(divmod, 1, 0)
    with pytest.raises(SystemExit):
        threads.run(sys.exit, 3)
    assert threads.run(len, "abc") == 3, "the threads live on"


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads")
def test_only_these_threads_step_back() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = priority()
    assert LowPriorityThreads(1).run(priority) == LOWEST_PRIORITY
    assert priority() == before


def test_the_threads_end_with_their_owner() -> None:
    before = set(threading.enumerate())
    threads = LowPriorityThreads(2)
    started = set(threading.enumerate()) - before
    assert len(started) == 2 and threads.run(len, "abc") == 3
    del threads
    for thread in started:
        thread.join(60)
        assert not thread.is_alive()
