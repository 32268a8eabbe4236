"""The scheduler's side of the prefix cache on disk: what is read and written, and when. All of it runs on the scheduler's thread, between
steps, and does nothing that waits.

    begin       a request has come, and the disk knows more of its prefix than the tree: a Load
    poll        loads that are done are entered into the tree; nodes whose records are written are unlocked
    reused      a request has found its prefix in the tree: a Save
    evicting    the tree is about to drop the end of a prefix: copies of its records, as far as the staging buffer has room
    give_way    a request needs memory that jobs hold: they are cancelled
    drain       the scheduler ends: what is left in the tree, as far as the time suffices
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sglang.common.lru import LruCache
from sglang.srt.forward_batch import Int32Array, KVRuns, StateBytes
from sglang.srt.scheduler.cache.disk.names import Names, Prefix
from sglang.srt.scheduler.cache.disk.pace import Pace
from sglang.srt.scheduler.cache.disk.state_records import StateLoad, StateRecords, StateSave, staged
from sglang.srt.scheduler.cache.disk.store import Store
from sglang.srt.scheduler.cache.disk.transfers import Load, Rescan, Save, Staged, TransferThread
from sglang.srt.scheduler.cache.kv_memory import KvMemory
from sglang.srt.scheduler.cache.radix_cache import Salt, TreeNode
from sglang.srt.scheduler.cache.reserved import Reserved

WritePolicy = Literal["write_through", "write_through_selective", "write_back"]
"""when a prefix is written: as soon as it is computed, when it is found again, or when the pool drops it; the first two write it then as
well if it is not there"""
STAGED_BYTES = 64 << 20
STEP_BYTES = 8 << 20
"""copied of what is evicted between two steps: a millisecond or two"""
KEPT_SHARE = 4
"""saves lock at most a pool divided by this"""
SAVE_SECONDS = 30.0
STALL_SECONDS = 1.0
"""without a record read, after which requests wait no longer"""
DRAIN_SECONDS = 3.0
NUM_NODES = 512
"""nodes of which it is remembered what was done for them"""


@dataclass
class _Loading:
    load: Load
    reserved: Reserved
    ids: Int32Array
    salt: Salt
    until: float


@dataclass(frozen=True)
class Loaded:
    """Of a load that has ended: it brought tokens [start, end). `may_retry`: there may be more."""

    load: Load
    start: int
    end: int
    may_retry: bool

    @property
    def tier(self) -> str:
        """The slowest that it read from."""
        return "host" if set(self.load.num_tier) == {"host"} else "disk"


class DiskTier:
    """Owner of the jobs. `is_shared`: all clients share the records that have one salt."""

    def __init__(
        self,
        store: Store,
        runs: KVRuns,
        memory: KvMemory,
        finish: Callable[[], None],
        is_shared: bool,
        pace: Pace | None = None,
        policy: WritePolicy = "write_through_selective",
        states: StateBytes | None = None,
    ) -> None:
        """`finish` waits for the step that is on its way, which may still write to slots that are free. `states`: of recurrent layers."""
        self.store = store
        self._finish = finish
        self.pace = pace or Pace()
        self._runs, self._memory = runs, memory
        self.names = Names(store.form.fingerprint, is_shared)
        self._reader = TransferThread("sglang-cache-read", store, runs)
        self._writer = TransferThread("sglang-cache-write", store, runs)
        self._loading: list[_Loading] = []
        self._of_key: dict[bytes, Load] = {}
        self._overdue: Load | None = None
        self._progress, self._moved_at = 0, 0.0
        self._saving: list[tuple[Save, TreeNode, float]] = []
        self._staged: list[Staged] = []
        self._copied_bytes = 0
        self._saved: LruCache[int, int] = LruCache(NUM_NODES)
        self._keys: LruCache[int, list[bytes]] = LruCache(NUM_NODES)
        self.num_read = 0
        """records read"""
        self._policy = policy
        memory.give_way, memory.tree.evicting = self.give_way, self.evicting
        self._states = StateRecords(states, runs) if states is not None else None
        if memory.states is not None:
            memory.states.dropping = self._dropping
        if policy == "write_through":
            memory.closing = self._closing

    @property
    def is_busy(self) -> bool:
        """Whether `poll` has something to wait for."""
        return bool(self._loading or self._saving or self._staged)

    @property
    def stats(self) -> dict[str, int]:
        """Records and bytes that are there; records written, read, and found damaged since the scheduler started."""
        return self.store.counts | {"read": self.num_read}

    # --- reading --------------------------------------------------------------------------------------------------------------

    def begin(self, ids: Int32Array, salt: Salt) -> Load | None:
        """Starts to read what the disk holds of a prefix beyond the tree, if that is worth waiting for. Another request's load of the
        same records is returned for this one, too."""
        if self.store.is_stale:
            self._reader.put(Rescan())
        if not len(self.store) or (self._overdue is not None and not self._overdue.is_done):
            return None
        prefix = self.names.prefix(ids, salt)
        if self._states is not None:
            return self._begin_state(prefix, ids[: len(prefix)], salt, self._states)
        return self._begin_runs(prefix, ids[: len(prefix)], salt)

    def _begin_runs(self, prefix: Prefix, ids: Int32Array, salt: Salt) -> Load | None:
        run, tree = self._runs.run, self._memory.tree
        if len(ids) < run:
            return None
        cached, _ = tree.match_len(ids, salt)
        first = cached // run
        keys = prefix.cut((first + 1) * run).keys(run)
        if first >= len(keys) or not (self.store.has(keys[first]) or keys[first] in self._of_key):
            return None
        if (load := self._of_key.get(keys[first])) is not None:
            return load
        records = self.store.find(prefix.keys(run, keys), prefix.ids, first)
        num_new = (first + len(records)) * run - cached
        if not records or not self.pace.is_worth(num_new, len(records) * self._runs.run_bytes):
            return None
        end = (first + len(records)) * run
        reserved = self._memory.reserve(tree.match_prefix(ids, salt), end)
        if reserved is None:
            return None
        load = Load(records, reserved.slots[::run].tolist())
        return self._start(load, reserved, ids[:end], salt, num_new)

    def _begin_state(self, prefix: Prefix, ids: Int32Array, salt: Salt, states: StateRecords) -> Load | None:
        """As `_begin_runs`, up to the deepest state that the disk has, with those keys and values before it that the tree lacks."""
        run, tree, store = self._runs.run, self._memory.tree, self.store
        assert self._memory.states is not None
        cached, node = tree.match_len(ids, salt)
        known, first = self._memory.states.deepest_at(node, cached), cached // run
        keys = prefix.cut((first + 1) * run).keys(run)
        if first < len(keys) and store.has(keys[first]):
            keys = prefix.keys(run, keys)
        else:
            keys = keys[:first]
        kv = store.find(keys, prefix.ids, first)
        for place in states.deepest(store, prefix, keys[: first + len(kv)], known, tree.page_size):
            if (load := self._of_key.get(place.keys[-1])) is not None:
                return load
            is_cached = cached >= place.end
            skipped = int(is_cached and place.tail_len > 0)
            if not (found := states.find(store, place, skipped)):
                continue
            records = [*kv[: max(place.end // run - first, 0)], *found]
            num_new = place.end - known
            if not self.pace.is_worth(num_new, len(records) * self._runs.run_bytes):
                return None
            end = place.end if is_cached else -(-place.end // run) * run
            reserved = self._memory.reserve(tree.match_prefix(ids[: place.end], salt), end, with_state=True)
            if reserved is None:
                return None
            state_load = StateLoad(records, reserved.slots[::run].tolist(), states, place, reserved.state, skipped, known)
            return self._start(state_load, reserved, ids[: place.end], salt, num_new)
        return None

    def _start(self, load: Load, reserved: Reserved, ids: Int32Array, salt: Salt, num_new: int) -> Load:
        self._finish()
        if not self._loading:
            self._moved_at = time.monotonic()
        self._loading.append(_Loading(load, reserved, ids, salt, time.monotonic() + self.pace.patience(num_new)))
        self._of_key.update((key, load) for key in load.keys)
        self._reader.put(load)
        return load

    def poll(self) -> list[Loaded]:
        """Brings everything up to date. Returns the loads that have ended."""
        self._copied_bytes = 0
        if not self.is_busy:
            return []
        self._staged = [job for job in self._staged if not job.is_done]
        now = time.monotonic()
        for saving in [saving for saving in self._saving if saving[0].is_done or now > saving[2]]:
            self._end_save(saving)
        progress = self.num_read + sum(loading.load.num_read for loading in self._loading)
        if progress != self._progress:
            self._progress, self._moved_at = progress, now
        ended = []
        for loading in list(self._loading):
            is_late = now > loading.until or now > self._moved_at + STALL_SECONDS
            if loading.load.is_done or loading.load.is_cancelled or is_late:
                ended.append(self._end_load(loading, is_late))
        return ended

    def _end_load(self, loading: _Loading, is_late: bool) -> Loaded:
        load = loading.load
        self._loading.remove(loading)
        for key in load.keys:
            self._of_key.pop(key, None)
        is_done = load.is_done
        if not is_done:
            load.cancel()
            if is_late:
                self._overdue = load
        start, num_read = loading.reserved.tree_len, load.num_read
        if loading.reserved.is_released:
            return Loaded(load, start, start, False)
        end = loading.reserved.start + num_read * self._runs.run
        if isinstance(load, StateLoad):
            if not load.is_whole:
                self._memory.release(loading.reserved)
                return Loaded(load, start, start, is_done)
            start, end = load.known, len(loading.ids)
        self._memory.enter(loading.reserved, loading.ids[:end], loading.salt)
        self.num_read += num_read
        if is_done and num_read:
            self.pace.note_read(num_read * self._runs.run_bytes, load.seconds)
        return Loaded(load, start, max(start, end), is_done)

    def give_way(self) -> bool:
        """Gives up all memory that jobs hold. False if that is none."""
        held = bool(self._loading or self._saving)
        for loading in self._loading:
            loading.load.cancel()
            if not loading.reserved.is_released:
                self._memory.release(loading.reserved)
        for saving in list(self._saving):
            self._end_save(saving)
        return held

    # --- writing --------------------------------------------------------------------------------------------------------------

    def reused(self, ids: Int32Array, slots: Int32Array, node: TreeNode, salt: Salt) -> None:
        """A request has found the prefix `ids`, in `slots`, which ends at `node`: it is worth keeping."""
        if self._policy != "write_back":
            self._save(ids, slots, node, salt)

    def _closing(self, node: TreeNode) -> None:
        """A request has ended whose prefix ends at `node`."""
        if node.parent is not None:
            ids, slots, salt = node.path()
            self._save(ids, slots, node, salt)

    def _save(self, ids: Int32Array, slots: Int32Array, node: TreeNode, salt: Salt) -> None:
        is_known = self._saved.get(node.id) is not None or any(node is other for _, other, _ in self._saving)
        if is_known or not self.store.writes:
            return
        save = self._make_save(self.names.prefix(ids, salt), slots, node)
        kept = sum(save.num_tokens for save, _, _ in self._saving)
        if save is None or (kept + save.num_tokens) * KEPT_SHARE > self._memory.num_slots:
            return
        self._memory.keep(node)
        self._saving.append((save, node, time.monotonic() + SAVE_SECONDS))
        self._writer.put(save)

    def _make_save(self, prefix: Prefix, slots: Int32Array, node: TreeNode) -> Save | None:
        """Of what can be named and is of use. With recurrent layers, of a prefix with the state at its end, and nothing else."""
        if self._states is not None:
            if node.state < 0 or len(prefix) < node.end:
                return None
            return StateSave(prefix.cut(node.end), slots.copy(), self._states, node.state)
        num_tokens = len(prefix) // self._runs.run * self._runs.run
        return Save(prefix.cut(num_tokens), slots[:num_tokens].copy()) if num_tokens else None

    def _end_save(self, saving: tuple[Save, TreeNode, float]) -> None:
        save, node, _ = saving
        if save.is_complete:
            self._saved.put(node.id, save.num_tokens)
        elif not save.is_done:
            save.cancel()
        self._saving.remove(saving)
        self._memory.let_go(node)

    @property
    def _staging_room(self) -> int:
        return min(STEP_BYTES - self._copied_bytes, STAGED_BYTES - len(self._staged) * self._runs.run_bytes)

    def evicting(self, node: TreeNode, keep_len: int) -> None:
        """The tree is about to drop all but the first `keep_len` ids of `node`."""
        room = self._staging_room
        if room < self._runs.run_bytes or not self.store.writes:
            return
        if self._states is not None and not self._states.fits(STEP_BYTES):  # then its state will not be there
            return
        run, (ids, slots, salt) = self._runs.run, node.path()
        prefix = self.names.prefix(ids, salt)
        if len(prefix) < run:
            return
        keys = prefix.keys(run, self._keys.get(node.id) or ())
        self._keys.put(node.id, keys)
        for i in range((node.end - len(node.ids) + keep_len) // run, len(keys)):
            if room < self._runs.run_bytes:
                break
            if self.store.has(keys[i]):
                continue
            payload, part = np.empty(self._runs.run_bytes, np.uint8), slice(run * i, run * (i + 1))
            self._runs.read(slots[part], payload)
            room -= len(payload)
            self._copied_bytes += len(payload)
            staged = Staged(keys[i], keys[i - 1] if i else prefix.root, prefix.ids[part].copy(), payload)
            self._staged.append(staged)
            self._writer.put(staged)

    def _dropping(self, node: TreeNode) -> None:
        """The tree is about to lose the state at the end of `node`."""
        is_flushed = self._memory.tree.evicting is None
        if self._states is None or is_flushed or not self.store.writes or not self._states.fits(self._staging_room):
            return
        ids, slots, salt = node.path()
        prefix = self.names.prefix(ids, salt)
        if len(prefix) < len(ids):
            return
        place = self._states.place(prefix, prefix.keys(self._runs.run, self._keys.get(node.id) or ()), len(ids))
        if self.store.has(place.keys[-1]):
            return
        for job in staged(self._states, place, node.state, slots):
            self._copied_bytes += len(job.payload)
            self._staged.append(job)
            self._writer.put(job)

    def drain(self, seconds: float = DRAIN_SECONDS) -> None:
        """Writes what the tree holds, last used first, for at most so long. Nothing runs any more."""
        until = time.monotonic() + seconds
        self.give_way()
        self.poll()
        if not self._writer.close(seconds) or not self.store.survives:
            return
        ends = [
            node for node in self._memory.tree.nodes() if (node.state >= 0 if self._states is not None else not node.children)
        ]
        for node in sorted(ends, key=lambda node: -node.last_access):
            ids, slots, salt = node.path()
            save = self._make_save(self.names.prefix(ids, salt), slots, node)
            if save is None:
                continue
            save.until = until
            save.run(self.store, self._runs)
            if time.monotonic() > until or not self.store.writes:
                break
        self.store.settle(until)

    def close(self) -> None:
        """Ends the threads, unless the disk holds them."""
        self.give_way()
        ended = [thread.close(1.0) for thread in (self._reader, self._writer)]
        if all(ended):
            self.store.close()


OpenTier = Callable[[KvMemory, Callable[[], None]], DiskTier]
"""makes the tier for a scheduler's memory and its worker's `finish`"""
