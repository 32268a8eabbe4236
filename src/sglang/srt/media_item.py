"""One image or video of a request, between the server (which knows pixels) and the model (which knows encoders).

pixels --encoder--> embedding rows [num_rows, hidden]
prompt  ... 151652 151655 151655 151655 151655 151653 ...      rows stand for the ids of the item's spans, in order
                   |<----- a span: (offset, length) ----->|
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import msgspec

MediaKind = Literal["image", "video"]


class MediaItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """`mm_hash` is a digest of everything that decides the embedding: equal hashes mean equal rows. `pixels` are float32 of
    `shape`, as the model's own processor made them. `grid` and `facts` are what its encoder needs besides."""

    kind: MediaKind
    mm_hash: bytes
    spans: tuple[tuple[int, int], ...]
    """(offset into the prompt, length) of each run of placeholder ids, ascending"""
    pixels: bytes
    """empty: those that came last with this hash"""
    shape: tuple[int, ...]
    grid: tuple[int, ...] = ()
    facts: dict[str, Any] = {}

    @property
    def num_rows(self) -> int:
        return sum(length for _, length in self.spans)


def without_pixels(item: MediaItem) -> MediaItem:
    """For another request right after one that has brought them."""
    return msgspec.structs.replace(item, pixels=b"")


class EncodeJob(Protocol):
    """An embedding, finished or in progress. References to the job keep the embedding; without any, it is not
    made, or may be forgotten."""

    embedding: Any
    """[num_rows, hidden] of the device; None until it is done"""

    @property
    def is_done(self) -> bool: ...
