"""From requests to rows: one step as a ForwardBatch.

rows      [ one for each decoding request | extend of request a, and its draft | extend of request b ... ]
samples   [ one for each request that gets a token | those after draft tokens ]

The worker computes them while the masks of constrained rows are filled (`StepComputer`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from sglang.srt.forward_batch import (
    ForwardBatch,
    ForwardOutput,
    Int32Array,
    ModelWorker,
    PromptLogprobs,
    SampleSpec,
    VocabMasks,
)
from sglang.srt.scheduler.adapters import rows_of
from sglang.srt.scheduler.cache.kv_memory import KvMemory
from sglang.srt.scheduler.grammar.masks import MaskFiller
from sglang.srt.scheduler.req import Req
from sglang.srt.scheduler.speculation.proposer import Draft

LATE_SECONDS, LATE_SHARE = 0.001, 0.2
"""A mask may take so long beyond the model's part, and such a share of that; then its request skips the step."""


@dataclass(frozen=True)
class Extend:
    """Several rows of one request in this step: ids [start, end) of prompt and output. `completes`: nothing is left after it.
    `is_new`: the request was admitted in this step. `is_jump`: it runs already; all but the first id were forced. The rows of
    `draft` follow."""

    req: Req
    start: int
    end: int
    completes: bool
    is_new: bool
    is_jump: bool = False
    draft: Draft | None = None

    @property
    def length(self) -> int:
        """Rows."""
        return self.end - self.start + (len(self.draft.ids) if self.draft is not None else 0)

    def input_ids(self) -> Int32Array:
        """The ids of its rows."""
        ids = self.req.input_ids(self.start, self.end)
        return ids if self.draft is None else np.concatenate([ids, np.array(self.draft.ids, dtype=np.int32)])


@dataclass(frozen=True)
class ScheduleBatch:
    """The requests of a step. `sampled` are the requests that get a token, in the order of the batch's samples."""

    decodes: list[Req]
    extends: list[Extend]
    forward: ForwardBatch
    sampled: list[Req]
    scored: list[Req]
    """requests that get log probabilities of tokens that were not sampled, in the order of forward.prompt_logprobs"""
    drafted: list[tuple[Extend, int]] = field(default_factory=list)
    """whose samples follow those of `sampled`: an extend and which of its draft's points"""

    @property
    def prefills(self) -> list[Extend]:
        """The extends of prompts."""
        return [extend for extend in self.extends if not extend.is_jump]


@dataclass
class Flight:
    """A step in progress. Requests in `late` get no token from it."""

    batch: ScheduleBatch
    wait: Callable[[], ForwardOutput]
    late: set[Req] = field(default_factory=set)

    def land(self) -> tuple[ScheduleBatch, ForwardOutput, set[Req]]:
        """Waits. Requests that have ended since the step began are left out."""
        batch, output = self.batch, self.wait()
        if all(req.hold is not None for req in batch.decodes):
            return batch, output, self.late
        assert not batch.extends, "who ends in the middle of a step decodes in one that ran ahead"
        keep = [i for i, req in enumerate(batch.decodes) if req.hold is not None]
        reqs = [batch.decodes[i] for i in keep]
        nan = set(output.nan_rows)
        left = ForwardOutput(
            output.next_ids[keep], [output.logprobs[i] for i in keep], [], [at for at, i in enumerate(keep) if i in nan]
        )
        return replace(batch, decodes=reqs, sampled=reqs), left, self.late.intersection(reqs)


def build_batch(decodes: list[Req], extends: list[Extend], memory: KvMemory, takes_images: bool = False) -> ScheduleBatch:
    """One step. Slots for all its tokens are in the table of `memory`. `takes_images`: the model takes more than text."""
    batch = _build(decodes, extends, memory.rows.table)
    if memory.states is not None:
        holds = [req.hold for req in [*decodes, *(extend.req for extend in extends)] if req.hold is not None]
        prompts = [(e.req.hold, e.end, e.req.fill_len) for e in batch.prefills if e.req.hold is not None]
        batch.forward.states = memory.plan_states(holds, prompts)
    batch.forward.row_adapter = row_adapters(decodes, extends)
    batch.forward.masked = any(req.grammar is not None and not req.in_reasoning for req in batch.sampled)
    if takes_images:
        _add_media(batch)
    return batch


def row_adapters(decodes: list[Req], extends: list[Extend]) -> Int32Array | None:
    """ForwardBatch.row_adapter. What is decoded follows the prompt, where every adapter acts."""
    if not any(req.adapter for req in decodes) and not any(extend.req.adapter for extend in extends):
        return None
    slots = np.array([req.adapter_slot if req.adapter else -1 for req in decodes], dtype=np.int32)
    return np.concatenate([slots, *(rows_of(e.req, e.start, e.start + e.length) for e in extends)])


