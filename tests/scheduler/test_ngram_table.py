"""Drafts from what other requests have said: they change the number of steps and nothing else, and no tenant learns from another."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest

from sglang.srt.config import GrammarOptions, ScheduleOptions
from sglang.srt.forward_batch import SampleSpec
from sglang.srt.messages import TokenizedReq
from sglang.srt.scheduler.req import Req
from sglang.srt.scheduler.speculation.planning import Proposers
from sglang.srt.scheduler.speculation.proposers import repeated_text
from sglang.srt.scheduler.speculation.proposers.repeated_text import (
    MAX_STREAK,
    MAX_TABLES,
    MIN_STREAK,
    NUM_PLACES,
    TABLE,
    TABLE_WIDTH,
    NgramTable,
    Streak,
    TableProposer,
)
from tests.scheduler import toy
from tests.scheduler.test_adapters import Served
from tests.scheduler.test_grammar import run_with_compiling
from tests.scheduler.toy import AheadWorker, Harness, ToyWorker, make_req

SAYING = [int(token) for token in np.random.default_rng(3).permutation(np.arange(97, 197))]
"""what every answer of the toy says here; no token of it comes twice"""


def say(history: np.ndarray[tuple[int], np.dtype[np.int64]], spec: SampleSpec, allowed: list[int]) -> int:
    """Goes on with the saying, whatever the prompt."""
    token = SAYING[len(spec.output_ids) % len(SAYING)]
    return token if token in allowed else allowed[len(spec.output_ids) % len(allowed)]


@pytest.fixture
def saying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "sample_toy", say)


def told(num: int, **more: Any) -> list[TokenizedReq]:
    """Requests whose prompts have nothing in common."""
    rng = random.Random(7)
    return [make_req(f"r{i}", rng.choices(range(97), k=9), 80, ignore_eos=True, **more) for i in range(num)]


def steps_of(harness: Harness, req: TokenizedReq) -> tuple[list[int], int]:
    before = len(harness.worker.batches)
    (answer,) = harness.run(req)
    return answer.ids, len(harness.worker.batches) - before


# --- the table --------------------------------------------------------------------------------------------------------------------


def test_the_latest_token_counts_and_memory_is_bounded() -> None:
    table = NgramTable()
    rng = random.Random(1)
    for i in range(3 * NUM_PLACES):
        table.note((i, i + 1, i + 2, i + 3), rng.randrange(1 << 20))
    table.note((1, 2, 3, 4), 5)
    assert table.after((1, 2, 3, 4)) == 5 and table.after((2, 1, 3, 4)) == -1
    table.note((1, 2, 3, 4), 6)
    assert table.after((1, 2, 3, 4)) == 6
    assert len(table._next) == len(table._checks) == NUM_PLACES and table._next.itemsize == 4
    known = sum(table.after((i, i + 1, i + 2, i + 3)) >= 0 for i in range(10**6, 10**6 + 20000))
    assert known == 0, "n-grams that were never noted are taken for others"


def test_as_many_tokens_as_came_right() -> None:
    table = NgramTable()
    first = TableProposer(table, [1, 2, 3, 4, 5])
    for token in SAYING:
        first._note(token)
    second = TableProposer(table, [9, 9, *SAYING[:TABLE_WIDTH]])
    for n, token in enumerate(SAYING[TABLE_WIDTH:50]):
        drafted = second._walk(second._streak.length) if second._streak.is_long else []
        assert drafted == (SAYING[TABLE_WIDTH + n :][: min(n, MAX_STREAK)] if n >= MIN_STREAK else [])
        second._note(token)


# --- in the scheduler -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_worker", [ToyWorker, AheadWorker])
def test_what_another_request_said_takes_few_steps(saying: None, make_worker: type[ToyWorker]) -> None:
    harness = Harness(make_worker())
    one, two = told(2)
    first, steps = steps_of(harness, one)
    second, fewer = steps_of(harness, two)
    assert first == second == SAYING[:80]
    assert fewer <= 0.25 * steps
    counts = harness.scheduler._snapshot().drafts
    assert set(counts) == {TABLE} and counts[TABLE].accepted == counts[TABLE].proposed > 60
    harness.scheduler._flush(1)
    assert steps_of(harness, told(3)[2]) == (first, steps), "flushed, it remembers nothing"


def test_under_grammars_that_differ(saying: None, patient: None) -> None:
    """Statistics are a grammar's own; the table is not."""
    harness = Harness(grammar=GrammarOptions())
    counts = []
    for req, regex in zip(told(2), ("[a-z]{60,80}~", "[a-z]{70,80}!"), strict=True):
        before = len(harness.worker.batches)
        sampling = msgspec.structs.replace(req.sampling, regex=regex)
        run_with_compiling(harness, [msgspec.structs.replace(req, sampling=sampling)])
        counts.append(len(harness.worker.batches) - before)
    assert counts[1] <= 0.5 * counts[0]


