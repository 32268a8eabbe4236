"""What a state shares with its forks: the program's code that writes on all of them, and the places where they part and meet."""

from __future__ import annotations

import asyncio
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sglang.lang.ir import Expr
from sglang.lang.run.variables import Name

if TYPE_CHECKING:
    from sglang.lang.run.executor import Executor


@dataclass(frozen=True, slots=True)
class ForkPoint(Expr):
    """Here the children copy the state."""

    children: tuple[Executor, ...]


@dataclass(frozen=True, slots=True)
class JoinPoint(Expr):
    """Here the state waits for its children and takes their variables (or their text)."""

    children: tuple[Executor, ...]
    mode: str
    names: tuple[Name, ...] = ()

    @property
    def written_names(self) -> tuple[Name, ...]:
        return self.names


@dataclass
class Body:
    """The program's own code: who runs it, and whether it still runs. Shared by a state and its forks."""

    owner: object = None
    """thread ident, or asyncio.Task of an async program"""
    running: bool = True
    branches: weakref.WeakSet[Executor] = field(default_factory=weakref.WeakSet)

    def is_caller(self) -> bool:
        if self.owner == threading.get_ident():
            return True
        try:
            return self.owner is asyncio.current_task()
        except RuntimeError:
            return False
