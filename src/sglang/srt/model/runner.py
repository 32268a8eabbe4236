"""Runs the model: writes a step's inputs into the static buffers and replays two op tapes, the body and the head.

    body    embedding .. attention of the last layer, for all rows of the step      -> K and V in the pool, x
    head    the rest of that layer, final norm, lm_head, soft cap, for the rows whose logits are needed, at most max_logit_rows at
            a time

Row counts are read when the ops run, so one recording serves every step: decode, extend and mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sglang.srt.forward_batch import ForwardBatch, Int32Array, StateRows
from sglang.srt.model.cuda_graph import DecodeGraphs
from sglang.srt.model.distributed.sharding import Shard
from sglang.srt.model.kernels.ops import Array, Ops, StepShape
from sglang.srt.model.kernels.states import StateArrays
from sglang.srt.model.kv_pool import KVPool
from sglang.srt.model.layers.adapters import AdapterRows
from sglang.srt.model.layers.buffers import MediaBuffers, StepBuffers, StepLimits, create_buffers
from sglang.srt.model.models.decoder import Decoder
from sglang.srt.model.op_tape import OpTape
from sglang.srt.model.state_pool import layer_memories


@dataclass
class Programs:
    """The two halves of a step. `graphs`: both, for small decode steps."""

    body: Callable[[], None]
    head: Callable[[], None]
    graphs: DecodeGraphs | None = None

    def run(self) -> None:
        self.body()
        self.head()


@dataclass(frozen=True)
class AdaptedPrograms:
    """Those of steps in which some row has an adapter; which, is told to `rows` and, for rows of the head, `head_rows`."""

    programs: Programs
    rows: AdapterRows
    head_rows: AdapterRows


class ModelRunner:
    """Owns the buffers and the tapes of one model on one device. `req_to_token` is read through for as long as it lives.
    `sampled`: where the sampler puts the ids it samples. `num_adapters`: slots of the banks. `states`: of recurrent layers."""

    def __init__(
        self,
        ops: Ops,
        model: Decoder,
        pool: KVPool,
        limits: StepLimits,
        req_to_token: Int32Array,
        use_tape: bool,
        sampled: Array,
        shard: Shard | None = None,
        num_adapters: int = 0,
        states: Sequence[StateArrays] = (),
    ) -> None:
        self.limits = limits
        self._shard = shard
        self._sampled = sampled
        self._logits: Array = None
        if shard is not None:
            self._logits = ops.empty((limits.max_logit_rows, shard.whole.vocab_size))
        self._ops = ops
        self._req_to_token = req_to_token
        needs_gate_up = model.needs_gate_up or num_adapters > 0
        self._step = step = create_buffers(ops, model.config, model.readers, limits, req_to_token, needs_gate_up)

        memories = layer_memories(model.config, pool.layers, states)

        def programs(step: StepBuffers) -> Programs:
            def body() -> None:
                ops.take_sampled(step.input_ids, step.previous, sampled, step.rows)
                model.body(step, memories)

            return Programs(record_program(ops, body, use_tape), record_program(ops, lambda: model.head(step), use_tape))

        self._plain = self._programs = programs(step)
        self._adapted: AdaptedPrograms | None = None
        if num_adapters:
            rows, head_rows = (AdapterRows(ops, n, num_adapters) for n in (limits.max_rows, limits.max_logit_rows))
            adapted = replace(step, adapters=rows.arrays, head_adapters=head_rows.arrays)
            self._adapted = AdaptedPrograms(programs(adapted), rows, head_rows)
        self._row_adapter: Int32Array | None = None  # of the step, where some row has one
        self._num_ready = 0  # rows whose logits a graph has made already

    def record_graphs(self, max_reqs: int) -> None:
        """Decode steps of up to max_reqs requests are replayed from now on."""
        every = [self._plain, *([self._adapted.programs] if self._adapted is not None else [])]
        for programs in every:
            programs.graphs = DecodeGraphs(self._ops, self._step, programs.run, max_reqs)

    def body(self, batch: ForwardBatch) -> None:
        """Computes all rows of the step."""
        if self._shard is not None:
            batch = replace(batch, input_ids=self._shard.local_ids(batch.input_ids))
        load_step(self._ops, self._step, batch, self.limits, self._req_to_token)
        if batch.previous is not None and self._shard is not None:
            self._shard.ranks.share(self._sampled)  # rank 0 has sampled them
        self._num_ready = 0
        self._choose_programs(batch.row_adapter)
        graphs = self._programs.graphs
        if graphs is None or not _is_decode(batch) or batch.num_reqs > graphs.max_reqs:
            self._programs.body()
            return
        self._load_head(batch.sample_rows)
        graphs.replay(batch.num_reqs)
        self._num_ready = batch.num_reqs

    def _choose_programs(self, row_adapter: Int32Array | None) -> None:
        """Steps in which no row has an adapter run as if there were none."""
        self._row_adapter = row_adapter if row_adapter is not None and row_adapter.max(initial=-1) >= 0 else None
        if self._row_adapter is None:
            self._programs = self._plain
            return
        assert self._adapted is not None, "the worker takes no adapters"
        self._programs = self._adapted.programs
        self._adapted.rows.load(self._row_adapter)

    @property
    def can_skip_columns(self) -> bool:
        """Whether `head` may be asked for a part of the logits."""
        return self._step.head_columns is not None and self._shard is None

    def head(self, rows: Int32Array, whole: int | None = None, blocks: Int32Array | None = None) -> Array:
        """Logits of these rows of the step, [len(rows), vocab_size]: a view, valid until the next call. With `blocks`, all of the
        first `whole` rows and of the others those blocks of columns; all other entries are undefined."""
        n, step = len(rows), self._step
        assert n <= self.limits.max_logit_rows
        if self._num_ready:
            assert n == self._num_ready, "all rows of a decode step are sampled"
        elif n:
            self._load_head(rows, whole, blocks)
            self._programs.head()
        if self._shard is None:
            return step.logits[:n]
        if n:
            self._shard.ranks.gather_columns(step.logits[:n, : self._shard.ids_each], self._logits[:n])
        return self._logits[:n]

    def _load_head(self, rows: Int32Array, whole: int | None = None, blocks: Int32Array | None = None) -> None:
        n, step = len(rows), self._step
        step.head_inputs.begin()
        host = step.head_inputs.host
        host["row_idx"][:n] = rows
        host["rows"][0] = n
        if step.head_columns is not None:
            host["whole"][0] = n if whole is None else whole
            host["num_blocks"][0] = 0 if blocks is None else len(blocks)
            if blocks is not None:
                host["blocks"][: len(blocks)] = blocks
        step.head_inputs.send()
        self._ops.bound(step.head_rows, n)
        if self._row_adapter is not None and self._adapted is not None:
            self._adapted.head_rows.load(self._row_adapter[rows])


def _is_decode(batch: ForwardBatch) -> bool:
    """Whether every request has one row, which is sampled, and nothing else is wanted."""
    return batch.num_tokens == batch.num_reqs == len(batch.sample_rows) and not batch.prompt_logprobs


def record_program(ops: Ops, run: Callable[[], None], use_tape: bool) -> Callable[[], None]:
    """`run` itself, or its recording. Buffers are zero at this point: a recording that also executes does nothing."""
    if not use_tape:
        return run
    tape = OpTape()
    with tape.record(ops):
        run()
    return tape.replay


def load_step(ops: Ops, step: StepBuffers, batch: ForwardBatch, limits: StepLimits, req_to_token: Int32Array) -> None:
    """Writes the step's inputs into the static buffers. `req_to_token`: the host's table."""
    rows, reqs = batch.num_tokens, batch.num_reqs
    assert rows <= limits.max_rows and reqs <= limits.max_reqs
    step.inputs.begin()
    host = step.inputs.host
    host["rows"][0] = rows
    host["input_ids"][:rows] = batch.input_ids
    if step.layer_inputs is not None:
        for part in batch.embeds:  # an image's rows are those of the padding for each layer
            host["input_ids"][part.row : part.row + part.count] = step.layer_inputs.pad_id
    host["previous"][:rows] = -1 if batch.previous is None else batch.previous
    host["positions"][:rows] = batch.positions
    host["slots"][:rows] = batch.out_cache_loc
    host["num_reqs"][0] = reqs
    host["req_pool_idx"][:reqs] = batch.req_pool_idx
    host["q_start"][:reqs] = batch.q_start
    host["q_len"][:reqs] = batch.q_len
    host["seq_lens"][:reqs] = batch.seq_lens
    if step.recurrent is not None:
        assert batch.states is not None
        load_states(host, batch.states)
    if "row_ends" in host:
        assert batch.row_ends is not None
        host["row_ends"][:rows] = batch.row_ends
        host["local_ends"][:rows] = np.minimum(batch.row_ends, batch.positions + step.window)
    step.inputs.send()
    ops.sync_table(step.meta.req_to_token, req_to_token, batch.req_pool_idx, batch.seq_lens)
    ops.bound(step.rows, rows)
    ops.bound_step(step.meta, StepShape(rows, reqs, max(batch.q_len.tolist(), default=0)))
    if step.media is not None:
        _load_media(ops, step.media, batch)
    if step.cross is not None:
        step.cross.load(ops, batch)


def load_states(host: Mapping[str, Int32Array], states: StateRows) -> None:
    """Writes where the states of a step's requests are."""
    for name in ("source", "target", "save_starts", "save_rows", "save_slots"):
        values: Int32Array = getattr(states, name)
        host[name][: len(values)] = values


def _load_media(ops: Ops, media: MediaBuffers, batch: ForwardBatch) -> None:
    """Rows that are not text lie in `embeds` at their own place."""
    rows = batch.num_tokens
    media.inputs.begin()
    host = media.inputs.host
    index = host["index"]
    index[:rows] = -1
    for part in batch.embeds:
        begin, end = part.row, part.row + part.count
        ops.write(media.embeds[begin:end], part.embedding[part.start : part.start + part.count])
        index[begin:end] = np.arange(begin, end)
    if "row_ends" in host:
        host["row_ends"][:rows] = 0 if batch.row_ends is None else batch.row_ends
    positions = host["positions"].reshape(3, -1)
    positions[:, :rows] = batch.positions if batch.rope_positions is None else batch.rope_positions
    media.inputs.send()
