"""Ids of images in the prefix tree, and of their rows in a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.errors import OverloadError, RequestError
from sglang.srt.forward_batch import ModelInfo
from sglang.srt.media_item import MediaItem, without_pixels
from sglang.srt.messages import TokenizedReq
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.scheduler.media.arriving import ImageIds, RecentPixels, check_media
from sglang.srt.scheduler.media.encoder_gate import EncoderGate
from sglang.srt.scheduler.media.req_media import ReqMedia, req_media


def item(name: int, *spans: tuple[int, int]) -> MediaItem:
    return MediaItem("image", name.to_bytes(16, "little"), spans, b"", (0,))


def request(num_ids: int, *items: MediaItem, **fields: Any) -> TokenizedReq:
    return TokenizedReq("r", [7] * num_ids, SamplingParams(), media=items, **fields)


INFO = ModelInfo("toy", 500, 512, 512, 16, 64, 8, "toy", True, 0, 8, media_kinds=("image",))
CROSSED = replace(INFO, cross_attention=True)


class Job:
    def __init__(self) -> None:
        self.embedding: Any = None

    @property
    def is_done(self) -> bool:
        return self.embedding is not None


class Encoder:
    """A worker that only notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.jobs: list[Job] = []

    def check_item(self, item: MediaItem) -> None:
        return None

    def encode(self, item: MediaItem) -> Job:
        self.asked.append(item.mm_hash)
        self.jobs.append(Job())
        return self.jobs[-1]


def test_equal_pictures_have_equal_ids_and_others_share_none() -> None:
    ids = ImageIds()
    prompt = np.full(20, 7, np.int32)
    first = ids.tree_ids(request(20, item(1, (2, 3)), item(2, (8, 4))), prompt)
    again = ids.tree_ids(request(20, item(2, (2, 4)), item(1, (8, 3)), item(3, (12, 5))), prompt)
    assert first[:2].tolist() == [7, 7] and first[12:].tolist() == [7] * 8
    assert first[2:5].tolist() == again[8:11].tolist() and first[8:12].tolist() == again[2:6].tolist()
    used = [set(first[2:5].tolist()), set(first[8:12].tolist()), set(again[12:17].tolist())]
    assert all(i < 0 for part in used for i in part) and len(set.union(*used)) == 12
    assert prompt.tolist() == [7] * 20


def test_rows_of_several_spans_count_on() -> None:
    ids = ImageIds().tree_ids(request(12, item(1, (1, 2), (5, 3))), np.full(12, 7, np.int32))
    first = ids[1]
    assert ids[1:3].tolist() == [first, first + 1] and ids[5:8].tolist() == [first + 2, first + 3, first + 4]


def test_ids_that_are_used_up_begin_a_new_generation() -> None:
    ids = ImageIds(num_ids=10, max_ranges=2)
    assert ids.salt("s") == "s" and ids.salt(None) is None
    first = ids.first_id(item(1, (0, 4)))
    assert ids.first_id(item(2, (0, 6))) == -10 and ids.generation == 0
    assert ids.first_id(item(1, (0, 4))) == first
    ids.first_id(item(3, (0, 1)))
    assert ids.generation == 1 and ids.salt("s") != "s" != ids.salt(None)


def test_forgotten_pictures_get_ids_that_nobody_had() -> None:
    ids = ImageIds(max_ranges=2)
    seen = {ids.first_id(item(n, (0, 4))) for n in (1, 2, 3, 1)}
    assert len(seen) == 4


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_parts_of_a_step_are_those_of_the_prompt(data: st.DataObject) -> None:
    """Wherever a prompt is cut, its rows come from the right places of the right embeddings, once each."""
    spans, at = [], 0
    for _ in range(data.draw(st.integers(1, 5))):
        at += data.draw(st.integers(0, 3))
        spans.append((at, data.draw(st.integers(1, 6))))
        at += spans[-1][1]
    length = at + data.draw(st.integers(1, 3))
    cut = data.draw(st.integers(1, len(spans)))
    items = tuple(item(n, *part) for n, part in enumerate((spans[:cut], spans[cut:])) if part)
    media = req_media(request(length, *items), INFO)
    assert media is not None
    for one in items:
        job = Job()
        job.embedding = one.mm_hash
        media.jobs[one.mm_hash] = job
    cuts = sorted({0, length, *data.draw(st.lists(st.integers(0, length), max_size=4))})
    found: dict[int, tuple[bytes, int]] = {}
    for start, end in zip(cuts, cuts[1:], strict=False):
        for part in media.rows(start, end, 10):
            for i in range(part.count):
                place = part.row - 10 + start + i
                assert start <= place < end and place not in found
                found[place] = (part.embedding, part.start + i)
    want: dict[int, tuple[bytes, int]] = {}
    for one in items:
        row = 0
        for offset, size in one.spans:
            for i in range(size):
                want[offset + i] = (one.mm_hash, row)
                row += 1
    assert found == want


def test_positions_go_on_after_the_prompt() -> None:
    known = np.arange(12, dtype=np.int32).reshape(3, 4)
    media = ReqMedia((), known, -2, {})
    assert np.array_equal(media.positions_of(1, 3), known[:, 1:3])
    assert media.positions_of(3, 6)[0].tolist() == [3, 2, 3] and media.positions_of(5, 6).tolist() == [[3]] * 3
    assert ReqMedia((), None, 0, {}).positions_of(2, 4).tolist() == [[2, 3]] * 3


