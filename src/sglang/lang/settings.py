"""Settings of all programs of the process: `sglang.global_config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class GlobalConfig:
    """Mutable on purpose: users set it at the start of a script.

    `default_backend`: what set_default_backend was given. `verbosity`: 2 and more prints the text of each finished program.
    `enable_precache_with_tracing`: run_batch finds the longest common prefix of its prompts and has it computed once.
    `enable_parallel_encoding` has no effect: joins always concatenate text.
    """

    verbosity: int = 0
    default_backend: Any = None
    skip_special_tokens_in_output: bool = True
    spaces_between_special_tokens_in_out: bool = True
    enable_precache_with_tracing: bool = True
    enable_parallel_encoding: bool = True


global_config = GlobalConfig()
