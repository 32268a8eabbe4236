"""Paths of the original: see sglang.srt.engine and sglang.srt.process.start."""
