"""Fills the masks of all constrained rows of a step on a side thread while the model computes.

One call of the engine fills them all, in parallel. A request whose mask is not ready soon after the model is done is late: it skips
steps until its mask is ready, and the others go on. Masks of requests that were late once are filled one by one, after the others,
until they are quick again; while one of them exceeds its step, the other late ones wait, so that slow grammars use at most one core.
A mask that was late is kept for the next step of its request, which got no token meanwhile: however slow a grammar is, it goes on.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sglang.srt.forward_batch import VocabMasks
from sglang.srt.scheduler.grammar.engines.base import GrammarBackend, GrammarState, UInt32Array

MAX_LATE = 3
"""steps whose late masks are still being worked on"""
QUICK_SECONDS = 0.002


class _Task:
    """The masks of one step. Each of `parts` are rows that are filled in one go."""

    def __init__(
        self,
        states: list[GrammarState],
        owners: list[GrammarState],
        no_eos: list[bool],
        parts: list[list[int]],
        num_words: int,
    ) -> None:
        self.states = states
        self.owners = owners
        self.no_eos = no_eos
        self.parts = parts
        self.bits: UInt32Array = np.zeros((len(states), num_words), dtype=np.uint32)
        self.done = [False] * len(states)
        self.is_late = [False] * len(states)
        """who got no token for want of this mask"""
        self.taken = 0
        self.lock = threading.Lock()
        self.stop = False
        self.finished = threading.Event()
        self.error: BaseException | None = None

    def take(self) -> list[int] | None:
        """The next rows to fill."""
        with self.lock:
            if self.stop or self.taken == len(self.parts):
                return None
            self.taken += 1
            return self.parts[self.taken - 1]

    def works_on(self, owner: GrammarState) -> bool:
        return any(self.owners[i] is owner and not self.done[i] for part in self.parts[: self.taken] for i in part)


class MaskFiller:
    """Owner of the threads that fill. Used by one thread."""

    def __init__(self, backend: GrammarBackend, model_vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._backend = backend
        self._num_words = (model_vocab_size + 31) // 32
        self._not_eos: UInt32Array = np.full(self._num_words, 0xFFFFFFFF, dtype=np.uint32)
        for i in eos_token_ids:
            if i < model_vocab_size:
                self._not_eos[i // 32] &= np.uint32(~(1 << (i % 32)) & 0xFFFFFFFF)
        self._threads = ThreadPoolExecutor(MAX_LATE + 1, thread_name_prefix="masks")
        self._task: _Task | None = None
        self._rows: list[int] = []
        self._late: list[_Task] = []
        self._suspects: weakref.WeakSet[GrammarState] = weakref.WeakSet()
        self._kept: weakref.WeakKeyDictionary[GrammarState, tuple[bool, UInt32Array]] = weakref.WeakKeyDictionary()
        """masks that were late and are ready now: made with this `no_eos`"""

    def is_busy(self, state: GrammarState | None) -> bool:
        """Whether a thread still works on a late mask of `state`: it must be left alone."""
        if state is None or not self._late:
            return False
        self._look_at_late()
        return any(task.works_on(state) for task in self._late)

    def must_wait(self, state: GrammarState | None) -> bool:
        """Whether the next step is to leave `state` out: it is busy, or slow while another slow one is."""
        return self.is_busy(state) or (self.is_suspect(state) and any(not task.finished.is_set() for task in self._late))

    def is_suspect(self, state: GrammarState | None) -> bool:
        """Whether the last mask of `state` was late."""
        return bool(self._suspects) and state in self._suspects

    def start(
        self,
        rows: list[int],
        states: list[GrammarState],
        no_eos: list[bool],
        owners: list[GrammarState] | None = None,
    ) -> None:
        """Begins to fill. `rows` index the step's samples; where `no_eos`, the output may not end here unless it must. A state
        that is a copy made for a draft has a request's own as its owner: if one of them is late, all of them are."""
        owners = states if owners is None else owners
        while sum(not task.finished.is_set() for task in self._late) >= MAX_LATE:
            self._late[0].finished.wait()
            self._look_at_late()
        self._look_at_late()
        suspect = [self.is_suspect(state) for state in states]
        quick = [i for i, is_suspect in enumerate(suspect) if not is_suspect]
        parts = [quick] * bool(quick)
        task = _Task(states, owners, no_eos, parts, self._num_words)
        for i, state in enumerate(states):
            if suspect[i] and owners[i] is state and self._take_kept(state, no_eos[i], task.bits[i]):
                task.done[i] = True
        if not self._late:
            parts += [[i] for i, is_suspect in enumerate(suspect) if is_suspect and not task.done[i]]
        self._rows, self._task = rows, task
        self._threads.submit(self._fill, task)

    def _look_at_late(self) -> None:
        """Keeps the masks of late tasks that are done."""
        for task in self._late:
            if task.finished.is_set() and task.error is None:
                for i, state in enumerate(task.states):
                    if task.done[i] and task.is_late[i] and task.owners[i] is state:
                        self._kept[state] = task.no_eos[i], task.bits[i].copy()
        self._late = [task for task in self._late if not task.finished.is_set()]

    def _take_kept(self, state: GrammarState, no_eos: bool, out: UInt32Array) -> bool:
        kept = self._kept.pop(state, None)
        if kept is None or kept[0] != no_eos:
            return False
        out[:] = kept[1]
        return True

    def are_ready(self, patience: float) -> bool:
        """Whether all masks of the last `start` are there within `patience` seconds."""
        return self._task is None or self._task.finished.wait(patience)

    def finish(self, patience: float) -> tuple[VocabMasks, list[int]]:
        """The masks of the last `start`, and which of its rows are late, `patience` seconds from now."""
        task, self._task = self._task, None
        assert task is not None, "start comes first"
        if not task.finished.wait(patience):
            with task.lock:
                task.stop = True
            self._late.append(task)
        if task.error is not None:
            raise task.error
        there = list(task.done)  # the thread may go on
        if all(there):
            return VocabMasks(np.array(self._rows, dtype=np.int32), task.bits), []
        index = [i for i, is_there in enumerate(there) if is_there]
        for i, is_there in enumerate(there):
            if not is_there:
                task.is_late[i] = True
                self._suspects.add(task.owners[i])
        late = [row for row, is_there in zip(self._rows, there, strict=True) if not is_there]
        return VocabMasks(np.array([self._rows[i] for i in index], dtype=np.int32), task.bits[index]), late

    def close(self) -> None:
        self._threads.shutdown(wait=False)

    def _fill(self, task: _Task) -> None:
        try:
            while (part := task.take()) is not None:
                self._fill_part(task, part)
        except BaseException as error:  # noqa: BLE001  outermost loop of this thread; `finish` raises it
            task.error = error
        finally:
            task.finished.set()

    def _fill_part(self, task: _Task, part: list[int]) -> None:
        began = time.perf_counter()
        bits = task.bits if len(part) == len(task.states) else np.zeros((len(part), self._num_words), dtype=np.uint32)
        self._backend.fill_masks([task.states[i] for i in part], bits)
        for row, i in zip(bits, part, strict=True):
            if task.no_eos[i]:
                rest = row & self._not_eos
                if rest.any():
                    row[:] = rest
        if bits is not task.bits:
            task.bits[part] = bits
        if len(part) == 1 and time.perf_counter() - began < QUICK_SECONDS:
            self._suspects.discard(task.states[part[0]])
        for i in part:
            task.done[i] = True
