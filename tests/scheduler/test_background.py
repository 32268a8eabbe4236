"""Requests of batches: they run while nobody else wants anything, and end with the same answers."""

from __future__ import annotations

import random

import pytest

from sglang.srt.config import BACKGROUND, OF_BATCHES, ScheduleOptions
from sglang.srt.messages import AbortReq, EmbedReq, TokenizedReq
from sglang.srt.scheduler.embedding import Line
from tests.scheduler.toy import Harness, ToyWorker, expected_output, make_req


def row(rid: str, ids: list[int], num: int = 8, owner: str = "a", **more: object) -> TokenizedReq:
    return make_req(rid, ids, num, priority=BACKGROUND, client=(OF_BATCHES, owner), **more)


def running(harness: Harness) -> set[str]:
    return {req.rid for req in harness.scheduler._running.holders}


def test_another_request_waits_for_the_step_that_runs_and_no_longer() -> None:
    harness = Harness(ToyWorker(max_running=2))
    rows = [row(f"row{i}", [9, i, 7], 30, ignore_eos=True) for i in range(4)]
    harness.put(*rows)
    for _ in range(3):
        harness.step()
    assert running(harness) == {"row0", "row1"}
    mine = make_req("mine", [3, 4], 5, ignore_eos=True)
    harness.put(mine)
    for _ in range(5):  # all places were taken: it has one at once, and the step to itself
        harness.step()
        assert running(harness) <= {"mine"} and not harness.scheduler.check_integrity()
    assert harness.answers["mine"].ids == expected_output(mine).ids
    harness.run()
    for request in rows:
        assert harness.answers[request.rid].ids == expected_output(request).ids


def test_a_long_prompt_of_a_batch_is_put_off_in_the_middle() -> None:
    harness = Harness(ToyWorker(), ScheduleOptions(chunked_prefill_size=16))
    long = row("long", [i % 250 for i in range(200)], 4, ignore_eos=True)
    harness.put(long)
    harness.step()
    harness.step()
    assert running(harness) == {"long"}
    mine = make_req("mine", [3, 4], 2, ignore_eos=True)
    harness.put(mine)
    harness.step()
    harness.step()
    assert harness.answers["mine"].ids == expected_output(mine).ids
    harness.run()
    assert harness.answers["long"].ids == expected_output(long).ids


@pytest.mark.parametrize("seed", range(6))
def test_answers_are_the_same_whatever_comes_between(seed: int) -> None:
    rng = random.Random(seed)
    harness = Harness(ToyWorker(max_running=3), ScheduleOptions(chunked_prefill_size=8))
    sent: list[TokenizedReq] = []
    for i in range(40):
        make = row if rng.random() < 0.6 else make_req
        ids = [5] * rng.randint(1, 12) + [rng.randrange(250) for _ in range(rng.randint(1, 20))]
        more: dict[str, object] = {"ignore_eos": True, "temperature": 1.0, "seed": i}
        sent.append(make(f"r{i}", ids, rng.randint(1, 12), **more))
    gone: set[str] = set()
    for request in sent:
        harness.put(request)
        for _ in range(rng.randint(0, 5)):
            harness.step()
            assert not harness.scheduler.check_integrity()
        if rng.random() < 0.15:
            victim = rng.choice(sent[: sent.index(request) + 1]).rid
            if victim in harness.scheduler._live:
                gone.add(victim)
                harness.put(AbortReq(rid=victim))
    harness.run()
    for request in sent:
        answer = harness.answers[request.rid]
        if request.rid in gone:
            assert answer.finish is not None and answer.finish.type == "abort"
        else:
            assert answer.ids == expected_output(request).ids
    assert harness.scheduler._background.num_live == 0 and len(harness.scheduler._background) == 0


def test_they_take_half_of_the_queue_and_nobody_elses_place() -> None:
    harness = Harness(ToyWorker(max_running=1), ScheduleOptions(max_queued_requests=4))
    harness.put(*(row(f"row{i}", [9, i], 30) for i in range(5)))
    refused = list(harness.answers)
    assert refused == ["row2", "row3", "row4"]
    harness.put(*(make_req(f"mine{i}", [3, i], 2) for i in range(4)))
    harness.run()
    assert all(harness.answers[f"mine{i}"].last.finish.type != "abort" for i in range(4))  # type: ignore[union-attr]


def test_texts_of_batches_are_embedded_when_there_are_no_others() -> None:
    line = Line()
    for rid, client in (("row", f"{OF_BATCHES}/a"), ("mine", ""), ("row2", f"{OF_BATCHES}/"), ("yours", "b")):
        line.add(EmbedReq(rid, [1], client))
    assert [req.rid for req in line.in_turns()] == ["mine", "yours"]
    for rid in ("mine", "yours"):
        line.remove(next(req for req in line if req.rid == rid))
    assert [req.rid for req in line.in_turns()] == ["row", "row2"]
