"""Images and adapters in the prefix cache on disk: another process finds what they computed by their content, and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.media_item import MediaItem
from sglang.srt.messages import ShutdownReq, TokenizedReq, UnloadAdapterReq
from sglang.srt.scheduler.cache.disk.names import Names
from sglang.srt.scheduler.cache.disk.store import RecordStore
from sglang.srt.scheduler.cache.disk.tier import DiskTier
from sglang.srt.scheduler.cache.radix_cache import MARK
from sglang.srt.scheduler.media.arriving import ImageIds
from tests.scheduler.disk_server import ROOM, Always, Server, ids, leave, make_form
from tests.scheduler.test_adapters import ACTIVATED, INVOCATION, AdaptedWorker, Served
from tests.scheduler.toy import ToyRuns

ROWS = 24


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# --- images -----------------------------------------------------------------------------------------------------------------------


def image(name: int, at: int, num_rows: int = ROWS) -> MediaItem:
    return MediaItem("image", bytes([name]) * 32, ((at, num_rows),), b"", (), (), ())


class Pictures:
    """A process: its ids of images, and what it calls prefixes."""

    def __init__(self, *earlier: int) -> None:
        """`earlier`: images that came before, so that ids differ."""
        self.image_ids = ImageIds()
        self.names = Names(b"f" * 32, False)
        self.names.image_of = self.image_ids.item_of
        for name in earlier:
            self.image_ids.first_id(image(name, 0))

    def tree(self, prompt: list[int], *items: MediaItem) -> np.ndarray[Any, np.dtype[np.int32]]:
        path = np.array(prompt, np.int32)
        for item in items:
            (at, num), first = item.spans[0], self.image_ids.first_id(item)
            path[at : at + num] = np.arange(first, first + num)
        return path

    def keys(self, prompt: list[int], *items: MediaItem) -> list[bytes]:
        return self.names.prefix(self.tree(prompt, *items), None).keys(16)


PROMPT = ids(100)


def test_equal_images_are_called_the_same_in_every_process() -> None:
    one, two = Pictures(), Pictures(9, 8, 7)
    items = (image(1, 10), image(2, 10 + ROWS))
    assert not np.array_equal(one.tree(PROMPT, *items), two.tree(PROMPT, *items))
    assert one.keys(PROMPT, *items) == two.keys(PROMPT, *items)
    first, second = (each.names.prefix(each.tree(PROMPT, *items), None) for each in (one, two))
    assert np.array_equal(first.ids, second.ids) and len(first) == 100
    assert (first.ids[10:58] < 0).all() and first.ids[58:].tolist() == PROMPT[58:]


@pytest.mark.parametrize(
    ("other", "num_same"),
    [
        ((image(3, 10), image(2, 10 + ROWS)), 0),
        ((image(1, 10), image(3, 10 + ROWS)), 2),
        ((image(1, 10),), 2),
        ((image(2, 10), image(1, 10 + ROWS)), 0),
        ((image(1, 11), image(2, 11 + ROWS)), 0),
        ((), 0),
    ],
    ids=["another first", "another second", "only one", "changed places", "moved", "none"],
)
def test_other_images_have_other_keys_from_there_on(other: tuple[MediaItem, ...], num_same: int) -> None:
    process = Pictures()
    items = (image(1, 10), image(2, 10 + ROWS))
    same = [a == b for a, b in zip(process.keys(PROMPT, *items), process.keys(PROMPT, *other), strict=True)]
    assert same == [True] * num_same + [False] * (6 - num_same)


def test_ids_that_were_forgotten_or_given_twice_end_the_name() -> None:
    for image_ids, num in ((ImageIds(max_ranges=2), 9), (ImageIds(num_ids=3 * ROWS), 5)):
        first = image_ids.first_id(image(0, 0))
        assert image_ids.item_of(first + 3) == (image(0, 0).mm_hash, 3, ROWS - 4)
        assert image_ids.item_of(first - 1) is None
        for name in range(1, num):
            image_ids.first_id(image(name, 0))
        assert image_ids.item_of(first) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=30))
def test_an_id_leads_back_to_its_image(given: list[tuple[int, int]]) -> None:
    image_ids = ImageIds()
    for name, num_rows in given:
        item = image(name, 0, num_rows)
        first = image_ids.first_id(item)
        for row in range(num_rows):
            found = image_ids.item_of(first + row)
            assert found is not None and found[:2] == (item.mm_hash, row) and found[2] >= num_rows - row - 1


def test_a_restarted_server_has_the_rows_of_images(folder: Path) -> None:
    """Its own ids of the images differ; one byte of another image is a miss from there on."""
    for num_earlier, name, num_found in ((0, 1, 0), (2, 1, 96), (3, 4, 0)):
        server = Server(folder)
        image_ids = server.harness.scheduler._inlet.image_ids
        for other in range(num_earlier):
            image_ids.first_id(image(50 + other, 0))
        first = image_ids.first_id(image(name, 0))
        path = np.array(PROMPT, np.int32)
        path[4 : 4 + ROWS] = np.arange(first, first + ROWS)
        load = server.tier.begin(path, None)
        assert (load is not None) == bool(num_found)
        while server.tier.is_busy:
            server.tier.poll()
        assert server.harness.scheduler.memory.tree.match_len(path, None)[0] == num_found
        server.check()
        if name == 1:
            leave(server, path, None)
        server.stop()


# --- adapters ---------------------------------------------------------------------------------------------------------------------


class AdaptedRuns(ToyRuns):
    """With what each row's adapter added."""

    def __init__(self, worker: AdaptedWorker) -> None:
        super().__init__(worker)
        self.run_bytes = 24 * self.run
        self._arrays = (worker.tokens, worker.places, worker.written)  # type: ignore[assignment]

    def read(self, slots: Any, out: Any) -> None:
        for row, array in zip(out.view(np.int64).reshape(3, self.run), self._arrays, strict=True):
            row[:] = array[slots]

    def write(self, slot: int, data: Any) -> None:
        for row, array in zip(data.view(np.int64).reshape(3, self.run), self._arrays, strict=True):
            array[slot : slot + self.run] = row


