"""Op tapes: the ops of a step recorded once and replayed for every batch.

Row counts, ids, positions, slots and lengths live in static arrays that the ops read when they run, so one tape serves every
step. The native kernels record closures and replay them in one call without the interpreter; for any other op set the tape
keeps the Python calls themselves, so that callers have one code path.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.kernels.states import STATE_OPS

RECORDED = (
    "take_sampled",
    "embedding",
    "rms_norm",
    "linear",
    "linear_blocks",
    "gated_linear",
    "route",
    "gated_experts",
    "experts_linear",
    "heads_linear",
    "low_rank",
    "gate",
    "store",
    "rope_store",
    "attention",
    "soft_cap",
    "scale",
    "match_rms",
    "sparsify",
    "overlay",
    "select_rope",
    "gather_rows",
    "blend_rows",
    "layer_norm",
    "activate",
    *STATE_OPS,
)
"""The ops of the forward pass. Those on logits run when they are called."""


class OpTape:
    """A recorded program. It keeps every array and handle alive that its ops use."""

    def __init__(self) -> None:
        self._replay: Callable[[], None] = _nothing
        self._profile: Callable[[], list[tuple[str, int]]] = list
        self._clear: Callable[[], None] = _nothing

    @contextmanager
    def record(self, ops: Ops) -> Iterator[None]:
        """Ops called in the `with` block become this tape's program; they are not run."""
        if hasattr(ops, "begin_tape"):
            with self._record_native(ops):
                yield
        else:
            with self._record_calls(ops):
                yield

    def replay(self) -> None:
        """Runs the program on what the arrays hold now, or begins to where the ops run ahead."""
        self._replay()

    def profile(self) -> list[tuple[str, int]]:
        """Replays once and returns (op name, clock ticks) of each op, added up over the calls since `clear_profile`. Ticks are
        of the time stamp counter on x86, else nanoseconds."""
        return self._profile()

    def clear_profile(self) -> None:
        self._clear()

    @contextmanager
    def _record_native(self, ops: Any) -> Iterator[None]:
        tape = ops.begin_tape()
        try:
            yield
        finally:
            ops.end_tape()
        runtime = ops.runtime

        def profile() -> list[tuple[str, int]]:
            runtime.replay(tape, True)
            result: list[tuple[str, int]] = tape.profile()
            return result

        self._replay = lambda: runtime.replay(tape)
        self._profile = profile
        self._clear = tape.clear_profile

    @contextmanager
    def _record_calls(self, ops: Any) -> Iterator[None]:
        """For the length of the block the instance's ops are shadowed by functions that record the calls."""
        calls: list[tuple[str, Callable[[], None]]] = []
        names = [name for name in RECORDED if hasattr(ops, name)]
        for name in names:
            setattr(ops, name, _note(calls, name, getattr(ops, name)))
        try:
            yield
        finally:
            for name in names:
                delattr(ops, name)
        spent = [0] * len(calls)

        def replay() -> None:
            for _, call in calls:
                call()

        def profile() -> list[tuple[str, int]]:
            for i, (_, call) in enumerate(calls):
                start = time.perf_counter_ns()
                call()
                spent[i] += time.perf_counter_ns() - start
            return [(name, ticks) for (name, _), ticks in zip(calls, spent, strict=True)]

        def clear() -> None:
            spent[:] = [0] * len(calls)

        self._replay, self._profile, self._clear = replay, profile, clear


def _note(calls: list[tuple[str, Callable[[], None]]], name: str, op: Callable[..., None]) -> Callable[..., None]:
    def note(*args: Any, **kwargs: Any) -> None:
        calls.append((name, lambda: op(*args, **kwargs)))

    return note


def _nothing() -> None:
    return None
