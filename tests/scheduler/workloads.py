"""Requests and schedules at random, what each answer must be, and what else may happen meanwhile."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import strategies as st

from sglang.srt.config import ScheduleOptions
from sglang.srt.messages import AbortReq, FlushCacheReq, PauseReq, TokenizedReq
from tests.scheduler.toy import VOCABULARY, Harness, ToyWorker, expected_output, logprob_options, make_req, toy_logprob


@st.composite
def prompts(draw: st.DrawFn) -> list[int]:
    """Prompts that often share beginnings."""
    stem = draw(st.sampled_from([0, 1, 2]))
    ids = [(stem * 31 + i) % 250 for i in range(draw(st.integers(0, 90)))]
    return ids + draw(st.lists(st.integers(0, 250), min_size=1, max_size=20))


@st.composite
def requests(draw: st.DrawFn, rid: str) -> TokenizedReq:
    return make_req(
        rid,
        draw(prompts()),
        draw(st.integers(0, 40)),
        stream=draw(st.booleans()),
        temperature=draw(st.sampled_from([0.0, 0.8])),
        seed=draw(st.integers(0, 3)),
        stop=draw(st.sampled_from([(), ("\x05", "a"), ("ab", "the", "é"), ("END", "\n")])),
        ignore_eos=draw(st.booleans()),
        min_new_tokens=0,
        no_stop_trim=draw(st.booleans()),
        cache_salt=draw(st.sampled_from([None, None, "x"])),
        priority=draw(st.sampled_from([0, 0, 1])),
        logprobs=draw(st.sampled_from([None, None, logprob_options(0, 2, (5,)), logprob_options(3)])),
    )


@st.composite
def workloads(draw: st.DrawFn) -> list[TokenizedReq]:
    return [draw(requests(f"r{i}")) for i in range(draw(st.integers(1, 12)))]


@st.composite
def schedules(draw: st.DrawFn) -> tuple[ToyWorker, ScheduleOptions]:
    run = draw(st.sampled_from([1, 16]))
    worker = ToyWorker(
        num_slots=draw(st.sampled_from([160, 256, 1024])),
        run=run,
        max_running=draw(st.sampled_from([2, 4, 16])),
        context_len=draw(st.sampled_from([150, 512])),
        max_batch_tokens=draw(st.sampled_from([16, 64, 300])),
    )
    options = ScheduleOptions(
        schedule_policy=draw(st.sampled_from(["lpm", "fcfs", "dfs-weight", "random"])),
        schedule_conservativeness=draw(st.sampled_from([0.1, 1.0])),
        chunked_prefill_size=draw(st.sampled_from([-1, 5, 16, 512])),
        page_size=draw(st.sampled_from([1, 1, 4, 16])),
        disable_radix_cache=draw(st.booleans()),
        test_retract_every=draw(st.sampled_from([0, 0, 1, 7])),
    )
    return worker, options


def check_answer(harness: Harness, req: TokenizedReq) -> None:
    answer, expected = harness.answers[req.rid], expected_output(req)
    assert answer.ids == expected.ids
    assert answer.finish == expected.finish
    assert answer.text() == expected.text
    assert answer.last.completion_len == len(expected.ids) and answer.last.prompt_len == len(req.input_ids)
    check_stream(req, [(out.ids, out.hold_bytes) for out in answer.outs], expected.text)
    if req.logprobs is not None:
        check_logprobs(harness, req)


def check_stream(req: TokenizedReq, pieces: list[tuple[list[int], int]], text: bytes) -> None:
    """What a client is shown on the way is always a beginning of the final text, and grows."""
    ids: list[int] = []
    shown = 0
    for new, hold in pieces[:-1]:
        assert req.stream
        ids += new
        so_far = VOCABULARY.text_bytes(ids)
        visible = so_far[: len(so_far) - hold]
        assert text.startswith(visible) and len(visible) >= shown
        shown = len(visible)


def check_logprobs(harness: Harness, req: TokenizedReq) -> None:
    assert req.logprobs is not None
    answer = harness.answers[req.rid]
    history = np.array([*req.input_ids, *answer.ids], dtype=np.int64)
    n = len(req.input_ids)
    positions = answer.input_logprobs if req.logprobs.start_len >= 0 else []
    assert positions is not None
    assert [p.token_id for p in positions] == req.input_ids[req.logprobs.start_len :]
    assert [p.token_id for p in answer.output_logprobs] == answer.ids
    where = [*range(req.logprobs.start_len, n)][: len(positions)] + [*range(n, n + len(answer.ids))]
    for p, at in zip([*positions, *answer.output_logprobs], where, strict=True):
        assert p.logprob == (toy_logprob(history[:at], p.token_id) if at else None)
        if at:
            assert [i for _, i in p.top] == list(range(req.logprobs.top_num))
            assert [v for v, _ in p.ids] == [toy_logprob(history[:at], i) for i in req.logprobs.token_ids]


def fits(harness: Harness, req: TokenizedReq) -> bool:
    assert req.sampling.max_new_tokens is not None
    total = len(req.input_ids) + req.sampling.max_new_tokens
    return total <= min(harness.worker.info.context_len, harness.worker.info.max_total_tokens)


def run_amid_events(harness: Harness, reqs: list[TokenizedReq], rng: random.Random) -> None:
    """The requests come in the course of it, amid aborts, pauses and flushes. Those that stay get their answers."""
    coming, aborted, call_id = list(reqs), set(), 1
    while coming or harness.scheduler._live:
        what = rng.random()
        if coming and what < 0.4:
            harness.put(coming.pop())
        elif what < 0.5:
            victim = rng.choice(reqs).rid
            aborted.add(victim)
            harness.put(AbortReq(victim, False, "went away"))
        elif what < 0.6:
            harness.put(PauseReq(call_id, True))
            harness.step()
            harness.put(PauseReq(call_id, False))
        elif what < 0.7:
            harness.put(FlushCacheReq(call_id))
        harness.step()
    assert harness.scheduler.check_integrity() == []
    for req in reqs:
        if req.rid not in aborted and fits(harness, req):
            check_answer(harness, req)
