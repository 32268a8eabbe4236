"""What happened in a run: its log, recordings to look at, and answers from them."""

from __future__ import annotations

from sglang.lang.record.recording import Recorder, ReplayBackend, ReplayError, read_recording

__all__ = ["Recorder", "ReplayBackend", "ReplayError", "read_recording"]
