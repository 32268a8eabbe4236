"""The draft model: right drafts make few steps of many, and whatever it says, and whatever happens, no answer changes. Time is what the
toy models say that they took."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.config import GrammarOptions, ScheduleOptions
from sglang.srt.forward_batch import ForwardBatch, ForwardOutput, VocabMasks
from sglang.srt.messages import TokenizedReq
from sglang.srt.scheduler.cache.kv_memory import KvMemory
from sglang.srt.scheduler.speculation.draft.lengths import DraftLengths, StepCosts
from sglang.srt.scheduler.speculation.draft.model import NAME, DraftModel
from tests.scheduler.test_grammar import run_with_compiling
from tests.scheduler.test_grammar_statistics import LOOSE
from tests.scheduler.toy import MODEL_VOCAB, AheadWorker, Harness, ToyWorker, make_req
from tests.scheduler.workloads import check_answer, fits, run_amid_events, schedules, workloads

ROW = 0.04
"""what a row more costs in a step, in plain steps"""
DRAFT_STEP = 0.08


class Clock:
    """Seconds that passed on the host, and until when the device is busy."""

    def __init__(self) -> None:
        self.now = self.busy_until = 0.0

    def __call__(self) -> float:
        return self.now

    def launch(self, seconds: float) -> float:
        """When a step that takes so long will be done."""
        self.busy_until = max(self.busy_until, self.now) + seconds
        return self.busy_until


def timed(worker: ToyWorker, clock: Clock, step: float) -> ToyWorker:
    """`worker`, with steps that take so long."""
    forward, begin_sample = worker.forward, getattr(worker, "begin_sample", None)

    def slow(batch: ForwardBatch) -> None:
        done = clock.launch(step * (1 + ROW * (batch.num_tokens - 1)))
        if begin_sample is None:
            clock.now = done
        forward(batch)

    def later(batch: ForwardBatch, masks: VocabMasks | None) -> Callable[[], ForwardOutput]:
        assert begin_sample is not None
        result, done = begin_sample(batch, masks)(), clock.busy_until

        def wait() -> ForwardOutput:
            clock.now = max(clock.now, done)
            return result

        return wait

    worker.forward = slow  # type: ignore[method-assign]
    if begin_sample is not None:
        worker.begin_sample = later  # type: ignore[attr-defined]
    return worker


class Drafting(ToyWorker):
    """Says what the toy model says as often as `rate` has it, and something else otherwise."""

    def __init__(self, *sizes: int, rate: float = 1.0, seed: int = 0, **more: int) -> None:
        super().__init__(*sizes, **more)
        self.rate, self.rng = rate, random.Random(seed)

    def sample(self, batch: ForwardBatch, masks: VocabMasks | None) -> ForwardOutput:
        output = super().sample(batch, masks)
        for i in range(len(output.next_ids)):
            if self.rng.random() >= self.rate:
                output.next_ids[i] = self.rng.randrange(MODEL_VOCAB)
        return output


def pair(
    rate: float,
    make_worker: Callable[..., ToyWorker] = ToyWorker,
    options: ScheduleOptions | None = None,
    most: int = 8,
    seed: int = 0,
    **more: Any,
) -> tuple[Harness, Drafting, Clock]:
    clock = Clock()
    worker = make_worker()
    draft = Drafting(rate=rate, seed=seed)
    timed(draft, clock, DRAFT_STEP)
    model = DraftModel(draft, MODEL_VOCAB, DraftLengths(most, DRAFT_STEP), clock)
    return Harness(timed(worker, clock, 1.0), options, draft_model=model, **more), draft, clock


def reqs(num: int, length: int = 128, first: int = 0, **more: Any) -> list[TokenizedReq]:
    return [
        make_req(f"r{first + i}", [1, 2, 3 + i], length, ignore_eos=True, seed=i, temperature=0.7, **more) for i in range(num)
    ]


def seconds(rate: float, num: int, make_worker: Callable[..., ToyWorker] = ToyWorker, seed: int = 0) -> float:
    """What such answers take, against what they take without drafts."""
    plain = Harness(timed(make_worker(), (clock := Clock()), 1.0), ScheduleOptions(speculation=False))
    expected = [answer.ids for answer in plain.run(*reqs(num))]
    harness, _, spent = pair(rate, make_worker, ScheduleOptions(speculation=False), seed=seed)
    assert [answer.ids for answer in harness.run(*reqs(num))] == expected
    assert harness.scheduler.check_integrity() == []
    return spent.now / clock.now


# --- how long drafts are --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_worker", [ToyWorker, AheadWorker])
@pytest.mark.parametrize(("rate", "num", "most"), [(0.8, 1, 0.6), (0.95, 1, 0.45), (0.8, 4, 0.85), (0.6, 1, 0.85)])
def test_what_right_drafts_gain(make_worker: type[ToyWorker], rate: float, num: int, most: float) -> None:
    assert seconds(rate, num, make_worker) <= most


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.2, 0.35])
@pytest.mark.parametrize("num", [1, 3])
def test_wrong_drafts_cost_little(rate: float, num: int) -> None:
    assert seconds(rate, num) <= 1 / 0.97


def test_a_request_is_tried_again() -> None:
    """An answer that nobody could have drafted goes on with what anybody could."""
    harness, draft, _ = pair(0.0)
    harness.put(*reqs(1, 400))
    harness.step()
    while harness.scheduler._live:
        harness.step()
        if int(harness.worker.batches[-1].seq_lens.max()) > 100:
            draft.rate = 1.0
    answer = harness.answers["r0"]
    counts = answer.last.drafts
    assert counts is not None and counts.accepted >= 150
    assert answer.ids == Harness().run(*reqs(1, 400))[0].ids


def test_costs_are_learned() -> None:
    lengths = DraftLengths(8, 0.08)
    assert lengths.lengths([0.9], 1) == [0], "nothing is known yet"
    for _ in range(3):
        lengths.note_plain(1, 1.0)
    (at_first,) = lengths.lengths([0.9], 1)
    assert at_first >= 4
    for rows in range(2, 9):
        for _ in range(30):
            lengths.note_drafted(1, rows, 1, 0.9 * rows, 0.0)
    assert lengths.lengths([0.9], 1) == [0], "a row costs nearly a step"
    assert lengths.lengths([0.9, 0.1], 2) == [0, 0]


def test_the_likely_get_longer_drafts_than_others() -> None:
    lengths = DraftLengths(8, 0.08)
    for num in (1, 2, 3, 4):
        for _ in range(3):
            lengths.note_plain(num, 1.0 + ROW * (num - 1))
    planned = lengths.lengths([0.95, 0.6, 0.05, 0.3], 4)
    assert planned[0] > planned[1] > 0 == planned[2] and planned[3] <= planned[1]


# --- what it computes -----------------------------------------------------------------------------------------------------------


def test_prompts_are_computed_in_the_same_chunks_and_found_again() -> None:
    harness, draft, _ = pair(1.0, options=ScheduleOptions(chunked_prefill_size=16))
    prompt = [7 * i % 250 for i in range(100)]
    harness.run(make_req("a", prompt, 30, ignore_eos=True, temperature=0.7, seed=1))
    rows = sum(batch.num_tokens for batch in draft.batches)
    assert rows <= 100 + 60 and max(batch.num_tokens for batch in draft.batches) <= 16
    before = len(draft.batches)
    harness.run(make_req("b", [*prompt, 3, 4], 30, ignore_eos=True, temperature=0.7, seed=2))
    assert sum(batch.num_tokens for batch in draft.batches[before:]) <= 60, "the prefix was there"
    before = len(draft.batches)
    harness.run(make_req("c", [*prompt, 3, 4], 30, ignore_eos=True, temperature=0.7, seed=2, cache_salt="other"))
    assert sum(batch.num_tokens for batch in draft.batches[before:]) >= 100, "another tenant's is not"


def test_prompts_are_not_followed_once_drafts_are_known_to_be_bad() -> None:
    harness, draft, _ = pair(0.0)
    for i in range(6):
        harness.run(make_req(f"a{i}", [i, 1, 2], 100, ignore_eos=True, temperature=0.7, seed=i))
    before = sum(batch.num_tokens for batch in draft.batches)
    harness.run(make_req("long", [7 * i % 250 for i in range(200)], 10, ignore_eos=True, temperature=0.7, seed=1))
    assert sum(batch.num_tokens for batch in draft.batches) == before


def test_a_large_draft_model_follows_no_prompt_at_first() -> None:
    lengths = DraftLengths(8, 0.3)
    assert not lengths.pays_at_first(1) and DraftLengths(8, 0.1).pays_at_first(1)


def test_metrics_and_meta_info_name_it() -> None:
    harness, _, _ = pair(1.0)
    (answer,) = harness.run(*reqs(1))
    counts = harness.scheduler._stats.snapshot(0, 0, 0, 0).drafts[NAME]
    assert answer.last.drafts is not None and answer.last.drafts.accepted == counts.accepted > 50


# --- no answer changes ----------------------------------------------------------------------------------------------------------


def draft_for(worker: ToyWorker, rng: random.Random) -> DraftModel:
    """Some draft model: of any quality, with as little memory and context as may be."""
    info = worker.info
    draft = Drafting(
        rng.choice([160, 256, 1024]),
        rng.choice([1, 16]),
        info.max_running_requests,
        rng.choice([64, 150, 512]),
        max(rng.choice([16, 300]), info.max_running_requests),
        rate=rng.choice([0.0, 0.5, 0.9, 1.0]),
        seed=rng.randrange(100),
    )
    clock = Clock()
    timed(draft, clock, rng.choice([0.01, 0.08]))
    timed(worker, clock, 1.0)
    return DraftModel(draft, MODEL_VOCAB, DraftLengths(rng.choice([1, 3, 8]), rng.choice([0.08, 0.5])), clock)


PROPERTY = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@PROPERTY
@given(workloads(), schedules(), st.booleans(), st.randoms(use_true_random=False))
def test_every_answer_is_the_same(
    wanted: list[TokenizedReq], schedule: tuple[ToyWorker, ScheduleOptions], ahead: bool, rng: random.Random
) -> None:
    worker, options = schedule
    info = worker.info
    if ahead:
        worker = AheadWorker(
            info.max_total_tokens, info.slot_run, info.max_running_requests, info.context_len, info.max_batch_tokens
        )
    options = replace(options, speculation=rng.random() < 0.5)
    harness = Harness(worker, options, draft_model=draft_for(worker, rng))
    harness.run(*wanted)
    for req in wanted:
        if fits(harness, req):
            check_answer(harness, req)
    assert harness.scheduler.check_integrity() == []


@PROPERTY
@given(workloads(), st.booleans(), st.randoms(use_true_random=False))
def test_whatever_happens_between_steps(wanted: list[TokenizedReq], ahead: bool, rng: random.Random) -> None:
    worker = AheadWorker() if ahead else ToyWorker()
    options = ScheduleOptions(chunked_prefill_size=16, test_retract_every=rng.choice([0, 5]))
    harness = Harness(worker, options, draft_model=draft_for(worker, rng))
    run_amid_events(harness, wanted, rng)


@pytest.mark.parametrize("rate", [1.0, 0.7])
def test_drafts_that_find_no_room(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    """They are dropped after they were computed: what the draft model has in memory is ahead of the request then."""
    grow, rng = KvMemory.grow_idle, random.Random(5)
    monkeypatch.setattr(KvMemory, "grow_idle", lambda *args: rng.random() < 0.6 and grow(*args))
    harness, _, _ = pair(rate)
    assert [answer.ids for answer in harness.run(*reqs(3))] == [answer.ids for answer in Harness().run(*reqs(3))]
    assert harness.scheduler.check_integrity() == []


@pytest.mark.parametrize("rate", [1.0, 0.6])
def test_under_a_grammar(rate: float, patient: None) -> None:
    wanted = [make_req(f"g{i}", [1, 2, i], 200, regex=LOOSE, seed=i) for i in range(3)]
    plain = Harness(grammar=GrammarOptions())
    expected = [answer.ids for answer in run_with_compiling(plain, wanted)]
    harness, _, _ = pair(rate, grammar=GrammarOptions())
    assert [answer.ids for answer in run_with_compiling(harness, wanted)] == expected
    assert harness.scheduler.check_integrity() == []


def test_a_smaller_vocabulary_is_enough() -> None:
    """Columns that only pad the larger one's are never drafted, and their ids do no harm."""
    clock = Clock()
    draft = Drafting()
    draft.info = replace(draft.info, vocab_size=200)
    seen: list[int] = []
    forward = draft.forward

    def note(batch: ForwardBatch) -> None:
        seen.append(int(batch.input_ids.max()))
        forward(batch)

    draft.forward = note  # type: ignore[method-assign]
    draft.sample = lambda batch, masks: ForwardOutput(batch.input_ids[batch.sample_rows] * 2, [], [])  # type: ignore[method-assign]
    model = DraftModel(timed(draft, clock, 0.01), MODEL_VOCAB, DraftLengths(8, 0.01), clock)
    harness = Harness(timed(ToyWorker(), clock, 1.0), draft_model=model)
    assert [a.ids for a in harness.run(*reqs(2))] == [a.ids for a in Harness().run(*reqs(2))]
    assert seen and max(seen) == 199


