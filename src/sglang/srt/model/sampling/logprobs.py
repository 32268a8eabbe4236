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
    """Statistics of n rows of raw logits, before anything changes them."""

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
    """The statistics of the first `num_rows` rows of `logits`."""
    top_num = min(top_num, logits.shape[1])
    norm = np.empty(num_rows, np.float32)
    ops.log_sum_exp(logits, num_rows, norm)
    ids = np.empty((num_rows, top_num), np.int32)
    values = np.empty((num_rows, top_num), np.float32)
    if top_num:
        ops.top_k(logits, num_rows, top_num, ids, values)
    which = np.asarray(token_ids, np.int64)
    rows = np.repeat(np.arange(num_rows), len(which))
    wanted = ops.pick(logits, rows, np.tile(which, num_rows)).reshape(num_rows, len(which))
    return RowStats(norm, values, ids, wanted)


def prompt_logprobs(
    ops: Ops, wanted: Sequence[PromptLogprobs], run_head: Callable[[Int32Array], Array], max_logit_rows: int
) -> list[LogprobResult]:
    """Scores the targets of each. `run_head` turns body rows into logits, at most `max_logit_rows` at a time, so that a long
    prompt needs no more memory than a short one; short ones share a run, since a run reads the whole head's weights."""
    results: list[LogprobResult] = []
    for group in _groups(wanted):
        rows = np.concatenate([np.arange(w.row_start, w.row_start + len(w.targets), dtype=np.int32) for w in group])
        targets = np.concatenate([w.targets for w in group])
        parts = []
        for start in range(0, len(rows), max_logit_rows):
            chosen = targets[start : start + max_logit_rows]
            logits = run_head(rows[start : start + max_logit_rows])
            stats = row_stats(ops, logits, len(chosen), group[0].top_num, group[0].token_ids)
            parts.append(stats.result(ops.pick(logits, np.arange(len(chosen)), chosen)))
        results += _split(_concatenate(parts, group[0]), [len(w.targets) for w in group])
    return results


def _groups(wanted: Sequence[PromptLogprobs]) -> list[list[PromptLogprobs]]:
    """Neighbours that want the same of every row."""
    groups: list[list[PromptLogprobs]] = []
    for one in wanted:
        last = groups[-1][0] if groups else None
        if last is not None and last.top_num == one.top_num and tuple(last.token_ids) == tuple(one.token_ids):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _split(result: LogprobResult, counts: list[int]) -> list[LogprobResult]:
    ends = np.cumsum(counts).tolist()
    return [
        result.rows(a, b)
        for a, b in zip([0, *ends], ends)  # noqa: B905  the last end begins nothing
    ]


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
