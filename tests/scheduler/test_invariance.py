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
    Harness,
    ToyWorker,
    expected_output,
    logprob_options,
    make_req,
)
from tests.scheduler.workloads import check_answer, fits, schedules, workloads

PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


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
