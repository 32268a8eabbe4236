"""Calls in flight: aborts, deaths, groups, controls."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sglang.srt.errors import EngineDeadError, OverloadError, RequestError
from sglang.srt.messages import AbortReq, BatchTokenOut, FinishReason, TokenizedReq, TokenOut
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server import control_calls, request_maker
from sglang.srt.server.generate_req import GenerateOut, GenerateReq
from tests.server.conftest import MakeStand, Stand

LONG = SamplingParams(max_new_tokens=200, ignore_eos=True)


def request(**changes: Any) -> GenerateReq:
    return GenerateReq(**({"input_ids": [5, 6, 7], "sampling": LONG, "stream": True} | changes))


async def test_a_consumer_that_stops_early_aborts(stand: Stand) -> None:
    outs = stand.manager.generate(request(input_ids=[[5], [6]]))
    async for _ in outs:
        break
    await outs.aclose()  # type: ignore[attr-defined]
    assert stand.manager.num_in_flight == 0
    assert sorted(stand.scheduler.aborted) == sorted(m.rid for m in stand.scheduler.received if isinstance(m, TokenizedReq))


async def test_a_cancelled_consumer_aborts(stand: Stand) -> None:
    stand.scheduler.paused = True

    async def consume() -> list[GenerateOut]:
        return [out async for out in stand.manager.generate(request())]

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.01)
    assert stand.manager.num_in_flight == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(stand.scheduler.aborted) == 1


def num_counted(stand: Stand, name: str) -> float:
    assert stand.manager.records.metrics is not None
    value = stand.manager.records.metrics.registry.get_sample_value(f"sglang:{name}_tokens_total", {"model_name": "test-model"})
    assert value is not None
    return value


async def test_tokens_of_requests_whose_clients_left_are_counted(stand: Stand) -> None:
    """Whether or not they were streamed; also where the scheduler dies before it says how far it came."""
    for stream in (True, False):
        call = await stand.manager.start(request(rid="same", stream=stream))
        while not any(len(running.ids) >= 3 for running in stand.scheduler.running.values()):
            await asyncio.sleep(0)
        num_before = num_counted(stand, "generation")
        call.cancel()
        assert stand.manager.num_in_flight == 0
        while stand.manager.records.leaving:
            await asyncio.sleep(0)
        assert num_counted(stand, "generation") - num_before >= 3
    assert num_counted(stand, "prompt") == 6
    call = await stand.manager.start(request())
    async for _ in call:
        break
    stand.scheduler.stuck = True
    num_before = num_counted(stand, "generation")
    call.cancel()
    assert num_counted(stand, "generation") == num_before
    stand.manager.scheduler_lost("crashed")
    assert num_counted(stand, "generation") > num_before and num_counted(stand, "prompt") == 9


async def test_what_is_said_of_a_dropped_request_is_not_taken_for_the_next_of_its_name(stand: Stand) -> None:
    stand.scheduler.stuck = True
    for _ in range(2):
        (await stand.manager.start(request(rid="same"))).cancel()
    call = await stand.manager.start(request(rid="same", stream=False))
    (rid,) = {m.rid for m in stand.scheduler.received if isinstance(m, TokenizedReq)}
    late = TokenOut(rid, [9], FinishReason("abort", message="went away"), completion_len=1)
    stand.manager.handle(BatchTokenOut([late]))
    stand.manager.handle(BatchTokenOut([late]))
    stand.manager.handle(BatchTokenOut([TokenOut(rid, [7], FinishReason("length", length=1), completion_len=1)]))
    assert [out.ids async for out in call] == [[7]]


async def test_abort_by_rid_ends_all_samples_with_what_they_have(stand: Stand) -> None:
    call = await stand.manager.start(request(rid="mine", sampling=SamplingParams(max_new_tokens=200, n=3, ignore_eos=True)))
    ends: list[GenerateOut] = []
    async for out in call:
        stand.manager.abort("mine", "enough")
        if out.finish is not None:
            ends.append(out)
    assert [end.finish for end in ends] == [FinishReason("abort", message="enough")] * 3
    stand.manager.abort("unknown")


async def test_abort_all(stand: Stand) -> None:
    calls = [await stand.manager.start(request()) for _ in range(3)]
    stand.manager.abort_all("shutting down")
    for call in calls:
        outs = [out async for out in call]
        assert outs[-1].finish is not None and outs[-1].finish.message == "shutting down"


async def test_a_dead_scheduler_ends_everything_at_once(stand: Stand) -> None:
    stand.scheduler.stuck = True
    calls = [await stand.manager.start(request()) for _ in range(3)]
    control = asyncio.create_task(stand.manager.flush_cache())
    await asyncio.sleep(0)
    stand.manager.scheduler_died("it crashed")
    for call in calls:
        with pytest.raises(EngineDeadError, match="it crashed"):
            await call.__anext__()
    with pytest.raises(EngineDeadError):
        await control
    with pytest.raises(EngineDeadError):
        await stand.manager.start(request())
    assert not await stand.manager.health()
    stand.scheduler.stuck = False
    stand.manager.scheduler_restarted(stand.manager.info)
    assert await stand.manager.health()


async def test_one_failing_sequence_fails_its_call_only(stand: Stand) -> None:
    stand.scheduler.poison = "b"
    other = await stand.manager.start(request(sampling=SamplingParams(max_new_tokens=5)))
    call = await stand.manager.start(request(input_ids=[[5], [6], [7]], rid=["a", "b", "c"]))
    with pytest.raises(RequestError, match="a bad grammar"):
        async for _ in call:
            pass
    assert sorted(stand.scheduler.aborted) == ["a", "c"]
    assert [out.finish async for out in other][-1] == FinishReason("length", length=5)


@pytest.mark.parametrize(("status", "kind"), [(400, RequestError), (503, OverloadError), (500, EngineDeadError)])
async def test_statuses_of_the_scheduler_become_errors(stand: Stand, status: int, kind: type[Exception]) -> None:
    stand.scheduler.stuck = True
    call = await stand.manager.start(request(rid="x"))
    stand.manager.handle(BatchTokenOut([TokenOut("x", [], FinishReason("abort", message="because", status_code=status))]))
    with pytest.raises(kind, match="because"):
        await call.ready(1)


async def test_a_rid_in_use_is_refused(stand: Stand) -> None:
    call = await stand.manager.start(request(rid="same"))
    with pytest.raises(RequestError, match="already running"):
        await stand.manager.start(request(rid="same"))
    call.cancel()
    again = await stand.manager.start(request(rid="same"))
    again.cancel()


async def test_outputs_of_dropped_requests_are_ignored(stand: Stand) -> None:
    stand.scheduler.stuck = True
    call = await stand.manager.start(request(rid="x"))
    call.cancel()
    assert [m for m in stand.scheduler.received if isinstance(m, AbortReq)][0].rid == "x"
    stand.manager.handle(BatchTokenOut([TokenOut("x", [1], FinishReason("length", length=1))]))
    assert [out async for out in call] == []


async def test_controls(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await stand.manager.flush_cache()).ok
    stand.scheduler.paused = True
    call = await stand.manager.start(request())
    assert not (await stand.manager.flush_cache()).ok
    assert (await stand.manager.state()).num_running == 1
    call.cancel()
    monkeypatch.setattr(control_calls, "CALL_SECONDS", 0.01)
    stand.scheduler.stuck = True
    with pytest.raises(OverloadError):
        await stand.manager.flush_cache()


async def test_health_fails_when_nothing_comes(stand: Stand) -> None:
    assert await stand.manager.health(1.0)
    stand.scheduler.stuck = True
    assert not await stand.manager.health(0.05)


async def test_long_texts_are_tokenized_on_a_thread(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_maker, "LONG_TEXT", 3)
    call = await stand.manager.start(GenerateReq(text=["The quick", "brown"], sampling=SamplingParams(max_new_tokens=1)))
    assert len([out async for out in call]) == 2
    tokenizer = stand.manager.need_tokenizer()
    assert [m.input_ids.tolist() for m in stand.scheduler.received] == [
        tokenizer.encode("The quick"),
        tokenizer.encode("brown"),
    ]  # type: ignore[union-attr]


async def test_many_at_once(make_stand: MakeStand) -> None:
    stand = make_stand(tokens_per_step=3)

    async def one(i: int) -> None:
        length = i % 40 + 1
        outs = [
            out async for out in stand.manager.generate(request(sampling=SamplingParams(max_new_tokens=length, n=i % 3 + 1)))
        ]
        ends = [out for out in outs if out.finish is not None]
        assert len(ends) == i % 3 + 1
        assert all(end.completion_len == length for end in ends)

    await asyncio.gather(*(one(i) for i in range(200)))
    assert stand.manager.num_in_flight == 0


async def test_texts_that_cannot_fit_are_refused_unread(stand: Stand, make_stand: MakeStand) -> None:
    text = "a" * (stand.manager.max_chars + 1)
    with pytest.raises(RequestError, match="tokens or more"):
        await stand.manager.start(GenerateReq(text=text))
    lenient = make_stand(allow_auto_truncate=True)
    call = await lenient.manager.start(GenerateReq(text=text, sampling=SamplingParams(max_new_tokens=1)))
    assert len([out async for out in call]) == 1


async def test_half_characters_are_refused(stand: Stand) -> None:
    for text in ("\ud800", ["fine", "a\udfff"]):
        with pytest.raises(RequestError, match="surrogate"):
            await stand.manager.start(GenerateReq(text=text))
    with pytest.raises(RequestError, match="surrogate"):
        stand.manager.need_tokenizer().encode_batch(["a", "\ud800"])