class Kept(Served):
    """A server with adapters and a cache on disk. `earlier`: loads before, so that uids differ."""

    def __init__(self, folder: Path, earlier: int = 0) -> None:
        worker = AdaptedWorker()
        runs = AdaptedRuns(worker)
        self.tier: DiskTier

        def open_tier(memory: Any, finish: Any) -> DiskTier:
            self.tier = DiskTier(RecordStore(folder, make_form(runs), ROOM, {}), runs, memory, finish, False, Always())
            return self.tier

        super().__init__(worker, open_tier=open_tier)
        for i in range(earlier):
            self.load(f"earlier{i}")

    def cached(self, prompt: list[int], path: str | None, **more: Any) -> int:
        """How much was found, after the answer is right."""
        req: TokenizedReq = self.ask(f"r{len(self.answers)}", prompt, path, **more)
        self.put(req)
        while self.scheduler._live or self.tier.is_busy:
            self.step()
        self.check_answer(req)
        return self.answers[req.rid].last.cached_len

    def stop(self) -> None:
        self.put(ShutdownReq())
        self.scheduler.run()


def test_an_adapter_is_known_by_its_content(folder: Path) -> None:
    first = Kept(folder)
    for path in ("a", "b"):
        first.load(path)
        assert first.cached(PROMPT, path) == 0
    first.stop()
    second = Kept(folder, earlier=3)
    for path in ("b", "c"):
        second.load(path)
    assert second.uids["b"] != first.uids["b"]
    assert second.cached(PROMPT, "b") == 96
    assert second.cached(PROMPT, "c") == second.cached(PROMPT, None) == 0
    assert second.cached(PROMPT, "b", cache_salt="other") == 0
    second.stop()


def test_an_activated_adapter_shares_the_base_up_to_its_invocation(folder: Path) -> None:
    prompt = [*ids(40), *INVOCATION, *ids(60, 1)]
    names = [ACTIVATED + str(i) for i in range(3)]
    first = Kept(folder)
    first.load(names[0])
    first.cached(prompt, names[0])
    first.stop()
    second = Kept(folder, earlier=2)
    for name in names:
        second.load(name)
    assert second.cached(prompt, names[0]) == len(prompt) // 16 * 16
    third = Kept(folder)
    third.load(names[1])
    assert third.cached(prompt, names[1]) == 32, "what stands before is the base's"
    fourth = Kept(folder)
    assert fourth.cached(prompt, None) == 32
    for server in (second, third, fourth):
        server.stop()


def test_what_an_unloaded_adapter_left_is_not_written_under_another_name(folder: Path) -> None:
    server = Kept(folder)
    server.load("a")
    server.cached(PROMPT, "a")
    server.put(UnloadAdapterReq(9, server.uids["a"]))
    server.poll()
    server.stop()
    after = Kept(folder, earlier=1)
    after.load("a")
    assert after.cached(PROMPT, "a") == 0


def test_an_adapter_without_a_digest_is_not_kept(folder: Path) -> None:
    server = Kept(folder)
    server.load("a")
    known = server.scheduler.adapters._known[server.uids["a"]]
    known.info = dataclasses.replace(known.info, digest="")
    server.cached(PROMPT, "a")
    server.stop()
    assert len(server.tier.store) == 0


def test_a_mark_is_not_an_image() -> None:
    names = Names(b"f" * 32, False)
    names.adapter_of = lambda uid: "x" * 32
    names.image_of = lambda tree_id: (b"x" * 32, 0, 0)
    one, two = (names.prefix(np.array([*ids(15), own], np.int32), None).keys(16) for own in (MARK + 1, -1))
    assert one != two
