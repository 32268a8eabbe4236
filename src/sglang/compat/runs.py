"""The functions of sglang.lang.interpreter, which run a program as its methods do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sglang.lang.program.program import SglFunction
from sglang.lang.run.state import ProgramState


def run_program(
    program: SglFunction,
    backend: Any,
    func_args: Sequence[Any] = (),
    func_kwargs: Mapping[str, Any] | None = None,
    default_sampling_para: Mapping[str, Any] | None = None,
    stream: bool = False,
    sync: bool = False,
    use_thread: bool = True,
) -> ProgramState:
    """`program.run`. `default_sampling_para`: fields of SamplingOptions; `sync`: waits for what is generated."""
    options = {"backend": backend, "stream": stream, "use_thread": use_thread, **(default_sampling_para or {})}
    state: ProgramState = program.run(*func_args, **options, **(func_kwargs or {}))
    if sync:
        state.sync()
    return state


def run_program_batch(
    program: SglFunction,
    backend: Any,
    batch_arguments: Sequence[Any],
    default_sampling_para: Mapping[str, Any] | None = None,
    num_threads: int | str = "auto",
    progress_bar: bool = False,
    generator_style: bool = False,
) -> Any:
    """`program.run_batch`."""
    options = {"num_threads": num_threads, "progress_bar": progress_bar, "generator_style": generator_style}
    return program.run_batch(batch_arguments, backend=backend, **options, **(default_sampling_para or {}))


def cache_program(program: SglFunction, backend: Any) -> str:
    """`program.cache`: the backend computes the text that all runs begin with; returns it."""
    return program.cache(backend)
