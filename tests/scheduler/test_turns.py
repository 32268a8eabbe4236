"""Whoever waits gets a running place within a bounded number of steps, and nobody's answer changes by that."""

from __future__ import annotations

import zlib

import pytest

from sglang.srt.config import ScheduleOptions
from sglang.srt.messages import TokenizedReq
from sglang.srt.scheduler.admission.waiting import WAIT_STEPS
from tests.scheduler.toy import Harness, ToyWorker, expected_output, make_req

Client = tuple[str, ...]
SOON = WAIT_STEPS + 20


def request(rid: str, client: Client, num_new: int, num_ids: int = 8, **more: object) -> TokenizedReq:
    ids = [zlib.crc32(f"{rid} {i}".encode()) % 200 for i in range(num_ids)]
    return make_req(rid, ids, num_new, ignore_eos=True, client=client, stream=True, **more)


def harness_of(**worker: int) -> Harness:
    return Harness(ToyWorker(**worker), ScheduleOptions(schedule_policy="fcfs"), check=False)


def steps_until(harness: Harness, rid: str, most: int = 5000) -> int:
    """Until it has its first token."""
    for step in range(most):
        if rid in harness.answers:
            return step
        harness.step()
    raise AssertionError(f"{rid} waits for ever")


def finish(harness: Harness, reqs: list[TokenizedReq]) -> None:
    while harness.scheduler._live:
        harness.step()
    for req in reqs:
        assert harness.answers[req.rid].ids == expected_output(req).ids, req.rid
    assert harness.scheduler.check_integrity() == []


@pytest.mark.parametrize(
    ("one", "other"),
    [(("a", ""), ("b", "")), (("a", "x"), ("b", "x")), (("", "a"), ("", "b")), ((), ("b", "")), (("a", ""), ())],
)
def test_a_newcomer_gets_a_place_that_another_client_held(one: Client, other: Client) -> None:
    harness = harness_of(max_running=4)
    flood = [request(f"a/{i}", one, 300) for i in range(20)]
    harness.put(*flood)
    for _ in range(10):
        harness.step()
    late = request("b", other, 30)
    harness.put(late)
    assert steps_until(harness, "b") <= SOON
    finish(harness, [*flood, late])


def test_users_of_one_key_are_one_client() -> None:
    harness = harness_of(max_running=2)
    harness.put(*(request(f"a/{i}", ("a", f"user {i}"), 200) for i in range(3)))
    finish(harness, [])
    assert harness.scheduler._running.num_retractions == 0
    assert harness.scheduler.check_integrity() == []


def test_a_pool_that_is_full_makes_room() -> None:
    harness = harness_of(num_slots=512, max_running=16, context_len=400)
    flood = [request(f"a/{i}", ("a", ""), 300, num_ids=40) for i in range(12)]
    harness.put(*flood)
    for _ in range(60):
        harness.step()
    late = request("b", ("b", ""), 20, num_ids=150)
    harness.put(late)
    assert steps_until(harness, "b") <= SOON
    finish(harness, [*flood, late])


def test_one_request_that_fills_the_pool_takes_turns_with_another() -> None:
    harness = harness_of(num_slots=512, context_len=480)
    giant, late = request("a", ("a", ""), 440, num_ids=30), request("b", ("b", ""), 300, num_ids=150)
    harness.check = True
    harness.put(giant)
    for _ in range(300):
        harness.step()
    harness.put(late)
    assert steps_until(harness, "b") <= SOON
    finish(harness, [giant, late])
    assert harness.scheduler._running.num_retractions < 12


def test_more_clients_than_places_take_turns() -> None:
    harness = harness_of(max_running=2)
    reqs = [request(f"{name}/{i}", (name, ""), 400) for name in "abcdef" for i in range(3)]
    harness.put(*reqs)
    for name in "abcdef":
        assert steps_until(harness, f"{name}/0") <= 3 * SOON
    finish(harness, reqs)