# --- time that others take ------------------------------------------------------------------------------------------------------


def held_up(rate: float, seed: int) -> float:
    """What an answer takes with drafts, against what it takes without, where one step in ten is held up for two and a half more, and
    all are a little."""
    rng, spent = random.Random(seed), [0.0]

    def at_random(worker: ToyWorker, clock: Clock) -> ToyWorker:
        forward = worker.forward

        def held(batch: ForwardBatch) -> None:
            before = clock.now
            forward(batch)
            spent[0] += clock.now - before
            clock.now = clock.busy_until = clock.now + (clock.now - before) * abs(
                rng.gauss(0, 2.5 if rng.random() < 0.1 else 0.4)
            )

        worker.forward = held  # type: ignore[method-assign]
        return worker

    clock = Clock()
    draft = at_random(timed(Drafting(rate=rate, seed=seed), clock, DRAFT_STEP), clock)
    model = DraftModel(draft, MODEL_VOCAB, DraftLengths(8, DRAFT_STEP), clock)
    worker = at_random(timed(ToyWorker(), clock, 1.0), clock)
    harness = Harness(worker, ScheduleOptions(speculation=False), draft_model=model, check=False)
    (answer,) = harness.run(*reqs(1))
    return spent[0] / len(answer.ids)


def test_a_busy_machine_misleads_little() -> None:
    """A plain step that was held up must not make all drafts look quick; nor one with drafts make them look slow for long."""
    wrong = sorted(held_up(0.0, seed) for seed in range(20))
    assert wrong[10] <= 1 / 0.97 and wrong[-1] <= 1.15, wrong
    right = sorted(held_up(0.8, seed) for seed in range(10))
    assert right[5] <= 0.6 and right[-1] <= 0.75, right


def test_more_rows_never_take_less_time() -> None:
    costs = StepCosts()
    for rows, seconds in ((1, 2.0), (3, 1.1), (2, 1.3), (6, 1.2)):
        costs.note(rows, seconds)
    assert [costs.of(rows) for rows in (1, 2, 3, 6)] == [1.1, 1.1, 1.1, 1.2]
    costs.note(4, 50.0)
    assert (costs.of(4) or 0) <= 1.5 * 1.2, "a first measurement that nothing else supports"
    for _ in range(200):
        costs.note(1, 1.0)
    assert costs.of(4) == pytest.approx(1.15), "what was not measured for long is guessed again"
