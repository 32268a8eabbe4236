"""Reasoning before a constrained answer: whichever way the model ends it, the answer follows."""

from __future__ import annotations

import json

import pytest

from sglang.srt.config import GrammarOptions, ScheduleOptions
from sglang.srt.messages import TokenizedReq
from tests.scheduler.test_grammar import run_with_compiling
from tests.scheduler.toy import EOS, THINK_END, VOCABULARY, AheadWorker, Answer, Harness, make_req

SCHEMA = json.dumps({"enum": ["yes", "no"]})


def requests(num: int, **more: object) -> list[TokenizedReq]:
    constraints = [{"regex": "(yes|no)"}, {"json_schema": SCHEMA}, {"ebnf": 'root ::= "yes" | "no"'}]
    return [
        make_req(
            f"t{seed}", [seed], 250, seed=seed, temperature=1.0, grammar_after=(THINK_END, 7), **constraints[seed % 3], **more
        )
        for seed in range(num)
    ]


def answered(answer: Answer) -> bytes:
    """What stands behind the reasoning."""
    ends = [at for at, token in enumerate(answer.ids) if token in (THINK_END, 7)]
    return VOCABULARY.text_bytes(answer.ids[ends[0] + 1 :]).strip(b'"') if ends else b""


@pytest.mark.parametrize("jump", [True, False])
def test_an_answer_follows_reasoning_that_end_with_the_end_of_text(jump: bool) -> None:
    grammar = GrammarOptions(jump_forward=jump)
    answers = run_with_compiling(Harness(grammar=grammar), requests(8))
    stopped = [a for a in answers if a.finish is not None and a.finish.type == "stop"]
    assert len(stopped) > 4
    assert all(answered(a) in (b"yes", b"no") for a in stopped)
    assert all(EOS not in a.ids[:-1] for a in answers), "what ended the text is replaced by what ends reasoning"
    worker = AheadWorker()
    ahead = run_with_compiling(Harness(worker, ScheduleOptions(), grammar), requests(8))
    assert [a.ids for a in ahead] == [a.ids for a in answers], "steps that ran ahead of it count for nothing"
    assert worker.num_ahead > 0 or jump


def test_the_answer_is_batch_invariant() -> None:
    together = run_with_compiling(Harness(grammar=GrammarOptions()), requests(4))
    for req, answer in zip(requests(4), together, strict=True):
        (alone,) = run_with_compiling(Harness(grammar=GrammarOptions()), [req])
        assert alone.ids == answer.ids


def test_who_ignores_the_end_of_text_thinks_on() -> None:
    answers = run_with_compiling(Harness(grammar=GrammarOptions(), check=False), requests(6, ignore_eos=True))
    assert any(EOS in answer.ids for answer in answers)
