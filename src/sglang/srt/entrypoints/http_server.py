"""A path of the original: see sglang.srt.launch."""

from __future__ import annotations

from sglang.srt.launch import launch_server

__all__ = ["launch_server"]
