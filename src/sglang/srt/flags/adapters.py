"""Reads --lora-paths: adapters by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sglang.srt.checkpoint.files import shown
from sglang.srt.config import NamedAdapter
from sglang.srt.errors import ConfigError

_KEYS = frozenset({"lora_name", "lora_path", "pinned"})


def parse_adapters(flag: str, text: str | None, taken: frozenset[str]) -> tuple[NamedAdapter, ...]:
    """What stands between commas: NAME=PATH, a path alone, which is its name too, or a JSON object: that of one adapter, or of paths by
    name. `taken`: names that mean the model itself. Raises ConfigError."""
    found = list(_adapters(flag, text or ""))
    names: set[str] = set()
    for adapter in found:
        if not adapter.name or not adapter.path or (":" in adapter.name and adapter.name != adapter.path):
            raise ConfigError(f"{flag} {shown(adapter.name)}: an adapter needs a path, and a name without a colon")
        if adapter.name in taken or adapter.name in names:
            raise ConfigError(f"{flag}: the name {adapter.name!r} is taken already")
        names.add(adapter.name)
    return tuple(replace(adapter, uid=i) for i, adapter in enumerate(found, 1))


def _adapters(flag: str, text: str) -> Iterator[NamedAdapter]:
    at, decoder = 0, json.JSONDecoder()
    while at < len(text):
        if text[at] in ", \n\t":
            at += 1
        elif text[at] in "{[":
            try:
                value, at = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{flag} is not valid JSON: {error}") from error
            for one in value if isinstance(value, list) else [value]:
                yield from _of_json(flag, one)
        else:
            end = text.find(",", at)
            end = len(text) if end < 0 else end
            name, equals, path = text[at:end].strip().partition("=")
            yield NamedAdapter(name, path if equals else name)
            at = end


def _of_json(flag: str, value: Any) -> Iterator[NamedAdapter]:
    if isinstance(value, str):
        yield NamedAdapter(value, value)
    elif not isinstance(value, dict):
        raise ConfigError(f"{flag}: {shown(value)} is neither a path nor an object with lora_name and lora_path")
    elif "lora_path" in value:
        unknown = value.keys() - _KEYS
        name, path, pinned = value.get("lora_name", value["lora_path"]), value["lora_path"], value.get("pinned", False)
        if unknown or not isinstance(name, str) or not isinstance(path, str) or not isinstance(pinned, bool):
            raise ConfigError(f"{flag}: an adapter has a lora_name, a lora_path and perhaps pinned, got {shown(value)}")
        yield NamedAdapter(name, path, pinned)
    else:
        for name, path in value.items():
            if not isinstance(path, str):
                raise ConfigError(f"{flag}: the path of {name!r} must be text, got {shown(path)}")
            yield NamedAdapter(name, path)
