"""The event log of a run: what happens in a program and all its forks, in order.

Streams read events from here while the program runs, and recordings are written from it afterwards.

    kind        fields
    text        text                 literal text or role markers were added to the prompt
    var_start   name                 the model begins to write a variable
    var_delta   name, text           it wrote a piece
    var_end     name, value, meta    the variable has its value
    fork        children             branches split off (their ids)
    call        name, text, value,   the backend was called: the prompt, {"kind", "options", "images"} and its answer; only in recordings
                meta, started
    image       name, value          data of an image of the calls that follow, by its SHA-256; only in recordings
    error       text                 the branch failed
    end                              the branch has nothing left to do
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from sglang.lang.concurrency.watch import Watch

EventKind = Literal["text", "var_start", "var_delta", "var_end", "fork", "call", "image", "error", "end"]


MAX_IMAGE = 4 << 20
"""characters of an image's data that a recording has"""


@dataclass(frozen=True)
class Event:
    """One thing that happened. `branch` is "0" for the program's own state, "0.2" for its third fork, and so on;
    `time` is seconds since the run began."""

    kind: EventKind
    branch: str
    time: float
    name: str | None = None
    text: str = ""
    value: Any = None
    meta: dict[str, Any] | None = None
    children: tuple[str, ...] = ()
    started: float | None = None


@dataclass
class RunLog:
    """The growing list of a run's events. Only executors append."""

    events: list[Event] = field(default_factory=list)
    watch: Watch = field(default_factory=Watch)
    started: float = field(default_factory=time.monotonic)
    records_calls: bool = False
    sink: Callable[[Event], None] | None = None
    """gets every event as it is added, until it raises OSError or ValueError"""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _images: set[str] = field(default_factory=set)

    def add(self, kind: EventKind, branch: str, **fields: Any) -> None:
        with self._lock:  # branches run on the event loop and on the program's thread
            event = Event(kind, branch, self.now, **fields)
            self.events.append(event)
            if self.sink is not None:
                try:
                    self.sink(event)
                except (OSError, ValueError) as error:  # a full disk: the run is worth more than its recording
                    self.sink = None
                    warnings.warn(f"the recording stops here: {error}", RuntimeWarning, stacklevel=2)
        self.watch.bump()

    def note_image(self, data: str) -> dict[str, Any]:
        """What a call says of an image (ir.Image.data): its URL, or {"sha256", "size"} of its file. The data, if they are not too long,
        are an event by themselves, once."""
        if "://" in data[:10]:
            return {"url": data}
        try:
            file = base64.b64decode(data.removeprefix("video:"))
        except binascii.Error:  # it is for the server to refuse
            file = data.encode()
        digest = hashlib.sha256(file).hexdigest()
        if len(data) <= MAX_IMAGE and digest not in self._images:
            self._images.add(digest)
            self.add("image", "0", name=digest, value=data)
        return {"sha256": digest, "size": len(file)}

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.started
