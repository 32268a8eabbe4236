"""Whatever the schedule (batching, chunks, cache, page size, retraction, policy), every request gets the answer that the toy
model gives it alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.config import ScheduleOptions
from sglang.srt.messages import AbortReq, TokenizedReq
from tests.scheduler.toy import (
    ALL_IDS,
    VOCABULARY,
    Harness,
    ToyWorker,
    expected_output,
    logprob_options,
    make_req,
    toy_logprob,
)

PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


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
    import numpy as np

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


@PROPERTY
@given(workloads(), schedules())
def test_answers_do_not_depend_on_the_schedule(reqs: list[TokenizedReq], schedule: tuple[ToyWorker, ScheduleOptions]) -> None:
    harness = Harness(*schedule)
    harness.run(*reqs)
    for req in reqs:
        if fits(harness, req):
            check_answer(harness, req)
    again = [
        TokenizedReq(f"again-{r.rid}", r.input_ids, r.sampling, r.logprobs, r.stream, cache_salt=r.cache_salt) for r in reqs
    ]
    harness.run(*again)  # now with a warm cache
    for req in again:
        if fits(harness, req):
            check_answer(harness, req)


@PROPERTY
@given(workloads(), schedules(), st.randoms(use_true_random=False))
def test_aborts_at_any_time_leave_nothing_behind(
    reqs: list[TokenizedReq], schedule: tuple[ToyWorker, ScheduleOptions], rng: random.Random
) -> None:
    harness = Harness(*schedule)
    pending = list(reqs)
    for _ in range(5000):
        if pending and rng.random() < 0.6:
            harness.put(pending.pop(0))
        if rng.random() < 0.2:
            harness.put(AbortReq(rng.choice(reqs).rid))
        if rng.random() < 0.01:
            harness.put(AbortReq(all=True))
        harness.step()
        if not pending and not harness.scheduler._live:
            break
    harness.put(AbortReq(all=True))
    assert harness.scheduler.check_integrity() == []
    assert harness.scheduler.memory.tree.num_locked == 0
    for req in reqs:
        answer = harness.answers[req.rid]
        assert answer.finish is not None
        expected = expected_output(req).ids
        assert expected[: len(answer.ids)] == answer.ids
        if answer.finish.type != "abort" and fits(harness, req):
            check_answer(harness, req)


def test_five_hundred_mixed_requests() -> None:
    """Arriving over time, in a pool that holds a fraction of them."""
    rng = random.Random(3)
    worker = ToyWorker(num_slots=1536, run=16, max_running=24, context_len=400, max_batch_tokens=128)
    harness = Harness(worker, ScheduleOptions(chunked_prefill_size=96, schedule_conservativeness=0.05), check=False)
    stems = [[rng.choice(ALL_IDS[:250]) for _ in range(rng.randrange(20, 150))] for _ in range(6)]
    reqs = []
    for i in range(500):
        ids = rng.choice(stems)[: rng.randrange(1, 150)] + [rng.randrange(250) for _ in range(rng.randrange(1, 30))]
        stop = rng.choice([(), (), ("a", "\n"), ("ab",)])
        reqs.append(
            make_req(f"r{i}", ids, rng.randrange(0, 60), rng.random() < 0.5, rng.choice([0.0, 1.0]), seed=i, stop=stop,
                     ignore_eos=rng.random() < 0.8)
        )  # fmt: skip
    aborted = set()
    pending = list(reqs)
    for step in range(50000):
        for _ in range(min(len(pending), rng.randrange(0, 4))):
            harness.put(pending.pop(0))
        if rng.random() < 0.05 and harness.scheduler._live:
            rid = rng.choice(list(harness.scheduler._live))
            aborted.add(rid)
            harness.put(AbortReq(rid))
        harness.step()
        if step % 50 == 0:
            assert harness.scheduler.check_integrity() == []
        if not pending and not harness.scheduler._live:
            break
    assert harness.scheduler.check_integrity() == []
    assert harness.scheduler._running.num_retractions > 0, "the pool was meant to be too small"
    for req in reqs:
        if req.rid in aborted:
            assert harness.answers[req.rid].finish is not None
        else:
            check_answer(harness, req)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_retracted_request_goes_on_as_if_nothing_had_been(every: int) -> None:
    req = make_req("a", list(range(50)), 40, stream=True, temperature=1.0, seed=5, logprobs=logprob_options(10, 1))
    harness = Harness(options=ScheduleOptions(test_retract_every=every))
    (answer,) = harness.run(req)
    check_answer(harness, req)
    assert answer.last.num_retractions > 0
