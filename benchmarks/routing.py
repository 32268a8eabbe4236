"""How much routing by cached prefixes is worth: replicas simulated with our RadixCache and the measured costs of steps.

    python -m benchmarks.routing                        the policy against round robin and least load, on four workloads
    python -m benchmarks.routing --sweep                the weight of the policy, on workloads that the table does not show
    python -m benchmarks.routing --real                 the simulation against servers (routing_real.py)

Simulated are time and memory: a step of a replica costs BASE + PREFILL a prompt token + DECODE an answer's token (default model on two
cores, docs/benchmarks.md); prefixes are kept, locked and evicted by scheduler/cache/radix_cache.py in a pool of POOL tokens. Prompts are
admitted as by scheduler/admission/prefill.py: CHUNK tokens a step, of which only the last prompt may be left unfinished, and a prompt that
begins as one that is being computed waits for it. Answers stay in the cache. Clients are a closed loop: each sends its next request when it
has its answer. No text is generated, and lengths of answers are unknown to the policy.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from sglang.cluster.policy import BLOCK_IDS, WEIGHT, Costs, PrefixPolicy, block_hashes
from sglang.srt.scheduler.cache.radix_cache import RadixCache, TreeNode

BASE, PREFILL, DECODE = 0.0025, 0.0006, 0.001
"""seconds"""
POOL, MAX_RUNNING, CHUNK, SHARE_MIN = 46_000, 64, 512, 32
CLIENTS = 24
"""requests in flight a replica"""
STRIDE = 8
"""steps without prompts that are simulated as one"""
WINDOW = 10.0
"""seconds over which the load of a replica is averaged"""

Ids = np.ndarray


@dataclass
class Request:
    name: int
    prompt: Ids
    answer: Ids
    following: Iterator[Request] | None = None
    """of the same client, once this one is answered"""
    blocks: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        data, size = self.prompt.tobytes(), 4 * BLOCK_IDS
        self.blocks = block_hashes([], (data[at : at + size] for at in range(0, len(data) - size + 1, size)))


class Running:
    """A request on a replica. `missing`: prompt tokens to compute."""

    def __init__(self, request: Request, node: TreeNode, missing: int, slots: Ids) -> None:
        self.request = request
        self.node = node
        self.missing = missing
        self.slots = slots
        self.left = len(request.answer)


class Replica:
    """One scheduler: a queue, a batch, a pool and its prefix tree."""

    def __init__(self) -> None:
        self.queue: deque[Request] = deque()
        self.batch: list[Running] = []
        self.free: list[Ids] = [np.arange(POOL, dtype=np.int32)]
        self.num_free = POOL
        self.tree = RadixCache(self._take_back)
        self.cached = self.prompted = 0
        self.loads: dict[int, float] = {}
        self.ends_at = 0.0

    def _take_back(self, slots: Ids) -> None:
        self.free.append(np.array(slots))
        self.num_free += len(slots)

    def _alloc(self, count: int) -> Ids | None:
        if self.num_free < count:
            self.tree.evict(count - self.num_free)
        if self.num_free < count:
            return None
        whole = np.concatenate(self.free)
        self.free, self.num_free = [whole[count:]], self.num_free - count
        return whole[:count]

    def _admit(self, budget: int) -> None:
        """Prompts whose missing tokens fit into the rest of a step, and one more, which is left unfinished."""
        begun = [one.request.prompt for one in self.batch if one.missing]
        for request in list(self.queue):
            if budget <= 0 or len(self.batch) == MAX_RUNNING:
                return
            match = self.tree.match_prefix(request.prompt[:-1])
            common = len(match.slots) + SHARE_MIN
            if any(np.array_equal(request.prompt[:common], other[:common]) for other in begun):
                continue  # it will be in the cache
            self.tree.lock(match.node)
            missing = len(request.prompt) - len(match.slots)
            slots = self._alloc(missing + len(request.answer))
            if slots is None:
                self.tree.unlock(match.node)
                return
            self.queue.remove(request)
            self.cached += len(match.slots)
            self.prompted += len(request.prompt)
            self.batch.append(Running(request, match.node, missing, np.concatenate([match.slots, slots])))
            begun.append(request.prompt)
            budget -= missing

    def _keep(self, one: Running, ids: Ids) -> None:
        """Enters what is computed into the tree, and holds it there."""
        inserted = self.tree.insert(ids, one.slots[: len(ids)])
        found = self.tree.match_prefix(ids)
        self.tree.lock(found.node)
        self.tree.unlock(one.node)
        one.node = found.node
        if inserted.existing_len:
            self._give_back_doubles(one, found.slots)

    def step(self) -> tuple[float, list[Running], list[tuple[Request, int]]]:
        """(seconds, those that end, tokens that came by request)."""
        self._admit(CHUNK - sum(one.missing for one in self.batch))
        budget, rows = CHUNK, 0
        for one in self.batch:
            take = min(one.missing, budget)
            budget -= take
            one.missing -= take
            rows += take
            if take and not one.missing:  # shared as soon as it is computed, as the scheduler does
                self._keep(one, one.request.prompt)
        decoding = [one for one in self.batch if not one.missing]
        count = 1 if rows else min([STRIDE, *(one.left for one in decoding)])
        seconds = count * (BASE + DECODE * len(decoding)) + PREFILL * rows
        for one in decoding:
            one.left -= count
        ended = [one for one in decoding if one.left <= 0]
        self.batch = [one for one in self.batch if one.left > 0]
        for one in ended:
            whole = np.concatenate([one.request.prompt, one.request.answer])
            self._keep(one, whole[:-1])
            self.tree.unlock(one.node)
            self._take_back(one.slots[len(whole) - 1 :])
        return seconds, ended, [(one.request, count) for one in decoding]

    def _give_back_doubles(self, one: Running, held: Ids) -> None:
        """Another request computed the same meanwhile: the tree keeps its slots."""
        mine = one.slots[: len(held)]
        doubles = mine[mine != held]
        if len(doubles):
            self._take_back(doubles)
        one.slots = np.concatenate([held, one.slots[len(held) :]])

    def note_load(self, begin: float, end: float) -> None:
        """Requests here, times seconds, by window."""
        count = len(self.batch) + len(self.queue)
        while begin < end:
            window = int(begin // WINDOW)
            upto = min(end, (window + 1) * WINDOW)
            self.loads[window] = self.loads.get(window, 0.0) + count * (upto - begin)
            if upto <= begin:
                return
            begin = upto


class RoundRobin:
    def __init__(self, count: int) -> None:
        self._count, self._next = count, 0

    def send(self, request: Request, replicas: list[Replica]) -> int:
        self._next = (self._next + 1) % self._count
        return self._next

    def progress(self, request: Request, count: int) -> None: ...

    def end(self, request: Request) -> None: ...


class LeastLoad(RoundRobin):
    def send(self, request: Request, replicas: list[Replica]) -> int:
        return min(range(self._count), key=lambda i: len(replicas[i].queue) + len(replicas[i].batch))


class Prefixes(RoundRobin):
    """The policy of sglang/cluster."""

    def __init__(self, count: int, weight: float = WEIGHT) -> None:
        self._policy = PrefixPolicy(count, POOL, Costs(PREFILL, DECODE + BASE / CLIENTS), weight)

    def send(self, request: Request, replicas: list[Replica]) -> int:
        return self._policy.send(request.name, request.blocks, len(request.prompt), 4096)

    def progress(self, request: Request, count: int) -> None:
        self._policy.progress(request.name, count)

    def end(self, request: Request) -> None:
        self._policy.end(request.name)


@dataclass
class Outcome:
    """`throughput`: requests a second. `hits`: of the prompts' tokens. `imbalance`: the largest load of a replica over a window, of the
    mean."""

    throughput: float
    hits: float
    imbalance: float


def simulate(requests: list[Request], count: int, policy: RoundRobin) -> Outcome:
    replicas = [Replica() for _ in range(count)]
    waiting, events = deque(requests), []
    now, num_ended, num_events = 0.0, 0, 0

    def send(request: Request) -> None:
        nonlocal num_events
        index = policy.send(request, replicas)
        replica = replicas[index]
        if not replica.batch and not replica.queue:
            replica.ends_at = now
            num_events += 1
            heapq.heappush(events, (now, num_events, index))
        replica.queue.append(request)

    for _ in range(min(CLIENTS * count, len(waiting))):
        send(waiting.popleft())
    while events:
        now, _, index = heapq.heappop(events)
        replica = replicas[index]
        seconds, ended, came = replica.step()
        replica.note_load(now, now + seconds)
        for request, tokens in came:
            policy.progress(request, tokens)
        if replica.batch or replica.queue:
            num_events += 1
            heapq.heappush(events, (now + seconds, num_events, index))
        now += seconds
        for one in ended:
            policy.end(one.request)
            num_ended += 1
            following = next(one.request.following, None) if one.request.following is not None else None
            if following is None and waiting:
                following = waiting.popleft()
            if following is not None:
                send(following)
    end = max(now, 1e-9)
    return Outcome(
        num_ended / end, sum(r.cached for r in replicas) / sum(r.prompted for r in replicas), _imbalance(replicas, end)
    )


def _imbalance(replicas: list[Replica], end: float) -> float:
    """Without the first window and the last quarter, when clients have nothing left to send."""
    worst = 1.0
    for window in range(1, int(0.75 * end // WINDOW)):
        loads = [replica.loads.get(window, 0.0) for replica in replicas]
        worst = max(worst, max(loads) / (sum(loads) / len(loads)))
    return worst


# --- workloads --------------------------------------------------------------------------------------------------------------


def _ids(rng: np.random.Generator, count: int) -> Ids:
    return rng.integers(0, 49_000, count, dtype=np.int32)


def shared(
    count: int, seed: int, prefix: int = 2048, own: int = 128, out: int = 256, groups: int = 8, each: int = 16
) -> list[Request]:
    """Groups of requests with one beginning, in random order."""
    rng = np.random.default_rng(seed)
    heads = [_ids(rng, prefix) for _ in range(groups * count)]
    order = rng.permutation(np.repeat(np.arange(len(heads)), each))
    return [Request(i, np.concatenate([heads[g], _ids(rng, own)]), _ids(rng, _length(rng, out))) for i, g in enumerate(order)]


def zipf(count: int, seed: int, prefix: int = 2048, own: int = 128, out: int = 256, power: float = 1.1) -> list[Request]:
    """As many, of groups that are asked for the less the rarer they are."""
    rng = np.random.default_rng(seed)
    heads = [_ids(rng, prefix) for _ in range(8 * count)]
    weights = 1.0 / np.arange(1, len(heads) + 1) ** power
    order = rng.choice(len(heads), 128 * count, p=weights / weights.sum())
    return [Request(i, np.concatenate([heads[g], _ids(rng, own)]), _ids(rng, _length(rng, out))) for i, g in enumerate(order)]


def chats(
    count: int, seed: int, system: int = 1024, turns: int = 6, own: int = 96, out: int = 128, systems: int = 4
) -> list[Request]:
    """Conversations: each turn repeats all before it, and a client sends the next one when it has the answer."""
    rng = np.random.default_rng(seed)
    heads = [_ids(rng, system) for _ in range(systems)]

    def talk(name: int) -> Iterator[Request]:
        text = heads[name % systems]
        for turn in range(turns):
            text = np.concatenate([text, _ids(rng, own)])
            answer = _ids(rng, _length(rng, out))
            yield Request(name * turns + turn, text, answer, talks[name])
            text = np.concatenate([text, answer])

    talks = [talk(name) for name in range(2 * CLIENTS * count)]
    return [next(one) for one in talks]


def unshared(count: int, seed: int, length: int = 1024, out: int = 128) -> list[Request]:
    rng = np.random.default_rng(seed)
    return [Request(i, _ids(rng, length), _ids(rng, _length(rng, out))) for i in range(96 * count)]


def _length(rng: np.random.Generator, mean: int) -> int:
    """Of an answer: from a half to three halves of the mean."""
    return int(rng.integers(mean // 2, mean + mean // 2 + 1))


WORKLOADS: dict[str, Callable[[int, int], list[Request]]] = {
    "shared prefixes": shared,
    "zipf": zipf,
    "chats": chats,
    "unshared": unshared,
}
OTHERS: dict[str, Callable[[int, int], list[Request]]] = {
    "short shared prefixes": lambda count, seed: shared(count, seed, 600, 200, 100, 12, 10),
    "flat zipf": lambda count, seed: zipf(count, seed, 1200, 60, 150, 0.7),
    "long chats": lambda count, seed: chats(count, seed, 300, 8, 200, 200, 16),
}
"""on which the weight was chosen"""


def compare(counts: list[int], seeds: list[int]) -> None:
    """Means over the seeds, and the worst load."""
    print(
        f"{'workload':18} {'replicas':>8} {'round robin':>12} {'least load':>12} {'prefixes':>10} {'hits':>14} {'most load':>10}"
    )
    for name, make in WORKLOADS.items():
        for count in counts:
            base = [simulate(make(count, seed), count, RoundRobin(count)) for seed in seeds]
            least = [simulate(make(count, seed), count, LeastLoad(count)) for seed in seeds]
            ours = [simulate(make(count, seed), count, Prefixes(count)) for seed in seeds]
            hits = f"{statistics.fmean(o.hits for o in base):.0%} -> {statistics.fmean(o.hits for o in ours):.0%}"
            print(
                f"{name:18} {count:8} {statistics.fmean(o.throughput for o in base):10.2f}/s {_ratio(least, base):11.2f}x "
                f"{_ratio(ours, base):9.2f}x {hits:>14} {max(o.imbalance for o in ours):9.2f}x",
                flush=True,
            )


def _ratio(ones: list[Outcome], base: list[Outcome]) -> float:
    return statistics.fmean(one.throughput / other.throughput for one, other in zip(ones, base, strict=True))


def sweep(counts: list[int], seeds: list[int]) -> None:
    """Throughput over round robin, and the worst load, by weight."""
    for name, make in OTHERS.items():
        for count in counts:
            base = [simulate(make(count, seed), count, RoundRobin(count)) for seed in seeds]
            shown = []
            for weight in (1, 2, 4, 6, 10, 16):
                found = [simulate(make(count, seed), count, Prefixes(count, weight)) for seed in seeds]
                shown.append(f"{weight}: {_ratio(found, base):.2f}x, {max(o.imbalance for o in found):.2f}")
            print(f"{name:22} {count:3}  " + "  ".join(shown), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--rounds", type=int, default=3, help="with --real, of each policy")
    args = parser.parse_args()
    if args.real:
        from benchmarks import routing_real

        for count in args.replicas or [2]:
            asyncio.run(routing_real.compare(count, args.rounds, args.seeds[0]))
        return
    (sweep if args.sweep else compare)(args.replicas or [8, 16, 64], args.seeds)


if __name__ == "__main__":
    main()
