"""Slots for the states of recurrent layers: whatever the schedule, a request goes on from the state of exactly the ids before, and every
slot has one owner. The toy's state is the list of ids that it has seen."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.config import GrammarOptions, ScheduleOptions
from sglang.srt.forward_batch import ForwardBatch
from sglang.srt.messages import AbortReq, TokenizedReq
from tests.scheduler import test_combinations as combinations
from tests.scheduler.test_combinations import changing as changing
from tests.scheduler.toy import Harness, ToyWorker, make_req
from tests.scheduler.workloads import check_answer, fits, schedules, workloads

PROPERTY = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class StatefulWorker(ToyWorker):
    """Keeps in each slot of states which ids it has gone through."""

    def __init__(self, num_states: int, **sizes: int) -> None:
        super().__init__(**sizes)
        self.info = replace(self.info, state_slots=num_states, state_bytes=64)
        self.states: list[list[int] | None] = [None] * num_states
        self.num_rows = 0

    def forward(self, batch: ForwardBatch) -> None:
        super().forward(batch)
        at = batch.states
        assert at is not None and len(at.source) == len(at.target) == batch.num_reqs == len(at.save_starts) - 1
        targets = [*at.target.tolist(), *at.save_slots.tolist()]
        assert len(set(targets)) == len(targets), "two states in one slot"
        foreign = [s for i, s in enumerate(at.source.tolist()) if s >= 0 and s in targets and s != at.target[i]]
        assert not foreign, "a state is read that another request overwrites"
        self.num_rows += batch.num_tokens
        before = [[] if s < 0 else self.states[s] for s in at.source.tolist()]
        for r, state in enumerate(before):
            start, length, end = int(batch.q_start[r]), int(batch.q_len[r]), int(batch.seq_lens[r])
            assert state is not None and len(state) == end - length, "the state is of another position"
            assert state == self.history(int(batch.req_pool_idx[r]), end - length).tolist(), "the state is of another text"
            seen = [*state, *batch.input_ids[start : start + length].tolist()]
            for i in range(int(at.save_starts[r]), int(at.save_starts[r + 1])):
                rows = int(at.save_rows[i])
                assert 0 < rows <= length
                self.states[int(at.save_slots[i])] = seen[: len(state) + rows]
            self.states[int(at.target[r])] = seen


@st.composite
def stateful(draw: st.DrawFn) -> tuple[StatefulWorker, ScheduleOptions]:
    worker, options = draw(schedules())
    info = worker.info
    sizes = {
        "num_slots": info.max_total_tokens,
        "run": info.slot_run,
        "max_running": info.max_running_requests,
        "context_len": info.context_len,
        "max_batch_tokens": info.max_batch_tokens,
    }
    return StatefulWorker(draw(st.sampled_from([4, 5, 9, 64])), **sizes), options


@PROPERTY
@given(workloads(), stateful())
def test_answers_do_not_depend_on_the_schedule(
    reqs: list[TokenizedReq], schedule: tuple[StatefulWorker, ScheduleOptions]
) -> None:
    harness = Harness(*schedule)
    for prefix in ("", "again-", "and-again-"):
        again = [
            TokenizedReq(f"{prefix}{r.rid}", r.input_ids, r.sampling, r.logprobs, r.stream, cache_salt=r.cache_salt)
            for r in reqs
        ]
        harness.run(*again)
        for req in again:
            if fits(harness, req):
                check_answer(harness, req)
    assert harness.scheduler.memory.flush()
    assert harness.scheduler.check_integrity() == []
    states = harness.scheduler.memory.states
    assert states is not None and len(states._free) == states.num_slots


@PROPERTY
@given(workloads(), stateful(), st.randoms(use_true_random=False))
def test_aborts_at_any_time_leave_nothing_behind(
    reqs: list[TokenizedReq], schedule: tuple[StatefulWorker, ScheduleOptions], rng: random.Random
) -> None:
    harness = Harness(*schedule)
    pending = list(reqs)
    while pending or harness.scheduler._live:
        if pending and rng.random() < 0.6:
            harness.put(pending.pop(0))
        if rng.random() < 0.2:
            harness.put(AbortReq(rng.choice(reqs).rid))
        harness.step()
    for req in reqs:
        finish = harness.answers[req.rid].finish
        assert finish is not None
        if finish.type != "abort" and fits(harness, req):
            check_answer(harness, req)
    assert harness.scheduler.memory.flush() and harness.scheduler.check_integrity() == []


class StatefulRun(combinations.Run):
    """With a worker that has states, few of them or many."""

    def _new(self) -> Harness:
        worker, options, many = self.schedule
        return Harness(StatefulWorker(200 if many else 5, **worker), options, GrammarOptions())


def test_whatever_meets(changing: pytest.MonkeyPatch) -> None:
    """Late masks, searches elsewhere, forced tokens, retraction, turns, aborts, pauses, schedulers that die."""

    @combinations.settings(
        max_examples=15,
        deadline=None,
        derandomize=True,
        phases=[combinations.Phase.generate],
        suppress_health_check=list(combinations.HealthCheck),
    )
    @given(
        reqs=st.integers(1, 7).flatmap(lambda n: st.tuples(*(combinations.requests(i) for i in range(n)))),
        schedule=combinations.schedules(),
        seed=st.integers(0, 10**6),
        elsewhere=st.sampled_from([0.1, 0.5, 1.0]),
    )
    def check(reqs: tuple[TokenizedReq, ...], schedule: Any, seed: int, elsewhere: float) -> None:
        weather = combinations.Weather(seed)
        combinations.let_in(changing, weather, elsewhere)
        run = StatefulRun(list(reqs), schedule, weather)
        run.go()
        combinations.let_in(changing, combinations.Weather(0, is_calm=True), 0.0)
        for req in reqs:
            run.check(req)

    check()


# --- what is found again ------------------------------------------------------------------------------------------------------


def stateful_harness(num_states: int = 32) -> Harness:
    return Harness(StatefulWorker(num_states, num_slots=4096, context_len=2048, max_batch_tokens=300), ScheduleOptions())


def cached(harness: Harness, rid: str, ids: list[int], new: int = 8) -> tuple[int, list[int]]:
    """How much of a prompt is found, and the answer."""
    (answer,) = harness.run(make_req(rid, ids, new, ignore_eos=True))
    return answer.last.cached_len, answer.ids


def test_a_chat_recomputes_nothing_of_earlier_turns() -> None:
    harness = stateful_harness()
    ids, total = list(range(100)), 0
    for turn in range(6):
        found, answer = cached(harness, f"t{turn}", ids)
        assert found == (total if turn == 0 else total + 7), "but for the last token of the answer, which was never a row"
        total = len(ids)
        ids = [*ids, *answer, *range(turn, turn + 20)]


def test_a_chat_whose_template_changes_the_last_turn_recomputes_one() -> None:
    """The end of a prompt is other in the next turn (an opening mark of reasoning), and so is the answer (its reasoning is left out)."""
    harness = stateful_harness()
    ids = list(range(100))
    lengths = []
    for turn in range(6):
        found, answer = cached(harness, f"t{turn}", [*ids, 7, 7])
        lengths.append((found, len(ids)))
        ids = [*ids, 8, *answer[4:], *range(turn, turn + 40)]
    for (found, _), (_, before) in zip(lengths[3:], lengths[1:], strict=False):
        assert found >= before, "no further back than the beginning of the turn before"


def test_the_same_prompt_again_computes_one_row() -> None:
    harness = stateful_harness()
    ids = [i % 200 for i in range(250)]
    assert cached(harness, "a", ids)[0] == 0
    assert cached(harness, "b", ids)[0] == 249
    assert cached(harness, "c", ids[:250] + [3])[0] in (249, 250)


def test_a_shared_beginning_is_found_from_the_third_request_on() -> None:
    harness = stateful_harness()
    stem = [i % 200 for i in range(120)]
    assert [cached(harness, f"r{i}", [*stem, 210 + i, *range(30)])[0] for i in range(4)] == [0, 0, 120, 120]


def test_samples_of_one_prompt_compute_it_once() -> None:
    harness = stateful_harness()
    ids = [i % 200 for i in range(200)]
    harness.run(*(make_req(f"n{i}", ids, 8, temperature=1.0, seed=i, group="g") for i in range(4)))
    assert sorted(harness.answers[f"n{i}"].last.cached_len for i in range(4)) == [0, 199, 199, 199]


def test_states_make_room_for_each_other_and_go_with_their_nodes() -> None:
    harness = stateful_harness(num_states=6)
    for i in range(30):
        cached(harness, f"r{i}", [i, *range(60)])
    states = harness.scheduler.memory.states
    assert states is not None and states.num_kept <= 6
    assert cached(harness, "last", [29, *range(60)])[0] == 60
    tree = harness.scheduler.memory.tree
    while tree.evict(1000):
        pass
    assert states.num_kept == 0 and harness.scheduler.check_integrity() == []


def test_more_requests_than_states_wait_their_turn() -> None:
    harness = stateful_harness(num_states=4)
    reqs = [make_req(f"r{i}", [i, *range(40)], 20, ignore_eos=True) for i in range(12)]
    assert all(len(answer.ids) == 20 for answer in harness.run(*reqs))
