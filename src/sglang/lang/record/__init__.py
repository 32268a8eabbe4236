"""The event log of a run; recordings of it, to view and to replay. Names of recording.py are loaded at first use: every run has a
log, few are recorded."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.lang.record.recording import Recorder, ReplayBackend, ReplayError, read_recording

__all__ = ["Recorder", "ReplayBackend", "ReplayError", "read_recording"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("sglang.lang.record.recording"), name)
