"""Checks that the engine generates, with its own request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

from sglang.common.interrupts import wait_for
from sglang.srt.errors import SglangError
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server.calls import Call
from sglang.srt.server.generate_req import HEALTH_RIDS, GenerateReq
from sglang.srt.server.http.request_scope import RequestScope, enter_scope

LOOK_SECONDS = 0.5


class HealthCheck:
    """One check at a time; concurrent calls share its answer: no key is needed for it, so more calls must not make more
    work. `start`: of the tokenizer manager; `heard_at`: when the scheduler said anything last; `embed`: for a model that embeds."""

    def __init__(
        self,
        start: Callable[[GenerateReq], Awaitable[Call]],
        heard_at: Callable[[], float],
        embed: Callable[[list[list[int]]], Awaitable[object]] | None,
    ) -> None:
        self._start = start
        self._heard_at = heard_at
        self._embed = embed
        self._checking: asyncio.Task[bool] | None = None

    async def ask(self, timeout: float) -> bool:
        """True when any output came within `timeout` seconds."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check(timeout))
        return await asyncio.shield(self._checking)

    async def _check(self, timeout: float) -> bool:
        enter_scope(RequestScope(time.monotonic()))  # of this task: nobody's share of the queue is used
        try:
            if self._embed is not None:
                return bool(await wait_for(self._embed([[0]]), timeout))
            return await self._generates(timeout)
        except (SglangError, asyncio.TimeoutError):
            return False

    async def _generates(self, timeout: float) -> bool:
        asked = time.monotonic()
        sampling = SamplingParams(max_new_tokens=1, temperature=0.0)
        call = await self._start(GenerateReq(input_ids=[0], sampling=sampling, rid=f"{HEALTH_RIDS}{uuid4().hex}"))
        try:
            while time.monotonic() - asked < timeout:
                await call.ready(LOOK_SECONDS)
                if self._heard_at() > asked:
                    return True
        finally:
            call.cancel()
        return False
