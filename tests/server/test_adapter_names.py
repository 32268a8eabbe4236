"""The names of adapters when calls are cancelled, schedulers die, and long batches are handed over; without a scheduler."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from sglang.srt.config import AdapterInfo, AdapterOptions, NamedAdapter
from sglang.srt.errors import EngineAwayError, EngineDeadError, NoSuchModelError, RequestError
from sglang.srt.messages import ControlReply, LoadAdapterReq, UnloadAdapterReq
from sglang.srt.process.schedulers import Schedulers
from sglang.srt.server.adapters import Adapters
from sglang.srt.server.control_calls import ControlCalls
from tests.scheduler.toy import make_req


class Names:
    """Adapters whose scheduler is the test. `sent`: what it was sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.controls = ControlCalls(self.sent.append)
        options = AdapterOptions(adapters=(NamedAdapter("a", "/a", uid=1),), at_run_time=True)
        self.adapters = Adapters(options, {1: {"rank": 4, "digest": "d"}}, "base", self.controls)

    async def begin(self, work: Any, kind: type) -> tuple[asyncio.Task[None], Any]:
        """A call that waits for the scheduler, and what that was sent."""
        task = asyncio.ensure_future(work)
        while not self.sent or not isinstance(self.sent[-1], kind):
            await asyncio.sleep(0)
        return task, self.sent[-1]


async def cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_unload_goes_on() -> None:
    names = Names()
    task, message = await names.begin(names.adapters.unload("a"), UnloadAdapterReq)
    await cancel(task)
    with pytest.raises(RequestError, match="is being unloaded"):
        await names.adapters.load("a", "/a")
    names.controls.handle(ControlReply(message.call_id))
    await asyncio.sleep(0.01)
    assert not names.adapters.current()
    task, message = await names.begin(names.adapters.load("a", "/a"), LoadAdapterReq)
    names.controls.handle(ControlReply(message.call_id, adapter=AdapterInfo(4)))
    await task
    assert names.adapters.find("a") == message.uid != 1


async def test_a_cancelled_load_goes_on() -> None:
    names = Names()
    task, message = await names.begin(names.adapters.load("b", "/b"), LoadAdapterReq)
    await cancel(task)
    with pytest.raises(RequestError, match="already"):
        await names.adapters.load("b", "/b")
    names.controls.handle(ControlReply(message.call_id, adapter=AdapterInfo(4)))
    await asyncio.sleep(0.01)
    assert names.adapters.find("b") == message.uid


@pytest.mark.parametrize("error", [EngineAwayError, EngineDeadError])
async def test_an_unload_whose_scheduler_dies_is_undone(error: type[EngineDeadError]) -> None:
    names = Names()
    task, _ = await names.begin(names.adapters.unload("a"), UnloadAdapterReq)
    with pytest.raises(NoSuchModelError):
        names.adapters.find("a")
    names.controls.fail(error("it died"))
    with pytest.raises(error):
        await task
    assert names.adapters.find("a") == 1


async def test_an_unload_waits_for_a_batch_that_is_handed_over() -> None:
    """Its first requests may run before its last ones are sent."""
    names = Names()
    requests = [make_req("1", [5], adapter=1), make_req("2", [6])]
    with names.adapters.entering(requests):
        task = asyncio.ensure_future(names.adapters.unload("a"))
        await asyncio.sleep(0.05)
        assert not names.sent
    while not names.sent:
        await asyncio.sleep(0.01)
    names.controls.handle(ControlReply(names.sent[0].call_id))
    await task
    with names.adapters.entering([make_req("3", [5])]):
        assert not names.adapters._entering


async def test_a_scheduler_that_is_back_among_others_hears_what_leaves() -> None:
    names = Names()
    names.adapters.replica_back({1: AdapterInfo(4)})
    assert not names.sent
    task, message = await names.begin(names.adapters.unload("a"), UnloadAdapterReq)
    names.adapters.replica_back({1: AdapterInfo(4)})
    assert names.sent[-1] == UnloadAdapterReq(0, 1)
    names.controls.handle(ControlReply(message.call_id))
    await task


async def test_what_a_scheduler_that_is_back_lacks_leaves_the_others() -> None:
    names = Names()
    names.adapters.replica_back({})
    assert names.sent == [UnloadAdapterReq(0, 1)] and names.adapters.names() == []


@pytest.mark.parametrize("is_changed", [False, True])
async def test_a_scheduler_hears_what_was_loaded_and_unloaded_while_it_started(is_changed: bool) -> None:
    names = Names()
    schedulers = object.__new__(Schedulers)
    schedulers._manager = SimpleNamespace(adapters=names.adapters)  # type: ignore[assignment]
    heard: list[Any] = []

    async def answer(message: LoadAdapterReq | UnloadAdapterReq) -> ControlReply:
        heard.append(message)
        return ControlReply(message.call_id, adapter=AdapterInfo(4, digest="other" if is_changed else "weights"))

    given = names.adapters.current()
    loading, load = await names.begin(names.adapters.load("b", "/b"), LoadAdapterReq)
    replica = SimpleNamespace(process=SimpleNamespace(ask=answer))
    catching_up = asyncio.ensure_future(schedulers._catch_up(replica, given, {"1": AdapterInfo(4)}))  # type: ignore[arg-type]
    await asyncio.sleep(0.01)
    assert not heard, "whether it can be loaded is not known yet"
    unloading, unload = await names.begin(names.adapters.unload("a"), UnloadAdapterReq)
    names.controls.handle(ControlReply(unload.call_id))
    await unloading
    names.controls.handle(ControlReply(load.call_id, adapter=AdapterInfo(4, digest="weights")))
    await loading
    has = await catching_up
    assert {type(message) for message in heard} == {LoadAdapterReq, UnloadAdapterReq} and len(heard) == 2
    assert set(has) == (set() if is_changed else {load.uid})
