"""Owns which slots of the KV pool are free and which are held.

Slots are handed out in aligned runs of `run` slots, so that position p of a request always sits in a slot with
slot % run == p % run (attention then reads whole runs). The prefix tree, though, frees single slots: a run goes back to the
free list when its last held slot is freed. With run = 1 this is an ordinary list of free slots.

    run      0                   1                   2
    slot     0  1  2 ... 15     16 17 ... 31        32 ... 47
             held by the tree   free                32, 33 never held: the request in this run starts at offset 2
"""

from __future__ import annotations

import numpy as np

from sglang.srt.forward_batch import Int32Array


class PageAllocator:
    """Free runs as a stack, held slots as a bitmap."""

    def __init__(self, num_slots: int, run: int) -> None:
        if run < 1 or num_slots < run or num_slots % run:
            raise ValueError(f"a pool of {num_slots} slots cannot be cut into runs of {run}")
        self.num_slots = num_slots
        self.run = run
        self.num_runs = num_slots // run
        self._least_top = self.num_runs
        self.reset()

    def reset(self) -> None:
        """Everything is free again."""
        self._stack = np.arange(self.num_runs - 1, -1, -1, dtype=np.int32)
        self._top = self.num_runs
        self._held = np.zeros(self.num_slots, dtype=np.bool_)
        self._held_in_run = np.zeros(self.num_runs, dtype=np.int32)
        self.num_held = 0

    @property
    def num_free_runs(self) -> int:
        return self._top

    @property
    def num_ever_held(self) -> int:
        """Slots that were handed out once: the first so many, since what was freed is taken again before what was never held."""
        return (self.num_runs - self._least_top) * self.run

    def runs_for(self, start: int, end: int) -> int:
        """Runs that positions [start, end) touch."""
        return -(-end // self.run) - start // self.run if end > start else 0

    def alloc(self, num_runs: int, offset: int = 0) -> Int32Array | None:
        """First slots of `num_runs` free runs, or None when there are not so many. The first `offset` slots of the first run
        stay unheld: its owner starts in the middle."""
        if num_runs > self._top:
            return None
        runs = self._stack[self._top - num_runs : self._top][::-1].copy()
        self._top -= num_runs
        self._least_top = min(self._least_top, self._top)
        self._held.reshape(self.num_runs, self.run)[runs] = True
        self._held_in_run[runs] = self.run
        self.num_held += num_runs * self.run - offset
        bases: Int32Array = runs * np.int32(self.run)
        if offset:
            self._held[bases[0] : bases[0] + offset] = False
            self._held_in_run[runs[0]] -= offset
        return bases

    def claim_after(self, slot: int) -> bool:
        """Takes the rest of the run behind `slot`, if nobody holds any of it: whoever continues a prefix may then go on in
        the run where the prefix ends. False when there is no rest or some of it is held."""
        start, end = slot + 1, (slot // self.run + 1) * self.run
        if start == end or self._held[start:end].any():
            return False
        self._held[start:end] = True
        self._held_in_run[slot // self.run] += end - start
        self.num_held += end - start
        return True

    def free(self, slots: Int32Array) -> None:
        """Gives back held slots, each named once."""
        if not len(slots):
            return
        assert self._held[slots].all(), "freeing a slot that nobody holds"
        self._held[slots] = False
        self.num_held -= len(slots)
        if self.run == 1:
            empty = slots
            self._held_in_run[slots] = 0
        else:
            runs, counts = np.unique(slots // self.run, return_counts=True)
            left = self._held_in_run[runs] - counts
            self._held_in_run[runs] = left
            empty = runs[left == 0]
        self._stack[self._top : self._top + len(empty)] = empty
        self._top += len(empty)

    def check(self, owned: Int32Array) -> list[str]:
        """What is wrong if `owned` are all the slots that someone owns; empty when all adds up."""
        problems = []
        count = np.bincount(owned, minlength=self.num_slots) if len(owned) else np.zeros(self.num_slots, dtype=np.int64)
        if (count > 1).any():
            problems.append(f"{int((count > 1).sum())} slots have two owners, e.g. slot {int(np.argmax(count > 1))}")
        if ((count > 0) & ~self._held).any():
            problems.append(f"{int(((count > 0) & ~self._held).sum())} owned slots are not held")
        if (self._held & (count == 0)).any():
            lost = self._held & (count == 0)
            problems.append(f"{int(lost.sum())} held slots have no owner, e.g. slot {int(np.argmax(lost))}")
        per_run = self._held.reshape(self.num_runs, self.run).sum(axis=1)
        if (per_run != self._held_in_run).any() or int(per_run.sum()) != self.num_held:
            problems.append("the counts of held slots are wrong")
        free = np.zeros(self.num_runs, dtype=np.int32)
        np.add.at(free, self._stack[: self._top], 1)
        if (free != (per_run == 0)).any():
            problems.append("the free list differs from the runs without held slots")
        return problems