def _add_media(batch: ScheduleBatch) -> None:
    """Embeddings of the step's images, and positions on three axes where some request has them."""
    forward, with_axes = batch.forward, False
    row = len(batch.decodes)
    for extend in batch.extends:
        if extend.req.media is not None:
            forward.embeds += extend.req.media.rows(extend.start, extend.end, row)
            with_axes = True
        row += extend.length
    if not with_axes and all(req.media is None for req in batch.decodes):
        return
    positions = np.broadcast_to(forward.positions, (3, forward.num_tokens)).copy()
    for i, req in enumerate(batch.decodes):
        if req.media is not None:
            positions[:, i] += req.media.delta
            forward.cross_rows += req.media.cross_rows(int(forward.positions[i]), int(forward.positions[i]) + 1, i)
    row = len(batch.decodes)
    for extend in batch.extends:
        if extend.req.media is not None:
            last = extend.start + extend.length
            positions[:, row : row + extend.length] = extend.req.media.positions_of(extend.start, last)
            forward.cross_rows += extend.req.media.cross_rows(extend.start, last, row)
        row += extend.length
    forward.rope_positions = positions
    if any(extend.req.media is not None and extend.req.media.bidirectional_images for extend in batch.extends):
        ends = [forward.positions[: len(batch.decodes)] + 1]
        for extend in batch.extends:
            last = extend.start + extend.length
            places = np.arange(extend.start + 1, last + 1, dtype=np.int32)
            ends.append(places if extend.req.media is None else extend.req.media.row_ends(extend.start, last))
        forward.row_ends = np.concatenate(ends).astype(np.int32)


@lru_cache(maxsize=1024)
def numbers(n: int) -> Int32Array:
    """0, 1, ... n - 1; not to be written to."""
    numbers = np.arange(n, dtype=np.int32)
    numbers.setflags(write=False)
    return numbers


@lru_cache(maxsize=1024)
def ones(n: int) -> Int32Array:
    """`n` times 1; not to be written to."""
    ones = np.ones(n, dtype=np.int32)
    ones.setflags(write=False)
    return ones


def _build(decodes: list[Req], extends: list[Extend], table: Int32Array) -> ScheduleBatch:
    """Made anew for every step, between two runs of the model: few calls of numpy, since each costs more than what it does."""
    n = len(decodes)
    facts = [(req.hold.row, req.hold.kv_len, req.spec.output_ids[-1]) for req in decodes if req.hold is not None]
    rows, positions, ids = np.array(facts, dtype=np.int32).reshape(n, 3).T
    locs = table[rows, positions]
    if extends:
        return _with_extends(decodes, extends, table, (ids, positions, locs, rows))
    samples = [req.spec for req in decodes]
    every = numbers(n)
    forward = ForwardBatch(ids, positions, locs, rows, every, ones(n), positions + np.int32(1), every, samples)
    return ScheduleBatch(decodes, extends, forward, decodes, [])


Rows = tuple[Int32Array, Int32Array, Int32Array, Int32Array]
"""ids, positions and slots of rows, and the row of the table for each request"""


def _with_extends(decodes: list[Req], extends: list[Extend], table: Int32Array, decode_rows: Rows) -> ScheduleBatch:
    n, lengths = len(decodes), [extend.length for extend in extends]
    starts: list[int] = np.cumsum([n, *lengths])[:-1].tolist()
    parts = zip(decode_rows, *(_rows_of(extend, table) for extend in extends), strict=True)
    ids, positions, locs, rows = map(np.concatenate, parts)
    seq_lens = np.array([*(decode_rows[1] + 1).tolist(), *(e.start + e.length for e in extends)], dtype=np.int32)
    last_rows = [(extend, start + extend.end - extend.start - 1) for extend, start in zip(extends, starts, strict=True)]
    sampled = [(extend.req, row) for extend, row in last_rows if _is_sampled(extend)]
    drafted = [(extend, i, row) for extend, row in last_rows if extend.draft for i in range(len(extend.draft.points))]
    scores = [_prompt_logprobs(extend, n + i, start) for i, (extend, start) in enumerate(zip(extends, starts, strict=True))]
    forward = ForwardBatch(
        ids,
        positions,
        locs,
        rows,
        np.array([*range(n), *starts], dtype=np.int32),
        np.array([1] * n + lengths, dtype=np.int32),
        seq_lens,
        np.array([*range(n), *(row for _, row in sampled), *(row + _point(e, i) for e, i, row in drafted)], dtype=np.int32),
        [req.spec for req in decodes] + [req.spec for req, _ in sampled] + [_spec_after(e, i) for e, i, _ in drafted],
        [score for score in scores if score is not None],
    )
    scored = [extend.req for extend, score in zip(extends, scores, strict=True) if score is not None]
    return ScheduleBatch(
        decodes, extends, forward, decodes + [req for req, _ in sampled], scored, [(extend, i) for extend, i, _ in drafted]
    )


def _rows_of(extend: Extend, table: Int32Array) -> Rows:
    hold, start, last = extend.req.hold, extend.start, extend.start + extend.length
    assert hold is not None
    positions = np.arange(start, last, dtype=np.int32)
    return extend.input_ids(), positions, table[hold.row, start:last], np.array([hold.row], dtype=np.int32)


