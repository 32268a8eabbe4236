"""The event loops and threads of programs: one loop for all requests, and a bounded pool of threads for program bodies.

    user's thread ──s += gen──> Executor.submit ──> coroutine on IO ──> pooled HTTP client
    run(stream=True) ──body──> BODIES (threads)        async body called from sync code ──> PROGRAMS (a second loop)

User code never runs on IO: a body that computes for a second must not stall other programs' requests.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

T = TypeVar("T")

MAX_BODY_THREADS = 64

left_by_parent: list[object] = []
"""Loops and connections that a forked child has inherited. They must not even be destroyed there: the kernel's list of watched
sockets is shared with the parent, and taking a socket off it would leave the parent waiting for ever."""
_IDLE_SECONDS = 10.0


class LoopThread:
    """An event loop in a daemon thread. It starts at first use, and again in a forked child process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = -1
        self._closers: list[Callable[[], Coroutine[Any, Any, None]]] = []

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is not None and self._pid == os.getpid():
            return self._loop
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                left_by_parent.append(self._loop)
                self._start()
            assert self._loop is not None
            return self._loop

    def _start(self) -> None:
        loop = asyncio.new_event_loop()
        started = threading.Event()

        def main() -> None:
            asyncio.set_event_loop(loop)
            loop.call_soon(started.set)
            loop.run_forever()

        threading.Thread(target=main, name=self._name, daemon=True).start()
        started.wait()
        self._loop, self._pid, self._closers = loop, os.getpid(), []

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on this loop's thread."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def spawn(self, coroutine: Coroutine[Any, Any, T], context: contextvars.Context | None = None) -> Future[T]:
        """Starts a coroutine from any thread, inside `context` (by default a copy of the caller's)."""
        loop = self.loop
        context = contextvars.copy_context() if context is None else context
        result: Future[T] = Future()

        def start() -> None:
            if not result.set_running_or_notify_cancel():
                coroutine.close()
                return
            task = context.run(loop.create_task, coroutine)
            task.add_done_callback(lambda done: _settle(result, done))

        loop.call_soon_threadsafe(start)
        return result

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine from another thread and waits for it. Interrupting the wait cancels it."""
        if self.is_current:
            coroutine.close()
            raise RuntimeError("a blocking call inside the language's own event loop would wait for itself")
        task_box: list[asyncio.Task[T]] = []

        async def outer() -> T:
            task_box.append(asyncio.ensure_future(coroutine))
            return await task_box[0]

        future = self.spawn(outer())
        try:
            return future.result()
        except KeyboardInterrupt:
            for task in task_box:
                self.loop.call_soon_threadsafe(task.cancel)
            raise

    def at_close(self, closer: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Has `closer` awaited before the process ends."""
        self._closers.append(closer)

    def shutdown(self) -> None:
        """Cancels what runs and closes connections; at most two seconds."""
        loop = self._loop
        if loop is None or self._pid != os.getpid() or not loop.is_running():
            return
        try:
            asyncio.run_coroutine_threadsafe(self._close_all(), loop).result(timeout=2.0)
        except (FutureTimeoutError, asyncio.CancelledError):
            pass
        loop.call_soon_threadsafe(loop.stop)
        self._loop = None

    async def _close_all(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for closer in self._closers:
            await closer()


def _settle(result: Future[T], done: asyncio.Task[T]) -> None:
    if done.cancelled():
        result.set_exception(asyncio.CancelledError())
        return
    error = done.exception()
    if error is not None:
        result.set_exception(error)
    else:
        result.set_result(done.result())


class BodyPool:
    """Daemon threads for blocking program bodies, at most `limit` of them.

    A body that waits for another body of the pool could starve it; so work submitted for one of the pool's own threads
    (`nested`) gets a thread beyond the limit. Threads end after ten idle seconds, and none keeps the process alive.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._num_threads = 0
        self._num_waiting = 0
        self._local = threading.local()
        self._pid = os.getpid()

    @property
    def is_worker(self) -> bool:
        """Whether the calling thread belongs to the pool."""
        return bool(getattr(self._local, "inside", False))

    def submit(self, function: Callable[[], T], nested: bool = False) -> Future[T]:
        """Runs `function` on a thread of the pool, inside a copy of the caller's context."""
        result: Future[T] = Future()
        context = contextvars.copy_context()

        def job() -> None:
            if not result.set_running_or_notify_cancel():
                return
            try:
                value = context.run(function)
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the result
                result.set_exception(error)
            else:
                result.set_result(value)

        with self._changed:
            if self._pid != os.getpid():  # a forked child has none of its parent's threads
                self._num_threads = self._num_waiting = 0
                self._pid = os.getpid()
            start = self._num_waiting <= len(self._jobs) and (self._num_threads < self._limit or nested or self.is_worker)
            if start:
                self._num_threads += 1
            else:
                self._jobs.append(job)
                self._changed.notify()
        if start:
            threading.Thread(target=self._serve, args=(job,), name="sglang-body", daemon=True).start()
        return result

    def _serve(self, job: Callable[[], None]) -> None:
        self._local.inside = True
        while True:
            job()
            with self._changed:
                if not self._jobs:
                    self._num_waiting += 1
                    self._changed.wait(_IDLE_SECONDS)
                    self._num_waiting -= 1
                if not self._jobs:
                    self._num_threads -= 1
                    return
                job = self._jobs.popleft()


IO = LoopThread("sglang-io")
PROGRAMS = LoopThread("sglang-programs")
BODIES = BodyPool(MAX_BODY_THREADS)


@atexit.register
def _shutdown() -> None:
    PROGRAMS.shutdown()
    IO.shutdown()
