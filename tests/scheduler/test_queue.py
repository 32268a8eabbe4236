"""Order of admission: the queue, shares of clients, the estimate of outputs, the choice of a retraction. Whatever these decide, answers are
the same, so the decisions themselves are tested here."""

from __future__ import annotations

import random
from typing import get_args

import numpy as np
import pytest

from sglang.srt.config import ScheduleOptions, SchedulePolicy
from sglang.srt.messages import AbortReq
from sglang.srt.scheduler.admission import waiting
from sglang.srt.scheduler.admission.prefill import CLIP_NEW_TOKENS, RETRY_STEPS, OutputEstimate
from sglang.srt.scheduler.admission.waiting import POLICIES, FairShare, WaitingQueue
from sglang.srt.scheduler.cache.radix_cache import RadixCache
from sglang.srt.scheduler.decode import HEADROOM_TOKENS
from sglang.srt.scheduler.req import Req
from tests.scheduler.toy import Harness, ToyWorker, make_req

TREE = RadixCache(lambda slots: None)
INLET = Harness().scheduler._inlet


def new_req(rid: str, ids: list[int] | None = None, **more: object) -> Req:
    return INLET.create(make_req(rid, ids or [1, 2, 3], **more))  # type: ignore[arg-type]


def rids(queue: WaitingQueue) -> list[str]:
    return [req.rid for req in queue.ordered(TREE)]


def harness_for(worker: ToyWorker | None = None, **options: object) -> Harness:
    return Harness(worker, ScheduleOptions(**options))  # type: ignore[arg-type]


# --- the queue ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_retracted_requests_come_first_the_last_one_in_front(policy: str) -> None:
    queue = WaitingQueue(policy, 0)
    queue.add(new_req("queued"))
    queue.add(new_req("important", priority=9))
    queue.push_front(new_req("retracted"))
    queue.push_front(new_req("retracted later", priority=-1))
    assert rids(queue)[:2] == ["retracted later", "retracted"]
    assert len(queue) == 4 and {req.rid for req in queue} == set(rids(queue))


def test_a_retracted_request_runs_again_before_those_who_wait() -> None:
    harness = harness_for(ToyWorker(max_running=1))
    harness.put(make_req("first", [1], 9, ignore_eos=True))
    harness.step()
    harness.put(make_req("waits", [2], 9, priority=5))
    harness.step()
    harness.scheduler._running.retract_one()
    harness.step()
    assert [req.rid for req in harness.scheduler._running.reqs] == ["first"]


def test_relatives_run_together_from_the_root_on() -> None:
    """The tree depth first: two small branches of one large subtree go before a branch that is larger than either."""
    tree = RadixCache(lambda slots: None)
    for ids in ([1, 2], [1, 3], [5, 6]):
        tree.insert(np.array(ids, np.int32), np.arange(len(ids), dtype=np.int32))
    prompts = {"z1": [5, 6, 9], "x": [1, 2, 9], "y1": [1, 3, 9], "z2": [5, 6, 8], "y2": [1, 3, 8]}
    reqs = [new_req(rid, ids) for rid, ids in prompts.items()]
    order = [req.rid for req in POLICIES["dfs-weight"](reqs, tree, random.Random(0))]
    assert order == ["y1", "y2", "x", "z1", "z2"]


def test_with_many_waiting_nobody_is_looked_up() -> None:
    tree = RadixCache(lambda slots: None)
    reqs = [new_req(str(i), [i % 250, 1, 2]) for i in range(waiting.MATCH_LIMIT + 1)]
    tree.match_len = None  # type: ignore[assignment,method-assign]
    for policy in ("lpm", "dfs-weight"):
        assert POLICIES[policy](reqs, tree, random.Random(0)) == reqs


def test_priorities_and_their_owners() -> None:
    """What one says of its own requests moves them among its own."""
    queue = WaitingQueue("fcfs", 0)
    queue.add(new_req("a", client=("x",)))
    queue.add(new_req("b", client=("x",), own_priority=7))
    queue.add(new_req("c", client=("y",), own_priority=9))
    queue.add(new_req("d", client=("y",), priority=1))
    assert rids(queue) == ["d", "c", "b", "a"]
    for req in list(queue):
        queue.remove(req)
    assert len(queue) == 0 and queue.num_of("x") == queue.num_of("y") == queue._num_special == 0


def test_every_policy_that_the_flag_takes_is_there() -> None:
    assert set(POLICIES) == set(get_args(SchedulePolicy))


def test_those_who_were_overtaken_too_often_lead_their_client() -> None:
    queue = WaitingQueue("lpm", 0)
    old, new = new_req("old", [9] * 9), new_req("new")
    queue.add(old)
    queue.add(new)
    later = new_req("later")
    for _ in range(waiting.MAX_OVERTAKEN):
        queue.note_admitted([later])
    assert old.num_overtaken == new.num_overtaken == waiting.MAX_OVERTAKEN and queue._num_aged == 0
    queue.note_admitted([new])
    assert (old.num_overtaken, new.num_overtaken, queue._num_aged) == (waiting.MAX_OVERTAKEN + 1, waiting.MAX_OVERTAKEN, 1)
    queue.note_admitted([new_req("another's", client=("y",))])
    assert old.num_overtaken == waiting.MAX_OVERTAKEN + 1, "clients do not overtake each other: they have their shares"
    queue.add(new_req("important", priority=1))
    assert rids(queue) == ["important", "old", "new"]
    queue.remove(old)
    assert queue._num_aged == 0


