"""Speculation under grammars: drafts, right or wrong, change the number of steps and nothing else."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.config import GrammarOptions, ScheduleOptions
from sglang.srt.messages import LogprobOptions, TokenizedReq
from sglang.srt.scheduler.grammar.engines.base import GrammarState, UInt32Array
from sglang.srt.scheduler.grammar.engines.llguidance_backend import LLGuidanceBackend
from sglang.srt.scheduler.speculation.proposers.grammar_statistics import MAX_ENTRIES, GrammarStatistics
from tests.scheduler.test_grammar import run_with_compiling
from tests.scheduler.test_jump import STEPPING, answers, requests, shape
from tests.scheduler.toy import Answer, Harness, ToyWorker, make_req

LOOSE = r'\{"name":"[a-c]{1,4}","age":[0-9]{1,2},"city":"(Rome|Paris|Oslo)","tags":\["the","[a-z]{3}"\]\}'


def renamed(reqs: list[TokenizedReq], name: str) -> list[TokenizedReq]:
    return [TokenizedReq(**{f: getattr(r, f) for f in r.__struct_fields__} | {"rid": name + r.rid}) for r in reqs]


def trusting(self: GrammarStatistics, before: list[int]) -> tuple[int, float]:
    """Whatever was seen once, and where nothing was, any letter."""
    known, streak = self._next.get(tuple(before[-self.SHORT :]), (ord("a") + sum(before) % 26, 1))
    return known, min(streak, 1.0)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_drafts_change_no_answer(data: st.DataObject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GrammarStatistics, "likely_next", trusting)
    reqs = [data.draw(requests(f"r{i}")) for i in range(data.draw(st.integers(1, 6)))]
    worker = ToyWorker(
        num_slots=data.draw(st.sampled_from([256, 1024])),
        run=data.draw(st.sampled_from([1, 16])),
        max_running=data.draw(st.sampled_from([2, 12])),
        max_batch_tokens=data.draw(st.sampled_from([15, 40, 256])),
        context_len=data.draw(st.sampled_from([90, 512])),
    )
    options = ScheduleOptions(test_retract_every=data.draw(st.sampled_from([0, 0, 1, 3])))
    harness = Harness(worker, options, GrammarOptions())
    for name in ("a", "b", "c"):  # the later ones know what the earlier ones had
        for req, answer in zip(reqs, run_with_compiling(harness, renamed(reqs, name)), strict=True):
            (alone,) = answers(STEPPING, [req], ToyWorker(context_len=worker.info.context_len))
            if answer.finish is not None and "KV pool" in str(answer.finish.message):
                assert answer.ids == alone.ids[: len(answer.ids)]
            else:
                assert shape(answer) == shape(alone)


def run_often(harness: Harness, **more: object) -> tuple[list[Answer], list[int]]:
    """The same request four times; steps of each."""
    found, steps = [], []
    for i in range(4):
        before = len(harness.worker.batches)
        found += run_with_compiling(harness, [make_req(f"r{i}", [1, 2], 200, regex=LOOSE, **more)])  # type: ignore[arg-type]
        steps.append(len(harness.worker.batches) - before)
    return found, steps


def test_what_is_known_takes_fewer_steps(patient: None) -> None:
    found, steps = run_often(Harness(grammar=GrammarOptions()))
    assert len({tuple(answer.ids) for answer in found}) == 1
    assert steps[3] <= steps[0] - 3, steps


def test_a_prompt_is_computed_with_a_draft(patient: None) -> None:
    harness = Harness(grammar=GrammarOptions())
    run_often(harness)
    harness.worker.batches.clear()
    (answer,) = run_with_compiling(harness, [make_req("new", [7, 8, 9], 200, regex=LOOSE)])
    first = harness.worker.batches[0]
    assert len(first.samples) > 1 and first.num_tokens > 3
    assert shape(answer) == shape(answers(STEPPING, [make_req("alone", [7, 8, 9], 200, regex=LOOSE)])[0])
    assert harness.scheduler.check_integrity() == []


def test_tenants_and_requests_that_want_scores_learn_nothing_from_others(patient: None) -> None:
    harness = Harness(grammar=GrammarOptions())
    _, steps = run_often(harness)
    harness.worker.batches.clear()
    run_with_compiling(harness, [make_req("other", [1, 2], 200, regex=LOOSE, cache_salt="tenant")])
    assert len(harness.worker.batches) == steps[0]
    harness.worker.batches.clear()
    run_with_compiling(harness, [make_req("scored", [1, 2], 200, regex=LOOSE, logprobs=LogprobOptions(-1, 1))])
    assert len(harness.worker.batches) >= steps[0]
    harness.worker.batches.clear()
    run_with_compiling(harness, [make_req("penalized", [1, 2], 200, regex=LOOSE, frequency_penalty=0.5)])
    assert len(harness.worker.batches) < steps[0], "a penalty is followed along the draft"


def test_a_full_step_has_no_room_for_drafts() -> None:
    harness = Harness(ToyWorker(max_running=2, max_batch_tokens=8, num_slots=64, context_len=64), grammar=GrammarOptions())
    first, _ = run_often(harness)
    both = run_with_compiling(harness, [make_req(f"x{i}", [1, 2], 200, regex=LOOSE) for i in range(2)])
    assert {tuple(a.ids) for a in first + both} == {tuple(first[0].ids)}
    assert max(batch.num_tokens for batch in harness.worker.batches) <= 8
    assert max(len(batch.samples) for batch in harness.worker.batches) <= 2


@pytest.mark.parametrize("retract", [0, 3])
def test_late_masks_of_drafts_change_no_answer(monkeypatch: pytest.MonkeyPatch, retract: int) -> None:
    def reqs(name: str) -> list[TokenizedReq]:
        return [make_req(f"{name}{i}", [i] * 20, 60, i % 2 == 0, 0.7, seed=i, regex=LOOSE) for i in range(5)]

    expected = [a.ids for a in answers(STEPPING, reqs("e"))]
    fill, calls = LLGuidanceBackend.fill_masks, iter(range(10**9))

    def dawdling(self: LLGuidanceBackend, states: Sequence[GrammarState], out: UInt32Array) -> None:
        if next(calls) % 5 == 2:
            time.sleep(0.01)
        fill(self, states, out)

    monkeypatch.setattr(LLGuidanceBackend, "fill_masks", dawdling)
    monkeypatch.setattr(GrammarStatistics, "likely_next", trusting)
    harness = Harness(options=ScheduleOptions(test_retract_every=retract), grammar=GrammarOptions())
    for name in ("a", "b", "c"):
        assert [a.ids for a in run_with_compiling(harness, reqs(name))] == expected


def test_nan_logits_after_a_draft_token_end_the_request() -> None:
    harness = Harness(grammar=GrammarOptions())
    run_often(harness)
    plain = harness.worker.sample

    def broken(batch, masks):  # type: ignore[no-untyped-def]
        out = plain(batch, masks)
        if len(batch.samples) > batch.num_reqs:
            out.nan_rows.append(len(batch.samples) - 1)
        return out

    harness.worker.sample = broken  # type: ignore[method-assign]
    (answer,) = run_with_compiling(harness, [make_req("nan", [1, 2], 200, regex=LOOSE)])
    assert answer.finish is not None and answer.finish.type == "abort" and "NaN" in str(answer.finish.message)


def test_what_repeats_is_likely() -> None:
    statistics = GrammarStatistics()
    before = [6, 7, 8]
    assert statistics.likely_next(before)[1] == 0.0
    statistics.note(before, 9)
    assert statistics.likely_next(before)[1] == 0.0, "once says nothing"
    statistics.note(before, 9)
    token, trust = statistics.likely_next(before)
    assert token == 9 and 0.5 < trust < 0.8
    for _ in range(30):
        statistics.note(before, 9)
    assert statistics.likely_next(before)[1] > 0.9
    for _ in range(6):
        statistics.note(before, 4)
    assert statistics.likely_next(before)[0] == 4
    rng = random.Random(1)
    for _ in range(40):
        statistics.note(before, rng.randrange(100))
    assert statistics.likely_next(before)[1] < 0.75


def test_a_longer_place_says_more() -> None:
    statistics = GrammarStatistics()
    for _ in range(5):
        statistics.note([1, 6, 7, 8], 10)
        statistics.note([2, 6, 7, 8], 20)
    assert statistics.likely_next([1, 6, 7, 8])[0] == 10 and statistics.likely_next([2, 6, 7, 8])[0] == 20
    assert statistics.likely_next([3, 6, 7, 8])[1] < 0.8, "others disagree"
    statistics.note([4, 5, 5, 5], 30)
    assert statistics.likely_next([4, 5, 5, 5]) == (30, 2 / 3), "once is enough after the very same tokens"


def test_a_long_place_is_trusted_as_the_short_one_that_agrees() -> None:
    statistics = GrammarStatistics()
    for i in range(20):
        statistics.note([i, 6, 7, 8], 10)
    statistics.note([50, 6, 7, 8], 10)
    assert statistics.likely_next([50, 6, 7, 8]) == (10, 21 / 22)


def test_the_end_of_a_value_is_known_by_its_length() -> None:
    """Digits vary, their number does not: 4 4 4 is forced and names the value."""
    statistics = GrammarStatistics()
    rng = random.Random(2)
    for _ in range(9):
        digits = [rng.randrange(1000, 9999) for _ in range(2)]
        statistics.note([4, 4, 4, *digits], 5, 2)
    assert statistics.likely_next([4, 4, 4, 1, 2]) == (0, 0.0)
    assert statistics.likely_end([4, 4, 4, 1, 2], 2) == (5, 0.9)
    assert statistics.likely_end([4, 4, 4, 1], 1) == statistics.likely_end([4, 4, 3, 1, 2], 2) == (0, 0.0)
    assert statistics.likely_end([4, 4, 4], 0) == statistics.likely_end([4, 4], 1) == (0, 0.0)


FIXED = r'\{"code":"[a-z]{4,9}","city":"(Rome|Paris|Oslo)"\}'


def test_only_an_end_is_drafted_by_length(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever `likely_end` says: outputs are the same, and a token that ends nothing is not computed along."""
    monkeypatch.setattr(GrammarStatistics, "likely_next", lambda self, before: (0, 0.0))
    monkeypatch.setattr(GrammarStatistics, "likely_end", lambda self, before, num_since_forced: (ord("a"), 0.9))
    harness = Harness(grammar=GrammarOptions())
    (answer,) = run_with_compiling(harness, [make_req("one", [1, 2], 200, regex=FIXED)])
    assert all(len(batch.samples) <= 1 for batch in harness.worker.batches)
    monkeypatch.setattr(GrammarStatistics, "likely_end", lambda self, before, num_since_forced: (ord('"'), 0.9))
    (again,) = run_with_compiling(harness, [make_req("two", [1, 2], 200, regex=FIXED)])
    assert any(len(batch.samples) > 1 for batch in harness.worker.batches)
    (alone,) = answers(STEPPING, [make_req("three", [1, 2], 200, regex=FIXED)])
    assert shape(answer) == shape(again) == shape(alone)


def test_memory_of_statistics_is_bounded() -> None:
    statistics = GrammarStatistics()
    for i in range(3 * MAX_ENTRIES):
        statistics.note([i, i, i], 1)
    assert len(statistics._next) <= MAX_ENTRIES
