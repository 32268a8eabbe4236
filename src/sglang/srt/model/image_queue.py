"""Encodes images: each once, a chunk at a time, with a cache of the results.

    encode(item)   in the cache? -> a finished job
                   on disk? -> a job that is finished without encoding
                   in work for another request? -> the same job
                   otherwise a new job at the end of the queue
    run            encodes a group of jobs from the front of the queue, chunk by chunk

The queue holds jobs by weak references: a job whose requests have all ended is dropped.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

from sglang.common.lru import LruCache
from sglang.srt.checkpoint.kept_images import KeptImages
from sglang.srt.media_item import MediaItem
from sglang.srt.model.kernels.ops import Array
from sglang.srt.model.models.vision.layers import Encoder, Encoding

Rows = npt.NDArray[np.float32]
STALL_SECONDS = 1.0
"""after which an image is encoded that the disk has not given"""
GROUP_COST = 1024
"""patches that are encoded together, if several items wait"""


class Job:
    """A media_item.EncodeJob."""

    __slots__ = ("__weakref__", "embedding", "item", "reading", "since")

    def __init__(self, item: MediaItem, reading: Future[Rows | None] | None = None) -> None:
        self.item: MediaItem | None = item
        self.embedding: Array | None = None
        self.reading, self.since = reading, time.monotonic()

    @property
    def is_done(self) -> bool:
        return self.embedding is not None


class EncodeQueue:
    """Owner of the line, the encoding under way and the cache (least recently used out first, by bytes)."""

    def __init__(self, encoder: Encoder, max_bytes: int) -> None:
        self._encoder = encoder
        self._line: deque[weakref.ref[Job]] = deque()
        self._open: weakref.WeakValueDictionary[bytes, Job] = weakref.WeakValueDictionary()
        self._cache: LruCache[bytes, Job] = LruCache(max_bytes)
        self._group: list[Job] = []
        self._encoding: Encoding | None = None
        self._chunk_seconds = 0.0
        self.num_encoded = 0
        self.kept: KeptImages | None = None
        """embeddings on disk"""

    def check(self, item: MediaItem) -> None:
        """Raises RequestError if the item's arrays do not fit together."""
        self._encoder.check(item)

    def get(self, item: MediaItem) -> Job:
        """The job for a checked item."""
        job = self._cache.get(item.mm_hash)
        if job is not None:
            return job
        job = self._open.get(item.mm_hash)
        if job is None:
            job = self._open[item.mm_hash] = Job(item, self.kept.read(item.mm_hash) if self.kept is not None else None)
            self._line.append(weakref.ref(job))
        return job

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being encoded and no job waits."""
        return self._encoding is None and not self._line

    def run(self, seconds: float) -> bool:
        """Works for at most so long, or one chunk if that is longer: no chunk is begun that, by the longest of this encoding so
        far, would not end in time. False if there is nothing to do."""
        now = time.monotonic()
        deadline = now + seconds
        while True:
            if self._encoding is None and not self._begin():
                return False
            assert self._encoding is not None
            began = now
            try:
                next(self._encoding)
            except StopIteration as end:
                self._finish(end.value)
                return True
            now = time.monotonic()
            self._chunk_seconds = max(self._chunk_seconds, now - began)
            if now + self._chunk_seconds > deadline:
                return True

    def _begin(self) -> bool:
        """Takes a group from the front of the line."""
        cost = 0
        while self._line:
            job = self._line[0]()
            if job is not None and job.item is not None and not self._restored(job, job.item):
                if job.reading is not None:  # it is on its way
                    break
                more = self._encoder.cost(job.item)
                if self._group and cost + more > GROUP_COST:
                    break
                cost += more
                self._group.append(job)
            self._line.popleft()
        if not self._group:
            return False
        self._chunk_seconds = 0.0
        self._encoding = self._encoder.encode([job.item for job in self._group if job.item is not None])
        return True

    def _restored(self, job: Job, item: MediaItem) -> bool:
        """Whether the disk has given the job's embedding. Afterwards `reading` says whether it may still do so."""
        if job.reading is None:
            return False
        if not job.reading.done():
            if time.monotonic() > job.since + STALL_SECONDS:
                job.reading = None
            return False
        rows, job.reading = job.reading.result(), None
        if rows is None or len(rows) != item.num_rows:
            return False
        self._end(job, item, rows)
        return True

    def _end(self, job: Job, item: MediaItem, embedding: Array) -> None:
        job.item, job.embedding = None, embedding
        self._open.pop(item.mm_hash, None)
        self._cache.put(item.mm_hash, job, embedding.nbytes)

    def _finish(self, embeddings: list[Array]) -> None:
        for job, embedding in zip(self._group, embeddings, strict=True):
            assert job.item is not None
            name = job.item.mm_hash
            self._end(job, job.item, embedding)
            if self.kept is not None:
                self.kept.write(name, embedding)
        self.num_encoded += len(self._group)
        self._group, self._encoding = [], None
