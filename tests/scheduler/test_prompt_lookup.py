"""Drafts from a request's own text: they change the number of steps and nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.config import ScheduleOptions
from sglang.srt.forward_batch import SampleSpec
from sglang.srt.messages import LogprobOptions, TokenizedReq
from sglang.srt.scheduler import stop_regex
from sglang.srt.scheduler.speculation.proposers.repeated_text import MAX_STREAK, MIN_STREAK, PromptLookup
from tests.scheduler import toy
from tests.scheduler.test_stop_regex import answers
from tests.scheduler.toy import EOS, AheadWorker, Harness, ToyWorker, make_req
from tests.scheduler.workloads import check_answer, fits, workloads

LINE = [40, 41, 42, 43, 44, 45, 46]


# --- what is expected --------------------------------------------------------------------------------------------------------------


def after(prompt: list[int], sampled: list[int]) -> PromptLookup:
    lookup = PromptLookup(prompt)
    for token in sampled:
        lookup.note(token)
    return lookup


def test_what_repeats_is_expected_once_it_has_come_so_twice() -> None:
    prompt = [1, *LINE, 2, 3]
    assert after(prompt, LINE[:4]).expected(9) == [], "nothing was expected before three tokens were the same"
    assert after(prompt, LINE[:5]).expected(9) == LINE[5:], "as many as came as expected"
    assert after(prompt, LINE[:5]).expected(1) == LINE[5:6]
    assert after(prompt, [*LINE[:5], 99]).expected(9) == []
    assert after([1, 2], []).expected(9) == after([], []).expected(9) == []


def test_after_a_miss_more_is_needed() -> None:
    other = list(range(70, 80))
    lookup = after([*LINE, *other], [*LINE[:5], 99, *other[:5]])
    assert lookup.expected(9) == [], "two tokens as expected were enough once"
    lookup.note(other[5])
    lookup.note(other[6])
    assert lookup.expected(9) == [*other[7:], LINE[0]], "now it has been right for four"


def test_the_latest_occurrence_counts() -> None:
    prompt = [1, 2, 3, 10, 11, 12, 1, 2, 3, 20, 21, 22, 9]
    assert after(prompt, [1, 2, 3, 20, 21]).expected(9) == [22, 9]


def test_a_loop_is_followed_for_as_long_as_it_has_been_right() -> None:
    lookup = after([7], [5, 6] * 40)
    assert lookup.expected(99) == [5, 6], "no further than the text goes"
    lookup = after([7], LINE * 40)
    assert lookup.expected(99) == LINE and len(LINE) < MAX_STREAK


@given(st.lists(st.sampled_from([0, 1, 256, 65536, 2**30]), max_size=60), st.lists(st.integers(0, 2), max_size=60))
def test_only_whole_tokens_match(prompt: list[int], sampled: list[int]) -> None:
    """Ids whose bytes look alike at other places are not taken for each other."""
    lookup, ids, expected, streak, needed = PromptLookup(prompt), list(prompt), -1, 0, MIN_STREAK

    def place() -> int:
        found = [i for i in range(len(ids) - 3) if ids[i : i + 3] == ids[-3:]]
        return found[-1] + 3 if found and len(ids) > 3 else -1

    expected = place()
    for token in sampled:
        right = expected >= 0 and ids[expected] == token
        ids.append(token)
        lookup.note(token)
        if streak >= needed:
            needed = MIN_STREAK if right else min(2 * needed, MAX_STREAK)
        expected, streak = (expected + 1, min(streak + 1, MAX_STREAK)) if right else (place(), 0)
        want = ids[expected : expected + streak] if expected >= 0 and streak >= needed else []
        assert lookup.expected(MAX_STREAK) == want[:MAX_STREAK]


# --- in the scheduler -----------------------------------------------------------------------------------------------------------


def circling(history: np.ndarray[tuple[int], np.dtype[np.int64]], spec: SampleSpec, allowed: list[int]) -> int:
    """Repeats the token of seven tokens ago, except for every 23rd token, which is new."""
    n = len(history)
    return int(history[-7]) if n % 23 else 100 + n % 100


@pytest.fixture
def repeating(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "sample_toy", circling)


def run(reqs: list[TokenizedReq], worker: ToyWorker, **options: object) -> tuple[list[list[int]], int]:
    harness = Harness(worker, ScheduleOptions(**options))  # type: ignore[arg-type]
    answers = harness.run(*reqs)
    assert harness.scheduler.check_integrity() == []
    return [answer.ids for answer in answers], len(worker.batches)


def circles(num: int, num_new: int = 90, **more: object) -> list[TokenizedReq]:
    return [make_req(f"r{i}", [*range(50 + i), *LINE], num_new, ignore_eos=True, **more) for i in range(num)]  # type: ignore[arg-type]


@pytest.mark.parametrize("make_worker", [ToyWorker, AheadWorker])
def test_text_that_repeats_itself_takes_fewer_steps(repeating: None, make_worker: type[ToyWorker]) -> None:
    for more in (
        {},
        {"frequency_penalty": 0.1, "presence_penalty": 1.2},
        {"repetition_penalty": 1.1, "logit_bias": {"5": 1.0}},
    ):
        want, steps = run(circles(2, **more), ToyWorker(), speculation=False)  # type: ignore[arg-type]
        got, fewer = run(circles(2, **more), make_worker())  # type: ignore[arg-type]
        assert got == want and len(want[0]) == 90
        assert fewer < 0.6 * steps, more


def test_it_stops_where_it_should(repeating: None) -> None:
    """A stop token in the draft, the last token that may come, the end of the context and of the step."""
    for more in ({"stop_token_ids": [LINE[3]]}, {"num_new": 1}, {"num_new": 2}, {"num_new": 33}, {"stop": ["*+,-"]}):
        reqs = circles(3, **more)  # type: ignore[arg-type]
        small = {"context_len": 128, "max_batch_tokens": 20, "max_running": 3}
        assert run(reqs, ToyWorker(**small))[0] == run(reqs, ToyWorker(**small), speculation=False)[0]


@pytest.mark.parametrize("make_worker", [ToyWorker, AheadWorker])
@pytest.mark.parametrize("regexes", [("~~",), (r"[(-,]{4}-", "b.d"), (r"(?s)#.{30}#",)])
def test_a_draft_ends_where_a_stop_expression_is_searched_elsewhere(
    repeating: None, monkeypatch: pytest.MonkeyPatch, make_worker: type[ToyWorker], regexes: tuple[str, ...]
) -> None:
    found = []
    for seconds, lookup in ((10.0, False), (10.0, True), (0.0, True)):
        monkeypatch.setattr(stop_regex, "STEP_SECONDS", seconds)
        found.append(answers(circles(2, 60, stop_regex=regexes), make_worker(), ScheduleOptions(speculation=lookup)))
    plain, drafted, searched = [[(answer.ids, answer.finish) for answer in each] for each in found]
    assert plain == drafted == searched


def test_many_requests_and_log_probabilities_are_not_worth_it(repeating: None) -> None:
    for reqs in (circles(8), circles(2, logprobs=LogprobOptions(-1, 1))):
        assert run(reqs, ToyWorker())[1] == run(reqs, ToyWorker(), speculation=False)[1]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(reqs=workloads(), retract=st.sampled_from([0, 0, 2]), ahead=st.booleans(), seed=st.integers(0, 99))
def test_wrong_drafts_change_no_answer(
    reqs: list[TokenizedReq], retract: int, ahead: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)

    def anything(self: PromptLookup, limit: int) -> list[int]:
        return [rng.choice([97, 116, EOS, 32]) for _ in range(min(limit, rng.randrange(6)))]

    monkeypatch.setattr(PromptLookup, "expected", anything)
    monkeypatch.setattr(PromptLookup, "is_confident", lambda self, context, num_running: rng.random() < 0.7)
    harness = Harness((AheadWorker if ahead and not retract else ToyWorker)(), ScheduleOptions(test_retract_every=retract))
    harness.run(*reqs)
    assert harness.scheduler.check_integrity() == []
    for req in reqs:
        if fits(harness, req):
            check_answer(harness, req)
