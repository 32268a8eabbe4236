"""The event log of a run: what happens in a program and all its forks, in order.

Streams read events from here while the program runs, and recordings are written from it afterwards.

    kind        fields
    text        text                 literal text or role markers were added to the prompt
    var_start   name                 the model begins to write a variable
    var_delta   name, text           it wrote a piece
    var_end     name, value, meta    the variable has its value
    fork        children             branches split off (their ids)
    call        name, text, value,   the backend was called: the prompt, {"kind", "options"} and its answer; only in recordings
                meta, started
    error       text                 the branch failed
    end                              the branch has nothing left to do
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from sglang.lang.concurrency.watch import Watch

EventKind = Literal["text", "var_start", "var_delta", "var_end", "fork", "call", "error", "end"]


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
    """gets every event as it is added"""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: EventKind, branch: str, **fields: Any) -> None:
        with self._lock:  # branches run on the event loop and on the program's thread
            event = Event(kind, branch, self.now, **fields)
            self.events.append(event)
            if self.sink is not None:
                self.sink(event)
        self.watch.bump()

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.started
