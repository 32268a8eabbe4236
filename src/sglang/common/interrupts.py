"""Interruptions: Ctrl-C, which reaches every process of a terminal, and cancelled waits."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Iterator
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def children_without_interrupts() -> Iterator[None]:
    """Only the first of a terminal's processes decides what Ctrl-C means. Those started inside do not hear it, from their first moment
    on, also while they import: they end with their parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def wait_for(awaited: Awaitable[T], seconds: float | None) -> T:
    """asyncio.wait_for, whose form before Python 3.12 forgets a cancellation that comes in the moment when the result does: then work
    goes on for somebody who has left. Raises asyncio.TimeoutError."""
    task = asyncio.ensure_future(awaited)
    try:
        await asyncio.wait((task,), timeout=seconds)
    except asyncio.CancelledError:
        await _end(task)
        raise
    try:
        if not task.done():
            await _end(task)
        if task.cancelled():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        del task  # an error in it would hold this frame, and its callers' with all that is there


async def _end(task: asyncio.Future[T]) -> None:
    """Cancels it and waits until it has ended."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()  # nobody else asks for it
