"""Many runs of one program: bounded concurrency, order, progress, and the common prefix of their prompts.

run_batch (user's thread) ──> _Batch.run on IO: one small coroutine per program in flight
                                 body ──> thread of BODIES (plain) or PROGRAMS loop (async)
                                 its generation goes on without a thread; then the next program starts
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import queue
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from sglang.common.interrupts import wait_for
from sglang.lang.backend.base import BaseBackend, Prompt
from sglang.lang.concurrency.background import BODIES, IO, PROGRAMS
from sglang.lang.errors import BackendError, copy_of
from sglang.lang.program.options import BatchItem, Program, RunOptions
from sglang.lang.program.results import ResultFile
from sglang.lang.run.state import ProgramState
from sglang.lang.run.streams import wait_async_until
from sglang.lang.settings import global_config

AUTO_IN_FLIGHT = 256
"""programs at once with num_threads="auto": those that only wait for the model hold no thread"""
MIN_PREFIX_LEN = 64
"""characters of a common prefix from which on it is prefilled before the programs' requests"""
GATHER_SECONDS = 0.02
"""how long first prompts wait for one another"""


@dataclass(frozen=True)
class BatchOptions:
    """How a batch runs."""

    run: RunOptions
    max_concurrency: int
    progress_bar: bool
    return_exceptions: bool
    out: ResultFile | None
    nested: bool
    """started by a program's body"""


class PrefixGate:
    """Delays the first prompts of a batch for a moment, has their longest common prefix prefilled once, and lets all go.

    It opens when `expected` prompts have come, or after GATHER_SECONDS: programs may wait for one another, so the gate never
    waits for certain that all come.
    """

    def __init__(self, backend: BaseBackend, expected: int) -> None:
        self._backend = backend
        self._expected = expected
        self._prompts: list[Prompt] = []
        self._open: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        self._full: asyncio.Event | None = None

    async def wait(self, prompt: Prompt) -> None:
        if self._open is None:
            self._open, self._full = asyncio.Event(), asyncio.Event()
            self._task = asyncio.ensure_future(self._gather())
        if self._open.is_set():
            return
        self._prompts.append(prompt)
        if len(self._prompts) >= self._expected and self._full is not None:
            self._full.set()
        await self._open.wait()

    async def _gather(self) -> None:
        assert self._open is not None and self._full is not None
        try:
            try:
                await wait_for(self._full.wait(), GATHER_SECONDS)
            except asyncio.TimeoutError:
                pass
            prompts, self._prompts = self._prompts, []
            shared = os.path.commonprefix([prompt.text for prompt in prompts])
            if len(prompts) > 1 and len(shared) >= MIN_PREFIX_LEN and not any(prompt.images for prompt in prompts):
                await self._backend.cache_prefix(Prompt(shared))
        except BackendError:
            pass  # the programs' own requests will fail the same way, and their readers get the error
        finally:
            self._open.set()


