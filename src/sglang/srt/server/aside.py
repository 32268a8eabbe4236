"""Long work of the server, kept off the event loop: rendering and tokenizing long texts.

A few threads of its own: they share the interpreter and the cores, so more of them would do no more, but hold the memory of as many
long texts at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import ParamSpec, TypeVar

NUM_THREADS = 4

P = ParamSpec("P")
T = TypeVar("T")

_threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="long-text")
_under_way: set[object] = set()


async def run_aside(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work(*args)`, done on another thread, in this context."""
    context = copy_context()

    def run() -> T:
        _under_way.add(this := object())
        try:
            return context.run(work, *args, **kwargs)
        finally:
            _under_way.discard(this)

    return await asyncio.get_running_loop().run_in_executor(_threads, run)


def is_busy() -> bool:
    """Whether some of it is under way. It cannot be interrupted, and the interpreter waits for it before it ends."""
    return bool(_under_way)
