"""Stop expressions that take long: searched in children while their requests sit out, with the answers they would have had at once."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import regex
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.config import GrammarOptions, ScheduleOptions
from sglang.srt.messages import AbortReq, LogprobOptions, TokenizedReq
from sglang.srt.scheduler import stop_regex
from sglang.srt.scheduler.grammar.compiler import GrammarCompiler
from tests.scheduler.test_trials import compile_one
from tests.scheduler.toy import VOCABULARY, AheadWorker, Answer, Harness, ToyWorker, make_req, trials_of

CATASTROPHIC = tuple(rf"(?s)(.+)(.+)(.+)(.+)(.+)\1{i}[0-9]{{6}}~" for i in range(64))
GRAMMAR = GrammarOptions()
SCHEMA = json.dumps(
    {"type": "object", "properties": {f"key{i}": {"enum": ["alpha", "beta", 12]} for i in range(6)}, "required": [f"key{i}" for i in range(6)]}
)  # fmt: skip


def answers(reqs: list[TokenizedReq], worker: ToyWorker, options: ScheduleOptions) -> list[Answer]:
    """Steps until all have ended; requests that wait for a child get the time."""
    harness = Harness(worker, options, GRAMMAR)
    harness.put(*reqs)
    deadline = time.monotonic() + 120
    while harness.scheduler._live:
        assert time.monotonic() < deadline
        if not harness.step():
            time.sleep(0.001)
    assert harness.scheduler._searches.num_pending == 0 and harness.scheduler.check_integrity() == []
    return [harness.answers[req.rid] for req in reqs]


def make_reqs(seeds: list[int], regexes: tuple[str, ...]) -> list[TokenizedReq]:
    kinds: list[dict[str, object]] = [
        {},
        {"json_schema": SCHEMA},
        {"json_schema": SCHEMA, "logprobs": LogprobOptions(start_len=0, top_num=1)},
        {"stop": ("q",), "no_stop_trim": True},
        {"logprobs": LogprobOptions()},
        {"min_new_tokens": 9},
    ]
    return [
        make_req(f"r{i}", [seed % 250, i], 25, seed % 2 == 0, stop_regex=regexes, ignore_eos=True, seed=seed, **kinds[seed % 6])
        for i, seed in enumerate(seeds)
    ]


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=3),
    regexes=st.lists(
        st.sampled_from(["[0-9][^0-9]", "b", r"et", "k.*2", "[x-z]{2}", '":']), min_size=1, max_size=3, unique=True
    ),
    ahead=st.booleans(),
    retract_every=st.sampled_from([0, 3]),
)
def test_answers_do_not_depend_on_where_searches_run(
    monkeypatch: pytest.MonkeyPatch, patient: None, seeds: list[int], regexes: list[str], ahead: bool, retract_every: int
) -> None:
    options = ScheduleOptions(test_retract_every=retract_every)
    found = []
    for seconds in (10.0, 0.0):
        monkeypatch.setattr(stop_regex, "STEP_SECONDS", seconds)
        worker = AheadWorker() if ahead else ToyWorker()
        found.append(answers(make_reqs(seeds, tuple(regexes)), worker, options))
    for here, there in zip(*found, strict=True):
        assert here.finish == there.finish and here.ids == there.ids and here.text() == there.text()
        assert here.output_logprobs == there.output_logprobs


def test_a_hostile_request_ends_and_holds_nobody_up() -> None:
    harness = Harness(grammar=GRAMMAR)
    bad = [make_req(f"bad{i}", [i], 400, True, stop_regex=CATASTROPHIC, ignore_eos=True) for i in range(4)]
    good = make_req("good", [9], 300, True, ignore_eos=True)
    harness.put(*bad)
    deadline = time.monotonic() + 120
    while len(harness.scheduler._inlet):
        assert time.monotonic() < deadline
        harness.step()
    harness.put(good)
    spent, steps = 0.0, 0
    while harness.scheduler._live:
        assert time.monotonic() < deadline
        began = time.thread_time()
        harness.step()
        spent, steps = spent + time.thread_time() - began, steps + 1
    assert harness.answers["good"].finish is not None and harness.answers["good"].finish.type == "length"
    for req in bad:
        finish = harness.answers[req.rid].finish
        assert finish is not None and finish.status_code == 400 and "stop_regex" in (finish.message or "")
    assert spent / steps < 0.02, "each of them by itself may take 64 times 50 ms"


def test_nobody_is_refused_because_the_machine_is_busy() -> None:
    """The limit is processor time: the clock runs while others have the processor."""

    class Interrupted:
        pattern = "b."

        def search(self, text: str, start: int, *, partial: bool, timeout: float) -> Any:
            time.sleep(2 * stop_regex.SEARCH_SECONDS)
            return regex.compile(self.pattern).search(text, start, partial=partial, timeout=timeout)

    span = stop_regex.Span([0, 0], True)
    found = stop_regex.search_all([Interrupted(), Interrupted()], "abc", span, stop_regex.SEARCH_SECONDS)
    assert found.match == (3, 1, 0)


def test_who_leaves_while_it_is_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_regex, "STEP_SECONDS", 0.0)
    harness = Harness(grammar=GRAMMAR)
    harness.put(make_req("a", [3], 50, True, stop_regex=("~~",), ignore_eos=True))
    deadline = time.monotonic() + 60
    while not harness.scheduler._searches.num_pending:
        assert time.monotonic() < deadline
        harness.step()
    harness.put(AbortReq("a"))
    assert harness.answers["a"].finish is not None and not harness.scheduler._live
    assert harness.scheduler._searches.num_pending == 0 and harness.scheduler.check_integrity() == []


@pytest.mark.parametrize(
    "text",
    [
        "(((a{1000}){1000}){1000})",
        "(a{1000}){1000}",
        "((ab?){500}){500}",
        "(?:" + "(x{200})" * 300 + "){9}",
        "((((a{90}){90}){90}){90})",
    ],
)
def test_expressions_that_are_too_large_are_refused(text: str) -> None:
    options = GrammarOptions(backend="none")
    compiler = GrammarCompiler(None, options, trials_of(VOCABULARY, options))
    job = compile_one(compiler, stop_regex.STOP_REGEX, text)
    assert job.error is not None and job.error.status_code == 400 and "stop_regex" in str(job.error)
    surrogate = compile_one(compiler, stop_regex.STOP_REGEX, "a\ud800b")
    assert surrogate.error is None and surrogate.num_bytes < 1 << 20
