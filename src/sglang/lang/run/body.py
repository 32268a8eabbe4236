"""The execution of a program's own code: its thread or task, whether it still runs, and the states that it uses."""

from __future__ import annotations

import asyncio
import threading
import uuid
import weakref
from dataclasses import dataclass, field
from typing import Protocol


class Branch(Protocol):
    """A state of the program: its own, or a fork's."""

    @property
    def is_finished(self) -> bool: ...

    def cancel(self) -> None:
        """Ends the running request and drops what is queued. Called from any thread."""
        ...


@dataclass
class Body:
    """Shared by a state and its forks."""

    owner: object = None
    """thread ident, or asyncio.Task of an async program"""
    running: bool = True
    branches: weakref.WeakSet[Branch] = field(default_factory=weakref.WeakSet)
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    """the run's id"""
    _num_forks: dict[str, int] = field(default_factory=dict)

    def new_branch(self, parent: str) -> str:
        """An id for a fork of `parent`. Only the program's own code forks."""
        count = self._num_forks.get(parent, 0)
        self._num_forks[parent] = count + 1
        return f"{parent}.{count}"

    def is_caller(self) -> bool:
        if self.owner == threading.get_ident():
            return True
        try:
            return self.owner is asyncio.current_task()
        except RuntimeError:
            return False

    @property
    def is_finished(self) -> bool:
        """Whether all states have finished."""
        return all(branch.is_finished for branch in list(self.branches))

    def cancel(self) -> None:
        """Ends the running requests of all states."""
        for branch in list(self.branches):
            branch.cancel()
