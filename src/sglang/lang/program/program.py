"""A program: a function whose first argument is the state that it appends to."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import update_wrapper
from typing import Any, overload

from sglang.lang.concurrency.background import BODIES, IO, PROGRAMS
from sglang.lang.program.options import RunOptions, resolve_backend
from sglang.lang.record.runlog import RunLog
from sglang.lang.run.async_state import AsyncProgramState
from sglang.lang.run.body import Body
from sglang.lang.run.executor import Executor
from sglang.lang.run.speculation import speculation_for
from sglang.lang.run.state import ProgramState
from sglang.lang.run.streams import wait_async_until
from sglang.lang.sampling import take_options
from sglang.lang.settings import global_config


class SglFunction:
    """A program made by `@function`. Calling it runs it.

    The names of sampling fields, and `stream`, `backend`, `use_thread`, `record`, are taken out of the keywords of a call
    unless the function has an argument of that name.
    """

    def __init__(
        self, func: Callable[..., Any], num_api_spec_tokens: int | None = None, bind_arguments: Mapping[str, Any] | None = None
    ) -> None:
        self.func = func
        self.num_api_spec_tokens = num_api_spec_tokens
        self.bind_arguments = dict(bind_arguments or {})
        self.is_async = inspect.iscoroutinefunction(func)
        parameters = list(inspect.signature(func).parameters.values())
        self._is_method = len(parameters) > 1 and parameters[0].name == "self" and parameters[1].name == "s"
        own = parameters[2:] if self._is_method else parameters[1:]
        if not self._is_method and (not parameters or parameters[0].name != "s"):
            raise TypeError(f"the first argument of program {func.__name__!r} must be the state and be named s")
        positional = [p for p in own if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        self.arg_names = [p.name for p in positional]
        self.arg_defaults = [p.default for p in positional if p.default is not p.empty]
        update_wrapper(self, func)

    def __get__(self, instance: object, owner: type | None = None) -> SglFunction:
        """A program may be a method: `def program(self, s, ...)`."""
        if instance is None or not self._is_method:
            return self
        bound = self.func.__get__(instance, owner)
        return SglFunction(bound, self.num_api_spec_tokens, self.bind_arguments)

    def __repr__(self) -> str:
        return f"SglFunction({self.func.__name__}, arguments={self.arg_names})"

    def bind(self, **kwargs: Any) -> SglFunction:
        """The same program with some arguments fixed; a fixed value wins over one given in a call."""
        for name in kwargs:
            if name not in self.arg_names:
                raise TypeError(
                    f"{self.func.__name__} has no argument {name!r} to bind; it has {', '.join(self.arg_names) or 'none'}"
                )
        return SglFunction(self.func, self.num_api_spec_tokens, {**self.bind_arguments, **kwargs})

    # --- one run -----------------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from sglang.lang.program.tracer import current_tracer  # when first needed, so that importing sglang stays quick

        tracer = current_tracer()
        if tracer is not None:
            kwargs.pop("backend", None)
            return tracer.call(self, args, kwargs)
        return self.run(*args, **kwargs)

    def split(self, kwargs: dict[str, Any], batch: bool = False) -> RunOptions:
        """Takes the options of a run out of `kwargs`, which keeps the program's own arguments (a batch has those apart)."""
        own = frozenset() if batch else frozenset(self.arg_names)

        def take(name: str, default: Any) -> Any:
            return kwargs.pop(name, default) if name not in own else default

        sampling = take_options(kwargs, own)
        return RunOptions(
            resolve_backend(take("backend", None)),
            sampling,
            bool(take("stream", False)),
            bool(take("use_thread", True)),
            take("record", None),
        )

    def new_state(self, options: RunOptions) -> ProgramState:
        """A state on which nothing has been written."""
        return ProgramState(self._new_executor(options), inline=not options.use_thread)

    def run(self, *args: Any, **kwargs: Any) -> ProgramState:
        """Runs the program. Returns when its code has returned (`stream=True`: at once); generation may still be running.

        Keywords besides the program's own: every field of SamplingOptions as a default for its gens, `stream`, `backend`,
        `use_thread` (False: each piece is waited for), `record` (a path or Recorder: keep what happens). Raises what the
        code raises; with `stream=True` that is raised where the state is used.
        """
        options = self.split(kwargs)
        state = self.new_state(options)
        if options.stream:
            BODIES.submit(lambda: self._run_streamed(state, args, kwargs))
        else:
            self.run_body(state, args, kwargs)
        return state

    def _new_executor(self, options: RunOptions) -> Executor:
        log = RunLog() if options.stream or options.record else None
        executor = Executor(options.backend, options.sampling, stream=options.stream, body=Body(), log=log)
        if self.num_api_spec_tokens is not None:
            if options.stream:
                raise ValueError("num_api_spec_tokens cannot be combined with stream=True")
            executor.speculation = speculation_for(options.backend, self.num_api_spec_tokens)
        if log is not None and options.record is not None:
            from sglang.lang.record.recording import start_recording

            start_recording(log, options.record, self.func.__name__, options.backend)
        return executor

    def run_body(self, state: ProgramState, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """The program's code on this thread. What it raises goes to the caller."""
        try:
            self._call_body(state, args, kwargs)
        finally:
            state.stream_executor.end_body()
        if global_config.verbosity >= 2:
            print(repr(state))

    def _run_streamed(self, state: ProgramState, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """The same where no caller waits: what it raises is the state's error."""
        try:
            self._call_body(state, args, kwargs)
        except Exception as error:  # noqa: BLE001 - outermost frame of a body: its error belongs to the state's readers
            state.stream_executor.end_body(error)
        else:
            state.stream_executor.end_body()

    def _call_body(self, state: ProgramState, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        if self.is_async:
            PROGRAMS.run(self._call_async_body(state, args, kwargs))
            return
        state.stream_executor.body.owner = threading.get_ident()
        state.ret_value = self.func(state, *args, **{**kwargs, **self.bind_arguments})

    async def run_async_body(self, state: ProgramState, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """run_body of an async program, on the running loop."""
        try:
            await self._call_async_body(state, args, kwargs)
        finally:
            state.stream_executor.end_body()
        if global_config.verbosity >= 2:
            await wait_async_until(state.stream_executor, lambda: state.stream_executor.is_finished)
            print(repr(state))

    async def _call_async_body(self, state: ProgramState, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """An async program's code on the running loop."""
        executor = state.stream_executor
        executor.body.owner = asyncio.current_task()
        writer = AsyncProgramState(executor, is_owner=False)
        state.ret_value = await self.func(writer, *args, **{**kwargs, **self.bind_arguments})

    async def arun(self, *args: Any, **kwargs: Any) -> ProgramState:
        """Runs the program and waits for all it generates, without blocking the running event loop. The state that comes
        back is finished: reading it does not wait. With `stream=True` it returns at once instead: read it with
        `text_async_iter`. Cancelling the call cancels the program."""
        options = self.split(kwargs)
        state = self.new_state(options)
        if options.stream:
            BODIES.submit(lambda: self._run_streamed(state, args, kwargs))
            return state
        await self.run_to_end(state, args, kwargs)
        return state

    async def run_to_end(self, state: ProgramState, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """The body, and then everything it has queued. A body's error is raised, a state's is left in the state."""
        executor = state.stream_executor
        try:
            if self.is_async:
                await self.run_async_body(state, args, kwargs)
            else:
                await asyncio.wrap_future(BODIES.submit(lambda: self.run_body(state, args, kwargs)))
            await wait_async_until(executor, lambda: executor.is_finished)
        except asyncio.CancelledError:
            state.cancel()
            raise

    # --- many runs -----------------------------------------------------------------------------------------------------------

    def run_batch(self, batch_kwargs: Sequence[Any], **kwargs: Any) -> Any:
        """Runs the program once for each element of `batch_kwargs` (dicts of arguments, or tuples of positional ones); see
        batch.run_batch for the keywords."""
        from sglang.lang.program.batch import run_batch

        return run_batch(self, batch_kwargs, **kwargs)

    async def arun_batch(self, batch_kwargs: Sequence[Any], **kwargs: Any) -> list[Any]:
        """run_batch without blocking the running event loop; see batch.arun_batch."""
        from sglang.lang.program.batch import arun_batch

        return await arun_batch(self, batch_kwargs, **kwargs)

    # --- looking at a program ------------------------------------------------------------------------------------------------

    def trace(self, *, backend: Any = None, **kwargs: Any) -> Any:
        """Runs the code with placeholders for missing arguments and no model; see tracer.trace_program."""
        from sglang.lang.program.tracer import trace_program

        return trace_program(self, {**kwargs, **self.bind_arguments}, backend)

    def cache(self, backend: Any = None) -> str:
        """Has the backend compute the text that all runs of the program begin with; returns it."""
        from sglang.lang.program.tracer import extract_prefix

        target = resolve_backend(backend)
        prompt = extract_prefix(self, target)
        if prompt.text:
            IO.run(target.cache_prefix(prompt))
        return prompt.text


@overload
def function(func: Callable[..., Any]) -> SglFunction: ...
@overload
def function(func: None = None, num_api_spec_tokens: int | None = None) -> Callable[[Callable[..., Any]], SglFunction]: ...


def function(
    func: Callable[..., Any] | None = None, num_api_spec_tokens: int | None = None
) -> SglFunction | Callable[[Callable[..., Any]], SglFunction]:
    """Makes a program of a function (plain or async) whose first argument is named `s`. With `num_api_spec_tokens`, a remote
    model generates that many tokens a request and later gens are served from them (run/speculation.py)."""
    if func is not None:
        return SglFunction(func)
    return lambda decorated: SglFunction(decorated, num_api_spec_tokens)
