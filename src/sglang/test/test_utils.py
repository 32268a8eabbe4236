"""Helpers that benchmarks and tests of the original import: see sglang.compat."""

from __future__ import annotations

import re
from typing import Any

from sglang.compat.benchmarks import (
    add_common_other_args_and_parse,
    add_common_sglang_args_and_parse,
    call_generate_guidance,
    call_generate_lightllm,
    call_generate_outlines,
    call_generate_srt_raw,
    call_generate_vllm,
    call_select_guidance,
    call_select_vllm,
    dump_bench_raw_result,
    get_call_generate,
    get_call_select,
    select_sglang_backend,
)
from sglang.compat.servers import (
    DEFAULT_MODEL_NAME_FOR_TEST,
    DEFAULT_SMALL_MODEL_NAME_FOR_TEST,
    DEFAULT_TIMEOUT_FOR_SERVER_LAUNCH,
    DEFAULT_URL_FOR_TEST,
    CustomTestCase,
    popen_launch_server,
    write_github_step_summary,
)
from sglang.srt.utils import kill_process_tree
from sglang.utils import is_in_ci

__all__ = [
    "DEFAULT_MODEL_NAME_FOR_TEST",
    "DEFAULT_SMALL_MODEL_NAME_FOR_TEST",
    "DEFAULT_TIMEOUT_FOR_SERVER_LAUNCH",
    "DEFAULT_URL_FOR_TEST",
    "CustomTestCase",
    "add_common_other_args_and_parse",
    "add_common_sglang_args_and_parse",
    "call_generate_guidance",
    "call_generate_lightllm",
    "call_generate_outlines",
    "call_generate_srt_raw",
    "call_generate_vllm",
    "call_select_guidance",
    "call_select_vllm",
    "dump_bench_raw_result",
    "get_call_generate",
    "get_call_select",
    "is_in_ci",
    "kill_process_tree",
    "popen_launch_server",
    "select_sglang_backend",
    "write_github_step_summary",
]

_A_MODEL = re.compile(r"DEFAULT_(\w+_)?MODEL_NAME_FOR_\w+")


def __getattr__(name: str) -> Any:
    """Models that tests of the original name: all are the built-in one."""
    if _A_MODEL.fullmatch(name):
        return DEFAULT_MODEL_NAME_FOR_TEST
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
