"""From requests to rows: one step as a ForwardBatch.

rows      [ one for each decoding request | extend of request a, and its draft | extend of request b ... ]
samples   [ one for each request that gets a token | those after draft tokens ]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from sglang.srt.forward_batch import ForwardBatch, Int32Array, PromptLogprobs, SampleSpec
from sglang.srt.scheduler.req import Req
from sglang.srt.scheduler.speculation.proposer import Draft


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
    """Who takes part in a step. `sampled` are the requests that get a token, in the order of the batch's samples."""

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


def build_batch(decodes: list[Req], extends: list[Extend], table: Int32Array, takes_images: bool = False) -> ScheduleBatch:
    """One step. Slots for all its tokens are in `table`, the [row, position] -> slot table. `takes_images`: the model takes more
    than text."""
    batch = _build(decodes, extends, table)
    batch.forward.masked = any(req.grammar is not None and not req.in_reasoning for req in batch.sampled)
    if takes_images:
        _add_media(batch)
    return batch


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
def _numbers(n: int) -> Int32Array:
    """0, 1, ... n - 1; not to be written to."""
    numbers = np.arange(n, dtype=np.int32)
    numbers.setflags(write=False)
    return numbers


@lru_cache(maxsize=1024)
def _ones(n: int) -> Int32Array:
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
    every = _numbers(n)
    forward = ForwardBatch(ids, positions, locs, rows, every, _ones(n), positions + np.int32(1), every, samples)
    return ScheduleBatch(decodes, extends, forward, decodes, [])


def _with_extends(
    decodes: list[Req],
    extends: list[Extend],
    table: Int32Array,
    decode_rows: tuple[Int32Array, Int32Array, Int32Array, Int32Array],
) -> ScheduleBatch:
    ids, positions, locs, rows = ([part] for part in decode_rows)
    num_decodes = len(decodes)
    sampled = list(decodes)
    scored: list[Req] = []
    asked: list[PromptLogprobs] = []
    lengths = [extend.length for extend in extends]
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1] + num_decodes
    sample_rows = list(range(num_decodes))
    for i, extend in enumerate(extends):
        req, hold = extend.req, extend.req.hold
        assert hold is not None
        start, last = extend.start, extend.start + extend.length
        ids.append(extend.input_ids())
        positions.append(np.arange(start, last, dtype=np.int32))
        locs.append(table[hold.row, start:last])
        rows.append(np.array([hold.row], dtype=np.int32))
        if extend.completes and req.num_left > 0 and req.ending is None:
            sampled.append(req)
            sample_rows.append(int(starts[i]) + extend.end - start - 1)
        scores = _prompt_logprobs(req, num_decodes + i, int(starts[i]), start, extend.end)
        if scores is not None:
            scored.append(req)
            asked.append(scores)
    drafted = [(extend, i) for extend in extends if extend.draft is not None for i in range(len(extend.draft.points))]
    first_rows = dict(zip(map(id, extends), starts.tolist(), strict=True))
    for extend, i in drafted:
        assert extend.draft is not None
        sample_rows.append(first_rows[id(extend)] + extend.end - extend.start - 1 + extend.draft.points[i])
    q_start = np.concatenate([np.arange(num_decodes), starts]).astype(np.int32)
    q_len = np.array([1] * num_decodes + lengths, dtype=np.int32)
    seq_lens = np.concatenate([positions[0] + 1, [extend.start + extend.length for extend in extends]]).astype(np.int32)
    samples: list[SampleSpec] = [req.spec for req in sampled]
    samples += [
        _spec_after(extend.req, extend.draft.ids[: extend.draft.points[i]]) for extend, i in drafted if extend.draft is not None
    ]
    forward = ForwardBatch(
        np.concatenate(ids),
        np.concatenate(positions),
        np.concatenate(locs),
        np.concatenate(rows),
        q_start,
        q_len,
        seq_lens,
        np.array(sample_rows, dtype=np.int32),
        samples,
        asked,
    )
    return ScheduleBatch(decodes, extends, forward, sampled, scored, drafted)


def _spec_after(req: Req, draft_ids: list[int]) -> SampleSpec:
    """How the token after so much of a draft is sampled."""
    spec = req.spec
    return SampleSpec(spec.params, spec.seed, spec.prompt_ids, spec.output_ids + draft_ids, spec.eos_ids)


def _prompt_logprobs(req: Req, req_idx: int, row: int, start: int, end: int) -> PromptLogprobs | None:
    """What the extend [start, end), whose first row is `row`, can tell about tokens that were not sampled: the prompt's and
    forced ones. Position p follows from row p - 1."""
    options = req.msg.logprobs
    if options is None:
        return None
    first, last = max(req.logprob_next, 1), min(end + 1, req.num_ids)
    if first >= last:
        return None
    return PromptLogprobs(req_idx, row + first - 1 - start, req.input_ids(first, last), options.top_num, options.token_ids)
