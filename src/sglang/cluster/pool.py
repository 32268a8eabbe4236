"""Which models are in memory: loads them when they are wanted, unloads what was not used for longest, restarts what dies.

    wanted --> waiting for room --> loading --> ready --idle for keep_alive, or another model needs the room--> leaving --> gone
                                                  |
                                                died --> loaded again, if it has not died too often

A Run is one time that a model is in memory. Requests hold it (`lease`); one that is leaving ends after those that hold it, and whoever
comes then waits for the next. Models are loaded one after the other, in the order in which they were wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

from sglang.cluster.child import Child, LoadFailed, planned_bytes
from sglang.cluster.model_list import ServedModel
from sglang.cluster.route_key import RouteKey
from sglang.srt.errors import EngineDeadError, OverloadError
from sglang.srt.model.capacity import GIB, host_memory

logger = logging.getLogger("sglang")

MAX_DEATHS, DEATH_WINDOW = 5, 120.0
"""deaths within so many seconds after which a model is loaded again only when a request asks for it"""
FORGIVING_SECONDS = 5.0
"""for which a model that could not be loaded is not tried again"""


class Run:
    """One time that a model is in memory, from the moment when it is wanted."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.num_leases = 0
        self.last_used = time.monotonic()
        self.committed = 0
        """bytes that it will have taken once its KV pool is full"""
        self.is_leaving = False
        self.is_ready = False
        self.loading: asyncio.Task[None]
        self._unused = asyncio.Event()
        self._unused.set()

    def take(self) -> None:
        self.num_leases += 1
        self._unused.clear()

    def give_back(self, is_use: bool) -> None:
        self.num_leases -= 1
        if is_use:
            self.last_used = time.monotonic()
        if not self.num_leases:
            self._unused.set()

    async def unused(self) -> None:
        await self._unused.wait()

    def untouched(self) -> int:
        """Bytes that it is going to take and that still look free."""
        return max(self.committed - self.child.memory(), 0)


