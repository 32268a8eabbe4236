"""A path of the original: see sglang.srt.process.launch."""

from __future__ import annotations

from sglang.srt.process.launch import launch_server

__all__ = ["launch_server"]
