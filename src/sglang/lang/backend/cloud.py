"""The common part of the backends for vendors' APIs: conversations instead of texts, and fewer sampling parameters."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sglang.lang.backend.base import BaseBackend, Prompt
from sglang.lang.errors import (
    BackendConnectionError,
    BackendError,
    BackendTimeoutError,
    ProgramError,
    RequestRefusedError,
    ServerError,
    UnsupportedFeatureError,
)
from sglang.lang.sampling import CONSTRAINTS, to_api

# sent by the language itself: no warning where an API does not have them
_ASKED_FOR_BY_THE_LANGUAGE = frozenset({"min_new_tokens", "stop_token_ids"})


@dataclass
class TokenUsage:
    """Tokens that a backend's calls have cost so far."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def reset(self) -> None:
        self.prompt_tokens = self.completion_tokens = 0

    def add(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        self.prompt_tokens += prompt_tokens or 0
        self.completion_tokens += completion_tokens or 0


def api_options(backend: BaseBackend, options: Mapping[str, Any], api: str, handled: Iterable[str] = ()) -> dict[str, Any]:
    """The options under the API's names. A constraint that the API cannot hold decoding to is an error; another field that it
    does not have is left out with a warning. `handled` are fields that the backend passes on itself."""
    rest = {name: value for name, value in options.items() if name not in handled}
    kwargs, missing = to_api(rest, api)
    for name in missing:
        if name in CONSTRAINTS or name in ("return_logprob", "lora"):
            raise UnsupportedFeatureError(backend.name, name)
    ignored = [name for name in missing if name not in _ASKED_FOR_BY_THE_LANGUAGE]
    if ignored:
        warnings.warn(f"the {backend.name} API has no {', '.join(ignored)}: left out", stacklevel=2)
    return kwargs


def conversation(backend: BaseBackend, prompt: Prompt) -> list[dict[str, Any]]:
    """The messages before the answer. Raises ProgramError where the model is not asked for a whole assistant message."""
    if prompt.role != "assistant" or prompt.role_text.strip():
        raise ProgramError(
            f"a chat model of {backend.name} writes whole assistant messages: gen must come right after the begin of an "
            "assistant message, with no text before it (or use num_api_spec_tokens)"
        )
    return [dict(message) for message in prompt.messages]


def split_system(messages: list[dict[str, Any]]) -> tuple[str | None, list[dict[str, Any]]]:
    """(text of a leading system message, the others); the list given stays as it is."""
    if messages and messages[0]["role"] == "system":
        return str(messages[0]["content"]), messages[1:]
    return None, messages


def split_data_uri(url: str) -> tuple[str, str] | None:
    """(mime, base64) of an image's data URI; None for another URL."""
    found = re.match(r"data:([^;]+);base64,(.*)", url, re.DOTALL)
    return (found.group(1), found.group(2)) if found else None


def as_backend_error(
    error: Exception, connection: tuple[type[Exception], ...], timeout: tuple[type[Exception], ...]
) -> BackendError:
    """A vendor's exception as ours: by its class, or the number in its `status_code` or `code`."""
    message = str(getattr(error, "message", None) or error)
    if isinstance(error, timeout):
        return BackendTimeoutError(f"the API did not answer in time: {message}")
    if isinstance(error, connection):
        return BackendConnectionError(f"the API could not be reached: {message}")
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    if isinstance(status, int):
        kind = RequestRefusedError if 400 <= status < 500 else ServerError
        return kind(f"the API answered {status}: {message}", status_code=status, server_message=message)
    return ServerError(f"the API failed: {message}", server_message=message)
