"""Engines' long calls: what they return and raise comes back, and their threads have the lowest priority."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from sglang.srt.scheduler.grammar.aside import LOWEST_PRIORITY, Aside


def test_results_and_errors_come_back() -> None:
    aside = Aside(2)
    assert aside.run(divmod, 7, 2) == (3, 1)
    assert aside.run(int, "12", base=16) == 18
    with pytest.raises(ZeroDivisionError):
        aside.run(divmod, 1, 0)
    with pytest.raises(SystemExit):
        aside.run(sys.exit, 3)
    assert aside.run(len, "abc") == 3, "the threads live on"


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads")
def test_only_these_threads_step_back() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = priority()
    assert Aside(1).run(priority) == LOWEST_PRIORITY
    assert priority() == before


def test_the_threads_end_with_their_owner() -> None:
    before = set(threading.enumerate())
    aside = Aside(2)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 2 and aside.run(len, "abc") == 3
    del aside
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
