"""Calls to the embedding scheduler: one future for each text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from sglang.srt.errors import EngineDeadError, OverloadError, RequestError, SglangError
from sglang.srt.messages import AbortReq, BatchEmbedOut, EmbedReq, FinishReason, ToScheduler, pack_ids
from sglang.srt.server.resuming import DEADLY, MAX_DEATHS

AT_ONCE = 200
"""texts of one call that are sent before others have their turn"""
TAKEN = "a request with such a rid is already running"

Vector = npt.NDArray[np.float32]


@dataclass(eq=False, slots=True)
class _Text:
    """A text that waits for its vector. `is_sent`: a scheduler has it."""

    request: EmbedReq
    future: asyncio.Future[Vector]
    is_sent: bool = False
    num_deaths: int = 0

    def fail(self, error: SglangError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class EmbeddingCalls:
    """Owner of the texts in flight. Everything runs on one event loop."""

    def __init__(self, send: Callable[[ToScheduler], None]) -> None:
        self._send = send
        self._waiting: dict[str, _Text] = {}
        self._is_away = False

    @property
    def num_in_flight(self) -> int:
        return len(self._waiting)

    async def embed(
        self,
        texts: Sequence[Sequence[int]],
        rids: list[str] | None = None,
        client: str = "",
        first_lens: Sequence[int] | None = None,
    ) -> list[Vector]:
        """A vector for each text. `rids` are unique among those of all clients. `first_lens`: see EmbedReq. If the caller is
        cancelled, its texts are aborted. Raises what the first that failed did."""
        prefix = uuid4().hex
        names = rids or [f"{prefix}_{i}" for i in range(len(texts))]
        lens = first_lens or [0] * len(texts)
        if any(name in self._waiting for name in names):
            raise RequestError(TAKEN, "rid")
        loop = asyncio.get_running_loop()
        own: list[_Text] = []
        try:
            for i, (name, ids, first_len) in enumerate(zip(names, texts, lens, strict=True)):
                if i and i % AT_ONCE == 0:
                    await asyncio.sleep(0)
                if name in self._waiting:  # since then
                    raise RequestError(TAKEN, "rid")
                text = _Text(EmbedReq(name, pack_ids(ids), client, first_len), loop.create_future())
                self._waiting[name] = text
                own.append(text)
                self._hand_over(text)
            return list(await asyncio.gather(*(text.future for text in own)))
        finally:
            for text in own:
                self._forget(text)

    def _hand_over(self, text: _Text) -> None:
        if not self._is_away and not text.is_sent and not text.future.done():
            text.is_sent = True
            self._send(text.request)

    def _forget(self, text: _Text) -> None:
        rid, future = text.request.rid, text.future
        if self._waiting.get(rid) is text:
            del self._waiting[rid]
            if not self._is_away:
                self._send(AbortReq(rid=rid))
        if future.done() and not future.cancelled():
            future.exception()  # another's error is the one that is told

    def handle(self, message: BatchEmbedOut) -> None:
        for out in message.outs:
            text = self._waiting.pop(out.rid, None)
            if text is None or text.future.done():
                continue  # dropped meanwhile
            if out.finish is not None:
                text.fail(_error_of(out.finish))
            else:
                text.future.set_result(np.frombuffer(out.vector, np.float32))

    def note_death(self) -> None:
        """The scheduler has died. Its texts are kept for the next one, unless they were there too often."""
        self._is_away = True
        for rid, text in list(self._waiting.items()):
            text.num_deaths += text.is_sent
            text.is_sent = False
            if text.num_deaths >= MAX_DEATHS:
                del self._waiting[rid]
                text.fail(EngineDeadError(DEADLY))

    def resume(self) -> int:
        """There is a scheduler again: sends it all texts. Returns how many another one had."""
        self._is_away = False
        for text in self._waiting.values():
            self._hand_over(text)
        return sum(text.num_deaths > 0 for text in self._waiting.values())

    def fail(self, error: SglangError) -> None:
        """Ends all texts in flight."""
        waiting, self._waiting = self._waiting, {}
        for text in waiting.values():
            text.fail(error)

    def abort(self, rid: str) -> None:
        text = self._waiting.get(rid)
        if text is None:
            return
        if text.is_sent:
            self._send(AbortReq(rid=rid))
        else:
            del self._waiting[rid]
            text.fail(RequestError("the request was aborted"))

    def abort_all(self, message: str) -> None:
        """Ends those that no scheduler has."""
        for rid, text in list(self._waiting.items()):
            if not text.is_sent:
                del self._waiting[rid]
                text.fail(RequestError(message))


def _error_of(finish: FinishReason) -> SglangError:
    message = finish.message or "the request was aborted"
    if finish.status_code == 503:
        return OverloadError(message)
    return EngineDeadError(message) if finish.status_code == 500 else RequestError(message)