def test_a_step_ends_between_pictures_that_are_seen_both_ways() -> None:
    media = ReqMedia((item(1, (2, 4)), item(2, (6, 3), (12, 2))), None, 0, {}, bidirectional_images=True)
    ends = {end: media.last_end(0, end) for end in range(15)}
    assert ends == {0: 0, 1: 1, 2: 2, 3: 2, 4: 2, 5: 2, 6: 6, 7: 6, 8: 6, 9: 9, 10: 10, 11: 11, 12: 12, 13: 12, 14: 14}
    assert media.last_end(2, 5) == 2 and media.last_end(4, 5) == 4
    assert media.row_ends(1, 9).tolist() == [2, 6, 6, 6, 6, 9, 9, 9] and media.row_ends(4, 7).tolist() == [6, 6, 9]
    one_way = ReqMedia(media.items, None, 0, {})
    assert all(one_way.last_end(0, end) == end for end in range(15))


def test_only_what_is_not_cached_is_encoded_and_not_too_much_ahead() -> None:
    worker = Encoder()
    gate = EncoderGate(worker, 100)  # type: ignore[arg-type]
    media = ReqMedia((item(1, (2, 4)), item(2, (6, 3))), None, 0, {})
    assert gate.is_ready(media, 9) and worker.asked == []
    assert not gate.is_ready(media, 6) and worker.asked == [(2).to_bytes(16, "little")] and media.is_waiting
    worker.jobs[0].embedding = "rows"
    assert gate.is_ready(media, 7) and not media.is_waiting and gate.num_encoded == 1
    others = [ReqMedia((item(n, (0, 4)),), None, 0, {}) for n in range(10, 40)]
    for other in others:
        assert not gate.is_ready(other, 0)
    assert len(worker.asked) == 16
    others[0].jobs.clear()
    del media
    assert not gate.is_ready(others[-1], 0) and len(worker.asked) == 17


@pytest.mark.parametrize(
    ("items", "fields", "words"),
    [
        ([item(1, (8, 4))], {}, "do not lie in the prompt"),
        ([item(1, (4, 2)), item(2, (5, 2))], {}, "do not lie in the prompt"),
        ([item(1, (4, 0))], {}, "do not lie in the prompt"),
        ([MediaItem("video", b"", ((0, 1),), b"", (0,))], {}, "does not support videos"),
        ([item(1, (4, 2))], {"rope_positions": b"1234"}, "do not fit the prompt"),
    ],
)
def test_media_that_do_not_fit(items: list[MediaItem], fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        check_media(request(10, *items, **fields), 3, ("image",))


def test_pictures_that_no_step_could_take() -> None:
    gate = EncoderGate(Encoder(), 3)  # type: ignore[arg-type]
    gate.check(ReqMedia((item(1, (0, 4)),), None, 0, {}))
    with pytest.raises(RequestError, match="chunked-prefill-size"):
        gate.check(ReqMedia((item(1, (0, 4)),), None, 0, {}, bidirectional_images=True))


def test_pixels_come_once_for_all_samples_of_a_prompt() -> None:
    store = RecentPixels(max_bytes=10)
    full = MediaItem("image", b"a", ((0, 1),), b"123456", (1,))
    assert store.filled(full) is full and store.filled(without_pixels(full)) == full
    store.filled(MediaItem("image", b"b", ((0, 1),), b"1234567", (1,)))
    with pytest.raises(OverloadError, match="send it again"):
        store.filled(without_pixels(full))
    huge = MediaItem("image", b"c", ((0, 1),), b"x" * 50, (1,))
    store.filled(huge)
    assert store.filled(without_pixels(huge)) == huge


# --- pictures that rows see by cross-attention ------------------------------------------------------------------------------


def cross_attended(length: int, *items: MediaItem) -> ReqMedia:
    media = req_media(request(length, *items), CROSSED)
    assert media is not None
    for one in items:
        job = media.jobs[one.mm_hash] = Job()
        job.embedding = one.mm_hash[0]
    return media


def test_rows_see_the_last_pictures_before_them() -> None:
    media = cross_attended(12, item(1, (2, 1)), item(2, (5, 1)), item(3, (6, 1)), item(4, (9, 1)))
    expected = [(), (), (1,), (1,), (1,), (2,), (2, 3), (2, 3), (2, 3), (4,), (4,), (4,), (4,)]  # the last is generated
    for start in range(13):
        for end in range(start + 1, 14):
            found: list[tuple[int, ...]] = [()] * (end - start)
            for part in media.cross_rows(start, end, 100):
                for row in range(part.row, part.row + part.count):
                    found[row - 100] = part.embeddings
            assert found == expected[start:end]


def test_a_step_of_a_request_sees_one_group_of_pictures() -> None:
    media = cross_attended(12, item(1, (2, 1)), item(2, (5, 1)), item(3, (6, 1)), item(4, (9, 1)))
    at, steps = 0, []
    while at < 12:
        at = media.last_end(at, min(at + 8, 12))
        steps.append(at)
    assert steps == [2, 5, 6, 9, 12]
    assert all(len(media.cross_rows(a, b, 0)) <= 1 for a, b in zip([0, *steps], steps, strict=False))


def test_embeddings_are_needed_while_rows_see_them() -> None:
    items = [item(1, (2, 1)), item(2, (5, 1)), item(3, (6, 1)), item(4, (9, 1))]
    media = cross_attended(12, *items)
    assert [[media.needs(one, start) for one in items] for start in (0, 4, 5, 8, 9, 11)] == [
        [True, True, True, True],
        [True, True, True, True],
        [False, True, True, True],
        [False, True, True, True],
        [False, False, False, True],
        [False, False, False, True],
    ]
    media.prompt_done()
    assert len(media.jobs) == 4
    plain = req_media(request(12, *items), INFO)
    assert plain is not None
    plain.jobs[items[0].mm_hash] = Job()
    plain.prompt_done()
    assert not plain.jobs