def test_whoever_is_admitted_is_charged_once() -> None:
    queue = WaitingQueue("fcfs", 0)
    reqs = [new_req(f"{client}{i}", client=(client, "")) for client in "ab" for i in range(2)]
    for req in reqs:
        queue.add(req)
    order = []
    for req in queue.ordered(TREE):
        queue.admit(req)
        order.append(req.rid)
    assert order == ["a0", "b0", "a1", "b1"]
    tags = dict(queue._shares._tags)
    queue.push_front(reqs[0])
    queue.admit(reqs[0])
    assert queue._shares._tags == tags, "it was before its retraction"


# --- shares -------------------------------------------------------------------------------------------------------------------


def served(reqs: list[Req], count: int, shares: FairShare | None = None) -> list[str]:
    """The requests that `count` admissions take."""
    shares = shares or FairShare()
    for req in reqs:
        shares.add(req)
    order = []
    for req in shares.order(reqs):
        shares.charge(req)
        shares.remove(req)
        order.append(req.rid)
        if len(order) == count:
            break
    return order


def test_who_was_served_least_goes_next() -> None:
    greedy = [new_req(f"a{i}", [1] * 100, client=("a", "")) for i in range(6)]
    modest = [new_req(f"b{i}", [1] * 20, client=("b", "")) for i in range(6)]
    assert served(greedy + modest, 8) == ["a0", "b0", "b1", "b2", "b3", "a1", "b4", "b5"]


def test_a_key_gets_no_more_by_having_many_users() -> None:
    many = [new_req(f"a{i}", client=("a", f"user{i}")) for i in range(8)]
    one = [new_req(f"b{i}", client=("b", "")) for i in range(8)]
    order = served(many + one, 8)
    assert sum(rid.startswith("a") for rid in order) == 4


def test_nobody_comes_back_with_savings() -> None:
    shares = FairShare()
    served([new_req(f"a{i}", client=("a", "")) for i in range(9)], 9, shares)
    back = [new_req(f"b{i}", client=("b", "")) for i in range(6)]
    here = [new_req(f"a{i}", client=("a", "")) for i in range(9, 15)]
    order = served(back + here, 6, shares)
    assert 2 <= sum(rid.startswith("a") for rid in order) <= 3


def test_what_is_remembered_of_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MAX_CLIENTS", 20)
    shares = FairShare()
    served([new_req(str(i), client=(f"key{i}", "user")) for i in range(300)], 300, shares)
    assert len(shares._tags) <= 22 and len(shares._levels) <= 22 and shares.num_waiting == 0


def test_a_request_is_charged_for_its_prompt_and_what_it_may_say() -> None:
    assert waiting.cost(new_req("a", [1] * 30, max_new_tokens=50)) == 80
    long = new_req("b", [1] * 30, max_new_tokens=400)
    long.finish.max_new_tokens = 10**6
    assert waiting.cost(long) == 30 + waiting.CLIP_NEW_TOKENS


# --- the estimate of outputs --------------------------------------------------------------------------------------------------


def test_the_estimate_falls_step_by_step_to_its_floor() -> None:
    estimate = OutputEstimate(1.0)
    assert estimate.ratio == 0.7
    for _ in range(300):
        estimate.note_step()
    assert estimate.ratio == pytest.approx(0.7 - (0.7 - 0.098) / 2)
    for _ in range(400):
        estimate.note_step()
    assert estimate.ratio == pytest.approx(0.098)
    estimate.reset()
    assert estimate.ratio == 0.7
    assert OutputEstimate(0.5).ratio == 0.35 and OutputEstimate(9.0).ratio == 1.0


def test_a_retraction_lifts_the_estimate_to_what_was_seen() -> None:
    estimate, req = OutputEstimate(0.1), new_req("a", max_new_tokens=200)
    req.output_ids.extend([5] * 100)
    estimate.note_retraction([req])
    assert estimate.ratio == pytest.approx(120 / 201)
    estimate.note_retraction([new_req("b", max_new_tokens=400)])
    assert estimate.ratio == pytest.approx(120 / 201), "it does not fall by that"
    estimate.note_retraction([new_req("c", max_new_tokens=4)])
    assert estimate.ratio == 1.0
    assert estimate.tokens(req) == 100
    req.finish.max_new_tokens = 10**6
    assert estimate.tokens(req) == CLIP_NEW_TOKENS


