"""Adapters in the scheduler: rows have their request's adapter and no other, what they leave in the cache is met by nobody else, and
slots go round.

The toy model remembers of every slot of K and V which adapter's weights wrote it. A row that was computed with another adapter, or a
prefix that is shared with the wrong request, changes the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from sglang.srt.config import AdapterInfo, ScheduleOptions
from sglang.srt.errors import ModelError
from sglang.srt.forward_batch import ForwardBatch
from sglang.srt.messages import AbortReq, ControlReply, LoadAdapterReq, TokenizedReq, UnloadAdapterReq
from sglang.srt.scheduler.adapters import PATIENCE, last_occurrence
from sglang.srt.scheduler.cache.disk.tier import OpenTier
from tests.scheduler.toy import ALL_IDS, Harness, ToyWorker, make_req, sample_toy

INVOCATION = (7, 8, 9)
ACTIVATED = "activated"


class ToyAdapters:
    """Of the toy's slots. What an adapter does is a number made of its path."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.weights: dict[int, int] = {}
        self.slots = [0] * num_slots
        self.late: list[tuple[Future[AdapterInfo], int, str]] = []
        self.is_late = False
        self.num_placed = 0

    def load(self, uid: int, path: str) -> Future[AdapterInfo]:
        assert uid not in self.weights, "a uid is given twice"
        future: Future[AdapterInfo] = Future()
        self.late.append((future, uid, path))
        if not self.is_late:
            self.finish_loading()
        return future

    def finish_loading(self) -> None:
        for future, uid, path in self.late:
            if path == "bad":
                future.set_exception(ModelError("bad is no adapter"))
                continue
            self.weights[uid] = weight_of(path)
            future.set_result(AdapterInfo(8, INVOCATION if path.startswith(ACTIVATED) else (), path))
        self.late = []

    def place(self, uid: int, slot: int) -> None:
        self.slots[slot] = self.weights[uid]
        self.num_placed += 1

    def forget(self, uid: int) -> None:
        self.weights.pop(uid, None)


def weight_of(path: str) -> int:
    """What an adapter adds to each id that it reads."""
    return 1000 * (1 + sum(path.encode()) % 97)


