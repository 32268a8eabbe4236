"""Chooses the next token of every request.

raw logits -> log_sum_exp, best tokens, requested ids      (only where log probabilities are asked for)
           -> penalties, logit bias, min_new_tokens        ops.adjust
           -> grammar masks                                ops.mask
           -> argmax, or temperature, top_k, top_p, min_p and a sample by (seed, position) (ops.sample)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sglang.srt.forward_batch import Float32Array, Int32Array, LogprobResult, SampleSpec, VocabMasks
from sglang.srt.model.kernels.ops import Array, Ops
from sglang.srt.model.sampling.batch import SamplingBatch
from sglang.srt.model.sampling.logprobs import RowStats, row_stats


@dataclass
class Sampled:
    """`bad_rows`: rows that held NaN, or of which nothing was allowed."""

    next_ids: Int32Array
    logprobs: list[LogprobResult | None]
    bad_rows: list[int]


class Sampler:
    """Works on logits in place."""

    def __init__(self, ops: Ops, vocab_size: int, max_rows: int) -> None:
        self._ops = ops
        self._vocab_size = vocab_size
        self.ids = ops.empty((max_rows,), "int32")
        """what was sampled last, on the device"""
        self._batch = SamplingBatch([], vocab_size)

    def sample(self, logits: Array, specs: list[SampleSpec], masks: VocabMasks | None) -> Sampled:
        """logits: [len(specs), vocab_size]. Row i is chosen by `specs[i]`."""
        if not specs:
            return Sampled(np.empty(0, np.int32), [], [])
        if not self._batch.is_for(specs):
            self._batch = SamplingBatch(specs, self._vocab_size)
        batch, num_rows = self._batch, len(specs)
        stats = self._raw_stats(logits, batch)
        before = self._adjust(logits, batch)
        if masks is not None and len(masks.rows):
            self._ops.mask(logits, masks.rows, masks.bits)
        self._choose(logits, batch, num_rows)
        ids = self._ops.fetch(self.ids[:num_rows]).result()
        bad = ids < 0
        if batch.adjustments or masks is not None:
            bad |= self._ops.pick(logits, np.arange(num_rows), ids) == -np.inf
        return Sampled(ids, self._results(logits, batch, ids, stats, before), np.flatnonzero(bad).tolist() if bad.any() else [])

    def _raw_stats(self, logits: Array, batch: SamplingBatch) -> dict[int, RowStats]:
        """For the rows that want log probabilities; all at once if all want them alike."""
        rows, specs = batch.logprob_rows, batch.specs
        if not rows:
            return {}
        first = specs[rows[0]]
        if len(rows) == len(specs) and all(s.top_num == first.top_num and s.token_ids == first.token_ids for s in specs):
            s = row_stats(self._ops, logits, len(rows), first.top_num, first.token_ids)
            return {i: s.row(i) for i in rows}
        return {i: row_stats(self._ops, logits[i : i + 1], 1, specs[i].top_num, specs[i].token_ids) for i in rows}

    def _adjust(self, logits: Array, batch: SamplingBatch) -> dict[int, Float32Array]:
        """Adjusts in place. Returns what the adjusted entries were, of the rows that want log probabilities."""
        args = batch.adjust_args()
        if args is None:
            return {}
        before = {
            i: self._ops.pick(logits, np.full(len(row.ids), i), row.ids)
            for i, row in batch.adjustments.items()
            if batch.specs[i].want_logprob
        }
        self._ops.adjust(logits, *args)
        return before

    def begin(self, logits: Array, specs: list[SampleSpec], masks: VocabMasks | None) -> Callable[[], Sampled]:
        """`sample` that waits for the device only when its result is asked for, unless a row wants log probabilities."""
        if not self._batch.is_for(specs):
            self._batch = SamplingBatch(specs, self._vocab_size)
        batch, num_rows = self._batch, len(specs)
        if not specs or batch.logprob_rows:
            sampled = self.sample(logits, specs, masks)
            return lambda: sampled
        self._adjust(logits, batch)
        masked = masks is not None and len(masks.rows) > 0
        if masks is not None and masked:
            self._ops.mask(logits, masks.rows, masks.bits)
        # argmax does not tell a row of which nothing is allowed; `sample` does, greedy rows included
        self._choose(logits, batch, num_rows, can_argmax=not (masked or batch.adjustments))
        fetch = self._ops.fetch(self.ids[:num_rows])

        def finish() -> Sampled:
            ids: Int32Array = fetch.result()
            return Sampled(ids, [None] * num_rows, np.flatnonzero(ids < 0).tolist())

        return finish

    def _choose(self, logits: Array, batch: SamplingBatch, num_rows: int, can_argmax: bool = True) -> None:
        if batch.all_greedy and can_argmax:
            self._ops.argmax(logits, num_rows, self.ids)
            return
        self._ops.sample(
            logits,
            num_rows,
            batch.temperature,
            batch.top_k,
            batch.top_p,
            batch.min_p,
            batch.uniform(),
            self.ids,
        )

    def _results(
        self,
        logits: Array,
        batch: SamplingBatch,
        ids: Int32Array,
        stats: dict[int, RowStats],
        before: dict[int, Float32Array],
    ) -> list[LogprobResult | None]:
        results: list[LogprobResult | None] = [None] * len(ids)
        for i, stat in stats.items():
            token = int(ids[i])
            at = batch.adjustments[i].index.get(token) if i in before else None
            raw = self._ops.pick(logits, np.array([i]), np.array([token])) if at is None else before[i][at : at + 1]
            results[i] = stat.result(raw)
        return results
