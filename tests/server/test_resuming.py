"""Which requests are resumed and which are not, without a process."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from sglang.srt.errors import DeadlineError, EngineAwayError, EngineDeadError, OverloadError
from sglang.srt.media_item import MediaItem
from sglang.srt.messages import AbortReq, BatchTokenOut, FinishReason, PauseReq, TokenizedReq, TokenOut
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server import resuming, tokenizer_manager
from sglang.srt.server.generate_req import GenerateOut, GenerateReq
from sglang.srt.server.http.request_scope import RequestScope, enter_scope, leave_scope
from sglang.srt.server.resuming import KeptPixels
from tests.server.conftest import Stand

LONG = SamplingParams(max_new_tokens=200, ignore_eos=True)


def request(*rids: str) -> GenerateReq:
    """One prompt for each rid."""
    prompts = [[5, 6, i] for i in range(len(rids))]
    return GenerateReq(input_ids=prompts, sampling=LONG, stream=True, rid=list(rids))


def sent(stand: Stand) -> list[TokenizedReq]:
    """What the scheduler got since the last call."""
    found = [m for m in stand.scheduler.received if isinstance(m, TokenizedReq)]
    stand.scheduler.received.clear()
    return found


def die(stand: Stand, **how: Any) -> None:
    """One scheduler dies and another comes."""
    stand.manager.scheduler_lost("it crashed", **how)
    stand.scheduler.running.clear()
    stand.manager.scheduler_restarted(stand.manager.info)


@pytest.fixture()
def stuck(stand: Stand) -> Stand:
    stand.scheduler.stuck = True
    return stand


async def test_the_next_scheduler_is_told_what_was_sent(stuck: Stand) -> None:
    call = await stuck.manager.start(request("a", "b"))
    stuck.manager.handle(BatchTokenOut([TokenOut("a", [11, 12], cached_len=1, completion_len=2)]))
    sent(stuck)
    die(stuck)
    assert [(m.rid, m.resumed) for m in sent(stuck)] == [("a", (11, 12)), ("b", ())]
    stuck.manager.handle(BatchTokenOut([TokenOut("a", [13], FinishReason("length", length=3), completion_len=3)]))
    outs = [await call.__anext__() for _ in range(2)]
    assert [out.ids for out in outs] == [[11, 12], [13]] and outs[1].cached_len == 1
    call.cancel()


async def test_what_comes_while_there_is_none_waits_and_goes_along(stuck: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck.manager.scheduler_lost("it crashed")
    assert stuck.manager.status == "broken" and not await stuck.manager.health()
    waiting = asyncio.create_task(stuck.manager.start(request("new")))
    control = asyncio.create_task(stuck.manager.flush_cache())
    await asyncio.sleep(0.01)
    assert not waiting.done() and sent(stuck) == []
    with pytest.raises(EngineAwayError):
        await control
    stuck.manager.scheduler_restarted(stuck.manager.info)
    call = await waiting
    assert [(m.rid, m.resumed) for m in sent(stuck)] == [("new", None)]
    call.cancel()
    monkeypatch.setattr(tokenizer_manager, "AWAY_SECONDS", 0.01)
    stuck.manager.scheduler_lost("it crashed again")
    with pytest.raises(EngineAwayError, match="again") as failed:
        await stuck.manager.start(request("later"))
    assert failed.value.status_code == 503
    token = enter_scope(RequestScope(tokenizer_manager.time.monotonic(), timeout=0.005))
    with pytest.raises(DeadlineError):
        await stuck.manager.start(request("in a hurry"))
    leave_scope(token)
    stuck.manager.scheduler_restarted(stuck.manager.info)


async def test_aborts_and_leaving_while_there_is_none(stuck: Stand) -> None:
    calls = {name: await stuck.manager.start(request(name)) for name in "abcd"}
    stuck.manager.abort("d", "in the last moment")  # the scheduler dies before it hears of it
    stuck.manager.scheduler_lost("it crashed")
    sent(stuck)
    stuck.manager.abort("a", "enough")
    calls["b"].cancel()
    stuck.manager.scheduler_restarted(stuck.manager.info)
    assert [m.rid for m in sent(stuck)] == ["c"]
    for name, message in (("a", "enough"), ("d", "in the last moment")):
        assert (await calls[name].__anext__()).finish == FinishReason("abort", message=message)
    calls["c"].cancel()


async def test_when_there_will_be_none_everybody_hears_of_it(stuck: Stand) -> None:
    call = await stuck.manager.start(request("a"))
    stuck.manager.scheduler_lost("it crashed")
    waiting = asyncio.create_task(stuck.manager.start(request("b")))
    await asyncio.sleep(0.01)
    stuck.manager.scheduler_died("it died too often")
    for failing in (call.__anext__(), waiting):
        with pytest.raises(EngineDeadError, match="too often"):
            await failing


async def test_one_deadly_request_is_found_among_many(stuck: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is sent `poison` dies; the others are innocent."""
    monkeypatch.setattr(resuming, "TRIAL_SECONDS", 0.02)
    calls = {name: await stuck.manager.start(request(name)) for name in ("a", "b", "poison", "c")}
    deaths = 0
    for _ in range(60):
        if any(m.rid == "poison" for m in sent(stuck)):
            die(stuck)
            deaths += 1
        await asyncio.sleep(0.01)
    assert deaths == 3
    with pytest.raises(EngineDeadError, match="not tried again"):
        await calls["poison"].__anext__()
    assert sorted(stuck.manager._in_flight._sequences) == ["a", "b", "c"]
    stuck.scheduler.received.clear()
    for call in calls.values():
        call.cancel()
    assert sorted(m.rid or "" for m in stuck.scheduler.received if isinstance(m, AbortReq)) == ["a", "b", "c"]


