"""The log of requests, for operators who ask for it.

Levels: 0 ids and lengths; 1 sampling parameters as well; 2 the first tokens and the final piece of text; 3 all of them.
"""

from __future__ import annotations

import logging

from sglang.srt.messages import TokenizedReq
from sglang.srt.server.generate_req import GenerateOut

logger = logging.getLogger("sglang.requests")

SHORT = 32
"""ids shown at level 2"""


class RequestLog:
    def __init__(self, enabled: bool, level: int) -> None:
        self._enabled = enabled
        self._level = level

    def received(self, request: TokenizedReq) -> None:
        if not self._enabled:
            return
        line = f"received rid={request.rid} prompt_tokens={len(request.input_ids)} stream={request.stream}"
        if self._level >= 1:
            line += f" sampling={request.sampling}"
        if self._level >= 2:
            shown = request.input_ids if self._level >= 3 else request.input_ids[:SHORT]
            line += f" input_ids={shown}"
        logger.info("%s", line)

    def finished(self, request: TokenizedReq, out: GenerateOut) -> None:
        if not self._enabled or out.finish is None:
            return
        line = (
            f"finished rid={request.rid} prompt_tokens={out.prompt_len} cached_tokens={out.cached_len}"
            f" completion_tokens={out.completion_len} reason={out.finish.type} seconds={out.seconds:.3f}"
        )
        if self._level >= 2:
            shown = out.text if self._level >= 3 else out.text[-200:]
            line += f" text={shown!r}"
        logger.info("%s", line)
