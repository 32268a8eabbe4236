"""Changes to single logits of a request: penalties, logit bias, and end tokens forbidden by min_new_tokens.

All of it is one sparse row of (id, scale, bias) that `ops.adjust` applies as  v = v / scale if v > 0 else v * scale;  v += bias

    scale   repetition_penalty for ids of the prompt and the output
    bias    logit_bias - frequency_penalty * count - presence_penalty * (count > 0), count: in the output only;
            -inf for an end token while the output is shorter than min_new_tokens

A row is kept between steps and updated only for the newest output ids, so the cost of a step does not depend on the vocabulary's size.
A sample after draft tokens has a copy of the request's row, updated for these tokens:

    output      ... the cat        row of the request
    draft       sat on             rows after "sat", and after "sat on": copies
"""

from __future__ import annotations

import copy
import math

import numpy as np
import numpy.typing as npt

from sglang.srt.forward_batch import SampleSpec
from sglang.srt.sampling_params import SamplingParams


class Adjustments:
    """The sparse row of one request. Ids outside the vocabulary (image placeholders) are left out."""

    def __init__(self, spec: SampleSpec, vocab_size: int) -> None:
        self._spec = spec
        self._vocab_size = vocab_size
        p = spec.params
        self._counts_output = p.repetition_penalty != 1 or p.frequency_penalty != 0 or p.presence_penalty != 0
        self._rebuild()

    def _rebuild(self) -> None:
        spec, p = self._spec, self._spec.params
        self._seen = 0
        self._count: dict[int, int] = {}
        self.index: dict[int, int] = {}
        self._forbidden = frozenset(spec.eos_ids) if len(spec.output_ids) < p.min_new_tokens else frozenset[int]()
        self._ids = np.zeros(64, np.int32)
        self._scale = np.zeros(64, np.float32)
        self._bias = np.zeros(64, np.float32)
        if p.repetition_penalty != 1:
            for token in dict.fromkeys(spec.prompt_ids):
                self._touch(token, p, scale=p.repetition_penalty)
        for token in (*(p.logit_bias or ()), *self._forbidden):
            self._touch(token, p)

    def _touch(self, token: int, p: SamplingParams, scale: float | None = None) -> None:
        """Sets the token's entry from what is known of it now, making one if there is none."""
        if not 0 <= token < self._vocab_size:
            return
        at = self.index.get(token)
        if at is None:
            at = self.index[token] = len(self.index)
            if at == len(self._ids):
                self._grow()
            self._ids[at] = token
            self._scale[at] = 1.0
        if scale is not None:
            self._scale[at] = scale
        count = self._count.get(token, 0)
        bias = (p.logit_bias or {}).get(token, 0.0) - p.frequency_penalty * count - p.presence_penalty * (count > 0)
        self._bias[at] = -math.inf if token in self._forbidden else bias

    def after(self, spec: SampleSpec) -> Adjustments:
        """The row of a sample after draft tokens: the output of `spec` begins with this one's."""
        self.update()
        row = copy.copy(self)
        row._spec = spec
        row._count, row.index = self._count.copy(), self.index.copy()
        row._ids, row._scale, row._bias = self._ids.copy(), self._scale.copy(), self._bias.copy()
        return row

    def _grow(self) -> None:
        self._ids, self._scale, self._bias = (
            np.concatenate([a, np.zeros_like(a)]) for a in (self._ids, self._scale, self._bias)
        )

    def update(self) -> None:
        """Takes in what was appended to the request's output since the last call."""
        spec, p = self._spec, self._spec.params
        length = len(spec.output_ids)
        if length < self._seen:  # the output was cut back
            self._rebuild()
        if self._forbidden and length >= p.min_new_tokens:
            lifted, self._forbidden = self._forbidden, frozenset()
            for token in lifted:
                self._touch(token, p)
        if self._counts_output:
            for token in spec.output_ids[self._seen :]:
                self._count[token] = self._count.get(token, 0) + 1
                self._touch(token, p, scale=p.repetition_penalty)
        self._seen = length

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        return self._ids[: len(self.index)]

    @property
    def scale(self) -> npt.NDArray[np.float32]:
        return self._scale[: len(self.index)]

    @property
    def bias(self) -> npt.NDArray[np.float32]:
        return self._bias[: len(self.index)]
