"""A path of the original: see sglang.lang.run."""

from __future__ import annotations

from sglang.lang.run.executor import Executor
from sglang.lang.run.state import ProgramState, ProgramStateGroup

__all__ = ["Executor", "ProgramState", "ProgramStateGroup"]
