"""The log probabilities of one request on their way to the client."""

from __future__ import annotations

import numpy as np

from sglang.srt.forward_batch import Float32Array, Int32Array, LogprobResult
from sglang.srt.messages import Logprobs


class LogprobLog:
    """What is there and has not been sent, packed as `Logprobs` is: nothing is done for each value. `token_ids` are those that are
    scored at every position."""

    def __init__(self, top_num: int = 0, token_ids: tuple[int, ...] = ()) -> None:
        self._top_num = top_num
        self._asked_ids = np.array(token_ids, np.int32).tobytes()
        self._num_asked = len(token_ids)
        self._clear()

    def _clear(self) -> None:
        self._token_ids, self._logprobs = bytearray(), bytearray()
        self._top_ids, self._top, self._asked = bytearray(), bytearray(), bytearray()

    def __len__(self) -> int:
        return len(self._token_ids) // 4

    def add_unpredicted(self, token_id: int) -> None:
        """The first token of a prompt."""
        self._token_ids += np.int32(token_id).tobytes()
        self._logprobs += np.float32(np.nan).tobytes()
        self._top_ids += bytes(4 * self._top_num)
        self._top += bytes(4 * self._top_num)
        self._asked += bytes(4 * self._num_asked)

    def add(self, targets: Int32Array, scores: LogprobResult) -> None:
        """`scores` of all `targets`."""
        self._token_ids += _ints(targets)
        self._logprobs += _floats(scores.logprobs)
        if self._top_num:
            self._top_ids += _ints(scores.top_ids)
            self._top += _floats(scores.top_logprobs)
        if self._num_asked:
            self._asked += _floats(scores.token_ids_logprobs)

    def take(self) -> Logprobs:
        """All of it, for sending."""
        token_ids, logprobs, top_ids = bytes(self._token_ids), bytes(self._logprobs), bytes(self._top_ids)
        taken = Logprobs(token_ids, logprobs, top_ids, bytes(self._top), self._asked_ids, bytes(self._asked))
        self._clear()
        return taken


def _ints(values: Int32Array) -> bytes:
    return values.astype(np.int32, copy=False).tobytes()


def _floats(values: Float32Array) -> bytes:
    return values.astype(np.float32, copy=False).tobytes()
