"""Waiting with a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def wait_for(awaited: Awaitable[T], seconds: float | None) -> T:
    """asyncio.wait_for, whose form before Python 3.12 forgets a cancellation that comes in the moment when the result does: then work
    goes on for somebody who has left. Raises asyncio.TimeoutError."""
    task = asyncio.ensure_future(awaited)
    try:
        await asyncio.wait((task,), timeout=seconds)
    except asyncio.CancelledError:
        await _end(task)
        raise
    if not task.done():
        await _end(task)
    if task.cancelled():
        raise asyncio.TimeoutError
    return task.result()


async def _end(task: asyncio.Future[T]) -> None:
    """Cancels it and waits until it has ended."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()  # nobody else asks for it
