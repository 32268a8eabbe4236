"""Calls to the scheduler itself (flush, profile, ...): one future each, resolved by its ControlReply."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from sglang.common.interrupts import wait_for
from sglang.srt.errors import OverloadError, SglangError
from sglang.srt.messages import ControlReply, PauseReq, ToScheduler, ViewReq

CALL_SECONDS = 20.0


class ControlCalls:
    """Owner of the calls under way. Everything runs on one event loop."""

    def __init__(self, send: Callable[[ToScheduler], None]) -> None:
        self._send = send
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[ControlReply]] = {}
        self._is_paused = False
        self._is_viewed = False

    def tell(self, message: ToScheduler) -> None:
        """Sends what nobody waits for."""
        self._send(message)

    async def ask(self, make: Callable[[int], ToScheduler], seconds: float | None = CALL_SECONDS) -> ControlReply:
        """Sends what `make` makes of the call's id and waits for `seconds` (None: for ever). Raises OverloadError without an answer in time, SglangError if
        the scheduler dies."""
        call_id = next(self._ids)
        future: asyncio.Future[ControlReply] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = future
        self._send(make(call_id))
        try:
            return await wait_for(future, seconds)
        except asyncio.TimeoutError as error:
            raise OverloadError(f"the scheduler did not answer within {seconds:g} s") from error
        finally:
            self._waiting.pop(call_id, None)

    async def pause(self, pause: bool) -> ControlReply:
        """Stops or restarts the scheduler's steps, and those of the next one."""
        reply = await self.ask(lambda call_id: PauseReq(call_id, pause))
        self._is_paused = pause
        return reply

    def view(self, on: bool, has_scheduler: bool) -> None:
        """Whether the scheduler, and the next one, sends ViewDeltas."""
        self._is_viewed = on
        if has_scheduler:
            self._send(ViewReq(on))

    def handle(self, reply: ControlReply) -> None:
        future = self._waiting.pop(reply.call_id, None)
        if future is not None and not future.done():
            future.set_result(reply)

    def fail(self, error: SglangError) -> None:
        """Ends all calls: their scheduler has died."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(error)

    def resume(self) -> None:
        """There is a scheduler again."""
        if self._is_paused:
            self._send(PauseReq(0, True))
        if self._is_viewed:
            self._send(ViewReq(True))
