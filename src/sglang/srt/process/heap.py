"""Returns freed memory to the system. glibc keeps freed memory, which after loading a model or building tables for grammars is tens of
megabytes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys

_M_ARENA_MAX = -8
_COUNTS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


def release_freed_memory() -> None:
    """Takes a few milliseconds. Does nothing where the C library is not glibc."""
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def limit_arenas() -> None:
    """glibc gives every thread an arena that keeps what the largest request on it took; two of them are enough for all."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


class _Mallinfo2(ctypes.Structure):
    """See mallinfo(3): `uordblks` are bytes in use, `hblkhd` those of blocks that were mapped one by one."""

    _fields_ = [(name, ctypes.c_size_t) for name in _COUNTS]


_mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
if _mallinfo2 is not None:
    _mallinfo2.restype = _Mallinfo2


def held_bytes() -> int:
    """Bytes that were allocated and not freed; takes a good part of a millisecond. Where the C library does not say, the resident
    ones."""
    if _mallinfo2 is None:
        return resident_bytes()
    found = _mallinfo2()
    return int(found.uordblks + found.hblkhd)


def resident_bytes() -> int:
    """Bytes of memory that this process has pages for, or 0 where the system does not say."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def keep_loaded_objects() -> None:
    """Takes what was made while loading out of the collector's sight. It stays anyway, and to look through it takes 50 ms, in the
    middle of whatever somebody waits for."""
    gc.collect()
    gc.freeze()
