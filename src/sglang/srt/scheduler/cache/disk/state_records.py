"""States of recurrent layers on disk: which records a state lies in, and how they are found.

A state belongs to one position, which is seldom the end of a record. So it brings the keys and values of the tokens between:

    position       0              16              32         p = 41
    records        | keys, values | keys, values  |
    of the state                                  | keys, values of the last 9 | bytes of the state | ... | its last bytes, zeros

All of them are records like others: checked, compared, forgotten with their segments. A state is used only if all are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.forward_batch import Int32Array, KVRuns, StateBytes
from sglang.srt.scheduler.cache.disk.names import Prefix
from sglang.srt.scheduler.cache.disk.records import NO_TOKEN, state_keys
from sglang.srt.scheduler.cache.disk.store import Store
from sglang.srt.scheduler.cache.disk.transfers import Load, Save, Staged

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class StatePlace:
    """The records of a state at `end`. `parent`: the key of the record before them; `ids`: those of each; `tail_len`: tokens after the
    last whole record, whose keys and values the first one has, if there are any."""

    end: int
    tail_len: int
    parent: bytes
    ids: Int32Array
    keys: list[bytes]


class StateRecords:
    """States of `memory`, cut into records of `runs.run_bytes`."""

    def __init__(self, memory: StateBytes, runs: KVRuns) -> None:
        self.memory = memory
        self._runs = runs

    def fits(self, room: int) -> bool:
        """Whether the records of any state take no more bytes than that."""
        return self.memory.num_bytes + 2 * self._runs.run_bytes <= room

    def place(self, prefix: Prefix, keys: Sequence[bytes], end: int, most: int | None = None) -> StatePlace:
        """Of the state at `end` of a prefix, of whose whole records `keys` are known, as far as that. `most`: only so many of its keys."""
        run = self._runs.run
        first = end // run * run
        ids = np.full(run, NO_TOKEN, np.int32)
        ids[: end - first] = prefix.ids[first:end]
        parent = keys[end // run - 1] if end >= run else prefix.root
        num = -(-self.memory.num_bytes // self._runs.run_bytes) + (end > first)
        num = num if most is None else min(num, most)
        data = ids.astype("<i4").tobytes()
        return StatePlace(end, end - first, parent, ids, state_keys(parent, data, num, prefix.digests_in(first, end)))

    def deepest(self, store: Store, prefix: Prefix, keys: Sequence[bytes], after: int, page_size: int) -> Iterator[StatePlace]:
        """States of a prefix at positions beyond `after`, the deepest first, as far as `keys` go and less than a record further, of which
        the beginning is there."""
        run = self._runs.run
        for i in range(len(keys), after // run - 1, -1):
            lengths = store.tail_lens(keys[i - 1] if i else prefix.root)
            for end in (run * i + length for length in sorted(lengths, reverse=True)):
                is_wanted = after < end <= len(prefix) and end % page_size == 0
                # Most are another text's: the first key tells, and a large state has hundreds.
                if is_wanted and store.has(self.place(prefix, keys, end, 1).keys[0]):
                    yield self.place(prefix, keys, end)

    def find(self, store: Store, place: StatePlace, first: int) -> Sequence[Any]:
        """Its records from number `first` on; empty unless all are there."""
        found = store.find(place.keys, np.tile(place.ids, len(place.keys)), first)
        return found if len(found) == len(place.keys) - first else ()

    def pieces(self, place: StatePlace, slot: int, slots: Int32Array) -> Iterator[tuple[bytes, bytes, Bytes]]:
        """(key, key before, payload) of all records of a state in `slot`; `slots` [end]: of its prefix. Payloads share their memory."""
        buffer, parent = np.empty(self._runs.run_bytes, np.uint8), place.parent
        for i, key in enumerate(place.keys):
            self.read(place, slot, slots, i, buffer)
            yield key, parent, buffer
            parent = key

    def read(self, place: StatePlace, slot: int, slots: Int32Array, i: int, out: Bytes) -> None:
        """The payload of record i."""
        at = i - (place.tail_len > 0)
        if at < 0:
            self._runs.read(slots[place.end - place.tail_len : place.end], out)
        else:
            self.memory.read(slot, at * self._runs.run_bytes, out)

    def write(self, place: StatePlace, slot: int, kv_slot: int, i: int, data: Bytes) -> None:
        """Puts what `read` gave into `slot`, or the run that begins at `kv_slot`."""
        at = i - (place.tail_len > 0)
        if at < 0:
            self._runs.write(kv_slot, data)
        else:
            self.memory.write(slot, at * self._runs.run_bytes, data)


class StateLoad(Load):
    """Reads `records` of keys and values into the runs at `slots`, and then those of a state, from number `first` on, into `state_slot`."""

    def __init__(
        self,
        records: Sequence[Any],
        slots: Sequence[int],
        states: StateRecords,
        place: StatePlace,
        state_slot: int,
        first: int,
        known: int,
    ) -> None:
        """`known`: how far the tree has a state."""
        super().__init__(records, slots)
        self.known = known
        self._states, self._place, self._state_slot = states, place, state_slot
        self._num_runs = len(records) - (len(place.keys) - first)
        self._first = first

    @property
    def is_whole(self) -> bool:
        """Whether all of it is there: a part is of no use."""
        return self.num_read == len(self._records)

    @property
    def keys(self) -> list[bytes]:
        return [record.entry.key for record in self._records[self._num_runs :]]

    def _put(self, runs: KVRuns, i: int, data: Bytes) -> None:
        if i < self._num_runs:
            super()._put(runs, i, data)
        else:
            kv_slot = self._slots[self._num_runs] if len(self._slots) > self._num_runs else -1
            self._states.write(self._place, self._state_slot, kv_slot, self._first + i - self._num_runs, data)


class StateSave(Save):
    """Writes the records of a prefix that the store lacks, and those of the state at its end, which is in `state_slot`. `slots` [end]."""

    def __init__(self, prefix: Prefix, slots: Int32Array, states: StateRecords, state_slot: int) -> None:
        super().__init__(prefix, slots)
        self._states, self._state_slot = states, state_slot

    def run(self, store: Store, runs: KVRuns) -> None:
        super().run(store, runs)
        if not self.is_complete:
            return
        self.is_complete = False
        place = self._states.place(self._prefix, self._prefix.keys(runs.run), len(self._prefix))
        buffer, parent = np.empty(runs.run_bytes, np.uint8), place.parent
        for i, key in enumerate(place.keys):
            if not store.has(key):
                if not self._may_go_on:
                    return
                with self._pool:
                    if self.is_cancelled:
                        return
                    self._states.read(place, self._state_slot, self._slots, i, buffer)
                if not self._append(store, key, parent, place.ids, buffer):
                    return
            parent = key
        self.is_complete = True


def staged(states: StateRecords, place: StatePlace, slot: int, slots: Int32Array) -> list[Staged]:
    """Copies of a state's records, to be written when it has left the pool."""
    return [Staged(key, parent, place.ids, data.copy()) for key, parent, data in states.pieces(place, slot, slots)]
