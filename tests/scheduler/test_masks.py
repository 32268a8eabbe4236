"""Masks that take long delay nobody but their own request, and change no answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from sglang.srt.config import GrammarOptions, ScheduleOptions
from sglang.srt.messages import TokenizedReq
from sglang.srt.scheduler.grammar.engines.base import GrammarState, UInt32Array
from sglang.srt.scheduler.grammar.engines.llguidance_backend import LLGuidanceBackend
from sglang.srt.scheduler.grammar.masks import MaskFiller
from tests.scheduler.test_grammar import BACKEND, run_with_compiling
from tests.scheduler.toy import EOS, MODEL_VOCAB, Harness, logprob_options, make_req


class Slow:
    """A state whose mask waits for `go`."""

    def __init__(self, inner: GrammarState) -> None:
        self.inner = inner
        self.go = threading.Event()

    def fill_mask(self, out: UInt32Array) -> None:
        assert self.go.wait(30)
        self.inner.fill_mask(out)


class Plain:
    """Fills one mask after the other."""

    def fill_masks(self, states: Sequence[GrammarState], out: UInt32Array) -> None:
        for i, state in enumerate(states):
            state.fill_mask(out[i])


def wait_for_thread(filler: MaskFiller, state: Slow) -> None:
    deadline = time.monotonic() + 30
    while filler.is_busy(state) and time.monotonic() < deadline:  # type: ignore[arg-type]
        time.sleep(0.001)


def test_a_late_mask_leaves_the_others_alone() -> None:
    filler = MaskFiller(Plain(), MODEL_VOCAB, [EOS])  # type: ignore[arg-type]
    slow = Slow(BACKEND.compile("regex", "x"))
    quick = [BACKEND.compile("regex", "[ab]") for _ in range(3)]
    filler.start([2, 4], [quick[0], slow], [False] * 2)  # type: ignore[list-item]
    assert filler.finish(0.05)[1] == [2, 4], "the first time nobody knows who is slow"
    assert filler.is_busy(slow)  # type: ignore[arg-type]
    slow.go.set()
    wait_for_thread(filler, slow)
    slow.go.clear()
    filler.start([2, 4], [quick[1], slow], [False] * 2)  # type: ignore[list-item]
    masks, late = filler.finish(30)
    assert late == [] and np.unpackbits(masks.bits[1].view(np.uint8), bitorder="little").nonzero()[0].tolist() == [ord("x")], (
        "the mask that was late is there, however long another would take"
    )
    filler.start([2, 4, 5], [quick[1], slow, quick[2]], [False] * 3)  # type: ignore[list-item]
    masks, late = filler.finish(0.5)
    assert masks.rows.tolist() == [2, 5] and late == [4], "then it comes last"
    assert filler.is_busy(slow) and not filler.is_busy(quick[2])  # type: ignore[arg-type]
    filler.start([0], [quick[2]], [False])
    masks, late = filler.finish(30)
    assert late == [] and np.flatnonzero(np.unpackbits(masks.bits.view(np.uint8), bitorder="little")).tolist() == [97, 98]
    slow.go.set()
    wait_for_thread(filler, slow)
    filler.start([0], [slow], [False])  # type: ignore[list-item]
    assert filler.finish(30)[1] == []
    filler.close()


def test_many_masks_are_shared_between_threads() -> None:
    filler = MaskFiller(BACKEND, MODEL_VOCAB, [EOS])
    letters = [*range(ord("A"), ord("Z") + 1), *range(ord("a"), ord("z") + 1)]
    states = [BACKEND.compile("regex", f"{chr(letter)}|") for letter in letters]
    filler.start(list(range(len(states))), list(states), [i % 2 == 0 for i in range(len(states))])
    masks, late = filler.finish(30)
    assert late == []
    for i, row in enumerate(masks.bits):
        allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()
        assert allowed[0] == letters[i] and (EOS in allowed) == (i % 2 == 1)
    filler.close()


@pytest.mark.parametrize("retract", [0, 3])
def test_answers_do_not_depend_on_who_is_late(monkeypatch: pytest.MonkeyPatch, retract: int) -> None:
    def requests() -> list[TokenizedReq]:
        ask = [None, logprob_options(0, 1)]
        return [
            make_req(f"r{i}", [i] * 20, 25, i % 2 == 0, 1.0, seed=i, regex=f"[a-f]{{3}}{i}x[0-9]+", logprobs=ask[i % 2])
            for i in range(6)
        ]

    def answers() -> list[tuple[object, ...]]:
        harness = Harness(options=ScheduleOptions(test_retract_every=retract), grammar=GrammarOptions())
        return [(a.ids, a.finish, a.input_logprobs, a.output_logprobs) for a in run_with_compiling(harness, requests())]

    expected = answers()
    fill, calls = LLGuidanceBackend.fill_masks, iter(range(10**9))

    def dawdling(self: LLGuidanceBackend, states: Sequence[GrammarState], out: UInt32Array) -> None:
        if next(calls) % 5 == 2:
            time.sleep(0.02)
        fill(self, states, out)

    monkeypatch.setattr(LLGuidanceBackend, "fill_masks", dawdling)
    assert answers() == expected


def test_slow_masks_are_worked_on_one_at_a_time() -> None:
    filler = MaskFiller(Plain(), MODEL_VOCAB, [EOS])  # type: ignore[arg-type]
    slow = [Slow(BACKEND.compile("regex", "x")) for _ in range(2)]
    quick = BACKEND.compile("regex", "[ab]")
    for state in slow:  # each is late once
        filler.start([0], [state], [False])  # type: ignore[list-item]
        assert filler.finish(0.01)[1] == [0]
        state.go.set()
        wait_for_thread(filler, state)
        state.go.clear()
        filler.start([0], [state], [False])  # type: ignore[list-item]
        assert filler.finish(30)[1] == [], "what was late is kept"
    filler.start([0, 1], [slow[0], quick], [False] * 2)  # type: ignore[list-item]
    assert filler.finish(0.2)[1] == [0]
    assert filler.must_wait(slow[0]) and filler.must_wait(slow[1])  # type: ignore[arg-type]
    assert not filler.is_busy(slow[1]) and not filler.must_wait(quick)  # type: ignore[arg-type]
    slow[1].go.set()
    filler.start([3, 5], [slow[1], quick], [False] * 2)  # type: ignore[list-item]
    masks, late = filler.finish(30)
    assert late == [3] and masks.rows.tolist() == [5], "its turn comes later"
    slow[0].go.set()
    wait_for_thread(filler, slow[0])
    assert not filler.must_wait(slow[1])  # type: ignore[arg-type]
    filler.start([3], [slow[1]], [False])  # type: ignore[list-item]
    assert filler.finish(30)[1] == []
    filler.close()
