"""A path of the original: see sglang.srt.process.start."""

from __future__ import annotations

from sglang.srt.process.start import launch_server

__all__ = ["launch_server"]
