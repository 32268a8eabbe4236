"""A path of the original: programs that test its backends."""

from __future__ import annotations

raise ImportError(
    "sglang.test.test_programs is not there: it tests the original's own backends; write a program and run it with backend=..."
)
