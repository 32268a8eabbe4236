"""Steps that begin before the last one's tokens are known: every request gets the answer it gets without, whatever happens
between. The toy device samples when it is told to and says what only when asked."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.config import GrammarOptions, ScheduleOptions
from sglang.srt.messages import LogprobOptions, PauseReq, TokenizedReq
from tests.scheduler.test_grammar import run_with_compiling
from tests.scheduler.toy import AheadWorker, Answer, Harness, ToyWorker, expected_output, make_req
from tests.scheduler.workloads import check_answer, fits, run_amid_events, schedules, workloads

PROMPT = list(range(40))
PROPERTY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def harness_with_grammar() -> tuple[Harness, AheadWorker]:
    worker = AheadWorker()
    return Harness(worker, grammar=GrammarOptions()), worker


def harness_for(**options: object) -> tuple[Harness, AheadWorker]:
    worker = AheadWorker()
    return Harness(worker, ScheduleOptions(**options)), worker  # type: ignore[arg-type]


@PROPERTY
@given(workloads(), schedules())
def test_answers_are_the_same(reqs: list[TokenizedReq], schedule: tuple[ToyWorker, ScheduleOptions]) -> None:
    info, options = schedule[0].info, schedule[1]
    worker = AheadWorker(
        info.max_total_tokens, info.slot_run, info.max_running_requests, info.context_len, info.max_batch_tokens
    )
    harness = Harness(worker, options)
    harness.run(*reqs)
    for req in reqs:
        if fits(harness, req):
            check_answer(harness, req)


@PROPERTY
@given(workloads(), st.randoms(use_true_random=False))
def test_whatever_happens_between_steps(reqs: list[TokenizedReq], rng: random.Random) -> None:
    harness, _ = harness_for(chunked_prefill_size=16)
    run_amid_events(harness, reqs, rng)


def test_decoding_runs_ahead_and_ends_on_time() -> None:
    harness, worker = harness_for()
    reqs = [make_req(f"r{i}", [*PROMPT, i], 10 + i, ignore_eos=True) for i in range(4)]
    for req, answer in zip(reqs, harness.run(*reqs), strict=True):
        assert answer.ids == expected_output(req).ids
    assert worker.num_ahead >= 10 and worker.num_useless == 0, "an end by length is known in advance"
    assert len(worker.batches) <= 14, "no step more than without"


def test_log_probabilities_are_known_before_the_next_step() -> None:
    harness, worker = harness_for()
    req = make_req("a", PROMPT, 12, ignore_eos=True, logprobs=LogprobOptions())
    assert harness.run(req)[0].ids == expected_output(req).ids
    assert worker.num_ahead == 0


def test_without_it_nothing_is_ahead() -> None:
    harness, worker = harness_for(overlap=False)
    harness.run(make_req("a", PROMPT, 12, ignore_eos=True))
    assert worker.num_ahead == 0


def run_together(harness: Harness, reqs: list[TokenizedReq]) -> list[Answer]:
    """All begin in the same step, however long their grammars compile."""
    harness.put(PauseReq(1, True), *reqs)
    while len(harness.scheduler._inlet):
        harness.step()
        time.sleep(0.001)
    harness.put(PauseReq(2, False))
    run_with_compiling(harness, [])
    return [harness.answers[req.rid] for req in reqs]


def free_reqs(count: int, max_new_tokens: int) -> list[TokenizedReq]:
    return [make_req(f"f{i}", [*PROMPT, 9 + i], max_new_tokens, ignore_eos=True) for i in range(count)]


JSON = '{"type": "object", "properties": {"name": {"type": "string", "pattern": "^[ab]{4}$"}, "of": {"enum": ["ab", "ba"]}}}'


@pytest.mark.parametrize("jump", [True, False])
@pytest.mark.parametrize("form", [{"regex": r"[a-c]{3}-END-[x-z]{5}"}, {"json_schema": JSON}, {"regex": "([ab]{4}, END){3}"}])
def test_grammars_go_along(patient: None, form: dict[str, str], jump: bool) -> None:
    """Masks follow the token of the step before; forced tokens overtake what was computed ahead."""
    options = GrammarOptions(jump_forward=jump)
    reqs = [make_req(f"r{i}", [*PROMPT, i], 40, temperature=0.7, seed=i, **form) for i in range(2)]
    worker = AheadWorker()
    ours = run_together(Harness(worker, grammar=options), [*reqs, *free_reqs(6, 50)])
    plain = run_together(Harness(grammar=options), [*reqs, *free_reqs(6, 50)])
    assert [a.ids for a in ours] == [a.ids for a in plain]
    assert [a.finish for a in ours] == [a.finish for a in plain]
    if "regex" in form:
        assert (worker.num_useless > 0) == jump, "some rows were computed in vain, and no token came of them"


@pytest.mark.parametrize("num_free", [0, 3])
def test_a_constrained_request_does_not_keep_the_others_from_running_ahead(patient: None, num_free: int) -> None:
    harness, worker = harness_with_grammar()
    reqs = [make_req("r", PROMPT, 60, temperature=0.7, regex="[a-z]{60}"), *free_reqs(num_free, 60)]
    run_together(harness, reqs)
    assert len(worker.batches) <= 62 and worker.num_ahead >= len(worker.batches) - 4


def test_a_draft_that_is_there_is_not_given_up(patient: None) -> None:
    """Of a grammar whose outputs are known: running ahead of the tokens would take more steps."""
    form = {"regex": "(the end of (all|some), or not){3}"}
    steps = []
    for worker in (AheadWorker(), ToyWorker()):
        harness = Harness(worker, grammar=GrammarOptions())
        for i in range(4):
            before = len(worker.batches)
            run_together(harness, [make_req(f"r{i}", PROMPT, 90, **form), *free_reqs(1, 30)])
            assert harness.answers.pop("f0")
        steps.append(sum(batch.num_tokens > 2 for batch in worker.batches[before:]))
    assert steps[0] == steps[1] > 0


def test_where_most_tokens_force_others_no_step_is_lost_to_running_ahead(patient: None) -> None:
    """Alone, a request would wait for itself."""
    worker, plain = AheadWorker(), ToyWorker()
    for each in (worker, plain):
        harness = Harness(each, grammar=GrammarOptions())
        for i in range(3):
            run_together(
                harness, [make_req(f"r{i}", [*PROMPT, i], 200, temperature=1.0, seed=i, regex="([a-z]{2}, END, the ){20}")]
            )
    assert len(worker.batches) <= len(plain.batches) + 4


def test_a_row_without_numbers_ends_its_request_alone() -> None:
    harness, worker = harness_for()
    reqs = [make_req(f"r{i}", [*PROMPT, i], 12, ignore_eos=True) for i in range(2)]
    harness.put(*reqs)
    for _ in range(4):
        harness.step()
    worker.nan_rids.add(id(harness.scheduler._live["r0"].spec))
    harness.run()
    assert harness.answers["r0"].finish is not None and harness.answers["r0"].finish.type == "abort"
    assert harness.answers["r1"].ids == expected_output(reqs[1]).ids


@pytest.mark.parametrize("num_slots", [96, 160])
def test_a_full_pool_is_no_reason_to_draft(num_slots: int) -> None:
    worker = AheadWorker(num_slots=num_slots)
    harness = Harness(worker, ScheduleOptions())
    reqs = [make_req(f"r{i}", [i] * 20, 40, ignore_eos=True) for i in range(3)]
    for req, answer in zip(reqs, harness.run(*reqs), strict=True):
        assert answer.ids == expected_output(req).ids
