"""Fills the masks of all constrained rows of a step on a side thread while the model computes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from sglang.srt.forward_batch import VocabMasks
from sglang.srt.scheduler.grammar.base import GrammarBackend, GrammarState, UInt32Array


class MaskFiller:
    """Owner of the buffer: the masks of a step are valid until the next `start`."""

    def __init__(self, backend: GrammarBackend, num_rows: int, model_vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._backend = backend
        self._bits: UInt32Array = np.zeros((num_rows, (model_vocab_size + 31) // 32), dtype=np.uint32)
        self._not_eos: UInt32Array = np.full(self._bits.shape[1], 0xFFFFFFFF, dtype=np.uint32)
        for i in eos_token_ids:
            if i < model_vocab_size:
                self._not_eos[i // 32] &= np.uint32(~(1 << (i % 32)) & 0xFFFFFFFF)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._pending: Future[None] | None = None
        self._rows: list[int] = []

    def start(self, rows: list[int], states: list[GrammarState], no_eos: list[bool]) -> None:
        """Begins to fill. `rows` index the step's samples; where `no_eos`, the output may not end here unless it must."""
        self._rows = rows
        self._pending = self._thread.submit(self._fill, states, no_eos)

    def finish(self) -> VocabMasks | None:
        """Waits for the masks of the last `start`; None when there was none."""
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        pending.result()
        return VocabMasks(np.array(self._rows, dtype=np.int32), self._bits[: len(self._rows)])

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    def _fill(self, states: list[GrammarState], no_eos: list[bool]) -> None:
        bits = self._bits[: len(states)]
        self._backend.fill_masks(states, bits)
        for i, forbidden in enumerate(no_eos):
            if forbidden:
                rest = bits[i] & self._not_eos
                if rest.any():
                    bits[i] = rest
