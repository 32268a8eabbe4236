"""Drafts from the prefix tree: what was generated before takes few steps, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.config import GrammarOptions, ScheduleOptions
from sglang.srt.messages import TokenizedReq
from sglang.srt.scheduler.cache.radix_cache import RadixCache
from sglang.srt.scheduler.speculation.proposers.radix_tree import MAX_CHILDREN, NAME, TreePath
from tests.scheduler.test_grammar import run_with_compiling
from tests.scheduler.test_grammar_statistics import LOOSE
from tests.scheduler.toy import AheadWorker, Harness, ToyWorker, make_req

Ids = list[int]


def array(ids: Ids) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(ids, dtype=np.int32)


# --- a path in the tree -----------------------------------------------------------------------------------------------------------


class Tree:
    """A tree and the sequences that were put into it."""

    def __init__(self, page_size: int = 1) -> None:
        self.cache = RadixCache(lambda slots: None, page_size)
        self.num = 0

    def insert(self, ids: Ids, salt: str | None = None) -> None:
        self.cache.insert(array(ids), np.arange(self.num, self.num + len(ids), dtype=np.int32), salt)
        self.num += len(ids)

    def holds(self, ids: Ids, salt: str | None = None) -> bool:
        return self.cache.match_len(array(ids), salt)[0] == len(ids)


ids_lists = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@settings(deadline=None)
@given(stored=st.lists(ids_lists, max_size=8), start=ids_lists, more=ids_lists)
def test_a_path_is_on_as_long_as_the_tree_holds_its_tokens(stored: list[Ids], start: Ids, more: Ids) -> None:
    tree = Tree()
    for ids in stored:
        tree.insert(ids)
    path = TreePath(tree.cache, array(start), None)
    for n in range(len(more) + 1):
        ids = start + more[:n]
        assert path.is_on == tree.holds(ids)
        expected = path.expected(5)
        assert tree.holds(ids + expected) if path.is_on else not expected
        assert len(expected) == 5 or not path.is_on or not TreePath(tree.cache, array(ids + expected), None).expected(1)
        assert n == len(more) or path.follow(more[n]) == tree.holds([*ids, more[n]])


@settings(deadline=None)
@given(
    stored=st.lists(ids_lists, min_size=1, max_size=5),
    which=st.integers(0, 4),
    changes=st.lists(st.one_of(st.integers(1, 20), ids_lists), min_size=12, max_size=12),
)
def test_a_path_lives_through_splits_and_evictions(stored: list[Ids], which: int, changes: list[int | Ids]) -> None:
    """It follows one of the sequences for as long as this stays in the tree, whatever else happens there."""
    tree = Tree()
    for ids in stored:
        tree.insert(ids)
    ids = stored[which % len(stored)]
    path, held = TreePath(tree.cache, array(ids[:1]), None), True
    for n, change in zip(range(1, len(ids)), changes, strict=False):
        if isinstance(change, int):
            tree.cache.evict(change)
        else:
            tree.insert(change)
        expected = path.expected(3)
        assert all(0 <= token <= 2 for token in expected)
        held = held and tree.holds(ids)  # what comes back has no path
        assert path.follow(ids[n]) or not held
    tree.cache.check()


def test_the_latest_branch_is_expected_and_salts_are_apart() -> None:
    tree = Tree()
    tree.insert([1, 2, 3, 4])
    tree.insert([1, 2, 5, 6])
    tree.insert([1, 2, 7, 8], "other")
    assert TreePath(tree.cache, array([1]), None).expected(9) == [2, 5, 6]
    tree.insert([1, 2, 3, 4])
    assert TreePath(tree.cache, array([1]), None).expected(2) == [2, 3]
    assert TreePath(tree.cache, array([1]), "other").expected(9) == [2, 7, 8]
    assert not TreePath(tree.cache, array([1]), "third").is_on
    for branch in range(MAX_CHILDREN):
        tree.insert([1, 2, 100 + branch])
    path = TreePath(tree.cache, array([1]), None)
    assert path.expected(9) == [2], "too many branches to look for the latest"
    assert path.follow(2) and path.follow(107) and not path.follow(3)


def test_pages_of_several_tokens() -> None:
    tree = Tree(page_size=4)
    tree.insert([1, 2, 3, 4, 5, 6, 7, 8])
    tree.insert([1, 2, 3, 4, 5, 6, 9, 9])
    path = TreePath(tree.cache, array([1, 2, 3, 4, 5]), None)
    assert path.is_on and path.expected(3) == [6, 9, 9]
    assert not TreePath(tree.cache, array([1, 2, 3, 4, 6]), None).is_on


# --- in the scheduler -----------------------------------------------------------------------------------------------------------


def reqs(num: int, first: int, **more: Any) -> list[TokenizedReq]:
    """Their answers do not repeat themselves: the toy model samples at random, by the seed and what was said."""
    return [make_req(f"r{first + i}", [1, 2, 3 + i], 60, ignore_eos=True, seed=i, temperature=0.7, **more) for i in range(num)]


@pytest.mark.parametrize("make_worker", [ToyWorker, AheadWorker])
@pytest.mark.parametrize(("num", "share"), [(1, 0.2), (6, 0.4)])
def test_what_was_answered_before_takes_few_steps(make_worker: type[ToyWorker], num: int, share: float) -> None:
    """Several share the rows of a step that are sampled from."""
    harness = Harness(make_worker())
    expected = [answer.ids for answer in harness.run(*reqs(num, 0))]
    steps = len(harness.worker.batches)
    assert [answer.ids for answer in harness.run(*reqs(num, num))] == expected
    assert len(harness.worker.batches) - steps <= share * steps
    assert set(harness.scheduler._snapshot().drafts) == {NAME}
    assert harness.scheduler.check_integrity() == []


def test_under_a_grammar(patient: None) -> None:
    harness = Harness(grammar=GrammarOptions())
    wanted = [make_req(f"g{i}", [1, 2], 200, regex=LOOSE, seed=1) for i in range(2)]
    (first,) = run_with_compiling(harness, wanted[:1])
    steps = len(harness.worker.batches)
    (second,) = run_with_compiling(harness, wanted[1:])
    assert second.ids == first.ids and len(harness.worker.batches) - steps <= 0.4 * steps


def test_not_without_a_prefix_cache_nor_across_salts_nor_when_switched_off() -> None:
    for options, salts in (
        (ScheduleOptions(disable_radix_cache=True), (None, None)),
        (ScheduleOptions(), ("a", "b")),
        (ScheduleOptions(speculation=False), (None, None)),
    ):
        harness = Harness(options=options)
        for i, salt in enumerate(salts):
            harness.run(*reqs(1, i, cache_salt=salt))
        assert NAME not in harness.scheduler._snapshot().drafts


def test_an_answer_that_leaves_the_path_costs_one_draft() -> None:
    """It begins as an earlier one, and then says something else: from there on nothing is drafted."""
    harness = Harness()
    (answer,) = harness.run(*reqs(1, 0))
    num_rows = sum(batch.num_tokens for batch in harness.worker.batches)
    for num_same in (1, 4, 20):
        before = len(harness.worker.batches)
        prompt = [1, 2, 3, *answer.ids[:num_same]]
        harness.run(make_req(f"other{num_same}", prompt, 60, ignore_eos=True, seed=num_same, temperature=5.0))
        assert sum(batch.num_tokens for batch in harness.worker.batches[before:]) <= num_rows + 3
