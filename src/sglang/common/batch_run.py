"""Runs the requests of a batch, a window of them at a time, for `sglang batch` and for /v1/batches.

A server that is busy, or away, is asked again after a while: nothing is an answer that says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Generic, TypeVar
from uuid import uuid4

BUSY = frozenset({408, 429, 502, 503, 504})
"""statuses after which a request is sent again"""
LONGEST_WAIT = 30.0
MAX_TRIES = 5
"""of one request of `sglang batch`"""

T = TypeVar("T")
R = TypeVar("R")


class NoAnswer(Exception):
    """The request was not answered. `code`: in OpenAI's words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


async def run_window(
    items: Iterable[T], work: Callable[[T], Awaitable[R]], take: Callable[[R], Awaitable[None] | None], window: int
) -> None:
    """`take(await work(item))` for all items, `window` of them at a time, in their order."""
    waiting = iter(items)

    async def serve() -> None:
        for item in waiting:
            done = take(await work(item))
            if inspect.isawaitable(done):
                await done

    workers = [asyncio.create_task(serve()) for _ in range(window)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*workers, return_exceptions=True)


class Patient(Generic[R]):
    """Sends one request until it is answered, `max_tries` times at most. `send` returns the status and the answer, or raises NoAnswer;
    `shown` is what an answer says, for an error."""

    def __init__(
        self, send: Callable[[], Awaitable[tuple[int, R]]], shown: Callable[[R], str], max_tries: int | None = None
    ) -> None:
        self._send, self._shown, self._max_tries = send, shown, max_tries

    async def answer(self) -> tuple[int, R]:
        """Raises NoAnswer."""
        tries = 0
        while True:
            try:
                status, answer = await self._send()
                if status not in BUSY:
                    return status, answer
                error = NoAnswer("server_busy", self._shown(answer)[:500])
            except NoAnswer as failed:
                error = failed
            tries += 1
            if tries == self._max_tries:
                raise error
            await asyncio.sleep(min(2.0**tries, LONGEST_WAIT))


async def answer_row(custom_id: str, send: Callable[[], Awaitable[tuple[int, Any]]]) -> dict[str, Any]:
    """The line of one request in the output. `send` returns a status and what was answered, or raises NoAnswer."""
    row: dict[str, Any] = {"id": f"batch_req_{uuid4().hex}", "custom_id": custom_id, "response": None, "error": None}
    try:
        status, answer = await Patient(send, json.dumps, MAX_TRIES).answer()
    except NoAnswer as error:
        return row | {"error": {"code": error.code, "message": str(error)}}
    return row | {"response": {"status_code": status, "request_id": row["id"], "body": answer}}


async def wait_for_event(event: asyncio.Event, seconds: float) -> None:
    """Until it is set, or the time is over. Unlike asyncio.wait_for of Python 3.10 and 3.11 it never loses a cancellation."""
    waiter = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiter}, timeout=seconds)
    finally:
        waiter.cancel()
