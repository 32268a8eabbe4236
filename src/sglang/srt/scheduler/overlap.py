"""Overlap scheduling: the next step begins before the host knows the tokens of the last one.

    device   | forward k | sample k | forward k+1         | sample k+1 |
    host     plan k+1, launch ------ wait k, commit k, masks k+1, launch sample ...

A request that decodes in step k takes part in step k + 1 with one row whose id is "the result of sample i" (ForwardBatch.previous),
which the device fills in. Once the tokens are known, the request may have ended (its row of step k + 1 is ignored), its grammar may
have forced more tokens after the sampled one, or reasoning may end with another token than the sampled one (its sample of step k + 1
is discarded, as if it were late).

Only plain steps run ahead: every running request decodes one row and wants no log probabilities, memory suffices without retraction,
and speculation is not likely to gain more from the tokens than running ahead saves (`planning.gains_by_waiting`). All other work is
done once the tokens are known, so that no owner ever sees a request with unknown tokens.
"""

from __future__ import annotations

import numpy as np

from sglang.srt.forward_batch import ForwardBatch
from sglang.srt.scheduler.batch import Flight, ScheduleBatch
from sglang.srt.scheduler.cache.kv_memory import KvMemory
from sglang.srt.scheduler.req import Req
from sglang.srt.scheduler.speculation.planning import gains_by_waiting


def build_ahead(flight: Flight, running: list[Req], memory: KvMemory, context_len: int) -> ScheduleBatch | None:
    """The step after `flight`, with memory for its rows; None where it must wait."""
    batch = flight.batch
    if flight.late or batch.extends or batch.forward.prompt_logprobs or len(batch.decodes) != len(running):
        return None
    if not all(map(_is_plain, batch.decodes)) or gains_by_waiting(batch.decodes):
        return None
    going = [i for i, req in enumerate(batch.decodes) if req.num_left > 1]
    reqs = [batch.decodes[i] for i in going]
    holds = [req.hold for req in reqs if req.hold is not None]
    if not holds or any(hold.kv_len + 1 >= context_len for hold in holds):
        return None
    short = [hold for hold in holds if hold.reserved_len < hold.kv_len + 2]
    if short and not memory.grow_by_one(short):
        return None
    rows = np.array([hold.row for hold in holds], dtype=np.int32)
    positions = np.array([hold.kv_len + 1 for hold in holds], dtype=np.int32)
    every, ones = np.arange(len(reqs), dtype=np.int32), np.ones(len(reqs), dtype=np.int32)
    forward = ForwardBatch(
        input_ids=np.zeros(len(reqs), dtype=np.int32),
        positions=positions,
        out_cache_loc=memory.rows.table[rows, positions],
        req_pool_idx=rows,
        q_start=every,
        q_len=ones,
        seq_lens=positions + np.int32(1),
        sample_rows=every,
        samples=[req.spec for req in reqs],
        previous=np.array(going, dtype=np.int32),
    )
    return ScheduleBatch(reqs, [], forward, list(reqs), [])


def overtaken(batch: ScheduleBatch) -> set[Req]:
    """Of a step that ran ahead, now that the tokens of the one before are known: who still runs, but not with the one token
    that the step was computed for."""
    return {
        req
        for req in batch.decodes
        if req.hold is not None
        and (_surplus(req) or req.rewritten_at == req.num_ids or req.ending is not None or req.finish.is_searching)
    }


def _surplus(req: Req) -> bool:
    assert req.hold is not None
    return req.fill_len - req.hold.kv_len != 1


def _is_plain(req: Req) -> bool:
    """Whether it takes part with one row, and nothing but its token comes of that."""
    if req.hold is None or req.media is not None or req.ending is not None:
        return False
    return req.msg.logprobs is None and not req.spec.want_logprob
