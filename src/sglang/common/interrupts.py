"""Ctrl-C in a terminal reaches every process that was started there; only the first of them decides what it means."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def children_without_interrupts() -> Iterator[None]:
    """Processes started inside do not hear Ctrl-C, from their first moment on, also while they import: they end with their parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
