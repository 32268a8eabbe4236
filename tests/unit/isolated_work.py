"""Jobs for test_isolation.py, done in children of a fork server."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Generator

KEPT: list[bytes] = []
"""what jobs leave behind"""


def prepare(setup: bytes) -> Callable[[bytes], bytes | Generator[bytes, None, bytes]]:
    """What a fork server calls once."""
    assert setup == b"setup"
    return work


def work(payload: bytes) -> bytes | Generator[bytes, None, bytes]:
    name, _, rest = payload.partition(b" ")
    if name == b"parts":
        return in_parts(float(rest))
    if name == b"echo":
        return rest
    if name == b"pid":
        return str(os.getpid()).encode()
    if name == b"keep":
        KEPT.append(b"x" * int(rest))
    if name == b"raise":
        raise ValueError("no good")
    if name == b"segv":
        ctypes.string_at(0)
    if name == b"abort":
        os.abort()
    if name == b"stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if name == b"memory":
        return bytes(int(rest))[:1]
    if name == b"sleep":
        time.sleep(float(rest))
    while name == b"spin":
        pass
    return b"done"


def in_parts(seconds: float) -> Generator[bytes, None, bytes]:
    yield b"one"
    yield str(os.getpid()).encode()
    time.sleep(seconds)
    return b"end"
