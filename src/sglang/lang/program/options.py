"""The options of a run besides the program's arguments, and the parts of a program that batches and tracing use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sglang.lang.backend.base import BaseBackend
from sglang.lang.errors import NoBackendError
from sglang.lang.run.state import ProgramState
from sglang.lang.settings import global_config


@dataclass(frozen=True)
class RunOptions:
    """How one run goes, besides its arguments."""

    backend: BaseBackend
    sampling: Mapping[str, Any]
    stream: bool = False
    use_thread: bool = True
    record: Any = None


@dataclass(frozen=True)
class BatchItem:
    """One finished program of a batch: its place, its arguments, and its state or what it raised."""

    index: int
    arguments: Any
    state: ProgramState | None
    error: BaseException | None


class Program(Protocol):
    """An SglFunction, as batches and tracing see it. `arg_names`, `arg_defaults`: of its own arguments, without the state."""

    func: Callable[..., Any]
    is_async: bool
    arg_names: list[str]
    arg_defaults: list[Any]
    bind_arguments: dict[str, Any]

    def split(self, kwargs: dict[str, Any], batch: bool = False) -> RunOptions:
        """Takes the options of a run out of `kwargs`."""
        ...

    def new_state(self, options: RunOptions) -> ProgramState: ...

    def run_body(self, state: ProgramState, args: Sequence[Any], kwargs: dict[str, Any]) -> None: ...

    async def run_async_body(self, state: ProgramState, args: Sequence[Any], kwargs: dict[str, Any]) -> None: ...


def resolve_backend(backend: Any) -> BaseBackend:
    """The backend to use: the one given, or the default. A Runtime stands for its endpoint, an Engine gets wrapped. Raises
    NoBackendError."""
    backend = backend if backend is not None else global_config.default_backend
    if backend is None:
        raise NoBackendError(
            "there is no backend to run on: pass backend=..., or call set_default_backend(RuntimeEndpoint(url)) first"
        )
    backend = getattr(backend, "endpoint", backend)
    if isinstance(backend, BaseBackend):
        return backend
    if hasattr(backend, "async_generate"):
        from sglang.lang.backend.engine import engine_backend

        return engine_backend(backend)
    raise TypeError(f"{type(backend).__name__} is not a backend: use RuntimeEndpoint, Engine, OpenAI, ... of sglang")
