"""The event log of a run; recordings of it, to view and to replay."""

from __future__ import annotations

from sglang.lang.record.recording import Recorder, ReplayBackend, ReplayError, read_recording

__all__ = ["Recorder", "ReplayBackend", "ReplayError", "read_recording"]
