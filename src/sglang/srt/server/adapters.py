"""Adapters by the names that requests give them.

    load --LoadAdapterReq--> known by name --unload--> leaving --ControlReply: its requests have ended--> gone
                                           <--the scheduler died--

A load or unload that was begun goes on if its caller is cancelled, since the scheduler does its part in any case. Every load has a number (uid) of its own, by which the scheduler knows it: a name that is loaded again is another adapter. While the
server runs, adapters are loaded from below one folder only (--lora-root).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sglang.common.suggest import did_you_mean
from sglang.srt.checkpoint.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from sglang.srt.config import AdapterInfo, AdapterOptions, NamedAdapter
from sglang.srt.errors import EngineDeadError, NoSuchModelError, OverloadError, RequestError, UnsupportedError
from sglang.srt.messages import LoadAdapterReq, TokenizedReq, UnloadAdapterReq
from sglang.srt.server.control_calls import ControlCalls

logger = logging.getLogger("sglang")

ANY_MODEL = "default"
"""the name by which programs ask for whatever model there is"""
MAX_NAME_LEN = 256
LOAD_SECONDS, HANDOVER_SECONDS = 600.0, 0.01
NOT_SERVED = "this server serves no adapters: start it with --enable-lora, --lora-paths or --lora-root"
NO_ROOT = "adapters are loaded at start (--lora-paths); to load them later as well, start the server with --lora-root FOLDER"


@dataclass
class _Entry:
    adapter: NamedAdapter
    rank: int
    is_leaving: bool = False


class Adapters:
    """Owner of the names. `options`: None where no adapters are served. `loaded`: by uid, what the scheduler has loaded at start, as
    dicts. `served`: the name of the model itself."""

    def __init__(
        self,
        options: AdapterOptions | None,
        loaded: Mapping[Any, Mapping[str, Any]] | None,
        served: str,
        controls: ControlCalls,
    ) -> None:
        self._options, self._served, self._controls = options, served, controls
        self._entries: dict[str, _Entry] = {}
        self._loading: set[str] = set()
        self._settled = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._entering: Counter[int] = Counter()
        adapters = options.adapters if options is not None else ()
        self._uids = itertools.count(1 + max((adapter.uid for adapter in adapters), default=0))
        for adapter in adapters:
            facts = (loaded or {}).get(adapter.uid) or (loaded or {}).get(str(adapter.uid)) or {}
            self._entries[adapter.name] = _Entry(replace(adapter, digest=facts.get("digest", "")), facts.get("rank", 0))

    def names(self) -> list[str]:
        return [name for name, entry in self._entries.items() if not entry.is_leaving]

    def current(self) -> tuple[NamedAdapter, ...]:
        """For the next scheduler. Those that are leaving are needed until their requests have ended."""
        return tuple(entry.adapter for entry in self._entries.values())

    def restarted(self, loaded: Mapping[Any, Any] | None) -> None:
        """Another scheduler runs, which could load these."""
        uids = {int(uid) for uid in loaded or {}}
        for name in [name for name, entry in self._entries.items() if entry.adapter.uid not in uids]:
            del self._entries[name]

    async def loads_end(self) -> None:
        """Returns when nothing is being loaded."""
        while self._loading:
            self._settled.clear()
            await self._settled.wait()

    def replica_back(self, loaded: Mapping[Any, Any] | None) -> None:
        """One of several schedulers was started with these, and has not heard what is to leave. What it lacks, its files having changed,
        leaves all of them."""
        uids = {int(uid) for uid in loaded or {}}
        for name, entry in list(self._entries.items()):
            if entry.adapter.uid not in uids:
                logger.error("Adapter %r is unloaded: a scheduler that was restarted could not load it again.", name)
                del self._entries[name]
            elif not entry.is_leaving:
                continue
            self._controls.tell(UnloadAdapterReq(0, entry.adapter.uid))

    # --- requests -------------------------------------------------------------------------------------------------------------

    def find(self, name: str, param: str = "lora_path") -> int:
        """The uid of an adapter. Raises NoSuchModelError or UnsupportedError."""
        entry = self._entries.get(name)
        if entry is not None and not entry.is_leaving:
            return entry.adapter.uid
        if self._options is None:
            raise UnsupportedError(f"{param} names the adapter {name[:100]!r}, and {NOT_SERVED}", param)
        raise NoSuchModelError(f"there is no adapter {name[:100]!r} here{did_you_mean(name, self.names())}", param)

    def check(self, requests: list[TokenizedReq]) -> None:
        """Raises NoSuchModelError where an adapter has been unloaded since it was found."""
        here = {entry.adapter.uid for entry in self._entries.values() if not entry.is_leaving}
        if any(request.adapter and request.adapter not in here for request in requests):
            raise NoSuchModelError("the adapter of this request was unloaded while it was read", "lora_path")

    @contextmanager
    def entering(self, requests: list[TokenizedReq]) -> Iterator[None]:
        """While these, which `check` found well, are handed to the scheduler. What they name is not unloaded before they are there."""
        uids = {request.adapter for request in requests} - {0}
        self._entering.update(uids)
        try:
            yield
        finally:
            self._entering.subtract(uids)
            self._entering += Counter()  # forgets zeros

    def of_body(self, body: Mapping[str, Any]) -> str | None:
        """The adapter that a body of OpenAI's API names: as its model, or as SGLang's lora_path. What else these may be is for the reader
        of the body to judge. Raises NoSuchModelError, UnsupportedError, or RequestError where they name two."""
        model, adapter = body.get("model"), body.get("lora_path")
        named = self.of_model(model) if isinstance(model, str) else None
        adapter = adapter if isinstance(adapter, str) else None
        if adapter and named and adapter != named:
            raise RequestError(
                f"model names the adapter {named!r}, and lora_path {adapter[:100]!r}: give one of them", "lora_path"
            )
        return named or adapter or None

    def check_none(self, body: Mapping[str, Any]) -> None:
        """For routes that only the model itself answers. Raises UnsupportedError for a body that names an adapter."""
        if (named := self.of_body(body)) is not None:
            raise UnsupportedError(
                f"model names the adapter {named!r}: adapters generate and score, and make no embeddings", "model"
            )

    def of_model(self, model: str) -> str | None:
        """The adapter that a `model` of OpenAI's API names: as itself, or as base:adapter; None: the model itself. Any name means the
        model where no adapters are served, but for base:adapter, which would change the answer. Raises NoSuchModelError."""
        base, colon, adapter = model.rpartition(":")
        own = (self._served, ANY_MODEL)
        if model in self._entries:
            return model
        if model in own:
            return None
        if colon and base in own:
            self.find(adapter, "model")
            return adapter
        if self._options is None or not model:
            return None
        known = [self._served, *self.names()]
        raise NoSuchModelError(
            f"the model {model[:100]!r} does not exist here; this server has {self._served!r} and {len(known) - 1} adapters"
            f"{did_you_mean(model, known)}",
            "model",
        )

    # --- loading --------------------------------------------------------------------------------------------------------------

    async def load(self, name: str, path: str, pinned: bool = False) -> None:
        """Loads an adapter under a name. Raises RequestError, or OverloadError where it takes too long."""
        options = self._options
        if options is None:
            raise UnsupportedError(NOT_SERVED)
        self._check_name(name)
        if len(self._entries) + len(self._loading) >= options.max_loaded_loras:
            raise RequestError(
                f"{options.max_loaded_loras} adapters are loaded (--max-loaded-loras): unload one first", "lora_name"
            )
        path = self._checked_path(path)
        self._loading.add(name)
        await self._to_the_end(self._load(NamedAdapter(name, path, pinned, next(self._uids))))

    async def _load(self, adapter: NamedAdapter) -> None:
        uid = adapter.uid
        try:
            reply = await self._controls.ask(
                lambda call_id: LoadAdapterReq(call_id, uid, adapter.path, adapter.pinned), LOAD_SECONDS
            )
        except OverloadError:
            self._controls.tell(UnloadAdapterReq(0, uid))
            raise
        finally:
            self._loading.discard(adapter.name)
            self._settled.set()
        if not reply.ok:
            self._controls.tell(UnloadAdapterReq(0, uid))  # of several schedulers some may have it
            raise RequestError(f"the adapter cannot be loaded: {reply.message}", "lora_path")
        info = reply.adapter or AdapterInfo(0)
        self._entries[adapter.name] = _Entry(replace(adapter, digest=info.digest), info.rank)
        logger.info("Adapter %r is loaded from %s (rank %d).", adapter.name, adapter.path, info.rank)

    async def unload(self, name: str) -> None:
        """Forgets an adapter once its requests have ended; new ones are refused from now on. Raises NoSuchModelError, or EngineDeadError
        if the scheduler dies: then the adapter stays."""
        self.find(name, "lora_name")
        entry = self._entries[name]
        entry.is_leaving = True
        await self._to_the_end(self._unload(name, entry))

    async def _unload(self, name: str, entry: _Entry) -> None:
        uid = entry.adapter.uid
        while self._entering[uid]:
            await asyncio.sleep(HANDOVER_SECONDS)
        try:
            await self._controls.ask(lambda call_id: UnloadAdapterReq(call_id, uid), None)
        except EngineDeadError:  # the next scheduler has it again, for the requests that go on there
            entry.is_leaving = False
            raise
        if self._entries.get(name) is entry:
            del self._entries[name]
        logger.info("Adapter %r is unloaded.", name)

    async def _to_the_end(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    def _check_name(self, name: str) -> None:
        if not name or len(name) > MAX_NAME_LEN or ":" in name or not name.isprintable() or name != name.strip():
            raise RequestError(
                f"lora_name must have 1 to {MAX_NAME_LEN} printable characters, no colon, and no space around it", "lora_name"
            )
        if name in (self._served, ANY_MODEL):
            raise RequestError(f"lora_name {name!r} is the name of the model itself", "lora_name")
        if name in self._entries and self._entries[name].is_leaving:
            raise RequestError(
                f"the adapter {name!r} is being unloaded: wait for its requests, or take another name", "lora_name"
            )
        if name in self._entries or name in self._loading:
            raise RequestError(f"there is an adapter {name!r} already: unload it first, or take another name", "lora_name")

    def _checked_path(self, path: str) -> str:
        """Where it is, links followed. What is read there must lie below the root as well."""
        assert self._options is not None
        if self._options.at_run_time:
            return path
        if self._options.root is None:
            raise UnsupportedError(NO_ROOT, "lora_path")
        nothing = RequestError(f"lora_path {path[:200]!r}: there is nothing of this name below --lora-root", "lora_path")
        try:
            root = os.path.realpath(self._options.root, strict=True)
            found = os.path.realpath(os.path.join(root, path), strict=True)
        except (OSError, ValueError) as error:
            raise nothing from error
        if not Path(found).is_relative_to(root):
            raise nothing
        folder = found if os.path.isdir(found) else os.path.dirname(found)
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            if not Path(os.path.realpath(os.path.join(folder, name))).is_relative_to(root):
                raise RequestError(f"lora_path {path[:200]!r}: its {name} is a link that leaves --lora-root", "lora_path")
        return found
