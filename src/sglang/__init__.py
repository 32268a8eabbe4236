"""sglang: a language for programs that use language models, and the runtime that serves the models.

Names are loaded at first use where they are heavy: importing the package takes neither an HTTP client nor NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sglang.global_config import global_config
from sglang.lang.api import (
    assistant,
    assistant_begin,
    assistant_end,
    flush_cache,
    function,
    gen,
    gen_int,
    gen_string,
    get_server_info,
    image,
    select,
    separate_reasoning,
    set_default_backend,
    system,
    system_begin,
    system_end,
    user,
    user_begin,
    user_end,
    video,
)
from sglang.lang.choices import (
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from sglang.lang.run.async_state import AsyncProgramState
from sglang.lang.run.state import ProgramState
from sglang.version import __version__

if TYPE_CHECKING:
    from sglang.lang.backend.anthropic import Anthropic
    from sglang.lang.backend.litellm import LiteLLM
    from sglang.lang.backend.openai import OpenAI
    from sglang.lang.backend.runtime_endpoint import Runtime, RuntimeEndpoint
    from sglang.lang.backend.vertexai import VertexAI
    from sglang.srt.engine import Engine as Engine
    from sglang.srt.server_args import ServerArgs as ServerArgs

_LAZY = {
    "Anthropic": "sglang.lang.backend.anthropic",
    "Engine": "sglang.srt.engine",
    "LiteLLM": "sglang.lang.backend.litellm",
    "OpenAI": "sglang.lang.backend.openai",
    "Runtime": "sglang.lang.backend.runtime_endpoint",
    "RuntimeEndpoint": "sglang.lang.backend.runtime_endpoint",
    "ServerArgs": "sglang.srt.server_args",
    "VertexAI": "sglang.lang.backend.vertexai",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sglang' has no attribute {name!r}")
    from sglang.common.install import needs_extra

    with needs_extra("srt"):
        value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


# Engine and ServerArgs are public too, but need the runtime's packages: `from sglang import *` must work without them
__all__ = [
    "Anthropic",
    "AsyncProgramState",
    "LiteLLM",
    "OpenAI",
    "ProgramState",
    "Runtime",
    "RuntimeEndpoint",
    "VertexAI",
    "__version__",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "flush_cache",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "get_server_info",
    "global_config",
    "greedy_token_selection",
    "image",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
    "video",
]
