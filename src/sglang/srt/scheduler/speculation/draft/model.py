"""The draft model: a second worker with KV memory of its own, which follows requests and says how they may go on.

    the model      | prompt            | T1     | T2 ..                     rows
    draft model    | prompt  | d1 d2 d3 |        | T2' d1 d2 d3 |
    drafted        |         |  "the cat sat"    |  "on a mat"

It computes prompts beside the model, in the same chunks. Then it samples one token after the other, for all requests that get a draft
together, each by the seed and the position that the model itself samples by. What was rejected is overwritten by what follows. A
request that it does not follow, or not any more, costs nothing; it catches up when that pays.

Nothing here can end or delay a request but by the time it takes: where memory or the draft model's context is short, there is no draft.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sglang.srt.forward_batch import ForwardBatch, Int32Array, ModelWorker, SampleSpec
from sglang.srt.scheduler.cache.kv_memory import Holding, KvMemory
from sglang.srt.scheduler.req import Req
from sglang.srt.scheduler.speculation.draft.lengths import DraftLengths
from sglang.srt.scheduler.speculation.grammar_walk import GrammarWalk
from sglang.srt.scheduler.speculation.proposer import Draft, DraftLimits

NAME = "draft_model"
SHORT = 32
"""Rows that it may be behind a request without being asked whether it pays to catch up."""
SLACK = 1.25
"""Rows of a prompt that it may have to compute beside those of the model, which finds more of it in its cache."""
EXPECTED_TOKENS = 128
"""How long an answer is thought to be at most, when what it gains is weighed against its prompt."""
WORTH = 2.0
"""So much more than it costs must be gained by catching up."""


@dataclass(eq=False)
class Followed:
    """A request that the draft model follows. Its memory holds the request's ids, and from position `base` on the drafted ids `fed`."""

    req: Req
    hold: Holding
    base: int
    fed: list[int] = field(default_factory=list)

    def settle(self) -> None:
        """Counts what is there of the request as it stands now; its last id is computed once more, if need be."""
        output = self.req.output_ids[self.base - self.req.prompt_len :] if self.fed else []
        right = 0
        for drafted, token_id in zip(self.fed, output, strict=False):
            if drafted != token_id:
                break
            right += 1
        self.base = max(min(self.base + right, self.req.num_ids - 1), self.hold.tree_len)
        self.hold.kv_len, self.fed = self.base, []


class Growing:
    """A draft while it grows, along the grammar where there is one."""

    def __init__(self, followed: Followed, limits: DraftLimits) -> None:
        req = followed.req
        self.followed = followed
        spec = req.spec
        self.spec = SampleSpec(spec.params, spec.seed, spec.prompt_ids, list(spec.output_ids), spec.eos_ids)
        self.start = followed.hold.kv_len
        self.pending: Int32Array = req.input_ids(self.start, req.fill_len)
        self._limits = limits
        self._stop_ids = req.stop_ids
        self._walk = GrammarWalk(req, limits) if req.grammar is not None else None
        self._ids: list[int] = []
        self.is_done = False

    def take(self, token_id: int) -> None:
        """The token that the draft model says next."""
        if self._walk is not None:
            added = self._walk.add(token_id)
            self.is_done = not added or not self._walk.has_room
        else:
            added = [] if token_id in self._stop_ids or token_id < 0 else [token_id]
            self._ids += added
            self.is_done = not added or len(self._ids) >= min(self._limits.max_ids, self._limits.max_samples)
        self.start += len(self.pending)
        self.pending = np.array(added, dtype=np.int32)
        self.spec.output_ids += added

    def draft(self) -> Draft | None:
        """What it has become."""
        if self._walk is not None:
            return self._walk.draft(NAME)
        return Draft(self._ids, list(range(1, len(self._ids) + 1)), [], NAME) if self._ids else None