class AdaptedWorker(ToyWorker):
    """The toy, whose rows add the weight of their adapter to what they read."""

    def __init__(self, num_adapters: int = 2, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.adapters: ToyAdapters = ToyAdapters(num_adapters)
        self.written = np.zeros(self.info.max_total_tokens, np.int64)

    def forward(self, batch: ForwardBatch) -> None:
        super().forward(batch)
        chosen = batch.row_adapter if batch.row_adapter is not None else np.full(batch.num_tokens, -1)
        assert len(chosen) == batch.num_tokens
        self.written[batch.out_cache_loc] = [0 if slot < 0 else self.adapters.slots[slot] for slot in chosen]

    def sample(self, batch: ForwardBatch, masks: Any) -> Any:
        out = super().sample(batch, masks)
        for i, (at, spec) in enumerate(zip(batch.sample_rows.tolist(), batch.samples, strict=True)):
            req = int(np.searchsorted(batch.q_start, at, side="right")) - 1
            slots = self.table[int(batch.req_pool_idx[req]), : int(batch.positions[at]) + 1]
            out.next_ids[i] = sample_toy(self.tokens[slots] + self.written[slots], spec, ALL_IDS)
        return out


def expected(req: TokenizedReq, path: str | None) -> list[int]:
    """The tokens of a greedy request, computed without a scheduler."""
    ids: list[int] = []
    weight, first = (weight_of(path), 0) if path is not None else (0, 0)
    if path is not None and path.startswith(ACTIVATED):
        found = last_occurrence(req.input_ids, INVOCATION)
        weight, first = (weight, found) if found is not None else (0, 0)
    from sglang.srt.forward_batch import SampleSpec

    spec = SampleSpec(req.sampling, 0, req.input_ids, ids)
    assert req.sampling.max_new_tokens is not None
    while len(ids) < req.sampling.max_new_tokens:
        history = np.array([*req.input_ids, *ids], np.int64)
        history[first:] += weight
        ids.append(sample_toy(history, spec, ALL_IDS))
    return ids


class Served(Harness):
    """Adapters by name, as the server knows them."""

    def __init__(
        self,
        worker: AdaptedWorker | None = None,
        options: ScheduleOptions | None = None,
        check: bool = True,
        open_tier: OpenTier | None = None,
    ) -> None:
        self.toy = worker or AdaptedWorker()
        super().__init__(self.toy, options, check=check, open_tier=open_tier)
        self.num_loads = 0
        self.uids: dict[str, int] = {}
        self.paths: dict[int, str] = {}

    def load(self, path: str, pinned: bool = False) -> ControlReply:
        self.num_loads += 1
        self.put(LoadAdapterReq(self.num_loads, self.num_loads, path, pinned))
        self.poll()
        reply = next((r for r in self.replies if r.call_id == self.num_loads), None)
        if reply is not None and reply.ok:
            self.uids[path], self.paths[self.num_loads] = self.num_loads, path
        return reply if reply is not None else ControlReply(0, False, "late")

    def poll(self) -> None:
        self.replies += self.scheduler.adapters.poll()

    def ask(self, rid: str, ids: list[int], path: str | None, num: int = 5, **more: Any) -> TokenizedReq:
        uid = 0 if path is None else self.uids[path]
        return make_req(rid, ids, num, adapter=uid, ignore_eos=True, **more)

    def check_answer(self, req: TokenizedReq) -> None:
        assert self.answers[req.rid].ids == expected(req, self.paths.get(req.adapter)), req


PROMPT = [11, 12, 13, 14, 15, 16, 17, 18, 19, 20] * 3


def test_prefixes_are_shared_within_an_adapter_alone() -> None:
    served = Served()
    served.load("a"), served.load("b")
    cached = {}
    for rid, path in (("1", None), ("2", "a"), ("3", "b"), ("4", None), ("5", "a"), ("6", "b")):
        req = served.ask(rid, PROMPT, path)
        served.run(req)
        served.check_answer(req)
        cached[rid] = served.answers[rid].last.cached_len
    assert [cached[rid] for rid in "123"] == [0, 0, 0] and all(cached[rid] >= 16 for rid in "456")
    assert len({tuple(served.answers[rid].ids) for rid in "123"}) == 3


def test_a_name_loaded_again_never_meets_what_was_there() -> None:
    served = Served()
    served.load("a")
    first = served.ask("1", PROMPT, "a")
    served.run(first)
    served.put(UnloadAdapterReq(77, served.uids["a"]))
    served.poll()
    served.load("a")
    again = served.ask("2", PROMPT, "a")
    served.run(again)
    assert served.answers["2"].last.cached_len == 0
    served.check_answer(again)


def test_an_activated_adapter_shares_the_base_up_to_its_invocation() -> None:
    served = Served()
    served.load(ACTIVATED), served.load("b")
    called = [*PROMPT, *INVOCATION, 40, 41]
    served.run(served.ask("base", PROMPT, None))
    reqs = [served.ask("1", called, ACTIVATED), served.ask("2", called, ACTIVATED), served.ask("3", called, None)]
    reqs += [
        served.ask("4", PROMPT, ACTIVATED),
        served.ask("5", [*INVOCATION, 1, *called], ACTIVATED),
        served.ask("6", called, "b"),
    ]
    for req in reqs:
        served.run(req)
        served.check_answer(req)
    cached = [served.answers[req.rid].last.cached_len for req in reqs]
    assert cached[0] >= 16 and cached[1] >= 32 and cached[3] >= 16 and cached[5] == 0
    assert served.answers["1"].ids != served.answers["3"].ids
    assert served.answers["4"].ids == served.answers["base"].ids, "without its invocation the base answers"


def test_an_invocation_at_the_beginning() -> None:
    served = Served()
    served.load(ACTIVATED)
    for rid in "12":
        req = served.ask(rid, [*INVOCATION, *PROMPT], ACTIVATED)
        served.run(req)
        served.check_answer(req)
    assert served.answers["2"].last.cached_len >= 16


def test_more_adapters_than_slots_take_turns() -> None:
    served = Served(AdaptedWorker(2))
    paths = list("abcdef")
    for path in paths:
        served.load(path)
    reqs = [served.ask(f"{i}", [*PROMPT, i], path, 9) for i, path in enumerate(paths * 3)]
    served.run(*reqs)
    for req in reqs:
        served.check_answer(req)
    widest = max(len(set(b.row_adapter.tolist())) for b in served.toy.batches if b.row_adapter is not None)
    assert widest == 2


def test_nobody_waits_for_ever_for_a_slot() -> None:
    """Two adapters are asked for without end; a third one's request gets its turn."""
    served = Served(AdaptedWorker(2), check=False)
    for path in "abc":
        served.load(path)
    for i in range(6):
        served.put(served.ask(f"start {i}", [*PROMPT, i], "ab"[i % 2], 6 + i))
    waiting = served.ask("third", PROMPT, "c", 2)
    served.put(waiting)
    for i in range(4 * PATIENCE):
        served.step()
        served.put(served.ask(f"more {i}", [*PROMPT, i], "ab"[i % 2], 6))
        if "third" in served.answers and served.answers["third"].finish is not None:
            break
    else:
        raise AssertionError("the third adapter's request never ran")
    served.check_answer(waiting)


@pytest.mark.parametrize("policy", ["lru", "fifo"])
def test_which_adapter_makes_room(policy: Any) -> None:
    served = Served(AdaptedWorker(2), ScheduleOptions(lora_eviction_policy=policy))
    for path in "abc":
        served.load(path)
    for i, path in enumerate("abac"):  # a was placed first, b was used longer ago
        served.run(served.ask(f"{i}", PROMPT, path))
    before = served.toy.adapters.num_placed
    served.run(served.ask("last", PROMPT, "a"))
    assert served.toy.adapters.num_placed == before + (policy == "fifo")


def test_pinned_adapters_stay_and_leave_a_slot_to_others() -> None:
    served = Served(AdaptedWorker(3))
    assert served.load("a", pinned=True).ok and served.load("b", pinned=True).ok
    refused = served.load("c", pinned=True)
    assert not refused.ok and "at most 2" in refused.message
    for path in "cde":
        served.load(path)
    for i, path in enumerate("abcdeab"):
        served.run(served.ask(f"{i}", PROMPT, path))
    assert served.toy.adapters.num_placed == 5


@pytest.mark.parametrize("path", ["a", ACTIVATED])
def test_unloading_frees_what_the_adapter_left_in_the_tree_and_nothing_else(path: str) -> None:
    served = Served()
    called = [*PROMPT, *INVOCATION, 40, 41]
    served.load("b")
    served.run(served.ask("1", called, None))
    served.run(served.ask("2", called, "b"))
    tree = served.scheduler.memory.tree
    before = tree.num_evictable
    served.load(path)
    served.run(served.ask("3", called, path))
    assert tree.num_evictable > before
    served.put(UnloadAdapterReq(77, served.uids[path]))
    served.poll()
    assert tree.num_evictable == before and tree.check() == [] and served.scheduler.check_integrity() == []
    for rid, kept in (("4", None), ("5", "b")):
        req = served.ask(rid, called, kept)
        served.run(req)
        served.check_answer(req)
        assert served.answers[rid].last.cached_len >= 32


def test_unloading_waits_for_its_requests() -> None:
    served = Served()
    served.load("a")
    running = served.ask("1", PROMPT, "a", 20)
    served.put(running)
    served.step()
    served.put(UnloadAdapterReq(50, served.uids["a"]))
    served.poll()
    assert not [r for r in served.replies if r.call_id == 50]
    late = served.ask("2", PROMPT, "a")
    served.put(late)
    assert served.answers["2"].finish is not None and served.answers["2"].finish.status_code == 400
    while served.scheduler._live:
        served.step()
    served.check_answer(running)
    served.poll()
    assert [r.ok for r in served.replies if r.call_id == 50] == [True] and not served.toy.adapters.weights


def test_loading_takes_its_time_while_others_run() -> None:
    served = Served()
    served.toy.adapters.is_late = True
    served.load("a")
    served.run(served.ask("1", PROMPT, None))
    assert not served.replies and served.scheduler.adapters.is_busy
    served.toy.adapters.finish_loading()
    served.poll()
    assert served.replies[0].ok and served.replies[0].adapter is not None and not served.scheduler.adapters.is_busy


def test_a_load_that_was_given_up_leaves_nothing() -> None:
    """Its unloading waits until it is read."""
    served = Served()
    served.toy.adapters.is_late = True
    served.load("a")
    served.put(UnloadAdapterReq(50, 1))
    served.poll()
    assert not [r for r in served.replies if r.call_id == 50]
    served.toy.adapters.finish_loading()
    served.poll()
    served.poll()
    assert [r.call_id for r in served.replies][-1] == 50 and not served.toy.adapters.weights
    assert not served.scheduler.adapters._known and not served.scheduler.adapters.is_busy


def test_what_cannot_be_loaded_is_said_and_forgotten() -> None:
    served = Served()
    reply = served.load("bad")
    assert not reply.ok and "bad is no adapter" in reply.message
    served.put(make_req("1", PROMPT, adapter=1))
    finish = served.answers["1"].finish
    assert finish is not None and finish.status_code == 400 and "not loaded" in (finish.message or "")


def test_a_scheduler_without_adapters_refuses_them() -> None:
    harness = Harness()
    harness.put(LoadAdapterReq(1, 1, "a"), make_req("1", PROMPT, adapter=1))
    assert not harness.replies[0].ok and harness.answers["1"].finish is not None


def traffic(rng: np.random.Generator, served: Served, count: int) -> Iterator[TokenizedReq]:
    """Prompts with common beginnings, of the base and of whatever is loaded, with and without the invocation."""
    beginnings = [list(rng.integers(10, 250, n)) for n in (20, 33, 48)]
    for i in range(count):
        ids = list(beginnings[rng.integers(3)])[: int(rng.integers(1, 49))]
        if rng.random() < 0.4:
            ids += INVOCATION
        ids += list(rng.integers(10, 14, int(rng.integers(0, 6))))
        path = rng.choice([None, *served.uids]) if served.uids else None
        salt = None if rng.random() < 0.8 else "salt"
        yield served.ask(f"{i}", [int(one) for one in ids], path, int(rng.integers(1, 12)), cache_salt=salt)


def fuzz(seed: int, num_steps: int) -> None:
    """Adapters that answer differently come and go under traffic, in a pool that is too small, with retractions and aborts."""
    rng = np.random.default_rng(seed)
    worker = AdaptedWorker(2, num_slots=512, max_running=8, max_batch_tokens=96)
    served = Served(worker, ScheduleOptions(chunked_prefill_size=24, test_retract_every=int(rng.integers(0, 2)) * 7))
    names = ["a", "b", ACTIVATED, "c"]
    served.load("a"), served.load("b")
    asked: dict[str, TokenizedReq] = {}
    stream = traffic(rng, served, 10**9)
    steps = 0
    aborted: set[str] = set()
    while steps < num_steps:
        if len(served.scheduler._live) < 14:
            req = next(stream)
            asked[req.rid] = req
            served.put(req)
        if rng.random() < 0.02 and served.scheduler._live:
            aborted.add(str(rng.choice(list(served.scheduler._live))))
            served.put(AbortReq(rid=max(aborted, key=int)))
        if rng.random() < 0.05:
            name = str(rng.choice(names))
            if name in served.uids:
                served.put(UnloadAdapterReq(10**6 + steps, served.uids.pop(name)))
            else:
                served.load(name)
        steps += served.step()
        served.poll()
        for rid in [rid for rid, answer in served.answers.items() if answer.finish is not None and rid in asked]:
            req, answer = asked.pop(rid), served.answers.pop(rid)
            assert answer.finish is not None
            if answer.finish.type == "abort":
                assert rid in aborted, answer.finish
                continue
            assert answer.ids == expected(req, served.paths.get(req.adapter)), req
    assert worker.adapters.num_placed > num_steps / 100


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_fuzz(seed: int) -> None:
    fuzz(seed, 400)


@pytest.mark.slow
def test_fuzz_for_ten_thousand_steps() -> None:
    """`pytest -m slow tests/scheduler/test_adapters.py`"""
    for seed in range(10, 20):
        fuzz(seed, 1000)


def test_last_occurrence() -> None:
    assert last_occurrence([1, 2, 3, 1, 2, 4], (1, 2)) == 3
    assert last_occurrence([1, 2], (1, 2)) == 0 and last_occurrence([2, 1], (1, 2)) is None
    assert last_occurrence([0x01000000, 0x00000100, 5], (0x00010000,)) is None, "not in the middle of ids"