class _Batch:
    """One batch on IO. `finish` is called there for each item, as it completes."""

    def __init__(
        self, program: Program, items: Sequence[Any], options: BatchOptions, finish: Callable[[BatchItem], None]
    ) -> None:
        self._program = program
        self._items = items
        self._options = options
        self._finish = finish
        self._states: set[ProgramState] = set()
        self._task: asyncio.Task[None] | None = None
        gate_size = min(len(items), options.max_concurrency)
        precache = global_config.enable_precache_with_tracing and gate_size > 1 and options.run.backend.caches_prefixes
        self._gate = PrefixGate(options.run.backend, gate_size) if precache else None

    def cancel(self) -> None:
        """Ends the batch from any thread."""
        task = self._task
        if task is not None:
            IO.loop.call_soon_threadsafe(task.cancel)

    async def run(self, indices: Sequence[int]) -> None:
        """Runs the items of `indices`, in this order as far as concurrency allows."""
        self._task = asyncio.current_task()
        waiting = iter(indices)
        num_workers = min(len(indices), self._options.max_concurrency)
        # a worker takes the next item when it is done with one: a task per worker, not per item
        tasks = [asyncio.ensure_future(self._worker(waiting)) for _ in range(num_workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            for state in list(self._states):
                state.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _worker(self, waiting: Any) -> None:
        for index in waiting:
            item = await self._one(index)
            if self._options.out is not None:
                self._options.out.write(item)
            self._finish(item)
            if item.error is not None and item.state is None and not self._options.return_exceptions:
                raise copy_of(item.error)

    async def _one(self, index: int) -> BatchItem:
        arguments = self._items[index]
        args, kwargs = ((), dict(arguments)) if isinstance(arguments, Mapping) else (tuple(arguments), {})
        state = self._program.new_state(self._options.run)
        state.stream_executor.before_first_call = self._gate.wait if self._gate is not None else None
        self._states.add(state)
        try:
            await self._body(state, args, kwargs)
            await wait_async_until(state.stream_executor, lambda: state.stream_executor.is_finished)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - outermost frame of a program: its error is an item of the result
            return BatchItem(index, arguments, None, error)
        finally:
            self._states.discard(state)
        return BatchItem(index, arguments, state, state.stream_executor.error)

    async def _body(self, state: ProgramState, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._program.is_async:
            future = PROGRAMS.spawn(self._program.run_async_body(state, args, kwargs))
        else:
            future = BODIES.submit(lambda: self._program.run_body(state, args, kwargs), self._options.nested)
        await asyncio.wrap_future(future)


def check_batch(program: Program, batch: Any) -> list[Any]:
    """The batch as a list of arguments of one run each. Raises TypeError or ValueError for what cannot be."""
    if not isinstance(batch, (list, tuple)):
        raise TypeError(f"run_batch takes a list of arguments, got {type(batch).__name__}")
    for i, item in enumerate(batch):
        if isinstance(item, Mapping):
            continue
        if not isinstance(item, (list, tuple)):
            raise TypeError(f"item {i} of the batch must be a dict or a tuple of arguments, got {type(item).__name__}")
        if not len(program.arg_names) - len(program.arg_defaults) <= len(item) <= len(program.arg_names):
            raise ValueError(
                f"item {i} of the batch has {len(item)} values, but {program.func.__name__} takes "
                f"{len(program.arg_names)} arguments ({', '.join(program.arg_names)})"
            )
    return list(batch)


def _concurrency(num_threads: int | str, max_concurrency: int | None, num_items: int) -> int:
    if max_concurrency is not None:
        limit = max_concurrency
    elif num_threads == "auto":
        # inside another program's body these bodies get their own threads: not too many
        limit = 4 if BODIES.is_worker else AUTO_IN_FLIGHT
    elif isinstance(num_threads, int):
        limit = num_threads
    else:
        raise ValueError(f'num_threads must be a number or "auto", got {num_threads!r}')
    if limit < 1:
        raise ValueError(f"a batch needs at least one program at a time, got {limit}")
    return min(limit, num_items) if num_items else 1


def _options(program: Program, items: Sequence[Any], kwargs: dict[str, Any]) -> tuple[BatchOptions, list[int]]:
    """Splits the keywords of run_batch; with `out` and `resume`, also which items are left to do."""
    num_threads = kwargs.pop("num_threads", "auto")
    concurrency = _concurrency(num_threads, kwargs.pop("max_concurrency", None), len(items))
    progress_bar = bool(kwargs.pop("progress_bar", False))
    return_exceptions = bool(kwargs.pop("return_exceptions", False))
    out, resume = kwargs.pop("out", None), bool(kwargs.pop("resume", False))
    run = program.split(kwargs, batch=True)
    if kwargs:
        raise TypeError(f"run_batch got unexpected keywords: {', '.join(sorted(kwargs))}")
    file = None
    todo = list(range(len(items)))
    if out is not None:
        file = ResultFile(out, resume)
        todo = [i for i in todo if not file.has(i, items[i])]
    elif resume:
        raise ValueError("resume needs out, the file of results to resume")
    return BatchOptions(run, concurrency, progress_bar, return_exceptions, file, BODIES.is_worker), todo


def run_batch(program: Program, batch_kwargs: Sequence[Any], **kwargs: Any) -> Any:
    """Runs `program` once per element of `batch_kwargs`, many at a time; finished states in the order of the input.

    Keywords: all of `run`'s, and `num_threads` (programs at once; "auto": as many as is useful), `max_concurrency` (the
    same, a better name), `progress_bar`, `return_exceptions` (a failed program becomes its exception in the list; without
    it, an exception of a program's code is raised at once, and an error of the model stays in its state), `generator_style`
    (an iterator in input order), `as_completed` (an iterator of BatchItem as they finish), `out` (a JSON-lines file that
    gets each result), `resume` (skip what `out` already has; those items are None in the list).
    """
    if program.is_async and PROGRAMS.is_current:
        raise RuntimeError("a batch of async programs inside an async program would wait for itself: await arun_batch")
    generator_style, as_completed = kwargs.pop("generator_style", False), kwargs.pop("as_completed", False)
    items = check_batch(program, batch_kwargs)
    options, todo = _options(program, items, kwargs)
    if as_completed:
        return _as_completed(program, items, options, todo)
    if generator_style:
        return _in_order(_as_completed(program, items, options, todo), todo, options.return_exceptions)
    results: list[Any] = [None] * len(items)
    for item in _as_completed(program, items, options, todo):
        results[item.index] = _result(item, options.return_exceptions)
    return results


async def arun_batch(program: Program, batch_kwargs: Sequence[Any], **kwargs: Any) -> list[Any]:
    """run_batch for a running event loop: the same keywords without `generator_style` and `as_completed`."""
    items = check_batch(program, batch_kwargs)
    options, todo = _options(program, items, kwargs)
    results: list[Any] = [None] * len(items)
    async for item in _as_completed_async(program, items, options, todo):
        results[item.index] = _result(item, options.return_exceptions)
    return results


def _result(item: BatchItem, return_exceptions: bool) -> Any:
    if item.error is not None and (return_exceptions or item.state is None):
        return item.error
    return item.state


def _as_completed(
    program: Program, items: Sequence[Any], options: BatchOptions, todo: Sequence[int]
) -> Generator[BatchItem, None, None]:
    """Items as they finish. Closing the generator cancels the rest."""
    if not todo:
        return
    done: queue.SimpleQueue[BatchItem | None] = queue.SimpleQueue()
    batch = _Batch(program, items, options, done.put)
    future = IO.spawn(batch.run(todo), contextvars.copy_context())
    future.add_done_callback(lambda _: done.put(None))
    with Progress(len(todo), options.progress_bar) as progress:
        try:
            while (item := done.get()) is not None:
                progress.add(item)
                yield item
            future.result()
        finally:
            if not future.done():
                batch.cancel()


async def _as_completed_async(
    program: Program, items: Sequence[Any], options: BatchOptions, todo: Sequence[int]
) -> AsyncGenerator[BatchItem, None]:
    if not todo:
        return
    loop = asyncio.get_running_loop()
    done: asyncio.Queue[BatchItem | None] = asyncio.Queue()

    def put(item: BatchItem | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(done.put_nowait, item)

    batch = _Batch(program, items, options, put)
    future = IO.spawn(batch.run(todo), contextvars.copy_context())
    future.add_done_callback(lambda _: put(None))
    with Progress(len(todo), options.progress_bar) as progress:
        try:
            while (item := await done.get()) is not None:
                progress.add(item)
                yield item
            future.result()
        finally:
            if not future.done():
                batch.cancel()


def _in_order(
    items: Generator[BatchItem, None, None], todo: Sequence[int], return_exceptions: bool
) -> Generator[Any, None, None]:
    """States in input order, each as soon as it and all before it are finished."""
    early: dict[int, BatchItem] = {}
    order = iter(todo)
    wanted = next(order, None)
    try:
        for item in items:
            early[item.index] = item
            while wanted in early:
                yield _result(early.pop(wanted), return_exceptions)
                wanted = next(order, None)
    finally:
        items.close()


class Progress:
    """A progress bar with tokens per second and the share of prompt tokens that came from the cache."""

    def __init__(self, total: int, visible: bool) -> None:
        self._bar: Any = None
        if visible:
            from tqdm.auto import tqdm

            with suppress(*_CLOSED):
                self._bar = tqdm(total=total)
        self._tokens = self._prompt = self._cached = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *args: object) -> Literal[False]:
        if self._bar is not None:
            with suppress(*_CLOSED):
                self._bar.close()
        return False

    def add(self, item: BatchItem) -> None:
        if self._bar is None:
            return
        if item.state is not None:
            self._count(list(item.state.stream_executor.vars.metas.values()))
        elapsed = self._bar.format_dict["elapsed"] or 1e-9
        notes = {"tok/s": f"{self._tokens / elapsed:.0f}"}
        if self._prompt:
            notes["cached"] = f"{100 * self._cached / self._prompt:.0f}%"
        with suppress(*_CLOSED):
            self._bar.set_postfix(notes, refresh=False)
            self._bar.update(1)

    def _count(self, meta: Any) -> None:
        """`meta`: the metadata of one gen, or lists of it: of samples, of joined forks, of samples of joined forks."""
        if isinstance(meta, (list, tuple)):
            for one in meta:
                self._count(one)
        elif isinstance(meta, Mapping):
            self._tokens += _number(meta.get("completion_tokens"))
            self._prompt += _number(meta.get("prompt_tokens"))
            self._cached += _number(meta.get("cached_tokens"))


_CLOSED = (OSError, ValueError)
"""what writing to a closed terminal or file raises"""


def _number(value: Any) -> int:
    """A count; 0 for anything else: the progress bar must not fail the batch."""
    return value if isinstance(value, int) else 0
