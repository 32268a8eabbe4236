"""What the documents import from here."""

from __future__ import annotations

import importlib
from typing import Any

from sglang.srt.utils.images import load_image

__all__ = ["load_image"]


def __getattr__(name: str) -> Any:
    """Names that tests of the original import from here."""
    if name == "kill_process_tree":
        return importlib.import_module("sglang.compat.servers").kill_process_tree
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
