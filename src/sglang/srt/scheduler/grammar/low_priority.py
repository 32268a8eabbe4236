"""Runs long calls into a grammar engine on threads of the lowest priority, so that the model's kernels get the cores first.

Only calls that release the interpreter lock belong here. A thread of low priority that holds the lock would block all others, on a busy
machine for seconds. So the Python half of compiling runs with ordinary priority; it is short.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

LOWEST_PRIORITY = 19


Reply = queue.SimpleQueue[Any]
Calls = queue.SimpleQueue["tuple[Callable[[], Any], Reply] | None"]


class LowPriorityThreads:
    """Owns the threads, which end with it. Without threads, `run` calls the function itself."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._calls: Calls = queue.SimpleQueue()
        for i in range(num_threads):
            threading.Thread(target=_work, args=(self._calls,), name=f"grammar-low-{i}", daemon=True).start()
        weakref.finalize(self, _end, self._calls, num_threads)

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Waits for `function`; returns what it returns, raises what it raises."""
        if not self._num_threads:
            return function(*args, **options)
        reply: Reply = queue.SimpleQueue()
        self._calls.put((partial(function, *args, **options), reply))
        value, error = reply.get()
        if error is not None:
            raise error
        return value


def _work(calls: Calls) -> None:
    _step_back()
    while (asked := calls.get()) is not None:
        call, reply = asked
        try:
            reply.put((call(), None))
        except BaseException as error:  # noqa: BLE001  raised to the waiting caller
            reply.put((None, error))
        del asked, call, reply


def _end(calls: Calls, num_threads: int) -> None:
    for _ in range(num_threads):
        calls.put(None)


def _step_back() -> None:
    """Lowers the thread's priority on Linux; elsewhere priorities would slow the whole process down."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
