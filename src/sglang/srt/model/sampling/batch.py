"""The sampling parameters of a step as arrays. Batches change rarely from step to step, so these are made once and kept while
the step's SampleSpecs are the same objects."""

from __future__ import annotations

from operator import is_

import numpy as np

from sglang.srt.forward_batch import Float32Array, Int32Array, SampleSpec
from sglang.srt.model.sampling.penalties import Adjustments, needs_adjustments
from sglang.srt.model.sampling.uniform import stream_keys, uniforms


class SamplingBatch:
    """`specs[i]` chooses row i of the logits."""

    def __init__(self, specs: list[SampleSpec], vocab_size: int) -> None:
        self.specs = list(specs)
        params = [s.params for s in specs]
        self.all_greedy = all(p.is_greedy for p in params)
        self.temperature = np.array([0.0 if p.is_greedy else p.temperature for p in params], np.float32)
        self.top_k = np.array([min(p.top_k, vocab_size) for p in params], np.int32)
        self.top_p = np.array([p.top_p for p in params], np.float32)
        self.min_p = np.array([p.min_p for p in params], np.float32)
        self.keys = stream_keys([s.seed for s in specs])
        self.adjustments = {i: _adjustments(s, vocab_size) for i, s in enumerate(specs) if needs_adjustments(s)}
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


def _adjustments(spec: SampleSpec, vocab_size: int) -> Adjustments:
    """The request's own, kept in its spec so that they survive every change of the batch."""
    if not isinstance(spec.state, Adjustments):
        spec.state = Adjustments(spec, vocab_size)
    return spec.state