def test_steps_without_trouble_let_more_requests_in() -> None:
    """The estimate falls with every step of the scheduler, and is high again after a rest."""

    def admitted(harness: Harness, name: str) -> int:
        harness.put(*(make_req(f"{name}{i}", [i + 1] * 4, 300, ignore_eos=True) for i in range(12)))
        harness.step()
        return len(harness.scheduler._running.reqs)

    fresh, used = (harness_for(ToyWorker(num_slots=1024, max_running=16)) for _ in range(2))
    used.run(*(make_req(f"w{i}", [i + 1], 480, ignore_eos=True) for i in range(2)))
    assert used.scheduler._estimate.ratio < 0.3
    at_first = admitted(fresh, "r")
    assert 1 <= at_first < admitted(used, "r")
    used.scheduler._rest()
    assert used.scheduler._estimate.ratio == 0.7


# --- retraction ---------------------------------------------------------------------------------------------------------------


def test_a_retraction_hits_who_loses_least() -> None:
    harness = harness_for()
    harness.put(make_req("long output", [1] * 3, 90, ignore_eos=True))
    for _ in range(3):
        harness.step()
    harness.put(make_req("short", [2] * 4, 90, ignore_eos=True), make_req("long prompt", [3] * 40, 90, ignore_eos=True))
    harness.step()
    order = []
    for _ in range(2):
        harness.scheduler._running.retract_one()
        order.append(next(iter(harness.scheduler._waiting)).rid)
    assert order == ["long prompt", "short"], "fewest outputs, then the longest prompt"
    assert [req.num_retractions for req in harness.scheduler._waiting] == [1, 1]
    assert [req.rid for req in harness.scheduler._running.reqs] == ["long output"]


def test_a_retraction_hits_the_client_that_holds_most() -> None:
    harness = harness_for()
    harness.put(*(make_req(f"a{i}", [i + 1] * 3, 90, ignore_eos=True, client=("a", "")) for i in range(2)))
    for _ in range(3):
        harness.step()
    harness.put(make_req("b", [9] * 40, 90, ignore_eos=True, client=("b", "")))
    harness.step()
    harness.scheduler._running.retract_one()
    assert [req.rid[0] for req in harness.scheduler._waiting] == ["a"], "though the other would lose less"


def test_a_prompt_that_is_being_computed_loses_less_than_any_output() -> None:
    harness = harness_for(chunked_prefill_size=16)
    harness.put(make_req("runs", [1] * 3, 90, ignore_eos=True))
    harness.step()
    harness.put(make_req("partial", [2] * 60, 90, ignore_eos=True))
    harness.step()
    harness.scheduler._running.retract_one()
    assert [req.rid for req in harness.scheduler._waiting] == ["partial"] and harness.scheduler._prefill.partial is None


def test_after_a_retraction_the_others_have_room_for_a_while() -> None:
    harness = harness_for(ToyWorker(num_slots=256, max_running=8), schedule_conservativeness=0.01)
    harness.put(*(make_req(f"r{i}", [i * 7 + 1] * 10, 60, ignore_eos=True) for i in range(8)))
    running = harness.scheduler._running
    while not running.num_retractions:
        harness.step()
    before = running.num_retractions
    for _ in range(HEADROOM_TOKENS):
        harness.step()
    assert running.num_retractions == before and len(running.reqs) > 1


# --- admission ----------------------------------------------------------------------------------------------------------------


def test_a_queue_that_does_not_fit_is_looked_at_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in every step; and at once when a request has ended."""
    harness = harness_for(ToyWorker(num_slots=256))
    harness.put(make_req("runs", [1] * 100, 60, ignore_eos=True), make_req("waits", [2] * 150, 4, ignore_eos=True))
    looks = []
    ordered = WaitingQueue.ordered
    monkeypatch.setattr(WaitingQueue, "ordered", lambda self, tree: looks.append(1) or ordered(self, tree))
    for _ in range(2 * RETRY_STEPS):
        harness.step()
    assert 2 <= len(looks) <= 4
    while len(looks) < 4:
        harness.step()
    harness.put(AbortReq("runs"))
    harness.step()
    assert [req.rid for req in harness.scheduler._running.reqs] == ["waits"]


def test_what_a_prompt_that_is_being_computed_will_say_needs_memory_too() -> None:
    harness = harness_for(ToyWorker(num_slots=400), chunked_prefill_size=16)
    harness.put(make_req("long", [1] * 40, 300, ignore_eos=True))
    harness.step()
    harness.put(make_req("other", [2] * 8, 300, ignore_eos=True))
    while harness.scheduler._prefill.partial is not None:
        harness.step()
    assert [req.rid for req in harness.scheduler._running.reqs] == ["long"]


def test_the_cached_prefix_of_a_request_is_not_evicted_for_another_first() -> None:
    """What was used last goes last."""
    harness = harness_for(ToyWorker(num_slots=128, max_running=1))
    for rid, ids in (("a", [1] * 40), ("b", [2] * 40), ("a again", [1] * 41)):
        harness.run(make_req(rid, ids, 1))
    harness.run(make_req("c", [3] * 40, 1))
    harness.run(make_req("a at last", [1] * 42, 1), make_req("b at last", [2] * 42, 1))
    cached = {rid: answer.last.cached_len for rid, answer in harness.answers.items()}
    assert cached["a again"] == 40 and cached["a at last"] >= 40 and cached["b at last"] < 40
