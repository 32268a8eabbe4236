"""How a server ends: what tells it to, and what ends the process if all else is held up."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Callable

from sglang.srt.process.uvicorn_server import LAST_SECONDS

EXIT_SECONDS = 6.0
"""after the time for draining and for last answers, until the process ends whatever still holds it"""
STANDARD_ERROR = 2


class LastResort:
    """Ends the process with status 1 when an orderly end takes too long, whatever holds it: a client, a thread, the event loop,
    native code. What that was is written to standard error. The scheduler follows when its standard input closes."""

    def __init__(self) -> None:
        self.is_armed = False

    def arm(self, seconds: float) -> None:
        """`seconds`: the time for draining. Takes no lock, so that a signal handler may call it anywhere."""
        self.is_armed = True
        faulthandler.dump_traceback_later(seconds + LAST_SECONDS + EXIT_SECONDS, exit=True, file=STANDARD_ERROR)

    def disarm(self) -> None:
        if self.is_armed:
            faulthandler.cancel_dump_traceback_later()


def has_terminal() -> bool:
    """Whether there is a terminal, so that SIGHUP means that it was closed. Services have none."""
    return sys.stdin is not None and sys.stdin.isatty()


def when_stdin_ends(stop: Callable[[], None]) -> None:
    """Calls `stop` when standard input is closed."""
    while os.read(0, 4096):
        pass
    stop()
