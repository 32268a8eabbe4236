"""Gives freed memory back to the system. glibc keeps what it once had: after loading a model or building tables for grammars
that is tens of megabytes, of no use to anybody."""

from __future__ import annotations

import ctypes
import gc
import sys


def release_freed_memory() -> None:
    """Takes a few milliseconds. Does nothing where the C library is not glibc."""
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_loaded_objects() -> None:
    """Takes what was made while loading out of the collector's sight. It stays anyway, and to look through it takes 50 ms, in the
    middle of whatever somebody waits for."""
    gc.collect()
    gc.freeze()
