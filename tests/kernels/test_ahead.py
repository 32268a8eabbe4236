"""Ops that return before they have run: the same results in the same order, whichever thread waits for which of them."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

from sglang.srt.model.kernels import cpu
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.op_tape import OpTape

from .support import Float, ints, same_bits, tensor

STEPS = 12


class Loop:
    """Steps like a model's: ids come from the step before, logits go to the next."""

    def __init__(self, ops: Any) -> None:
        self.ops = ops
        rng = np.random.default_rng(0)
        self.weight = ops.pack([tensor(rng, "q8_0", 256, 64)])
        self.inputs = ops.inputs({"rows": 1, "ids": 8, "previous": 8})
        at = self.inputs.arrays
        self.rows, self.ids, self.previous = at["rows"], at["ids"], at["previous"]
        self.sampled = ops.empty((8,), "int32")
        self.x, self.logits = ops.empty((8, 64)), ops.empty((8, 256))
        self.activation = ops.activation(8, [self.weight])
        self.tape = OpTape()
        with self.tape.record(ops):
            ops.take_sampled(self.ids, self.previous, self.sampled, self.rows)
            ops.embedding(self.weight, self.ids, self.x, self.rows)
            ops.rms_norm(self.x, np.ones(64, np.float32), self.activation, self.rows, eps=1e-5)
            ops.linear(self.weight, self.activation, self.logits, self.rows)

    def begin(self, step: int) -> Any:
        rows = 1 + step % 8
        self.inputs.begin()
        host = self.inputs.host
        host["rows"][0] = rows
        host["ids"][:rows] = np.arange(rows) * 31 % 256
        host["previous"][:rows] = -1 if step == 0 else np.arange(rows) % (1 + (step - 1) % 8)
        self.inputs.send()
        self.tape.replay()
        self.ops.adjust(self.logits, ints(0, 1), ints(step), np.ones(1, np.float32), np.full(1, 3, np.float32))
        self.ops.argmax(self.logits, rows, self.sampled)
        return self.ops.fetch(self.sampled[:rows]), self.ops.fetch(self.logits[:rows])


@pytest.fixture(params=[*((2, isa) for isa in cpu.usable_isas()), (1, None), (3, None)], ids=str)
def ahead(request: pytest.FixtureRequest) -> Any:
    threads, isa = request.param
    return cpu.CpuOps(threads, isa, ahead=True)


def expected(isa: str) -> list[tuple[Any, Float]]:
    loop = Loop(cpu.CpuOps(1, isa))
    return [tuple(fetch.result().copy() for fetch in loop.begin(step)) for step in range(STEPS)]  # type: ignore[misc]


@pytest.mark.parametrize("late", [0, 1, STEPS])
def test_results_are_those_of_their_step(ahead: Any, late: int) -> None:
    """Whether each step is waited for at once, one behind, or none until all are begun."""
    loop, fetches, got = Loop(ahead), [], []
    for step in range(STEPS):
        fetches.append(loop.begin(step))
        if len(fetches) > late:
            got.append([fetch.result() for fetch in fetches.pop(0)])
    got += [[fetch.result() for fetch in pair] for pair in fetches]
    for (ids, logits), (want_ids, want_logits) in zip(got, expected(ahead.runtime.isa), strict=True):
        assert ids.tolist() == want_ids.tolist()
        same_bits(logits, want_logits)


def test_other_ops_wait_for_their_turn(ahead: Any) -> None:
    loop = Loop(ahead)
    for step in range(3):
        ids, _ = loop.begin(step)
    total = np.empty(3, np.float32)
    ahead.log_sum_exp(loop.logits, 3, total)
    want = expected(ahead.runtime.isa)[2][1]
    np.testing.assert_allclose(total, np.log(np.exp(want.astype(np.float64)).sum(axis=1)), rtol=1e-5)
    assert ahead.pick(loop.logits, np.arange(3), ids.result()).tolist() == want.max(axis=1).tolist()
    loop.begin(3)
    ahead.write(loop.logits, np.zeros((8, 256), np.float32))
    assert not loop.logits.any(), "what was on its way came first"


def test_nothing_on_its_way_is_lost_or_freed(ahead: Any) -> None:
    """Arrays, tapes and the op set itself may go while their ops are still to run."""
    loop = Loop(ahead)
    fetch = [loop.begin(step) for step in range(STEPS)][-1][1]
    del loop
    gc.collect()
    junk = [np.full((8, 256), np.nan, np.float32) for _ in range(50)]
    same_bits(fetch.result(), expected(ahead.runtime.isa)[-1][1])
    del junk
    other = Loop(cpu.CpuOps(2, ahead.runtime.isa, ahead=True))
    other.begin(0)
    del other
    gc.collect()


def test_readers_wait_for_results(ahead: Any) -> None:
    loop, want = Loop(ahead), expected(ahead.runtime.isa)
    fetches = [loop.begin(step)[1] for step in range(STEPS)]
    got: dict[int, Float] = {}

    def ask(step: int) -> None:
        got[step] = fetches[step].result()

    threads = [threading.Thread(target=ask, args=(step,)) for step in reversed(range(STEPS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for step in range(STEPS):
        same_bits(got[step], want[step][1])


def test_take_sampled(ops: Any) -> None:
    """A row that could not be sampled is -1 and becomes 0; rows beyond the count stay as they are."""
    sampled, previous = ints(7, -1, 9), ints(2, -1, 1, 0, 99)
    for one in (ops, ReferenceOps()):
        ids = ints(100, 101, 102, 103, 104)
        one.take_sampled(ids, previous, sampled, ints(4))
        assert ids.tolist() == [9, 101, 0, 7, 104]
