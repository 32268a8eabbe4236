"""Which replica gets a request: the one where it costs least. Pure: no processes, no clock, no other module of this package.

    cost = weight x seconds to prefill what is missing in the cache there + crowd x seconds of work that is there already
    weight = 1 + (WEIGHT - 1) / (1 + HOT x requests that run with this prefix / requests that run on a replica, on average)
    crowd = 1 + CROWD x requests that are there / requests that run on a replica, on average

One number decides, and there are no thresholds: a replica that has the prefix keeps its requests until its queue costs more than computing
the prefix elsewhere, `weight` times. The weight is above one since a prefix that is computed on one more replica takes cache from others
there. For one that many requests have it comes near one: those requests are too many for a replica, and one more copy serves a lot of them.
Work counts more where many wait for it, so that no replica has many more requests than others. benchmarks/routing.py measures it.

What a replica has cached is not asked but remembered: the hashed blocks of the prompts that it was sent, the latest ones, as many as its
KV pool holds.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

WEIGHT, HOT, CROWD = 10.0, 8.0, 0.4
FEW = 8.0
"""running requests that are not too many for any replica"""
BLOCK_IDS = 64
"""tokens of a block"""
DIGEST_BYTES = 8
FIRST_OUTPUT_LEN = 128.0
"""tokens that an answer is expected to have, until some have ended"""
MEMORY = 0.05
"""weight of the last answer in the mean of their lengths"""


@dataclass(frozen=True)
class Costs:
    """Seconds of a token, of the prompt and of the answer, where a replica's steps are full."""

    prefill: float = 1.0
    decode: float = 1.5