class Entry:
    """A model of the list: its run, if it has one, and what is known from before."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.run: Run | None = None
        self.planned: int | None = None
        self.deaths: list[float] = []
        self.error = ""
        self.failed_at = 0.0
        self.timer: asyncio.TimerHandle | None = None

    @property
    def state(self) -> str:
        """unloaded, loading, ready or failed."""
        if self.run is None:
            return "failed" if self.error else "unloaded"
        return "ready" if self.run.is_ready else "loading"


class ModelPool:
    """Owner of all runs. `folder`: private. `more`: flags that all servers get besides their model's. Everything happens on one event
    loop."""

    wants_key = False

    def __init__(self, models: list[ServedModel], folder: Path, more: dict[str, Any], max_loaded: int | None) -> None:
        self.entries = {model.name: Entry(model) for model in models}
        self._folder = folder
        self._more = more
        self._max_loaded = max_loaded or len(models)
        self._runs: list[Run] = []
        """in memory, or on their way in or out; in the order in which they were loaded"""
        self._number = 0
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False

    @property
    def default(self) -> str:
        return next(iter(self.entries))

    def loaded(self) -> list[Entry]:
        """Those that take requests at once."""
        return [entry for entry in self.entries.values() if entry.state == "ready"]

    async def preload(self) -> None:
        """Loads what is to be there from the start. Raises LoadFailed."""
        for entry in self.entries.values():
            if entry.model.preload:
                async with self.lease(entry.model.name):
                    pass

    def replicas(self) -> list[str]:
        """There is one of each model."""
        return []

    def leases(self, is_use: bool = True) -> list[contextlib.AbstractAsyncContextManager[Child]]:
        """One of each server in memory."""
        return [self.lease(entry.model.name, is_use=is_use) for entry in self.loaded()]

    @contextlib.asynccontextmanager
    async def lease(
        self,
        name: str,
        key: RouteKey | None = None,
        fingerprint: str = "",
        is_use: bool = True,
        replica: str | None = None,
        lost: Collection[str] = (),
    ) -> AsyncIterator[Child]:
        """The server of a model, which stays until the request ends. Loads the model if need be. `fingerprint`: of the server that began
        the answer, if one did. `is_use`: whether it then stays in memory for longer. `replica`, `lost`: there is one only. Raises
        OverloadError for one that cannot be loaded now, EngineDeadError for one that computes other bits."""
        entry = self.entries[name]
        run = self._run_of(entry)
        run.take()
        try:
            if not run.is_ready:
                await self._loaded(entry, run)
            if fingerprint not in ("", run.child.fingerprint):
                raise EngineDeadError(f"the files of {name!r} have changed since this answer began")
            yield run.child
        finally:
            run.give_back(is_use)
            self._set_timer(entry)

    async def _loaded(self, entry: Entry, run: Run) -> None:
        try:
            await asyncio.shield(run.loading)
        except LoadFailed as error:
            raise OverloadError(f"the model {entry.model.name!r} cannot be loaded: {error}") from error
        except asyncio.CancelledError:
            if run.loading.cancelled():
                raise OverloadError("the server is shutting down") from None
            raise

    def _run_of(self, entry: Entry) -> Run:
        """The one that takes requests, or will. Raises OverloadError."""
        if self._is_closing:
            raise OverloadError("the server is shutting down")
        if entry.run is not None:
            return entry.run
        if entry.error and time.monotonic() - entry.failed_at < FORGIVING_SECONDS:
            raise OverloadError(f"the model {entry.model.name!r} cannot be loaded: {entry.error}")
        if self._dies_often(entry):
            raise EngineDeadError(
                f"the server of {entry.model.name!r} died {len(entry.deaths)} times within {DEATH_WINDOW:g} s"
            )
        self._number += 1
        run = Run(Child(entry.model, self._folder, self._number, self._more))
        entry.run = run
        run.loading = asyncio.create_task(self._load(entry, run))
        run.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return run

    # --- loading ------------------------------------------------------------------------------------------------------------

    async def _load(self, entry: Entry, run: Run) -> None:
        try:
            async with self._turn:
                if entry.planned is None:
                    entry.planned = await planned_bytes(entry.model, self._folder)
                await self._make_room(entry)
                self._runs.append(run)
                logger.info("Loading %s.", entry.model.name)
                await self._start(run)
                run.committed = _committed(run.child.info, entry.planned)
        except BaseException as error:
            self._forget(entry, run)
            entry.error, entry.failed_at = (str(error), time.monotonic()) if isinstance(error, LoadFailed) else ("", 0.0)
            if isinstance(error, LoadFailed):
                logger.error("%s cannot be loaded: %s", entry.model.name, error)
            raise
        entry.error = ""
        run.is_ready = True
        logger.info("%s is ready.", entry.model.name)
        self._spawn(self._watch(entry, run))

    async def _start(self, run: Run) -> None:
        """With what the others are going to take left free."""
        others = sum(other.untouched() for other in self._runs if other is not run)
        await run.child.start(others)

    async def _make_room(self, entry: Entry) -> None:
        """Unloads others until there is room for one more. Raises LoadFailed where that does not suffice."""
        while len(self._runs) >= self._max_loaded:
            await self._unload(self._least_used())
        self._check_room(entry)
        while entry.planned and entry.planned > self._room():
            if not self._runs:
                raise self._no_room(entry, self._room())
            await self._unload(self._least_used())

    def _check_room(self, entry: Entry) -> None:
        """Nobody leaves for a model that would not fit alone either. Raises LoadFailed."""
        most = host_memory().available + sum(run.child.memory() for run in self._runs)
        if entry.planned and entry.planned > most:
            raise self._no_room(entry, most)

    def _no_room(self, entry: Entry, room: int) -> LoadFailed:
        return LoadFailed(
            f"it needs {(entry.planned or 0) / GIB:.2f} GiB of memory at least, and {room / GIB:.2f} GiB are there for it; choose a smaller "
            "model, --quantization int4, or a shorter --context-length"
        )

    def _room(self) -> int:
        """Bytes for one more, with what the others are going to take left free."""
        return host_memory(sum(run.untouched() for run in self._runs)).available

    def _least_used(self) -> Run:
        """Of those that nobody uses, if there are such ones, the one not used for longest."""
        return min(self._runs, key=lambda run: (run.num_leases > 0, run.last_used))

    # --- leaving ------------------------------------------------------------------------------------------------------------

    async def _unload(self, run: Run) -> None:
        """After its requests; those that come from now on wait for the next run of its model."""
        entry = self.entries[run.child.model.name]
        run.is_leaving = True
        if entry.run is run:
            entry.run = None
        await run.unused()
        logger.info("Unloading %s.", entry.model.name)
        await run.child.stop()
        self._forget(entry, run)

    def _set_timer(self, entry: Entry) -> None:
        """It begins anew with the end of each use."""
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        run = entry.run
        if run is not None and entry.model.keep_alive is not None and not run.num_leases and run.is_ready:
            left = max(entry.model.keep_alive - (time.monotonic() - run.last_used), 0.0)
            entry.timer = asyncio.get_running_loop().call_later(left, self._expire, entry, run)

    def _expire(self, entry: Entry, run: Run) -> None:
        if entry.run is run and not run.num_leases and not self._is_closing:
            run.is_leaving, entry.run = True, None
            self._spawn(self._unload_in_turn(run))

    async def _unload_in_turn(self, run: Run) -> None:
        async with self._turn:
            if run in self._runs:
                await self._unload(run)

    async def _watch(self, entry: Entry, run: Run) -> None:
        """Loads a model again whose server has died; its requests wait for that (gateway.py)."""
        how = await run.child.wait()
        if run.is_leaving or self._is_closing:
            return
        logger.error("The server of %s %s; starting another one.", entry.model.name, how)
        self._forget(entry, run)
        entry.deaths.append(time.monotonic())
        await run.child.stop()
        if not self._dies_often(entry):
            with contextlib.suppress(OverloadError):
                self._run_of(entry)

    def _dies_often(self, entry: Entry) -> bool:
        entry.deaths = [at for at in entry.deaths if time.monotonic() - at < DEATH_WINDOW]
        return len(entry.deaths) >= MAX_DEATHS

    def _forget(self, entry: Entry, run: Run) -> None:
        if entry.run is run:
            entry.run = None
        if run in self._runs:
            self._runs.remove(run)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- all of them --------------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Lets all servers read their keys again."""
        for run in self._runs:
            run.child.reload()

    async def close(self) -> None:
        """Ends all servers, at the same time."""
        self._is_closing = True
        loading = [entry.run.loading for entry in self.entries.values() if entry.run is not None and not entry.run.is_ready]
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
        await asyncio.gather(*(run.child.stop() for run in self._runs))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _committed(info: dict[str, Any], planned: int) -> int:
    """Bytes of a model that is loaded, with a full KV pool; what was planned at least."""
    pool = int(info.get("kv_bytes_per_token", 0)) * int(info.get("max_total_tokens", 0))
    return max(int(info.get("weight_bytes", 0)) + pool, planned)