def test_shares_even_out_and_then_stay() -> None:
    harness = harness_of(num_slots=8192, max_running=8)
    flood = [request(f"a/{i}", ("a", ""), 500, num_ids=4) for i in range(20)]
    harness.put(*flood)
    harness.step()
    late = [request(f"b/{i}", ("b", ""), 500, num_ids=4) for i in range(20)]
    harness.put(*late)
    for _ in range(5 * SOON):
        harness.step()
    held = [req.msg.client[0] for req in harness.scheduler._running.holders]
    assert held.count("a") == held.count("b") == 4
    assert harness.scheduler._running.num_retractions == 4
    for _ in range(WAIT_STEPS):  # until the first ones end
        harness.step()
    assert harness.scheduler._running.num_retractions == 4


def test_priorities_stand_above_turns() -> None:
    harness = harness_of(max_running=2)
    harness.put(*(request(f"a/{i}", ("a", ""), 300, priority=1) for i in range(4)))
    harness.step()
    harness.put(request("b", ("b", ""), 10))
    assert steps_until(harness, "b") > 500
    finish(harness, [])


def test_nobody_makes_way_for_what_waits_for_something_else() -> None:
    """A prompt that goes on like one that is being computed waits for that, and not for room."""
    harness = harness_of(max_running=3, num_slots=4096)
    harness.put(*(request(f"a/{i}", ("a", ""), 300) for i in range(6)))
    for _ in range(10):
        harness.step()
    late = request("b", ("b", ""), 10)
    harness.put(late)
    queue = harness.scheduler._waiting
    for _ in range(3 * SOON):
        harness.step()
        if queue.due is not None:
            queue.pass_over(queue.due)
    assert harness.scheduler._running.num_retractions == 0 and "b" not in harness.answers
    assert steps_until(harness, "b") <= SOON


def test_one_client_alone_is_left_in_peace() -> None:
    harness = harness_of(max_running=2)
    reqs = [request(f"a/{i}", ("a", ""), 200) for i in range(6)]
    harness.put(*reqs)
    finish(harness, reqs)
    assert harness.scheduler._running.num_retractions == 0


@pytest.mark.parametrize(
    ("chunk", "prompt_len", "num_slots", "num_clients"),
    [(4, 400, 512, 2), (2, 450, 512, 2), (4, 400, 704, 5), (8, 470, 512, 3)],
)
def test_prompts_that_take_longer_than_a_turn_come_through(
    chunk: int, prompt_len: int, num_slots: int, num_clients: int
) -> None:
    """The pool holds one of them: the request that makes way loses what was computed."""
    options = ScheduleOptions(schedule_policy="fcfs", chunked_prefill_size=chunk)
    harness = Harness(ToyWorker(num_slots=num_slots, context_len=480), options, check=False)
    reqs = [request(name, (name, ""), 30 if prompt_len < 470 else 8, prompt_len) for name in "abcde"[:num_clients]]
    harness.put(*reqs)
    in_a_row = num_clients * (prompt_len // chunk + 30)
    for _ in range(6 * in_a_row):
        harness.step()
    assert not harness.scheduler._live
    finish(harness, reqs)


@pytest.mark.parametrize(("prompt_len", "num_prompts"), [(400, 4), (800, 5)])
def test_making_way_in_the_middle_of_a_prompt_costs_a_bounded_share(prompt_len: int, num_prompts: int) -> None:
    """Long prompts of one client, in a pool of two, and a short question of another again and again: however long the prompts are and
    however many, less than twice their rows are computed in vain."""
    worker = ToyWorker(num_slots=2 * prompt_len + 400, max_running=2, context_len=2 * prompt_len, max_batch_tokens=8)
    harness = Harness(worker, ScheduleOptions(schedule_policy="fcfs", chunked_prefill_size=4), check=False)
    prompts = [request(f"a/{i}", ("a", ""), 60, prompt_len) for i in range(num_prompts)]
    harness.put(*prompts)
    reqs = list(prompts)
    for step in range(20 * num_prompts * prompt_len):
        if not any(req.rid in harness.scheduler._live for req in prompts):
            break
        if step and step % (WAIT_STEPS + 6) == 0:
            reqs.append(request(f"b/{step}", ("b", ""), 4))
            harness.put(reqs[-1])
        harness.step()
    finish(harness, reqs)
    assert harness.scheduler._running.num_retractions > 0
    computed = sum(batch.num_tokens for batch in worker.batches)
    needed = sum(len(req.input_ids) + len(harness.answers[req.rid].ids) for req in reqs)
    assert computed < 3 * needed
