"""Runs long work on a few threads beside the event loop: rendering and tokenizing long texts.

The threads share the interpreter and the cores, so more of them would not be faster, but would hold more long texts in
memory at once. Clients share them fairly: a client with much work leaves a thread for the others, and cancelled work is not begun.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from sglang.srt.server.http.request_scope import current_scope
from sglang.srt.server.limits.shares import Shares

NUM_THREADS = 4

P = ParamSpec("P")
T = TypeVar("T")

_threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="long-text")
_shares: WeakKeyDictionary[asyncio.AbstractEventLoop, Shares] = WeakKeyDictionary()
_under_way: set[object] = set()


async def run_in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Returns `work(*args, **kwargs)`, computed on one of the threads, with the context variables of the caller."""
    context, loop = copy_context(), asyncio.get_running_loop()

    def run() -> T:
        _under_way.add(this := object())
        try:
            return context.run(work, *args, **kwargs)
        finally:
            _under_way.discard(this)

    owner, shares = current_scope().key, _shares_of(loop)
    await shares.acquire(owner, 1)
    done = _threads.submit(run)
    done.add_done_callback(lambda _: _release(loop, shares, owner))  # whether or not somebody still waits
    try:
        return await asyncio.wrap_future(done)
    finally:
        del done  # an error in it would hold this frame, and its callers' with all that is there


def _shares_of(loop: asyncio.AbstractEventLoop) -> Shares:
    if loop not in _shares:
        _shares[loop] = Shares(NUM_THREADS, NUM_THREADS - 1, "long texts are being read")
    return _shares[loop]


def _release(loop: asyncio.AbstractEventLoop, shares: Shares, owner: str) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(shares.release, owner, 1)


def is_busy() -> bool:
    """Whether some work is running. It cannot be interrupted, and the interpreter waits for it before it exits."""
    return bool(_under_way)
