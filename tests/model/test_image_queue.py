"""The queue of encodings: the share that a step does, with a clock of its own, so nothing depends on the machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sglang.srt.media_item import MediaItem
from sglang.srt.model import image_queue
from sglang.srt.model.image_queue import EncodeQueue
from sglang.srt.model.models.vision.layers import Encoding


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class SlowEncoder:
    """Chunks of given lengths."""

    config: Any = None
    weights: Any = ()

    def __init__(self, clock: Clock, chunks: Sequence[float]) -> None:
        self.clock, self.chunks, self.done = clock, chunks, 0

    def check(self, item: MediaItem) -> None:
        pass

    def cost(self, item: MediaItem) -> int:
        return 600

    def encode(self, items: Sequence[MediaItem]) -> Encoding:
        for length in self.chunks:
            self.clock.now += length
            self.done += 1
            yield
        return [np.full((item.num_rows, 4), item.mm_hash[0], np.float32) for item in items]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(image_queue, "time", clock)
    return clock


def item(name: int) -> MediaItem:
    return MediaItem("image", bytes([name]) * 16, ((0, 2),), b"", (2, 3))


def steps(queue: EncodeQueue, clock: Clock, seconds: float) -> list[float]:
    """How long each call takes until all is encoded."""
    taken = []
    while True:
        began = clock.now
        if not queue.run(seconds):
            return taken
        taken.append(clock.now - began)


def test_a_long_chunk_goes_alone(clock: Clock) -> None:
    queue = EncodeQueue(SlowEncoder(clock, [0.25] * 4), 1 << 20)
    job = queue.get(item(1))
    assert steps(queue, clock, 0.015) == [0.25] * 4 + [0.0]
    assert job.is_done


def test_short_chunks_share_the_time_and_never_exceed_it(clock: Clock) -> None:
    chunks = [2.0**-8] * 10 + [2.0**-7] * 6  # about 4 and 8 ms
    queue = EncodeQueue(SlowEncoder(clock, chunks), 1 << 20)
    job = queue.get(item(1))
    taken = steps(queue, clock, 0.016)
    assert job.is_done and sum(taken) == sum(chunks)
    assert max(taken) <= 2.0**-7 + 3 * 2.0**-8  # the first long one comes unforeseen
    assert len(taken) < len(chunks)


def test_no_time_is_one_chunk(clock: Clock) -> None:
    encoder = SlowEncoder(clock, [0.001] * 5)
    queue = EncodeQueue(encoder, 1 << 20)
    job = queue.get(item(1))
    for done in range(1, 6):
        assert queue.run(0.0) and encoder.done == done and not job.is_done
    assert queue.run(0.0) and job.is_done
    assert not queue.run(0.0)


def test_two_that_do_not_fit_a_group_go_one_after_the_other(clock: Clock) -> None:
    queue = EncodeQueue(SlowEncoder(clock, [0.001]), 1 << 20)
    first, second = queue.get(item(1)), queue.get(item(2))
    while not first.is_done:
        queue.run(0.0)
    assert not second.is_done
    while queue.run(0.0):
        pass
    assert (np.asarray(second.embedding) == 2).all() and queue.num_encoded == 2
