"""Resumes the requests of a scheduler that has died: the next one continues them from the tokens already sent.

    in flight --death--> kept --next scheduler--> sent again, with the output so far as TokenizedReq.resumed
                          |  \\
                  aborted |   \\ twice in flight: a suspect, sent on trial, one at a time
                          v     v dies again
                     its end   an error, and the others go on

Nothing here depends on what a scheduler is or where it runs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

import msgspec

from sglang.srt.media_item import MediaItem, without_pixels
from sglang.srt.messages import FinishReason, TokenizedReq
from sglang.srt.server.calls import Progress

SUSPECT_DEATHS, MAX_DEATHS = 2, 3
"""unexplained deaths with a request in flight after which it is resumed on trial, or not at all"""
TRIAL_SECONDS, TRIAL_OUTPUTS = 4.0, 3
"""how long a trial lasts, whichever comes first: a deadly request kills where it did before, right behind the tokens sent"""
PIXEL_BYTES = 256 << 20
"""of all requests in flight together, kept for the next scheduler; a scheduler keeps as many recent ones (scheduler/media/arriving.py)"""

DEADLY = "the scheduler died several times while it worked on this request; it is not tried again"
NO_PIXELS = "the scheduler died, and the images of this request are no longer kept; send it again"


class KeptPixels:
    """Pixels of requests in flight, by digest, each kept once. What would exceed `max_bytes` is not kept."""

    def __init__(self, max_bytes: int = PIXEL_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: dict[bytes, tuple[bytes, int]] = {}  # pixels, number of requests

    def keep(self, items: Iterable[MediaItem]) -> None:
        for item in items:
            pixels, count = self._kept.get(item.mm_hash, (b"", 0))
            if not pixels and self._bytes + len(item.pixels) <= self._max_bytes:
                pixels = item.pixels
                self._bytes += len(pixels)
            self._kept[item.mm_hash] = pixels, count + 1

    def release(self, items: Iterable[MediaItem]) -> None:
        for item in items:
            pixels, count = self._kept.pop(item.mm_hash)
            if count > 1:
                self._kept[item.mm_hash] = pixels, count - 1
            else:
                self._bytes -= len(pixels)

    def filled(self, item: MediaItem) -> MediaItem | None:
        """The item with its pixels; None if they were not kept."""
        pixels = self._kept[item.mm_hash][0]
        return msgspec.structs.replace(item, pixels=pixels) if pixels else None


class Resumable(Protocol):
    """The interface of a sequence in flight (calls.Sequence) that resuming needs."""

    request: TokenizedReq
    progress: Progress


S = TypeVar("S", bound=Resumable)


class Resuming(Generic[S]):
    """Owner of what the next scheduler needs of the sequences in flight, and of the suspects among them. `send` hands a request
    to the scheduler, `end` ends a sequence. Everything happens on one event loop."""

    def __init__(self, send: Callable[[TokenizedReq], None], end: Callable[[S, FinishReason], None]) -> None:
        self._send = send
        self._end = end
        self._pixels = KeptPixels()
        self._suspects: deque[S] = deque()
        self.on_trial: S | None = None
        """the suspect that the scheduler has now"""
        self._timer: asyncio.TimerHandle | None = None
        self._num_heard = 0

    @property
    def suspects(self) -> list[S]:
        """Those that wait for their trial."""
        return list(self._suspects)

    def heard(self) -> None:
        """An output of the sequence on trial has come."""
        self._num_heard += 1
        if self._num_heard == TRIAL_OUTPUTS:
            self._next_trial()

    def keep(self, request: TokenizedReq) -> TokenizedReq:
        """Takes the pixels of a new request into keeping. Returns the request without them."""
        self._pixels.keep(request.media)
        return msgspec.structs.replace(request, media=tuple(without_pixels(item) for item in request.media))

    def forget(self, sequence: S) -> None:
        """The sequence has ended. To be called for those that have images, or had a scheduler that died."""
        self._pixels.release(sequence.request.media)
        if sequence is self.on_trial:
            self._next_trial()
        elif self._suspects and sequence in self._suspects:
            self._suspects.remove(sequence)

    def clear(self) -> None:
        """All sequences have ended, and there is no scheduler."""
        self._stop_trials()
        self._pixels = KeptPixels()

    def note_death(self, sequences: Iterable[S], is_explained: bool) -> None:
        """The scheduler has died. Ends those of its sequences that will not be resumed. `is_explained`: it is known what killed
        it, so that none of them is suspected."""
        suspect = self.on_trial
        self._stop_trials()
        flying = [sequence for sequence in sequences if sequence.progress.is_sent]
        for sequence in flying:
            sequence.progress.is_sent, sequence.progress.was_sent = False, True
            sequence.progress.num_deaths += not is_explained
        deadly = {s for s in flying if s.progress.num_deaths >= MAX_DEATHS}
        if not is_explained and suspect is not None and suspect in flying:  # then the others had no part in it
            deadly = {suspect}
            for sequence in flying:
                sequence.progress.num_deaths -= 1
        for sequence in flying:
            aborted = sequence.progress.aborted
            if aborted is not None:
                self._end(sequence, FinishReason("abort", message=aborted))
            elif sequence in deadly:
                self._end(sequence, FinishReason("abort", message=DEADLY, status_code=500, err_type="InternalServerError"))

    def resume(self, sequences: Iterable[S]) -> int:
        """There is a scheduler again: sends it all `sequences`, suspects one by one. Returns how many another one had."""
        count = 0
        sent: set[bytes] = set()
        for sequence in list(sequences):
            count += sequence.progress.was_sent
            if sequence.progress.num_deaths >= SUSPECT_DEATHS:
                self._suspects.append(sequence)
            else:
                self._send_again(sequence, sent)
        self._next_trial()
        return count

    def begin_anew(self, sequence: S) -> None:
        """Sends `sequence.request`, which was changed, to the scheduler that runs."""
        self._send_again(sequence, set())

    def _next_trial(self) -> None:
        self._stop_timer()
        self._num_heard = 0
        self.on_trial = self._suspects.popleft() if self._suspects else None
        if self.on_trial is not None:
            self._timer = asyncio.get_running_loop().call_later(TRIAL_SECONDS, self._next_trial)
            self._send_again(self.on_trial, set())

    def _stop_trials(self) -> None:
        self.on_trial = None
        self._suspects.clear()
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send_again(self, sequence: S, sent: set[bytes]) -> None:
        """`sent`: digests of pixels that this scheduler was sent just now."""
        request, progress = sequence.request, sequence.progress
        if progress.is_over:  # it ended with another of its call
            return
        items: list[MediaItem] = []
        for item in request.media:
            filled = item if item.mm_hash in sent else self._pixels.filled(item)
            if filled is None:
                self._end(sequence, FinishReason("abort", message=NO_PIXELS, status_code=503))
                return
            items.append(filled)
            sent.add(item.mm_hash)
        progress.is_sent = True
        self._send(progress.continued(msgspec.structs.replace(request, media=tuple(items))))
