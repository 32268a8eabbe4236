"""A proposer is one file behind the protocol: whatever it proposes changes the number of steps and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from sglang.srt.config import GrammarOptions
from sglang.srt.messages import DRAFTED, TokenizedReq
from sglang.srt.scheduler.speculation.grammar_walk import GrammarWalk
from sglang.srt.scheduler.speculation.planning import Proposers
from sglang.srt.scheduler.speculation.proposer import Draft, DraftContext, DraftLimits
from tests.scheduler.test_grammar import run_with_compiling
from tests.scheduler.test_grammar_statistics import LOOSE
from tests.scheduler.toy import AheadWorker, Harness, ToyWorker, make_req

Choose = Callable[[DraftContext], list[int]]


class Chosen:
    """As a draft model would be: it has a few tokens for wherever the output stands."""

    forced_share = 0.0

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self.sampled: list[int] = []

    def is_confident(self, context: DraftContext, num_running: int) -> bool:
        return bool(self._choose(context))

    def propose(self, context: DraftContext, limits: DraftLimits) -> Draft | None:
        ids = self._choose(context)
        if context.grammar is None:
            ids = ids[: min(limits.max_ids, limits.max_samples)]
            return Draft(ids, list(range(1, len(ids) + 1)), [], "test") if ids else None
        walk = GrammarWalk(context, limits)
        while ids and walk.has_room and (added := walk.add(ids[0])):
            ids = ids[len(added) :]
        return walk.draft("test")

    def note_sampled(self, context: DraftContext, token_id: int) -> None:
        self.sampled.append(token_id)


def speculate(monkeypatch: pytest.MonkeyPatch, choose: Choose) -> list[Chosen]:
    """Every request gets a proposer that chooses so. Returns them as they are made."""
    made: list[Chosen] = []

    def give(*args: object) -> Chosen:
        made.append(Chosen(choose))
        return made[-1]

    monkeypatch.setattr(Proposers, "for_free_text", give)
    monkeypatch.setattr(Proposers, "for_grammar", give)
    return made


def reqs(num: int) -> list[TokenizedReq]:
    return [make_req(f"r{i}", [1, 2, 3 + i], 40, ignore_eos=True, seed=i, temperature=0.7, origins=True) for i in range(num)]


def plain(monkeypatch: pytest.MonkeyPatch, wanted: list[TokenizedReq]) -> tuple[list[list[int]], int]:
    """What comes without speculation, and in how many steps."""
    with monkeypatch.context() as patch:
        speculate(patch, lambda context: [])
        harness = Harness(ToyWorker(), grammar=GrammarOptions())
        return [answer.ids for answer in run_with_compiling(harness, wanted)], len(harness.worker.batches)


@pytest.mark.parametrize("make_worker", [ToyWorker, AheadWorker])
def test_right_drafts_take_fewer_steps(monkeypatch: pytest.MonkeyPatch, make_worker: type[ToyWorker]) -> None:
    expected, steps = plain(monkeypatch, reqs(1))
    made = speculate(monkeypatch, lambda context: expected[0][len(context.output_ids) :][:4])
    harness = Harness(make_worker())
    (answer,) = harness.run(*reqs(1))
    assert answer.ids == expected[0] == made[0].sampled, "every token is told once, drafted or not"
    assert len(harness.worker.batches) <= steps / 4


@pytest.mark.parametrize("make_worker", [ToyWorker, AheadWorker])
def test_any_drafts_change_no_answer(monkeypatch: pytest.MonkeyPatch, make_worker: type[ToyWorker]) -> None:
    expected, _ = plain(monkeypatch, reqs(4))
    rng = random.Random(3)

    def some(context: DraftContext) -> list[int]:
        """Right for a while, then wrong."""
        answer = next(ids for ids in expected if ids[: len(context.output_ids)] == context.output_ids)
        right = answer[len(context.output_ids) :][: rng.randrange(4)]
        return right + [rng.randrange(97, 120) for _ in range(rng.randrange(3))]

    made = speculate(monkeypatch, some)
    harness = Harness(make_worker())
    answers = harness.run(*reqs(4))
    assert [answer.ids for answer in answers] == expected
    for answer in answers:
        counts, origins = answer.last.drafts, b"".join(out.origins for out in answer.outs)
        assert counts is not None and counts.accepted == origins.count(DRAFTED)
        assert counts.steps > 0 and counts.proposed == counts.rows > counts.accepted > 0
    assert [proposer.sampled for proposer in made] == expected
    assert harness.scheduler.check_integrity() == []


def test_under_a_grammar_forced_tokens_stand_between_the_drafted_ones(monkeypatch: pytest.MonkeyPatch, patient: None) -> None:
    wanted = [make_req("g", [1, 2], 200, regex=LOOSE)]
    (expected,), steps = plain(monkeypatch, wanted)
    speculate(monkeypatch, lambda context: expected[len(context.output_ids) :])
    harness = Harness(grammar=GrammarOptions())
    (answer,) = run_with_compiling(harness, wanted)
    assert answer.ids == expected
    assert len(harness.worker.batches) <= 4 < steps
