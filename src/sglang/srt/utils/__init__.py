"""Helpers that the documents import."""

from __future__ import annotations

import importlib
from typing import Any

from sglang.srt.utils.images import load_image

__all__ = ["load_image"]


_ELSEWHERE = frozenset(
    {
        *("get_device", "is_cuda", "is_hip", "is_hpu", "is_mps", "is_musa", "is_npu", "is_xpu"),
        *("kill_child_process", "kill_process_tree"),
    }
)


def __getattr__(name: str) -> Any:
    """Names that tests of the original import from here."""
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("sglang.compat.servers"), name)
