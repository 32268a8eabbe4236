"""The interface between programs and models.

A backend implements what it can of `generate`, `generate_stream` and `select`; the rest raises UnsupportedFeatureError with
its name. All three are coroutines on the language's own event loop, so a backend must not block in them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from sglang.lang.chat_template import ChatTemplate, Message, get_chat_template
from sglang.lang.choices import ChoicesDecision
from sglang.lang.errors import UnsupportedFeatureError
from sglang.lang.generation import Delta, Generation, Meta
from sglang.lang.ir import Image, Select


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt that a model continues, in both forms: as one text (`text`, `images`), and as a conversation (`messages` that
    are complete, then the open message of `role`, whose text so far is `text[role_start:]`)."""

    text: str
    messages: tuple[Message, ...] = ()
    images: tuple[Image, ...] = ()
    role: str | None = None
    role_start: int = 0
    turns: tuple[Message, ...] = ()
    """the complete messages once more, with their parts in the program's order, and with role None what was written between
    them; then comes text[role_start:], with images at `places`"""
    places: tuple[int, ...] = ()

    @property
    def role_text(self) -> str:
        return self.text[self.role_start :] if self.role else ""


class BaseBackend:
    """Base of all backends. `constraints`: the fields of sampling.CONSTRAINTS that decoding supports. `caches_prefixes`: whether
    there is a prefix cache, so that prefilling a prompt once saves work later."""

    name = "base"
    constraints: frozenset[str] = frozenset()
    caches_prefixes = False
    is_chat_model = False

    def __init__(self, chat_template: ChatTemplate | None = None) -> None:
        self.chat_template = chat_template or get_chat_template("default")

    def get_model_name(self) -> str:
        raise UnsupportedFeatureError(self.name, "get_model_name")

    def get_chat_template(self) -> ChatTemplate:
        return self.chat_template

    async def generate(self, prompt: Prompt, options: Mapping[str, Any], rid: str) -> Generation:
        """Continues `prompt`. `options` are resolved sampling options (names of sampling.ALL_WIRES)."""
        raise UnsupportedFeatureError(self.name, "gen")

    def generate_stream(self, prompt: Prompt, options: Mapping[str, Any], rid: str) -> AsyncGenerator[Delta, None]:
        """The same in pieces. Closing the iterator ends the generation."""
        raise UnsupportedFeatureError(self.name, "streaming")

    async def select(self, prompt: Prompt, select: Select, rid: str) -> ChoicesDecision:
        """Scores `select.choices` as continuations of `prompt`."""
        raise UnsupportedFeatureError(self.name, "select", "use gen with a regex, or another backend")

    async def cache_prefix(self, prompt: Prompt) -> None:
        """Prefills `prompt` into the prefix cache. By default nothing."""

    def flush_cache(self) -> bool:
        """Empties the model's prefix cache; False when there is none or it is in use."""
        return False

    def get_server_info(self) -> Meta | None:
        """How the model is served; None when unknown."""
        return None

    def shutdown(self) -> None:
        """Frees what the backend holds."""


__all__ = ["BaseBackend", "Delta", "Generation", "Meta", "Prompt"]
