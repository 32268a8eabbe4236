"""The KV memory of a request: a row of the table, a cached prefix, and slots for what it computes.

    position    0 ............... tree_len ........ kv_len ......... reserved_len
    table row   | slots of the tree | slots of the request             |
                | locked while it   | computed         | the rest of   |
                | runs              |                  | its last run  |

`open` takes a row and locks the cached prefix (tree_len = kv_len = its length). `grow` reserves whole runs of slots. `share` gives
computed slots to the tree while the request goes on; `close` gives the last ones and frees the rest. At any time every slot of the
pool is free, owned by the tree, or owned by exactly one request, or reserved for a prefix that is brought from elsewhere (`reserve`,
then `enter` or `release`).

A prefix that ends inside a run is continued in the rest of that run if it is free, otherwise in a new run from the same offset on;
the slots before the offset are unused until the run is free again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sglang.srt.forward_batch import Int32Array, StateRows
from sglang.srt.scheduler.cache.radix_cache import ChunkCache, Match, RadixCache, Salt, TreeNode
from sglang.srt.scheduler.cache.reserved import Reserved
from sglang.srt.scheduler.cache.states import HeldStates, StateSlots, state_rows


class PageAllocator:
    """Owns which slots of the KV pool are free and which are held.

    Slots are handed out in aligned runs of `run` slots, so that position p of a request always sits in a slot with
    slot % run == p % run (attention then reads whole runs). The prefix tree, though, frees single slots: a run goes back to the
    free list when its last held slot is freed. With run = 1 this is an ordinary list of free slots.

        run      0                   1                   2
        slot     0  1  2 ... 15     16 17 ... 31        32 ... 47
                 held by the tree   free                32, 33 never held: the request in this run starts at offset 2

    Free runs are a stack, held slots a bitmap.
    """

    def __init__(self, num_slots: int, run: int) -> None:
        if run < 1 or num_slots < run or num_slots % run:
            raise ValueError(f"a pool of {num_slots} slots cannot be cut into runs of {run}")
        self.num_slots = num_slots
        self.run = run
        self.num_runs = num_slots // run
        self.reset()

    def reset(self) -> None:
        """Frees everything, and forgets what was ever held."""
        self._least_top = self.num_runs
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
        """Takes the rest of the run behind `slot`, if all of it is free: a request that continues a prefix may then go on in
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
        """Inconsistencies, if `owned` are all slots that have owners; empty if there are none."""
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


