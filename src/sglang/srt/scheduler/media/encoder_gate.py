"""Delays rows until the embeddings that they need are ready, and starts the encoding of those that are missing."""

from __future__ import annotations

import weakref

from sglang.srt.errors import RequestError
from sglang.srt.forward_batch import MAX_CROSS_IMAGES, ModelWorker
from sglang.srt.media_item import EncodeJob
from sglang.srt.scheduler.media.req_media import ReqMedia

MAX_AHEAD = 16
"""requests whose embeddings are held before they run"""
ENCODE_SECONDS = 0.015
"""how long a step with running requests may work on embeddings, unless a single chunk takes longer"""
IDLE_ENCODE_SECONDS = 0.2


class EncoderGate:
    """Sees to it that embeddings are there before the rows that need them."""

    def __init__(self, worker: ModelWorker, chunk_tokens: int) -> None:
        self._worker = worker
        self._chunk_tokens = chunk_tokens
        self._ahead: weakref.WeakSet[ReqMedia] = weakref.WeakSet()
        self._making: weakref.WeakSet[EncodeJob] = weakref.WeakSet()
        self.num_encoded = 0

    def check(self, media: ReqMedia) -> None:
        """Raises RequestError for items that the model cannot take."""
        for item in media.items:
            self._worker.check_item(item)
            if any(len(items) > MAX_CROSS_IMAGES for _, items in media.visible):
                raise RequestError(
                    f"this model takes at most {MAX_CROSS_IMAGES} adjacent images: put text between them", "image_data"
                )
            longest = max(length for _, length in item.spans)
            if media.bidirectional_images and longest > self._chunk_tokens:
                raise RequestError(
                    f"an image takes {longest} tokens, which this model must compute in one step of at most "
                    f"{self._chunk_tokens}: start the server with a larger --chunked-prefill-size",
                    "image_data",
                )

    def is_ready(self, media: ReqMedia, start: int) -> bool:
        """Whether every embedding for ids from `start` on is there. Those that are not are queued, unless embeddings wait
        for enough other requests already."""
        if not media.jobs and sum(bool(other.jobs) and not other.is_done for other in self._ahead) >= MAX_AHEAD:
            return False
        self._ahead.add(media)
        ready = True
        for item in media.items:
            if not media.needs(item, start):
                continue
            job = media.jobs.get(item.mm_hash)
            if job is None:
                job = media.jobs[item.mm_hash] = self._worker.encode(item)
                if not job.is_done and job not in self._making:
                    self._making.add(job)
                    self.num_encoded += 1
            ready = ready and job.is_done
        return ready

    def work(self, busy: bool) -> bool:
        """Some work on what is queued: little when requests run, so that they go on. False if there was none."""
        return self._worker.encode_some(ENCODE_SECONDS if busy else IDLE_ENCODE_SECONDS)