class DraftModel:
    """Owner of the draft model's worker, memory and followed requests. `vocab_size`: of the model that samples. `lengths` decides how long
    drafts are; `clock` is what it is told seconds by."""

    def __init__(
        self, worker: ModelWorker, vocab_size: int, lengths: DraftLengths, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        info = worker.info
        self.lengths = lengths
        self._worker = worker
        self._vocab_size = min(vocab_size, info.vocab_size)
        self._clock = clock
        self.memory = KvMemory(info.max_total_tokens, info.slot_run, info.max_running_requests, info.context_len)
        worker.bind(self.memory.rows.table)
        self._followed: dict[Req, Followed] = {}
        self._seconds = 0.0  # of the drafts of this step
        self._disturbed = True  # something else than a plain step was computed since the last one
        self._last = 0.0

    # --- following ------------------------------------------------------------------------------------------------------------

    def follow(self, req: Req, end: int, num_rows: int, num_reqs: int) -> None:
        """The model is about to compute `num_rows` of a prompt, up to position `end`; so does the draft model, if it pays."""
        followed = self._followed.get(req)
        if followed is None:
            followed = self._open(req) if self.lengths.pays_at_first(num_reqs) else None
        if followed is None:
            return
        rows = end - followed.base
        if not 0 < rows <= SLACK * num_rows + SHORT or end > self.memory.rows.context_len:
            return
        if not self.memory.grow(followed.hold, end):
            return
        self._catch_up(followed, end)
        if end >= req.prompt_len:
            self.memory.share(followed.hold, req.input_ids(0, followed.base))
        self._disturbed = True

    def behind(self, req: Req) -> int:
        """Ids of a request, but for the last one, that the draft model has yet to compute."""
        followed = self._followed.get(req)
        return req.fill_len - 1 - (followed.base if followed is not None else 0)

    def catches_up(self, req: Req, rate: float, num_reqs: int) -> bool:
        """Whether what is missing of a request is little, or is worth it."""
        behind = self.behind(req)
        if behind <= SHORT:
            return True
        gain = min(req.num_left, EXPECTED_TOKENS) * self.lengths.gain(rate, num_reqs)
        return gain > WORTH * self.lengths.draft_seconds(behind)

    def sweep(self) -> None:
        """Lets go of requests that run no more; what was computed for them may be used again."""
        for req in [req for req in self._followed if req.hold is None]:
            self._close(self._followed[req])

    def flush(self) -> None:
        """Empties the prefix cache, when no request runs."""
        self.sweep()
        self.memory.flush()

    def close(self) -> None:
        """Ends the worker."""
        self._worker.close()

    def _open(self, req: Req) -> Followed | None:
        """None where it cannot be followed."""
        if req.fill_len + 2 > self.memory.rows.context_len:
            return None
        ids, salt = req.input_ids(0, req.fill_len - 1), req.msg.cache_salt
        hold = self.memory.open(self.memory.tree.match_prefix(ids, salt), salt)
        if hold is None:
            return None
        followed = self._followed[req] = Followed(req, hold, hold.kv_len)
        return followed

    def _close(self, followed: Followed) -> None:
        followed.settle()
        self.memory.close(followed.hold, followed.req.input_ids(0, followed.base))
        del self._followed[followed.req]

    def _catch_up(self, followed: Followed, end: int) -> None:
        """Computes ids up to `end`, for which there is memory; nothing is sampled."""
        while (start := followed.base) < end:
            last = min(end, start + self._worker.info.max_batch_tokens)
            self._worker.forward(self._batch([(followed, start, followed.req.input_ids(start, last))], []))
            followed.hold.kv_len = followed.base = last

    # --- drafting -------------------------------------------------------------------------------------------------------------

    def draft(self, wanted: list[tuple[Req, DraftLimits]]) -> dict[Req, Draft]:
        """Drafts for requests that run, all together."""
        began = self._clock()
        growing, rows = list[Growing](), self._worker.info.max_batch_tokens - len(wanted)
        for req, limits in wanted:
            if (one := self._begin(req, limits, rows)) is not None:
                rows -= len(one.pending) - 1
                growing.append(one)
        going = growing
        while going:
            going = self._grow(going)
        drafts = {one.followed.req: draft for one in growing if (draft := one.draft()) is not None}
        self._seconds += self._clock() - began
        return drafts

    def _begin(self, req: Req, limits: DraftLimits, rows: int) -> Growing | None:
        """With at most so many rows beside its last one in the first step. None where there is no room for it."""
        followed = self._followed.get(req) or self._open(req)
        if followed is None:
            return None
        followed.settle()
        end = req.fill_len + limits.max_ids
        if end > self.memory.rows.context_len or not self.memory.grow(followed.hold, end):
            self._close(followed)
            return None
        if req.fill_len - followed.base > rows + 1:
            self._catch_up(followed, req.fill_len - 1)
        growing = Growing(followed, limits)
        followed.base = req.fill_len
        return growing

    def _grow(self, going: list[Growing]) -> list[Growing]:
        """One step; who goes on after it."""
        began = self._clock()
        batch = self._batch([(one.followed, one.start, one.pending) for one in going], [one.spec for one in going])
        self._worker.forward(batch)
        ids = self._sample(batch)
        for one, token_id in zip(going, ids, strict=True):
            one.followed.fed = one.spec.output_ids[len(one.followed.req.output_ids) :]
            one.take(token_id if token_id < self._vocab_size else -1)
        self.lengths.note_draft_step(batch.num_tokens, self._clock() - began)
        return [one for one in going if not one.is_done]

    def _sample(self, batch: ForwardBatch) -> list[int]:
        if self._worker.info.runs_ahead:
            output = self._worker.begin_sample(batch, None)()
        else:
            output = self._worker.sample(batch, None)
        ids: list[int] = output.next_ids.tolist()
        for row in output.nan_rows:
            ids[row] = -1
        return ids

    def _batch(self, parts: list[tuple[Followed, int, Int32Array]], samples: list[SampleSpec]) -> ForwardBatch:
        """Rows for ids from a position on; the last row of each is sampled, unless nothing is. Ids that only the large model has
        stand for others: no text has them."""
        lengths = np.array([len(ids) for _, _, ids in parts], dtype=np.int32)
        starts = np.array([start for _, start, _ in parts], dtype=np.int32)
        rows = np.array([followed.hold.row for followed, _, _ in parts], dtype=np.int32)
        firsts = (np.cumsum(lengths) - lengths).astype(np.int32)
        table = self.memory.rows.table
        spans = [(row, start, start + length) for row, start, length in zip(rows, starts, lengths, strict=True)]
        return ForwardBatch(
            input_ids=np.minimum(np.concatenate([ids for _, _, ids in parts]), self._worker.info.vocab_size - 1).astype(
                np.int32
            ),
            positions=np.concatenate([np.arange(start, end, dtype=np.int32) for _, start, end in spans]),
            out_cache_loc=np.concatenate([table[row, start:end] for row, start, end in spans]),
            req_pool_idx=rows,
            q_start=firsts,
            q_len=lengths,
            seq_lens=(starts + lengths).astype(np.int32),
            sample_rows=(firsts + lengths - 1 if samples else firsts[:0]).astype(np.int32),
            samples=samples,
        )

    # --- steps of the model, as far as their time tells something -------------------------------------------------------------

    def note_step(self, num_reqs: int, rows: int, num_tokens: int, drafted: bool, is_plain: bool) -> None:
        """A step has landed: so many requests sampled a token each, `num_tokens` came of it. `drafted`: it had drafts, and the draft
        model's alone; `is_plain`: it had neither drafts nor prompts."""
        self.sweep()
        now = self._clock()
        seconds, draft_seconds = now - self._last, self._seconds
        self._last, self._seconds = now, 0.0
        disturbed, self._disturbed = self._disturbed, False
        if disturbed or not num_reqs:
            return
        if drafted:
            self.lengths.note_drafted(num_reqs, rows, num_tokens, seconds, draft_seconds)
        elif is_plain:
            self.lengths.note_plain(num_reqs, seconds - draft_seconds)

    def note_pause(self) -> None:
        """The next step does not follow one at once."""
        self._disturbed = True

    def check_integrity(self) -> list[str]:
        """Inconsistencies of its memory; empty if there are none."""
        self.sweep()
        return [f"draft model: {problem}" for problem in self.memory.check_integrity()]
