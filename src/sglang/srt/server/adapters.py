"""Adapters by the names that requests give them.

    load --LoadAdapterReq--> known by name --unload--> leaving --ControlReply: its requests have ended--> gone

Every load has a number (uid) of its own, by which the scheduler knows it: a name that is loaded again is another adapter. While the
server runs, adapters are loaded from below one folder only (--lora-root).
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sglang.common.suggest import did_you_mean
from sglang.srt.config import AdapterInfo, AdapterOptions, NamedAdapter
from sglang.srt.errors import NoSuchModelError, OverloadError, RequestError, UnsupportedError
from sglang.srt.messages import LoadAdapterReq, TokenizedReq, UnloadAdapterReq
from sglang.srt.server.control_calls import ControlCalls

logger = logging.getLogger("sglang")

MAX_NAME_LEN = 256
LOAD_SECONDS, UNLOAD_SECONDS = 600.0, 24 * 3600.0
NOT_SERVED = "this server serves no adapters: start it with --enable-lora, --lora-paths or --lora-root"
NO_ROOT = "adapters are loaded at start (--lora-paths); to load them later as well, start the server with --lora-root FOLDER"


@dataclass
class _Entry:
    adapter: NamedAdapter
    rank: int
    is_leaving: bool = False


class Adapters:
    """Owner of the names. `options`: None where no adapters are served. `loaded`: by uid, what the scheduler has loaded at start, as
    dicts. `taken`: names of the model itself."""

    def __init__(
        self,
        options: AdapterOptions | None,
        loaded: Mapping[Any, Mapping[str, Any]] | None,
        taken: frozenset[str],
        controls: ControlCalls,
    ) -> None:
        self._options, self._taken, self._controls = options, taken, controls
        self._entries: dict[str, _Entry] = {}
        self._loading: set[str] = set()
        adapters = options.adapters if options is not None else ()
        self._uids = itertools.count(1 + max((adapter.uid for adapter in adapters), default=0))
        for adapter in adapters:
            facts = (loaded or {}).get(adapter.uid) or (loaded or {}).get(str(adapter.uid)) or {}
            self._entries[adapter.name] = _Entry(replace(adapter, digest=facts.get("digest", "")), facts.get("rank", 0))

    @property
    def are_served(self) -> bool:
        return self._options is not None

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

    def of_model(self, model: str, served: str, any_model: str) -> str | None:
        """The adapter that a `model` of OpenAI's API names: as itself, or as base:adapter; None: the model itself. Any name means the
        model where no adapters are served, but for base:adapter, which would change the answer. Raises NoSuchModelError."""
        base, colon, adapter = model.rpartition(":")
        if model in self._entries:
            return model
        if model in (served, any_model):
            return None
        if colon and base in (served, any_model):
            self.find(adapter, "model")
            return adapter
        if self._options is None or not model:
            return None
        known = [served, *self.names()]
        raise NoSuchModelError(
            f"the model {model[:100]!r} does not exist here; this server has {served!r} and {len(known) - 1} adapters"
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
        uid = next(self._uids)
        self._loading.add(name)
        try:
            reply = await self._controls.ask(lambda call_id: LoadAdapterReq(call_id, uid, path, pinned), LOAD_SECONDS)
        except OverloadError:
            self._controls.tell(UnloadAdapterReq(0, uid))
            raise
        finally:
            self._loading.discard(name)
        if not reply.ok:
            self._controls.tell(UnloadAdapterReq(0, uid))  # of several schedulers some may have it
            raise RequestError(f"the adapter cannot be loaded: {reply.message}", "lora_path")
        info = reply.adapter or AdapterInfo(0)
        self._entries[name] = _Entry(NamedAdapter(name, path, pinned, uid, info.digest), info.rank)
        logger.info("Adapter %r is loaded from %s (rank %d).", name, path, info.rank)

    async def unload(self, name: str) -> None:
        """Forgets an adapter once its requests have ended; new ones are refused from now on. Raises NoSuchModelError."""
        uid = self.find(name, "lora_name")
        entry = self._entries[name]
        entry.is_leaving = True
        await self._controls.ask(lambda call_id: UnloadAdapterReq(call_id, uid), UNLOAD_SECONDS)
        if self._entries.get(name) is entry:
            del self._entries[name]
        logger.info("Adapter %r is unloaded.", name)

    def _check_name(self, name: str) -> None:
        if not name or len(name) > MAX_NAME_LEN or ":" in name or not name.isprintable():
            raise RequestError(f"lora_name must have 1 to {MAX_NAME_LEN} printable characters, and no colon", "lora_name")
        if name in self._taken:
            raise RequestError(f"lora_name {name!r} is the name of the model itself", "lora_name")
        if name in self._entries or name in self._loading:
            raise RequestError(f"there is an adapter {name!r} already: unload it first, or take another name", "lora_name")

    def _checked_path(self, path: str) -> str:
        """Where it is, links followed."""
        assert self._options is not None
        if self._options.at_run_time:
            return path
        if self._options.root is None:
            raise UnsupportedError(NO_ROOT, "lora_path")
        try:
            root = os.path.realpath(self._options.root, strict=True)
            found = os.path.realpath(os.path.join(root, path), strict=True)
        except (OSError, ValueError) as error:
            raise RequestError(
                f"lora_path {path[:200]!r}: there is nothing of this name below --lora-root", "lora_path"
            ) from error
        if not Path(found).is_relative_to(root):
            raise RequestError(f"lora_path {path[:200]!r}: there is nothing of this name below --lora-root", "lora_path")
        return found