def block_hashes(seed: Iterable[bytes], pieces: Iterable[bytes]) -> list[bytes]:
    """Chained digests of the pieces of a prompt: each stands for all before it too. `seed`: what keeps equal texts apart (model, adapter,
    salt, digests of images)."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in seed:
        state.update(len(part).to_bytes(4, "little") + part)
    found = []
    for piece in pieces:
        state.update(piece)
        found.append(state.digest())
    return found


@dataclass
class _Work:
    """A request that a replica has. `prefill`, `decode`: tokens that are still to come."""

    replica: int
    blocks: Sequence[bytes]
    prefill: int
    decode: float
    max_decode: int
    num_out: int = 0


@dataclass
class _Replica:
    """`blocks`: what was sent there, the latest last. `prefill`, `decode`: tokens of all its work."""

    max_blocks: int
    blocks: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    prefill: int = 0
    decode: float = 0.0
    num_requests: int = 0
    is_up: bool = True


class PrefixPolicy:
    """Owner of what is known of all replicas. `pool_tokens`: of a replica's KV pool. Everything happens on one thread."""

    def __init__(self, num_replicas: int, pool_tokens: int, costs: Costs | None = None, weight: float = WEIGHT) -> None:
        self._pool_tokens = pool_tokens
        self._replicas = [_Replica(max(pool_tokens // BLOCK_IDS, 1)) for _ in range(num_replicas)]
        self._costs = costs or Costs()
        self._weight = weight
        self._work: dict[Hashable, _Work] = {}
        self._running: Counter[bytes] = Counter()
        """blocks of the prompts of all requests that run"""
        self._output_len = FIRST_OUTPUT_LEN
        self._last = 0

    # --- requests -----------------------------------------------------------------------------------------------------------

    def rank(self, blocks: Sequence[bytes], prompt_len: int) -> list[int]:
        """The replicas that are up, the best one for a request first; of equal ones, they take turns."""
        missing = {index: self._missing(replica, blocks, prompt_len) for index, replica in self._up()}
        if not missing:
            return []
        weight = self._weight_of(blocks, prompt_len - min(missing.values()))
        count = len(self._replicas)
        return sorted(missing, key=lambda i: (self._cost(self._replicas[i], missing[i], weight), (i - self._last - 1) % count))

    def send(self, name: Hashable, blocks: Sequence[bytes], prompt_len: int, max_new_tokens: int) -> int:
        """Chooses the replica of a request and notes that it has it. Raises LookupError if none is up."""
        order = self.rank(blocks, prompt_len)
        if not order:
            raise LookupError("no replica is up")
        self.send_to(order[0], name, blocks, prompt_len, max_new_tokens)
        return order[0]

    def send_to(self, index: int, name: Hashable, blocks: Sequence[bytes], prompt_len: int, max_new_tokens: int) -> None:
        """Notes that a replica has a request."""
        self._last = index
        replica = self._replicas[index]
        missing = self._missing(replica, blocks, prompt_len)
        work = _Work(index, blocks, missing, min(self._output_len, max_new_tokens), max_new_tokens)
        self._work[name] = work
        self._running.update(blocks)
        replica.prefill += work.prefill
        replica.decode += work.decode
        replica.num_requests += 1
        self._remember(replica, blocks)

    def progress(self, name: Hashable, num_ids: int) -> None:
        """So many tokens of its answer have come: the prompt is computed."""
        work = self._work.get(name)
        if work is None:
            return
        replica = self._replicas[work.replica]
        replica.prefill -= work.prefill
        work.prefill = 0
        work.num_out += num_ids
        # one that is longer than expected is expected to end soon, again and again
        left = max(
            min(self._output_len, work.max_decode) - work.num_out, min(work.max_decode - work.num_out, 0.1 * work.num_out), 0.0
        )
        replica.decode += left - work.decode
        work.decode = left

    def end(self, name: Hashable) -> None:
        """It has ended, however it did; an unknown one is ignored."""
        work = self._work.pop(name, None)
        if work is None:
            return
        self._forget(work)
        replica = self._replicas[work.replica]
        replica.prefill -= work.prefill
        replica.decode -= work.decode
        replica.num_requests -= 1
        if not replica.num_requests:
            replica.prefill, replica.decode = 0, 0.0  # what rounding left
        if work.num_out:
            self._output_len += MEMORY * (work.num_out - self._output_len)

    def replica_of(self, name: Hashable) -> int | None:
        """Which one has it."""
        work = self._work.get(name)
        return work.replica if work is not None else None

    # --- replicas -----------------------------------------------------------------------------------------------------------

    def lost(self, index: int) -> list[Hashable]:
        """A replica has died, and its cache with it. Returns the names of its requests, which are nobody's now."""
        replica = self._replicas[index]
        names = [name for name, work in self._work.items() if work.replica == index]
        for name in names:
            self._forget(self._work.pop(name))
        self._replicas[index] = _Replica(replica.max_blocks, is_up=False)
        return names

    def add(self) -> int:
        """One more, or one in the place of one that was lost. Returns its number."""
        free = next((i for i, replica in enumerate(self._replicas) if not replica.is_up), None)
        if free is not None:
            self.back(free)
            return free
        self._replicas.append(_Replica(max(self._pool_tokens // BLOCK_IDS, 1)))
        return len(self._replicas) - 1

    def back(self, index: int) -> None:
        """It takes requests again."""
        self._replicas[index].is_up = True

    def flushed(self) -> None:
        """All caches are empty."""
        for replica in self._replicas:
            replica.blocks.clear()

    # --- costs --------------------------------------------------------------------------------------------------------------

    def _up(self) -> list[tuple[int, _Replica]]:
        return [(index, replica) for index, replica in enumerate(self._replicas) if replica.is_up]

    def _weight_of(self, blocks: Sequence[bytes], cached: int) -> float:
        """Of a prompt whose first `cached` tokens some replica has."""
        depth = cached // BLOCK_IDS
        if not depth or not blocks:
            return self._weight
        alike = self._running[blocks[min(depth, len(blocks)) - 1]]
        return 1 + (self._weight - 1) / (1 + HOT * alike / self._usual())

    def _forget(self, work: _Work) -> None:
        self._running.subtract(work.blocks)
        for block in work.blocks:
            if not self._running[block]:
                del self._running[block]

    def _usual(self) -> float:
        """Requests of a replica, on average."""
        return max(len(self._work) / len(self._replicas), FEW)

    def _cost(self, replica: _Replica, missing: int, weight: float) -> float:
        costs = self._costs
        work = replica.prefill * costs.prefill + replica.decode * costs.decode
        return weight * missing * costs.prefill + (1 + CROWD * replica.num_requests / self._usual()) * work

    @staticmethod
    def _missing(replica: _Replica, blocks: Sequence[bytes], prompt_len: int) -> int:
        """Tokens of a prompt that are not in the cache. Each block stands for those before it, so that the last one that is there is
        found by halving."""
        low, high = 0, len(blocks)
        while low < high:
            middle = (low + high + 1) // 2
            if blocks[middle - 1] in replica.blocks:
                low = middle
            else:
                high = middle - 1
        return max(prompt_len - low * BLOCK_IDS, 1)

    @staticmethod
    def _remember(replica: _Replica, blocks: Sequence[bytes]) -> None:
        """The first blocks last, as the tree of a cache evicts its leaves first: so what is there is always a prefix."""
        known = replica.blocks
        for block in reversed(blocks):
            known[block] = None
            known.move_to_end(block)
        while len(known) > replica.max_blocks:
            known.popitem(last=False)
