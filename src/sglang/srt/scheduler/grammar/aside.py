"""Runs long calls into a grammar engine on threads of the lowest priority, so that the model's kernels get the cores first.

Only calls that release the interpreter lock belong here. A thread of low priority that holds the lock would block all others, on a busy
machine for seconds. So the Python half of compiling runs with ordinary priority; it is short.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

LOWEST_PRIORITY = 19


class Aside:
    """Owner of the threads. They end with the process. With none, calls are made where they are asked for."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]]] = queue.SimpleQueue()
        for i in range(num_threads):
            threading.Thread(target=self._work, name=f"grammar-aside-{i}", daemon=True).start()

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Waits for `function`; returns what it returns, raises what it raises."""
        if not self._num_threads:
            return function(*args, **options)
        reply: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls.put((partial(function, *args, **options), reply))
        value, error = reply.get()
        if error is not None:
            raise error
        return value

    def _work(self) -> None:
        _step_back()
        while True:
            call, reply = self._calls.get()
            try:
                reply.put((call(), None))
            except BaseException as error:  # noqa: BLE001  raised to the waiting caller
                reply.put((None, error))
            del call, reply


def _step_back() -> None:
    """Lowers the thread's priority on Linux; elsewhere priorities would slow the whole process down."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
