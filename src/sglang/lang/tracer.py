"""A path of the original: see sglang.lang.program.tracer."""

from __future__ import annotations

from sglang.lang.program.tracer import TracerProgramState, extract_prefix, trace_program

extract_prefix_by_tracing = extract_prefix

__all__ = ["TracerProgramState", "extract_prefix", "extract_prefix_by_tracing", "trace_program"]
