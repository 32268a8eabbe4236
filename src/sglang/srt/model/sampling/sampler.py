"""Chooses the next token of every request.

raw logits -> log_sum_exp, best tokens, requested ids      (only where log probabilities are asked for)
           -> penalties, logit bias, min_new_tokens        ops.adjust
           -> grammar masks                                ops.mask
           -> argmax, or temperature, top_k, top_p, min_p and a sample by (seed, position) (ops.sample)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import is_

import numpy as np
import numpy.typing as npt

from sglang.srt.forward_batch import Float32Array, Int32Array, LogprobResult, SampleSpec, VocabMasks
from sglang.srt.model.kernels.ops import Array, Ops
from sglang.srt.model.sampling.logprobs import RowStats, row_stats
from sglang.srt.model.sampling.penalties import Adjustments

UInt64 = npt.NDArray[np.uint64]

# The random numbers of sampling come from a counter-based generator, so that a sample depends on (seed, position) and on nothing else:
# not on the batch, not on what was sampled before, not on the device.
#
#     u(seed, counter) = top 24 bits of mix(mix(seed) + (counter + 1) * GAMMA) / 2^24
#
# mix is the finalizer of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014). 24 bits are
# what a float32 in [0, 1) holds exactly.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MUL_1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL_2 = np.uint64(0x94D049BB133111EB)


def _mix(z: UInt64) -> UInt64:
    z = (z ^ (z >> np.uint64(30))) * _MUL_1
    z = (z ^ (z >> np.uint64(27))) * _MUL_2
    z ^= z >> np.uint64(31)
    return z


def stream_keys(seeds: list[int]) -> UInt64:
    """One key per seed (any integer, taken modulo 2^64), for `uniforms`."""
    return _mix(np.array([seed % 2**64 for seed in seeds], np.uint64))


def uniforms(keys: UInt64, counters: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Numbers in [0, 1), one per (key, counter)."""
    bits = _mix(keys + (counters + 1).astype(np.uint64) * _GAMMA)
    values: npt.NDArray[np.float32] = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    return values


class SamplingBatch:
    """The sampling parameters of a step as arrays. `specs[i]` chooses row i of the logits. Batches change rarely from step to step, so
    these are made once and kept while the specs are the same objects."""

    def __init__(self, specs: list[SampleSpec], vocab_size: int) -> None:
        self.specs = list(specs)
        params = [s.params for s in specs]
        self.all_greedy = all(p.is_greedy for p in params)
        self.temperature = np.array([0.0 if p.is_greedy else p.temperature for p in params], np.float32)
        self.top_k = np.array([min(p.top_k, vocab_size) for p in params], np.int32)
        self.top_p = np.array([p.top_p for p in params], np.float32)
        self.min_p = np.array([p.min_p for p in params], np.float32)
        self.keys = stream_keys([s.seed for s in specs])
        self.adjustments = {i: _adjustments(s, vocab_size) for i, s in enumerate(specs) if _needs_adjustments(s)}
        self.logprob_rows = [i for i, s in enumerate(specs) if s.want_logprob]

    def is_for(self, specs: list[SampleSpec]) -> bool:
        """Whether these are the very specs this was made of."""
        return len(specs) == len(self.specs) and all(map(is_, specs, self.specs))

    def uniform(self) -> Float32Array:
        """The step's random numbers, [num_rows]: of (seed, number of tokens so far)."""
        counters = np.fromiter((len(s.output_ids) for s in self.specs), np.int64, len(self.specs))
        return uniforms(self.keys, counters)

    def adjust_args(self) -> tuple[Int32Array, Int32Array, Float32Array, Float32Array] | None:
        """(indptr, ids, scale, bias) for ops.adjust; None when nothing is to be adjusted."""
        rows = self.adjustments
        if not rows:
            return None
        lengths = np.zeros(len(self.specs) + 1, np.int32)
        for i, row in rows.items():
            row.update()
            lengths[i + 1] = len(row.index)
        parts = list(rows.values())
        return (
            np.cumsum(lengths, dtype=np.int32),
            np.concatenate([row.ids for row in parts]),
            np.concatenate([row.scale for row in parts]),
            np.concatenate([row.bias for row in parts]),
        )


def _needs_adjustments(spec: SampleSpec) -> bool:
    """Whether the request has anything to adjust, now or later."""
    waits = bool(spec.eos_ids) and spec.params.min_new_tokens > len(spec.output_ids)
    return waits or spec.params.adjusts_logits


def _adjustments(spec: SampleSpec, vocab_size: int) -> Adjustments:
    """The request's own, kept in its spec so that they survive every change of the batch; after draft tokens, a copy of them."""
    if spec.follows is not None:
        return _adjustments(spec.follows, vocab_size).after(spec)
    if not isinstance(spec.state, Adjustments):
        spec.state = Adjustments(spec, vocab_size)
    return spec.state


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
        """Statistics of the rows that need log probabilities; all at once if all need the same."""
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
            return Sampled(ids, [None] * num_rows, (ids < 0).nonzero()[0].tolist())

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
