"""Checks the images of new requests and assigns ids for the prefix tree.

The tree compares ids, and all images of a model share one placeholder id. So each distinct image (by its digest) has a range
of negative ids of its own, one for each of its rows, and those go into the tree instead:

    prompt        15  22  7  7  7  7  31         7: the placeholder
    in the tree   15  22 -9 -8 -7 -6  31         the range of this image: equal images match to the last row, others never
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict

import msgspec
import numpy as np

from sglang.common.lru import LruCache
from sglang.srt.errors import OverloadError, RequestError
from sglang.srt.forward_batch import Int32Array
from sglang.srt.media_item import MediaItem
from sglang.srt.messages import TokenizedReq

MAX_RANGES = 1 << 16
"""images whose ranges are remembered; one that is forgotten gets a new range, and is computed again"""
NUM_IDS = 1 << 31
PIXEL_BYTES = 256 << 20


class ImageIds:
    """Owner of the ranges. `generation` counts how often all ids were used up: ids of different generations must not meet."""

    def __init__(self, num_ids: int = NUM_IDS, max_ranges: int = MAX_RANGES) -> None:
        self._num_ids, self._max_ranges = num_ids, max_ranges
        self._ranges: LruCache[bytes, tuple[int, int]] = LruCache(max_ranges)
        self._ends: list[int] = []  # ids used after each range that was given, and the items that have them
        self._given: list[tuple[bytes, int]] = []
        self._used = 0
        self.generation = 0

    def first_id(self, item: MediaItem) -> int:
        """The id of the item's first row; the others follow."""
        found = self._ranges.get(item.mm_hash)
        if found is not None and found[1] >= item.num_rows:
            return found[0]
        if self._used + item.num_rows > self._num_ids:
            self._ranges.clear()
            self._used = 0
            self.generation += 1
        self._used += item.num_rows
        self._note(item)
        first = -self._used
        self._ranges.put(item.mm_hash, (first, item.num_rows))
        return first

    def _note(self, item: MediaItem) -> None:
        self._ends.append(self._used)
        self._given.append((item.mm_hash, item.num_rows))
        if len(self._ends) > 2 * self._max_ranges:
            del self._ends[: self._max_ranges], self._given[: self._max_ranges]

    def item_of(self, tree_id: int) -> tuple[bytes, int, int] | None:
        """What a negative id stands for: an item's digest, which of its rows, and how many rows follow. None for a forgotten one, and
        once ids have been given twice."""
        at = bisect_left(self._ends, -tree_id)
        if self.generation or at == len(self._ends):
            return None
        digest, num_rows = self._given[at]
        row = tree_id + self._ends[at]
        return (digest, row, num_rows - row - 1) if row < num_rows else None

    def tree_ids(self, msg: TokenizedReq, prompt: Int32Array) -> Int32Array:
        """The prompt as the tree knows it."""
        ids: Int32Array = prompt.copy()
        for item in msg.media:
            at = self.first_id(item)
            for offset, length in item.spans:
                ids[offset : offset + length] = np.arange(at, at + length)
                at += length
        return ids

    def salt(self, salt: str | None) -> str | None:
        """The namespace of requests with images."""
        return salt if self.generation == 0 else f"{salt or ''}\x1f{self.generation}"


class RecentPixels:
    """Recent pixels, for requests that come without: samples of one prompt bring them once."""

    def __init__(self, max_bytes: int = PIXEL_BYTES) -> None:
        self._max_bytes = max_bytes
        self._pixels: OrderedDict[bytes, bytes] = OrderedDict()
        self._bytes = 0

    def filled(self, item: MediaItem) -> MediaItem:
        """The item with its pixels. Raises OverloadError if they are no longer kept."""
        pixels = self._pixels.get(item.mm_hash)
        if item.pixels:
            if pixels is None:
                self._keep(item)
            return item
        if pixels is None:
            raise OverloadError("the images of this request are no longer kept; send it again")
        return msgspec.structs.replace(item, pixels=pixels)

    def _keep(self, item: MediaItem) -> None:
        self._pixels[item.mm_hash] = item.pixels
        self._bytes += len(item.pixels)
        while self._bytes > self._max_bytes and len(self._pixels) > 1:
            _, old = self._pixels.popitem(last=False)
            self._bytes -= len(old)


def check_media(msg: TokenizedReq, num_axes: int, kinds: tuple[str, ...]) -> None:
    """Raises RequestError for media that do not lie in the prompt, or that the model does not support."""
    at = 0
    for item in msg.media:
        if item.kind not in kinds:
            raise RequestError(f"this model does not support {item.kind}s", "image_data")
        for offset, length in item.spans:
            if offset < at or length < 1 or offset + length > len(msg.input_ids):
                raise RequestError("the spans of the media do not lie in the prompt, one after another", "image_data")
            at = offset + length
    if msg.rope_positions and (num_axes != 3 or len(msg.rope_positions) != 12 * len(msg.input_ids)):
        raise RequestError("the positions do not fit the prompt and the model", "image_data")
