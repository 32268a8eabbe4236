"""A path of the original: see sglang.lang.run, and sglang.compat.runs for its functions."""

from __future__ import annotations

import importlib
from typing import Any

from sglang.lang.run.executor import Executor
from sglang.lang.run.state import ProgramState, ProgramStateGroup

__all__ = ["Executor", "ProgramState", "ProgramStateGroup", "StreamExecutor"]

StreamExecutor = Executor
_ELSEWHERE = frozenset({"cache_program", "run_program", "run_program_batch"})


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("sglang.compat.runs"), name)
