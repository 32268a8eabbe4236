"""Records which grammars native code is working on, in a file that outlives this process.

    scheduler process                                       server
    enter: digests of the grammars --> slot of the file     after a death: `read_journal`
    native call                        (mapped memory)      these grammars are refused by the next scheduler
    leave: the slot is empty

A crash in a grammar engine kills the process during a call, and the digests stay in the slot. Every thread that enters takes a slot
of its own and writes its thread number there, since the crash may be in another thread. Entering and leaving cost about a microsecond
together, and steps without grammars write nothing.

    slot    | count, raised: a byte each | thread, 8 bytes | digest, 16 bytes | digest | ...      count 0: nobody is inside
"""

from __future__ import annotations

import hashlib
import mmap
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.engines.base import GrammarBackend, GrammarState, UInt32Array

P = ParamSpec("P")
T = TypeVar("T")

DIGEST_SIZE = 16
MAX_DIGESTS = 255
"""of one call; more distinct grammars than that in one step are not noted"""
NUM_SLOTS = 32
_COUNT_SIZE = 2
_HEAD_SIZE = _COUNT_SIZE + 8
_SLOT_SIZE = _HEAD_SIZE + MAX_DIGESTS * DIGEST_SIZE


def grammar_digest(kind: str, text: str, prefix: str = "") -> bytes:
    """Names a grammar; equal for equal arguments of `GrammarBackend.compile`."""
    parts = (part.encode(errors="surrogatepass") for part in (kind, text, prefix))
    return hashlib.blake2b(b"".join(len(p).to_bytes(8, "little") + p for p in parts), digest_size=DIGEST_SIZE).digest()


class _Slot:
    """A place in the file, and what is written there."""

    __slots__ = ("at", "count", "digests", "thread")

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0
        self.digests: Sequence[bytes] = ()
        self.thread = 0


class GrammarJournal:
    """Owner of the file, which it creates. Used by any thread."""

    def __init__(self, path: Path) -> None:
        with path.open("w+b") as file:
            file.truncate(NUM_SLOTS * _SLOT_SIZE)
            self._map = mmap.mmap(file.fileno(), NUM_SLOTS * _SLOT_SIZE)
        self._free = deque(_Slot(at) for at in range(0, NUM_SLOTS * _SLOT_SIZE, _SLOT_SIZE))

    def call(self, digests: Sequence[bytes], work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A native call on these grammars. If it raises, it stays in the journal: its error ends the scheduler."""
        slot = self._enter(digests)
        try:
            result = work(*args, **kwargs)
        except BaseException:
            self._map[slot.at + 1] = 1  # the slot is not used again
            raise
        self._map[slot.at] = 0
        self._free.append(slot)
        return result

    def try_call(self, digests: Sequence[bytes], work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same where an error is told to a request, and nothing ends with it."""
        slot = self._enter(digests)
        try:
            return work(*args, **kwargs)
        finally:
            self._map[slot.at] = 0
            self._free.append(slot)

    def _enter(self, digests: Sequence[bytes]) -> _Slot:
        slot = self._free.pop()  # there are more of them than threads
        thread = threading.get_ident()
        if (
            slot.digests is not digests or slot.thread != thread
        ):  # the last to leave is the first to enter: mostly they are the same
            slot.digests, slot.thread, slot.count = digests, thread, min(len(digests), MAX_DIGESTS)
            data = thread.to_bytes(8, "little") + b"".join(digests[: slot.count])
            begin = slot.at + _COUNT_SIZE
            self._map[begin : begin + len(data)] = data
        self._map[slot.at] = slot.count
        return slot


@dataclass(frozen=True)
class Entry:
    """The work of a thread (its threading.get_ident()) when its process died. `raised`: the call had raised."""

    thread: int
    digests: frozenset[bytes]
    raised: bool


def read_journal(path: Path) -> list[Entry]:
    """Reads what a process that has died was working on. Empty if it kept no journal."""
    try:
        data = path.read_bytes()
    except OSError:
        return []
    slots = (data[at : at + _SLOT_SIZE] for at in range(0, len(data) - _SLOT_SIZE + 1, _SLOT_SIZE))
    return [_entry(slot) for slot in slots if slot[0]]


def _entry(slot: bytes) -> Entry:
    end = _HEAD_SIZE + slot[0] * DIGEST_SIZE
    digests = frozenset(slot[at : at + DIGEST_SIZE] for at in range(_HEAD_SIZE, end, DIGEST_SIZE))
    return Entry(int.from_bytes(slot[_COUNT_SIZE:_HEAD_SIZE], "little"), digests, bool(slot[1]))


class NotedState:
    """A GrammarState whose native calls are in the journal."""

    __slots__ = ("__weakref__", "_journal", "digest", "state")

    def __init__(self, state: GrammarState, digest: tuple[bytes], journal: GrammarJournal) -> None:
        self.state = state
        self.digest = digest
        self._journal = journal

    @property
    def is_finished(self) -> bool:
        return self.state.is_finished

    @property
    def error(self) -> str | None:
        return self.state.error

    @property
    def unenforced(self) -> tuple[str, ...]:
        return self.state.unenforced

    def fill_mask(self, out: UInt32Array) -> None:
        self._journal.call(self.digest, self.state.fill_mask, out)

    def accept(self, token_id: int) -> bool:
        return self._journal.call(self.digest, self.state.accept, token_id)

    def accept_all(self, token_ids: list[int]) -> bool:
        return self._journal.call(self.digest, self.state.accept_all, token_ids)

    def rollback(self, num_tokens: int) -> bool:
        return self._journal.call(self.digest, self.state.rollback, num_tokens)

    def forced_tokens(self) -> list[int]:
        return self._journal.call(self.digest, self.state.forced_tokens)

    def copy(self) -> NotedState:
        return NotedState(self._journal.call(self.digest, self.state.copy), self.digest, self._journal)


class NotedBackend:
    """A GrammarBackend whose native calls are in the journal, and which refuses the grammars that killed a scheduler before:
    `refused` are their digests in hexadecimal."""

    def __init__(self, backend: GrammarBackend, journal: GrammarJournal, refused: Sequence[str]) -> None:
        self._backend = backend
        self._journal = journal
        self._refused = {bytes.fromhex(digest) for digest in refused}

    @property
    def num_words(self) -> int:
        return self._backend.num_words

    def prepare(self) -> None:
        self._backend.prepare()

    def compile(self, kind: str, text: str, prefix: str = "") -> NotedState:
        digest = (grammar_digest(kind, text, prefix),)
        if digest[0] in self._refused:
            raise GrammarError(f"{kind}: the grammar engine crashed on this constraint; it is refused from now on", kind)
        args = (kind, text, prefix) if prefix else (kind, text)
        return NotedState(self._journal.try_call(digest, self._backend.compile, *args), digest, self._journal)

    def fill_masks(self, states: Sequence[GrammarState], out: UInt32Array) -> None:
        noted = [state for state in states if isinstance(state, NotedState)]
        assert len(noted) == len(states), "all states are made by `compile`"
        digests = noted[0].digest if len(noted) == 1 else tuple({state.digest[0] for state in noted})
        self._journal.call(digests, self._backend.fill_masks, [state.state for state in noted], out)
