"""Texts on their way to the embedding scheduler and back: one future each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from sglang.srt.errors import EngineDeadError, OverloadError, RequestError, SglangError
from sglang.srt.messages import AbortReq, BatchEmbedOut, EmbedReq, FinishReason, ToScheduler

AT_ONCE = 200
"""texts of one call that are sent before others have their turn"""

Vector = npt.NDArray[np.float32]


class EmbeddingCalls:
    """Owner of the texts in flight. Everything runs on one event loop."""

    def __init__(self, send: Callable[[ToScheduler], None]) -> None:
        self._send = send
        self._waiting: dict[str, asyncio.Future[Vector]] = {}

    @property
    def num_in_flight(self) -> int:
        return len(self._waiting)

    async def embed(self, texts: list[list[int]], rids: list[str] | None = None, client: str = "") -> list[Vector]:
        """A vector for each text. `rids` are unique among those of all clients. If the caller is cancelled, its texts are aborted.
        Raises what the first that failed did."""
        prefix = uuid4().hex
        names = rids or [f"{prefix}_{i}" for i in range(len(texts))]
        if any(name in self._waiting for name in names):
            raise RequestError("a request with such a rid is already running", "rid")
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in texts]
        self._waiting.update(zip(names, futures, strict=True))
        try:
            for i, (name, ids) in enumerate(zip(names, texts, strict=True)):
                if i and i % AT_ONCE == 0:
                    await asyncio.sleep(0)
                self._send(EmbedReq(name, ids, client))
            return list(await asyncio.gather(*futures))
        finally:
            for name, future in zip(names, futures, strict=True):
                if self._waiting.get(name) is future:
                    del self._waiting[name]
                    self._send(AbortReq(rid=name))
                if future.done() and not future.cancelled():
                    future.exception()  # another's error is the one that is told

    def handle(self, message: BatchEmbedOut) -> None:
        for out in message.outs:
            future = self._waiting.pop(out.rid, None)
            if future is None or future.done():
                continue  # dropped meanwhile
            if out.finish is not None:
                future.set_exception(_error_of(out.finish))
            else:
                future.set_result(np.frombuffer(out.vector, np.float32))

    def fail(self, error: SglangError) -> None:
        """Ends all texts in flight."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(error)

    def abort(self, rid: str) -> None:
        if rid in self._waiting:
            self._send(AbortReq(rid=rid))


def _error_of(finish: FinishReason) -> SglangError:
    message = finish.message or "the request was aborted"
    if finish.status_code == 503:
        return OverloadError(message)
    return EngineDeadError(message) if finish.status_code == 500 else RequestError(message)