def _is_sampled(extend: Extend) -> bool:
    """Whether a token follows its last row."""
    return extend.completes and extend.req.num_left > 0 and extend.req.ending is None


def _point(extend: Extend, i: int) -> int:
    """Tokens of the draft before its `i`th sample."""
    assert extend.draft is not None
    return extend.draft.points[i]


def _spec_after(extend: Extend, i: int) -> SampleSpec:
    """The sampling specification of the draft's `i`th token."""
    assert extend.draft is not None
    spec = extend.req.spec
    output_ids = spec.output_ids + extend.draft.ids[: _point(extend, i)]
    return SampleSpec(spec.params, spec.seed, spec.prompt_ids, output_ids, spec.eos_ids, follows=spec)


def _prompt_logprobs(extend: Extend, req_idx: int, row: int) -> PromptLogprobs | None:
    """Log probabilities of tokens that were not sampled (the prompt's and forced ones), from the extend whose first row is
    `row`. Position p follows from row p - 1."""
    req, options = extend.req, extend.req.msg.logprobs
    if options is None:
        return None
    first, last = max(req.logprob_next, 1), min(extend.end + 1, req.num_ids)
    if first >= last:
        return None
    return PromptLogprobs(
        req_idx, row + first - 1 - extend.start, req.input_ids(first, last), options.top_num, options.token_ids
    )


class StepComputer:
    """Has the worker compute planned steps. `masks`: None without a grammar engine."""

    def __init__(self, worker: ModelWorker, masks: MaskFiller | None) -> None:
        self._worker = worker
        self._masks = masks

    def is_slow(self, req: Req) -> bool:
        """Whether the last mask of a request was late."""
        return self._masks is not None and req.grammar is not None and self._masks.is_suspect(req.grammar)

    def compute(self, batch: ScheduleBatch) -> Flight:
        """The model's part; masks are filled while it runs. A request whose mask is late gets no token in this step."""
        began = time.perf_counter()
        searching = {req for req in batch.sampled if req.finish.is_searching}  # was retracted, or its prompt was forced on
        if not self._worker.info.runs_ahead:  # then `forward` returns when all is computed
            late, is_filling = self.begin_masks(batch, searching)
            self._worker.forward(batch.forward)
            return self.finish(batch, late, is_filling, began)
        self._worker.forward(batch.forward)
        return self.finish(batch, *self.begin_masks(batch, searching), began)

    def begin_masks(self, batch: ScheduleBatch, late: set[Req]) -> tuple[set[Req], bool]:
        """Starts to fill the masks of all but those who are `late` anyway; returns all who are, and whether there is any to
        wait for."""
        masks = self._masks
        every = [(i, req) for i, req in enumerate(batch.sampled) if req.grammar is not None and not req.in_reasoning]
        constrained = [(i, req) for i, req in every if req.hold is not None and req not in late]
        if masks is None or not constrained:
            return late, False
        busy = {req for _, req in constrained if masks.is_busy(req.grammar)}  # was retracted
        constrained = [(i, req) for i, req in constrained if req not in busy]
        if constrained:
            self._start_masks(masks, batch, constrained)
        return late | busy, bool(constrained)

    def finish(self, batch: ScheduleBatch, late: set[Req], is_filling: bool, began: float) -> Flight:
        """Has the tokens sampled, once the masks that were begun are there. The model's part began at `began`."""
        masks: VocabMasks | None = None
        if self._masks is not None and is_filling:
            if not self._masks.are_ready(LATE_SECONDS):
                self._worker.finish()  # on a CPU this thread computes as well
            masks, late_rows = self._masks.finish(LATE_SECONDS + LATE_SHARE * (time.perf_counter() - began))
            reqs = batch.sampled + [extend.req for extend, _ in batch.drafted]
            late = late.union(reqs[i] for i in late_rows)
        if self._worker.info.runs_ahead:
            return Flight(batch, self._worker.begin_sample(batch.forward, masks), late)
        output = self._worker.sample(batch.forward, masks)
        return Flight(batch, lambda: output, late)

    def _start_masks(self, masks: MaskFiller, batch: ScheduleBatch, constrained: list[tuple[int, Req]]) -> None:
        """Those of the `constrained` samples, then those after draft tokens."""
        rows = [i for i, _ in constrained]
        states = [req.grammar for _, req in constrained if req.grammar is not None]
        owners = list(states)
        no_eos = [req.forbids_eos(len(req.output_ids)) for _, req in constrained]
        for at, (extend, i) in enumerate(batch.drafted, len(batch.sampled)):
            draft, owner = extend.draft, extend.req.grammar
            if draft is None or owner is None:  # free text
                continue
            rows.append(at)
            states.append(draft.states[i])
            owners.append(owner)
            no_eos.append(extend.req.forbids_eos(len(extend.req.output_ids) + draft.points[i]))
        masks.start(rows, states, no_eos, owners)
