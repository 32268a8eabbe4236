"""Adapters of the servers behind a gateway: which model has which, and that every server of a model has those that were loaded.

    load --every server of the model takes it--> said --a server is started--> told to it before its first request --unload--> taken back

A server knows its adapters by itself as long as it lives. What is kept here is the last word on each name that changed while the gateway
ran, for servers that come later: a child that died, a model that was out of memory, a new replica.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang.cluster.servers import Server
from sglang.cluster.upstream import Headers, UpstreamLost
from sglang.common.suggest import did_you_mean
from sglang.srt.errors import ConfigError, NoSuchModelError
from sglang.srt.flags.adapters import parse_adapters

logger = logging.getLogger("sglang")

LOADING = re.compile(r"/(v1/)?(?P<verb>load|unload)_lora_adapter")
MAX_SERVERS = 1024
"""whose adapters are remembered, those that are gone among them"""


@dataclass(frozen=True, eq=False)
class _Word:
    """The last one on a name: a request that loads or unloads it."""

    name: str
    path: str
    body: bytes


@dataclass
class _Told:
    """The words that one server has heard."""

    words: set[_Word] = field(default_factory=set)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class ServedAdapters:
    """`flags`: of each model, by its name. `operator`: headers with which servers let adapters be loaded."""

    def __init__(self, flags: Mapping[str, Mapping[str, Any]], operator: Callable[[], Headers]) -> None:
        self._at_start = {model: _names_of(of_model) for model, of_model in flags.items()}
        self._words: dict[str, dict[str, _Word]] = {model: {} for model in flags}
        self._told: dict[tuple[str, str, int], _Told] = {}
        self._operator = operator

    # --- names ----------------------------------------------------------------------------------------------------------------

    def names(self, model: str) -> list[str]:
        """Adapters that a server of the model has, or will have when it is started."""
        words = self._words[model]
        kept = [name for name in self._at_start[model] if name not in words]
        return kept + [name for name, word in words.items() if loads(word.path)]

    def model_of(self, adapter: str) -> str | None:
        """The model that has an adapter of this name. Raises NoSuchModelError where several have one."""
        models = [model for model in self._words if adapter in self.names(model)]
        if len(models) > 1:
            choices = " or ".join(f"{model}:{adapter}" for model in models[:5])
            raise NoSuchModelError(f"{len(models)} models have an adapter {adapter[:100]!r}: name the model as well, {choices}")
        return models[0] if models else None

    def hint(self, asked: str, models: Sequence[str]) -> str:
        """The nearest of all names, for one that is unknown."""
        return did_you_mean(asked, [*models, *(name for model in models for name in self.names(model))])

    # --- loading --------------------------------------------------------------------------------------------------------------

    def heard(self, model: str, server: Server, path: str, name: str, body: bytes) -> None:
        """A server has done what a request to load or to unload this adapter says."""
        words = self._words[model]
        last = words.get(name)
        if last is None or last.path != path or last.body != body:
            last = words[name] = _Word(name, path, body)
        self._told_to(model, server).words.add(last)
        if not loads(path) and name not in self._at_start[model]:
            del words[name]  # whoever is started later never had it

    async def tell(self, model: str, server: Server) -> None:
        """Has a server that was started since learn what was said before. What it refuses is logged, and not tried again."""
        words = self._words[model]
        if not words:
            return
        told = self._told_to(model, server)
        if told.words.issuperset(words.values()):
            return
        async with told.turn:
            for word in [word for word in words.values() if word not in told.words]:
                if loads(word.path) and word.name in self._at_start[model]:  # what it has under this name is another one
                    old = _Word(word.name, "/unload_lora_adapter", json.dumps({"lora_name": word.name}).encode())
                    await _say(model, server, old, self._operator())
                await _say(model, server, word, self._operator())
                told.words.add(word)
            told.words &= set(words.values())

    def _told_to(self, model: str, server: Server) -> _Told:
        key = model, server.replica, server.pid
        told = self._told.pop(key, None) or _Told()
        while len(self._told) >= MAX_SERVERS:
            self._told.pop(next(iter(self._told)))
        self._told[key] = told
        return told


async def _say(model: str, server: Server, word: _Word, operator: Headers) -> None:
    headers = [(b"content-type", b"application/json"), *operator]
    try:
        head, reply = await server.upstream.ask("POST", word.path, headers, word.body)
    except UpstreamLost:
        return  # its requests notice, too
    if head.status != 200 and loads(word.path):
        said = reply[:500].decode(errors="replace")
        logger.error("The adapter %r of %s could not be loaded again: %s", word.name, model, said)


def loads(path: str) -> bool:
    """Whether this is where an adapter is loaded, and not unloaded."""
    found = LOADING.fullmatch(path)
    return found is not None and found["verb"] == "load"


def _names_of(flags: Mapping[str, Any]) -> frozenset[str]:
    """Of --lora-paths; what cannot be read is for the model's own server to refuse."""
    try:
        return frozenset(adapter.name for adapter in parse_adapters("lora_paths", flags.get("lora_paths"), frozenset()))
    except ConfigError:
        return frozenset()