async def test_a_suspect_that_goes_on_ends_its_trial(stuck: Stand) -> None:
    calls = [await stuck.manager.start(request(name)) for name in "ab"]
    die(stuck)
    sent(stuck)
    die(stuck)
    assert [m.rid for m in sent(stuck)] == ["a"]
    for i in range(resuming.TRIAL_OUTPUTS):
        stuck.manager.handle(BatchTokenOut([TokenOut("a", [i], completion_len=i + 1)]))
    assert [m.rid for m in sent(stuck)] == ["b"]
    for call in calls:
        call.cancel()


async def test_explained_deaths_make_nobody_a_suspect(stuck: Stand) -> None:
    call = await stuck.manager.start(request("a"))
    for _ in range(10):
        sent(stuck)
        die(stuck, is_explained=True)
        assert [m.rid for m in sent(stuck)] == ["a"]
    call.cancel()


async def test_a_pause_outlives_the_scheduler(stand: Stand) -> None:
    await stand.manager.pause(True)
    stand.scheduler.received.clear()
    die(stand)
    assert stand.scheduler.received == [PauseReq(0, True)]


async def test_a_drain_lets_in_what_was_there_and_nothing_else(stand: Stand) -> None:
    before = RequestScope(tokenizer_manager.time.monotonic())
    stand.manager.begin_drain()
    with pytest.raises(OverloadError, match="shutting down"):
        await stand.manager.start(request("late"))
    token = enter_scope(before)
    try:
        outs: list[GenerateOut] = [out async for out in stand.manager.generate(request("early"))]
        assert outs[-1].finish is not None
        stand.manager.end_drain()
        with pytest.raises(OverloadError, match="shutting down"):
            await stand.manager.start(request("too late now"))
    finally:
        leave_scope(token)


def picture(name: bytes, size: int) -> MediaItem:
    return MediaItem("image", name, ((0, 1),), bytes(size), (size,))


def test_pixels_are_kept_once_and_up_to_a_limit() -> None:
    kept = KeptPixels(max_bytes=100)
    one, two, large = picture(b"1", 40), picture(b"2", 50), picture(b"3", 20)
    for items in ([one], [one, two], [large]):
        kept.keep(items)
    bare = [msgspec.structs.replace(item, pixels=b"") for item in (one, two, large)]
    assert [kept.filled(item) for item in bare] == [one, two, None]
    kept.release([one])
    assert kept.filled(bare[0]) == one, "another request has it"
    kept.release([one, two, large])
    kept.keep([large])
    assert kept.filled(bare[2]) == large