class ReqToToken:
    """Owns the rows. Entries of a free row are meaningless."""

    def __init__(self, num_rows: int, context_len: int) -> None:
        self.table: Int32Array = np.zeros((num_rows, context_len), dtype=np.int32)
        self.num_rows = num_rows
        self.context_len = context_len
        self._free = list(range(num_rows - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def alloc(self) -> int | None:
        """A free row, or None."""
        return self._free.pop() if self._free else None

    def free(self, row: int) -> None:
        assert row not in self._free
        self._free.append(row)

    def write_runs(self, row: int, start: int, bases: Int32Array, run: int) -> None:
        """Enters whole runs for positions from `start` on; `start` need not be aligned, `bases` are slots of aligned starts.
        Positions beyond the context have no entry."""
        first = start - start % run
        end = min(first + len(bases) * run, self.context_len)
        slots = (bases[:, None] + np.arange(run, dtype=np.int32)).reshape(-1)
        self.table[row, start:end] = slots[start - first : end - first]


class Holding:
    """KV memory held by one running request. `private`: none of it enters the tree before the end."""

    __slots__ = ("kv_len", "node", "private", "reserved_len", "row", "salt", "states", "tree_len")

    def __init__(self, row: int, match: Match, salt: Salt, private: bool) -> None:
        self.row = row
        self.node: TreeNode = match.node
        self.salt = salt
        self.private = private
        self.states: HeldStates | None = None
        self.tree_len = self.kv_len = self.reserved_len = len(match.slots)


class KvMemory:
    """Owner of the table, the allocator, the prefix tree and, for recurrent layers, the slots of states. `num_slots` is a multiple of
    `run`."""

    def __init__(
        self,
        num_slots: int,
        run: int,
        num_rows: int,
        context_len: int,
        page_size: int = 1,
        cached: bool = True,
        num_states: int = 0,
    ) -> None:
        """`num_states`: places for states; 0: the model has none."""
        self.allocator = PageAllocator(num_slots, run)
        self.rows = ReqToToken(num_rows, context_len)
        self.tree = (RadixCache if cached else ChunkCache)(self.allocator.free, page_size, run)
        self._kept: list[TreeNode] = []
        self.states = StateSlots(num_states, page_size) if num_states else None
        if self.states is not None:
            self.tree.dropping, self.states.copied = self.states.forget, self._kept
        self.run = run
        self.cached = cached
        self._holdings: dict[int, Holding] = {}
        self._reserved: list[Reserved] = []
        self.give_way: Callable[[], bool] | None = None
        """is called when a request gets no memory: gives up what is reserved or kept, and says whether that was anything"""
        self.closing: Callable[[TreeNode], None] | None = None
        """is called when a request ends, with the node where its ids end in the tree"""

    # --- counting (tokens) --------------------------------------------------------------------------------------------------

    @property
    def num_slots(self) -> int:
        return self.allocator.num_slots

    @property
    def num_available(self) -> int:
        """Free now or after eviction. Optimistic: a run that is held in part is of no use to others."""
        return self.allocator.num_slots - self.num_used

    @property
    def num_used(self) -> int:
        """Held for good: by requests, or by the tree under a lock. What is reserved is given up when a request needs it."""
        return self.allocator.num_held - self.tree.num_evictable - sum(len(reserved.slots) for reserved in self._reserved)

    def fits_alone(self, num_tokens: int) -> bool:
        """Whether a request of so many tokens could run with the pool to itself."""
        return self.allocator.runs_for(0, num_tokens) <= self.allocator.num_runs

    # --- a request's life ---------------------------------------------------------------------------------------------------

    def match(self, ids: Int32Array, salt: Salt) -> Match:
        """The cached prefix of `ids` that a request can begin from."""
        match = self.tree.match_prefix(ids, salt)
        return match if self.states is None else self.states.deepest(match)

    def open(self, match: Match, salt: Salt, private: bool = False, may_be_late: bool = False) -> Holding | None:
        """Takes a row for a request whose cached prefix is `match`, and locks that. None when all rows, or all states, are taken.
        `may_be_late`: a step of it may not count (`Flight.late`)."""
        row = self.rows.alloc()
        if row is None:
            return None
        hold = Holding(row, match, salt, private)
        if self.states is not None:
            num_states = 2 if may_be_late else 1
            hold.states = self.states.open(match, num_states)
            if hold.states is None and self.give_way is not None and self.give_way():
                hold.states = self.states.open(match, num_states)
            if hold.states is None:
                self.rows.free(row)
                return None
        self.rows.table[row, : hold.tree_len] = match.slots
        self.tree.lock(hold.node)
        self.tree.note_hit(hold.node)
        self._holdings[row] = hold
        return hold

    def grow(self, hold: Holding, end: int) -> bool:
        """Reserves slots for positions before `end`, evicting if it must. False when memory is short; then at most the rest
        of the run where the prefix ends is reserved."""
        start = hold.reserved_len
        if end <= start:
            return True
        offset = start % self.run
        if offset and self.allocator.claim_after(self._last_slot(hold)):
            self._write_rest_of_run(hold)
            return self.grow(hold, end)
        bases = self._alloc(self.allocator.runs_for(start, end), offset)
        if bases is None:
            return False
        self.rows.write_runs(hold.row, start, bases, self.run)
        hold.reserved_len = start - offset + len(bases) * self.run
        return True

    def grow_idle(self, hold: Holding, end: int) -> bool:
        """Like `grow`, for positions that may never be used: only while there is room for all requests."""
        if end <= hold.reserved_len:
            return True
        wanted = self.allocator.runs_for(hold.reserved_len, end)
        return (wanted + 2 * len(self._holdings)) * self.run <= self.num_available and self.grow(hold, end)

    def grow_by_one(self, holds: list[Holding]) -> bool:
        """Reserves the next position of each of `holds`, all of which have used up their runs. All or nothing."""
        bases = self._alloc(len(holds), 0)
        if bases is None:
            return False
        if self.run == 1:
            self.rows.table[[h.row for h in holds], [h.reserved_len for h in holds]] = bases
        for i, hold in enumerate(holds):
            if self.run > 1:
                self.rows.write_runs(hold.row, hold.reserved_len, bases[i : i + 1], self.run)
            hold.reserved_len += self.run
        return True

    def grow_far(self, hold: Holding, end: int) -> int:
        """Reserves as many positions before `end` as there is memory for, and returns the end reached."""
        if self.grow(hold, end):
            return end
        wanted = self.allocator.runs_for(hold.reserved_len, end)
        while self.allocator.num_free_runs < wanted and self.tree.evict(self.run):
            pass
        reachable = (hold.reserved_len // self.run + self.allocator.num_free_runs) * self.run
        self.grow(hold, min(reachable, end))
        return min(max(hold.reserved_len, hold.kv_len), end)

    def share(self, hold: Holding, ids: Int32Array) -> None:
        """Lets others use what is computed: `ids` are the first kv_len ids of the request. Where the tree has got the same
        prefix from someone else meanwhile, the request goes on with the tree's slots and frees its own."""
        if hold.private or not self.cached:
            return
        self._insert(hold, ids)
        if self.states is not None and hold.states is not None:
            self.states.share(hold.states, self.tree, ids[: hold.tree_len], hold.salt)

    def _insert(self, hold: Holding, ids: Int32Array) -> None:
        slots = self.rows.table[hold.row, : hold.kv_len]
        inserted = self.tree.insert(ids, slots, hold.salt)
        if inserted.tree_len <= hold.tree_len:
            return
        if inserted.existing_len > hold.tree_len:
            doubles = slots[hold.tree_len : inserted.existing_len].copy()
            match = self.tree.match_prefix(ids[: inserted.tree_len], hold.salt)
            slots[: inserted.tree_len] = match.slots
            self.allocator.free(doubles)
        self.tree.lock(inserted.node)
        self.tree.unlock(hold.node)
        hold.node, hold.tree_len = inserted.node, inserted.tree_len

    def close(self, hold: Holding, ids: Int32Array) -> None:
        """Ends the holding: what is computed goes into the tree, everything else is free. `ids` as in `share`."""
        slots = self.rows.table[hold.row]
        inserted = self.tree.insert(ids[: hold.kv_len], slots[: hold.kv_len], hold.salt)
        tree_len = max(inserted.tree_len, hold.tree_len)
        self.allocator.free(slots[hold.tree_len : max(inserted.existing_len, hold.tree_len)])
        self.allocator.free(self._slots_between(hold, tree_len, hold.reserved_len))
        if self.states is not None and hold.states is not None:
            self.states.share(hold.states, self.tree, ids[: inserted.tree_len], hold.salt)
            ends_here = inserted.tree_len == hold.kv_len > 0
            self.states.close(hold.states, inserted.node if ends_here else None)
        if self.closing is not None:
            self.closing(inserted.node)
        self.tree.unlock(hold.node)
        del self._holdings[hold.row]
        self.rows.free(hold.row)

    def plan_states(self, holds: Sequence[Holding], prompts: Sequence[tuple[Holding, int, int]]) -> StateRows | None:
        """Where the states of a step's requests are, in their order. `prompts`: those that compute ids of prompts, with where their
        rows end, and the prompt."""
        if self.states is None:
            return None
        for hold, end, fill_len in prompts:
            if hold.states is not None and self.cached and not hold.private:
                self.states.plan_saves(hold.states, hold.kv_len, end, fill_len)
        held = [hold.states for hold in holds if hold.states is not None]
        return state_rows(held, [hold.kv_len for hold in holds])

    def advance(self, hold: Holding, kv_len: int) -> None:
        """A step has computed the ids before `kv_len`."""
        hold.kv_len = kv_len
        if self.states is not None and hold.states is not None:
            self.states.commit(hold.states, kv_len)

    def stay(self, hold: Holding, end: int) -> None:
        """The request was late: the row of its last id, before `end`, is computed again, and where there are states, all of its rows."""
        if self.states is not None and hold.states is not None:
            self.states.undo(hold.states)
        else:
            hold.kv_len = end - 1

    def flush(self) -> bool:
        """Empties the prefix cache. False, and nothing done, while a request runs."""
        if self._holdings:
            return False
        if self.give_way is not None:
            self.give_way()
        self.tree.reset()
        if not self.allocator.num_held:
            self.allocator.reset()
        return True

    # --- prefixes that come from elsewhere, or go there -----------------------------------------------------------------------

    def reserve(self, match: Match, end: int, with_state: bool = False) -> Reserved | None:
        """Slots for what follows `match` up to `end`, a whole number of runs, from the beginning of the run in which that lies; none if
        `match` reaches as far. Locks `match`. None unless there is plenty for everyone."""
        start = end if len(match.slots) >= end else len(match.slots) // self.run * self.run
        self.tree.lock(match.node)
        slots = self._spare_slots((end - start) // self.run)
        state = self.states.reserve() if with_state and slots is not None and self.states is not None else -1
        if slots is None or state is None:
            if slots is not None:
                self.allocator.free(slots)
            self.tree.unlock(match.node)
            return None
        self._reserved.append(reserved := Reserved(match, start, slots, state))
        return reserved

    def _spare_slots(self, num_runs: int) -> Int32Array | None:
        spare = self.num_available - sum(len(reserved.slots) for reserved in self._reserved)
        if (num_runs + 2 * len(self._holdings)) * self.run > spare:
            return None
        bases = self._try_alloc(num_runs, 0)
        if bases is None:
            return None
        slots: Int32Array = (bases[:, None] + np.arange(self.run, dtype=np.int32)).reshape(-1).astype(np.int32)
        return slots

    def enter(self, reserved: Reserved, ids: Int32Array, salt: Salt) -> None:
        """Gives the tree the reserved slots of `ids`, which begin at position 0 and are there now, and the state at their end; all
        others are free."""
        start, slots = reserved.start, reserved.slots
        if len(ids) > reserved.tree_len:
            whole = np.zeros(len(ids), dtype=np.int32)
            whole[start:] = slots[: len(ids) - start]
            inserted = self.tree.insert(ids, whole, salt)
            taken_from, taken_to = inserted.existing_len - start, inserted.tree_len - start
            reserved.slots = np.concatenate([slots[:taken_from], slots[max(taken_to, taken_from) :]])
        if reserved.state >= 0 and self.states is not None:
            node = self.tree.match_prefix(ids, salt).node
            if node.end == len(ids):
                self.states.enter(node, reserved.state)
                reserved.state = -1
        self.release(reserved)

    def release(self, reserved: Reserved) -> None:
        """Frees what is reserved."""
        reserved.is_released = True
        self._reserved.remove(reserved)
        self.allocator.free(reserved.slots)
        if reserved.state >= 0 and self.states is not None:
            self.states.release(reserved.state)
        self.tree.unlock(reserved.node)

    def keep(self, node: TreeNode) -> None:
        """Locks a prefix that is copied, and the state at its end, until `let_go`."""
        self._kept.append(node)
        self.tree.lock(node)

    def let_go(self, node: TreeNode) -> None:
        self._kept.remove(node)
        self.tree.unlock(node)

    # --- inside -------------------------------------------------------------------------------------------------------------

    def _alloc(self, num_runs: int, offset: int) -> Int32Array | None:
        bases = self._try_alloc(num_runs, offset)
        if bases is None and self.give_way is not None and self.give_way():
            bases = self._try_alloc(num_runs, offset)
        return bases

    def _try_alloc(self, num_runs: int, offset: int) -> Int32Array | None:
        if num_runs > self.allocator.num_free_runs:
            if num_runs * self.run > self.num_available:
                return None  # even an empty cache would not be enough
            while (short := num_runs - self.allocator.num_free_runs) > 0:
                if not self.tree.evict(short * self.run):
                    return None
        return self.allocator.alloc(num_runs, offset)

    def _last_slot(self, hold: Holding) -> int:
        return int(self.rows.table[hold.row, hold.reserved_len - 1])

    def _write_rest_of_run(self, hold: Holding) -> None:
        start = hold.reserved_len
        end = start - start % self.run + self.run
        slot = self._last_slot(hold) + 1
        width = self.rows.context_len
        self.rows.table[hold.row, start : min(end, width)] = np.arange(slot, slot + min(end, width) - start)
        hold.reserved_len = end

    def _slots_between(self, hold: Holding, start: int, end: int) -> Int32Array:
        """Slots of own positions. Reserved positions may lie beyond the table; their slots follow from the last entry."""
        width = self.rows.context_len
        slots = self.rows.table[hold.row, start : min(end, width)]
        if end <= width or start >= end:
            return slots
        base = int(self.rows.table[hold.row, width - 1]) - (width - 1)
        return np.concatenate([slots, np.arange(max(start, width), end, dtype=np.int32) + base]).astype(np.int32)

    def check_integrity(self) -> list[str]:
        """Inconsistencies of slots, rows and trees; empty if there are none."""
        owned = [self.tree.slots()]
        owned += [self._slots_between(h, h.tree_len, h.reserved_len) for h in self._holdings.values()]
        owned += [reserved.slots for reserved in self._reserved]
        problems = self.tree.check() + self.allocator.check(np.concatenate(owned))
        if self.states is not None:
            problems += self.states.check(self.tree.nodes())
        if self.rows.num_free + len(self._holdings) != self.rows.num_rows:
            problems.append(f"{self.rows.num_free} free rows and {len(self._holdings)} taken of {self.rows.num_rows}")
        locks = sum(h.node.end for h in self._holdings.values())
        locks += sum(node.end for node in [*(reserved.node for reserved in self._reserved), *self._kept])
        if not locks and self.tree.num_locked:
            problems.append(f"{self.tree.num_locked} tokens are locked by nobody")
        return problems
