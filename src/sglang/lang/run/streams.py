"""Reading a state: waiting for its values, and streaming a text that grows.

All waiting is done on the executor's Watch, so no wait can miss the end of what it waits for.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

from sglang.lang.concurrency.background import IO
from sglang.lang.errors import copy_of
from sglang.lang.run.executor import Executor
from sglang.lang.run.variables import LiveVariable, Name


def wait_until(executor: Executor, ready: Callable[[], bool], timeout: float | None = None) -> None:
    """Blocks until `ready()`; it may raise to end the wait. Raises TimeoutError after `timeout` seconds."""
    if IO.is_current:
        raise RuntimeError("a state cannot be waited for on the event loop that runs it")
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        seen = executor.watch.version
        if ready():
            return
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError(f"the value was not there after {timeout:g} seconds")
        executor.watch.wait(seen, left)


async def wait_async_until(executor: Executor, ready: Callable[[], bool]) -> None:
    """wait_until for coroutines."""
    while True:
        seen = executor.watch.version
        if ready():
            return
        await executor.watch.wait_async(seen)


class Follower:
    """Reads a growing text (a variable's or the whole prompt) without losing the last piece: `look()` asks whether the text
    is complete *before* it reads it."""

    def __init__(self, executor: Executor, name: Name, whole: bool) -> None:
        self._executor = executor
        self._name = name
        self._whole = whole
        self._live: LiveVariable | None = None
        self._position = 0
        self.meta: dict[str, Any] = {}

    def look(self) -> tuple[str, bool]:
        """(new text, whether it was the last). Raises the state's error once all text before it has been given."""
        executor = self._executor
        if self._whole:
            complete, text = executor.is_finished, executor.text
        else:
            ended = executor.is_finished
            self._live = self._live or executor.vars.live.get(self._name)
            if self._live is None:
                if ended and executor.error is not None:
                    raise copy_of(executor.error)
                return "", ended
            complete, text = self._live.done, self._live.text
            self.meta = self._live.meta
        piece, self._position = text[self._position :], max(self._position, len(text))
        if complete and not piece and executor.error is not None and (self._whole or not executor.poll(self._name)):
            raise copy_of(executor.error)
        return piece, complete and not (piece and executor.error is not None)


def follow(executor: Executor, name: Name, whole: bool) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """(new text, meta data) as they come, of the variable or of the whole prompt. Closing it early cancels the program."""
    follower = Follower(executor, name, whole)
    finished = False
    try:
        while not finished:
            seen = executor.watch.version
            piece, finished = follower.look()
            if piece:
                yield piece, follower.meta
            elif not finished:
                executor.watch.wait(seen)
    finally:
        if not finished:  # the reader went away
            executor.body.cancel()


async def follow_async(executor: Executor, name: Name, whole: bool) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
    """follow for coroutines."""
    follower = Follower(executor, name, whole)
    finished = False
    try:
        while not finished:
            seen = executor.watch.version
            piece, finished = follower.look()
            if piece:
                yield piece, follower.meta
            elif not finished:
                await executor.watch.wait_async(seen)
    finally:
        if not finished:
            executor.body.cancel()