def test_not_across_salts_nor_adapters_nor_when_switched_off(saying: None) -> None:
    for options, salts in ((ScheduleOptions(), ("a", "b")), (ScheduleOptions(speculation=False), (None, None))):
        harness = Harness(options=options)
        reqs = [msgspec.structs.replace(req, cache_salt=salt) for req, salt in zip(told(2), salts, strict=True)]
        found = [steps_of(harness, req) for req in reqs]
        assert found[0] == found[1]
    proposers = harness.scheduler._proposers
    tables = {id(_table(proposers, salt, adapter)) for salt in (None, "a", "b") for adapter in (0, 1)}
    assert len(tables) == 6
    kept = _table(proposers, "a", 1)
    for i in range(3 * MAX_TABLES):
        _table(proposers, f"other{i}", 0)
    assert len(proposers._tables) <= MAX_TABLES and _table(proposers, "a", 1) is not kept


def _table(proposers: Proposers, salt: str | None, adapter: int) -> NgramTable:
    req = Req.__new__(Req)
    req.msg, req.salt, req.adapter = make_req("x", [1]), salt, adapter
    proposer = proposers._by_table(req)
    assert isinstance(proposer, TableProposer)
    return proposer._table


def test_text_without_repetition_gets_no_rows() -> None:
    """40 answers to prompts that repeat nothing, sampled at random: a row in a thousand at most."""
    rows, harness = {}, {on: Harness(options=ScheduleOptions(speculation=on)) for on in (True, False)}
    for on, each in harness.items():
        for start in range(0, 40, 4):
            reqs = [
                make_req(f"r{start + i}", [i, start, 3], 100, ignore_eos=True, seed=start + i, temperature=1.0)
                for i in range(4)
            ]
            each.run(*reqs)
        rows[on] = sum(batch.num_tokens for batch in each.worker.batches)
    assert len(harness[True].worker.batches) <= len(harness[False].worker.batches)
    assert rows[True] <= 1.001 * rows[False]


def trust_wrong_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table says anything, and is trusted always."""
    rng = random.Random(5)
    monkeypatch.setattr(repeated_text, "MAX_RUNNING", 16)
    monkeypatch.setattr(repeated_text, "MAX_ROWS", 64)
    monkeypatch.setattr(NgramTable, "after", lambda self, ngram: rng.randrange(97, 120))
    monkeypatch.setattr(Streak, "is_long", True)
    monkeypatch.setattr(Streak, "length", 5)
    monkeypatch.setattr(Streak, "note", lambda self, is_right: None)
    monkeypatch.setattr(Streak, "__init__", lambda self: None)


@pytest.mark.parametrize("every", [0, 2])
def test_wrong_entries_change_no_answer_of_adapters(monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """Nor while requests are retracted."""
    trust_wrong_entries(monkeypatch)
    served = Served(options=ScheduleOptions(test_retract_every=every))
    served.load("a")
    served.load("b")
    reqs = [served.ask(f"r{i}", [1, 2, 3, i % 2], path, 30) for i, path in enumerate(["a", "b", None, "a", "b", None])]
    served.run(*reqs)
    for req in reqs:
        served.check_answer(req)
    assert served.scheduler._snapshot().drafts[TABLE].proposed > 20


@pytest.mark.parametrize("make_worker", [ToyWorker, AheadWorker])
def test_wrong_entries_change_no_answer(monkeypatch: pytest.MonkeyPatch, make_worker: type[ToyWorker]) -> None:
    reqs = [make_req(f"r{i}", [1, 2, 3 + i], 40, ignore_eos=True, seed=i, temperature=0.7) for i in range(4)]
    expected = [answer.ids for answer in Harness(options=ScheduleOptions(speculation=False)).run(*reqs)]
    trust_wrong_entries(monkeypatch)
    harness = Harness(make_worker())
    assert [answer.ids for answer in harness.run(*reqs)] == expected
    assert harness.scheduler._snapshot().drafts[TABLE].proposed > 50
    assert harness.scheduler.check_integrity() == []
