"""No waiter on a Watch misses a change."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sglang.lang.concurrency import watch
from sglang.lang.concurrency.watch import Watch


def test_a_change_before_the_wait_counts() -> None:
    one = Watch()
    seen = one.version
    one.bump()
    assert one.version == 1 and one.wait(seen, timeout=0.0), "it came between the look and the wait"
    assert not one.wait(one.version, timeout=0.0)


async def test_a_change_before_a_coroutine_waits_counts() -> None:
    one = Watch()
    one.bump()
    task = asyncio.create_task(one.wait_async(0))
    await asyncio.sleep(0)
    assert task.done()


def test_a_change_wakes_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads and coroutines of several loops; nobody is woken by the clock."""
    monkeypatch.setattr(watch, "_SLICE", 60.0)
    one, woken = Watch(), []
    register, waiting = Watch._register, threading.Semaphore(0)

    def note(self: Watch, seen: int, wake: object) -> bool:
        is_waiting = register(self, seen, wake)  # type: ignore[arg-type]
        waiting.release()
        return is_waiting

    monkeypatch.setattr(Watch, "_register", note)

    async def two() -> None:
        await asyncio.gather(one.wait_async(0), one.wait_async(0))
        woken.append("coroutines")

    threads = [threading.Thread(target=lambda: woken.append(one.wait(0)), daemon=True) for _ in range(3)]
    threads += [threading.Thread(target=lambda: asyncio.run(two()), daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(7):
        assert waiting.acquire(timeout=30)
    one.bump()
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive(), "somebody was not woken"
    assert sorted(map(str, woken)) == ["True"] * 3 + ["coroutines"] * 2


def test_changes_that_meet_the_beginning_of_a_wait_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread counts, the other follows it without ever being woken by the clock."""
    monkeypatch.setattr(watch, "_SLICE", 60.0)
    one, last = Watch(), 3000
    seen = [0]

    def follow() -> None:
        while seen[-1] < last:
            if not one.wait(seen[-1]):
                return
            seen.append(one.version)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    for _ in range(last):
        one.bump()
    thread.join(timeout=30)
    assert seen[-1] == last and seen == sorted(set(seen))


async def test_who_stops_waiting_is_forgotten() -> None:
    one = Watch()
    assert not one.wait(0, timeout=0.0)
    task = asyncio.create_task(one.wait_async(0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert one._wakers == []


def test_a_loop_that_has_gone_holds_nobody_up() -> None:
    one, loop = Watch(), asyncio.new_event_loop()
    wait = one.wait_async(0)
    task = loop.create_task(wait)
    loop.run_until_complete(asyncio.sleep(0))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    woken = threading.Event()
    assert one._register(0, woken.set)
    loop.close()
    one.bump()
    assert woken.is_set()
