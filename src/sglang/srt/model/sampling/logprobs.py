"""Log probabilities: those of the model's own distribution, before penalties, bias, grammar and temperature.

log p(token) = logit[token] - log_sum_exp(logits)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sglang.srt.forward_batch import Float32Array, Int32Array, LogprobResult, PromptLogprobs
from sglang.srt.model.kernels.ops import Array, Ops


@dataclass
class RowStats:
    """What is taken from n rows of raw logits, before anything changes them."""

    log_sum_exp: Float32Array  # [n]
    top_values: Float32Array  # [n, top_num], logits
    top_ids: Int32Array  # [n, top_num]
    token_values: Float32Array  # [n, len(token_ids)], logits

    def row(self, i: int) -> RowStats:
        one = slice(i, i + 1)
        return RowStats(self.log_sum_exp[one], self.top_values[one], self.top_ids[one], self.token_values[one])

    def result(self, chosen: Float32Array) -> LogprobResult:
        """`chosen`: [n], the raw logits of the chosen tokens."""
        norm = self.log_sum_exp[:, None]
        return LogprobResult(chosen - self.log_sum_exp, self.top_values - norm, self.top_ids, self.token_values - norm)


def row_stats(ops: Ops, logits: Array, num_rows: int, top_num: int, token_ids: Sequence[int]) -> RowStats:
    """Of the first `num_rows` rows of `logits`."""
    top_num = min(top_num, logits.shape[1])
    norm = np.empty(num_rows, np.float32)
    ops.log_sum_exp(logits, num_rows, norm)
    ids = np.empty((num_rows, top_num), np.int32)
    values = np.empty((num_rows, top_num), np.float32)
    if top_num:
        ops.top_k(logits, num_rows, top_num, ids, values)
    return RowStats(norm, values, ids, logits[:num_rows, np.asarray(token_ids, np.int64)])


def prompt_logprobs(
    ops: Ops, wanted: PromptLogprobs, run_head: Callable[[Int32Array], Array], max_logit_rows: int
) -> LogprobResult:
    """Scores `wanted.targets`. `run_head` turns body rows into logits, at most `max_logit_rows` at a time, so that a long
    prompt needs no more memory than a short one."""
    parts = []
    for start in range(0, len(wanted.targets), max_logit_rows):
        targets = wanted.targets[start : start + max_logit_rows]
        n = len(targets)
        logits = run_head(np.arange(wanted.row_start + start, wanted.row_start + start + n, dtype=np.int32))
        stats = row_stats(ops, logits, n, wanted.top_num, wanted.token_ids)
        parts.append(stats.result(logits[np.arange(n), targets]))
    return _concatenate(parts, wanted)


def _concatenate(parts: list[LogprobResult], wanted: PromptLogprobs) -> LogprobResult:
    if not parts:
        return LogprobResult(
            np.empty(0, np.float32),
            np.empty((0, wanted.top_num), np.float32),
            np.empty((0, wanted.top_num), np.int32),
            np.empty((0, len(wanted.token_ids)), np.float32),
        )
    return LogprobResult(
        np.concatenate([p.logprobs for p in parts]),
        np.concatenate([p.top_logprobs for p in parts]),
        np.concatenate([p.top_ids for p in parts]),
        np.concatenate([p.token_ids_logprobs for p in parts]),
    )
