"""Runs the model: writes a step's inputs into the static buffers and replays two op tapes, the body and the head.

    body    embedding .. last layer, for all rows of the step             -> K and V in the pool, x
    head    final norm, lm_head, soft cap, for the rows whose logits are wanted, at most max_logit_rows at a time

Row counts are read when the ops run, so one recording serves every step: decode, extend and mixed.
"""

from __future__ import annotations

from collections.abc import Callable

from sglang.srt.forward_batch import ForwardBatch, Int32Array
from sglang.srt.model.kernels.ops import Array, Ops
from sglang.srt.model.kv_pool import KVPool
from sglang.srt.model.layers.buffers import MediaBuffers, StepBuffers, StepLimits, create_buffers
from sglang.srt.model.models.llama import Llama
from sglang.srt.model.op_tape import OpTape


class ModelRunner:
    """Owns the buffers and the tapes of one model on one device. `req_to_token` is read through for as long as it lives."""

    def __init__(
        self, ops: Ops, model: Llama, pool: KVPool, limits: StepLimits, req_to_token: Int32Array, use_tape: bool
    ) -> None:
        self.limits = limits
        self._step = create_buffers(ops, model.config, model.readers, limits, req_to_token, model.split_gate)
        step = self._step
        self._run_body = record_program(ops, lambda: model.body(step, pool.layers), use_tape)
        self._run_head = record_program(ops, lambda: model.head(step), use_tape)

    def body(self, batch: ForwardBatch) -> None:
        """Computes all rows of the step."""
        load_step(self._step, batch, self.limits)
        self._run_body()

    def head(self, rows: Int32Array) -> Array:
        """Logits of these rows of the step, [len(rows), vocab_size]: a view, valid until the next call."""
        n = len(rows)
        assert n <= self.limits.max_logit_rows
        self._step.head_row_idx[:n] = rows
        self._step.head_rows[0] = n
        if n:
            self._run_head()
        return self._step.logits[:n]


def record_program(ops: Ops, run: Callable[[], None], use_tape: bool) -> Callable[[], None]:
    """`run` itself, or its recording. Buffers are zero at this point: a recording that also executes does nothing."""
    if not use_tape:
        return run
    tape = OpTape()
    with tape.record(ops):
        run()
    return tape.replay


def load_step(step: StepBuffers, batch: ForwardBatch, limits: StepLimits) -> None:
    rows, reqs, meta = batch.num_tokens, batch.num_reqs, step.meta
    assert rows <= limits.max_rows and reqs <= limits.max_reqs
    step.rows[0] = rows
    step.input_ids[:rows] = batch.input_ids
    step.positions[:rows] = batch.positions
    step.slots[:rows] = batch.out_cache_loc
    meta.num_reqs[0] = reqs
    meta.req_pool_idx[:reqs] = batch.req_pool_idx
    meta.q_start[:reqs] = batch.q_start
    meta.q_len[:reqs] = batch.q_len
    meta.seq_lens[:reqs] = batch.seq_lens
    if step.media is not None:
        _load_media(step.media, meta.row_ends, batch)


def _load_media(media: MediaBuffers, row_ends: Array | None, batch: ForwardBatch) -> None:
    """Rows that are not text lie in `embeds` at their own place."""
    rows = batch.num_tokens
    media.index[:rows] = -1
    for part in batch.embeds:
        begin, end = part.row, part.row + part.count
        media.embeds[begin:end] = part.embedding[part.start : part.start + part.count]
        media.index[begin:end] = media.row_numbers[begin:end]
    if row_ends is not None:
        row_ends[:rows] = 0 if batch.row_ends is None else batch.row_ends
    media.positions[:, :rows] = batch.positions if batch.rope_positions is None else batch.rope_positions
