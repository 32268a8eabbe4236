"""The log of requests, for operators who ask for it: one JSON object a line, whatever clients put into their fields.

Levels: 0 ids, lengths and times; 1 sampling parameters as well; 2 the first tokens and the end of the text; 3 all of them.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from sglang.srt.messages import TokenizedReq
from sglang.srt.server.generate_req import GenerateOut, own_rid

logger = logging.getLogger("sglang.requests")

SHORT = 32
"""ids shown at level 2"""
SHORT_TEXT = 200


class RequestLog:
    def __init__(self, enabled: bool, level: int) -> None:
        self._enabled = enabled
        self._level = level
        self.keeps_text = enabled and level >= 2
        """whether `said` is to be told"""
        self._said: dict[str, list[str]] = {}

    def received(self, request: TokenizedReq) -> None:
        if not self._enabled:
            return
        entry: dict[str, Any] = {"prompt_tokens": len(request.input_ids), "stream": request.stream}
        if request.client:
            entry["client"] = request.client
        if self._level >= 1:
            entry["sampling"] = request.sampling
        if self._level >= 2:
            entry["input_ids"] = request.input_ids if self._level >= 3 else request.input_ids[:SHORT]
        self._write("received", request, entry)

    def said(self, request: TokenizedReq, out: GenerateOut) -> None:
        """A piece of text: those of a stream are kept until its end, where all of it is logged."""
        if self.keeps_text and out.text:
            self._said.setdefault(request.rid, []).append(out.text)

    def finished(self, request: TokenizedReq, out: GenerateOut, first_seconds: float | None, queue_seconds: float) -> None:
        """`first_seconds`: from arrival to the first token, if there was one."""
        if not self._enabled or out.finish is None:
            return
        entry: dict[str, Any] = {
            "reason": out.finish.type,
            "prompt_tokens": out.prompt_len,
            "cached_tokens": out.cached_len,
            "completion_tokens": out.completion_len,
            "queue_seconds": round(queue_seconds, 4),
            "first_token_seconds": None if first_seconds is None else round(first_seconds, 4),
            "seconds": round(out.seconds, 4),
        }
        if out.finish.message is not None:
            entry["message"] = out.finish.message
        if self._level >= 2:
            text = "".join(self._said.pop(request.rid, ()))
            entry["text"] = text if self._level >= 3 else text[-SHORT_TEXT:]
        self._write("finished", request, entry)

    def dropped(self, request: TokenizedReq, message: str) -> None:
        """Ended by the server's side: the client left, the time was up, the scheduler died."""
        if self._enabled:
            entry = {"message": message}
            if (said := self._said.pop(request.rid, None)) is not None and self._level >= 3:
                entry["text"] = "".join(said)
            self._write("dropped", request, entry)

    @staticmethod
    def _write(event: str, request: TokenizedReq, entry: dict[str, Any]) -> None:
        logger.info("%s", msgspec.json.encode({"event": event, "rid": own_rid(request), **entry}).decode())
