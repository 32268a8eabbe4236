"""Helpers that benchmarks and tests of the original import: see sglang.compat."""

from __future__ import annotations

import re
from typing import Any

from sglang.compat.benchmarks import (
    add_common_other_args_and_parse,
    add_common_sglang_args_and_parse,
    calculate_rouge_l,
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
    run_with_timeout,
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
    "calculate_rouge_l",
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
    "run_with_timeout",
    "select_sglang_backend",
    "write_github_step_summary",
]

_MISSING = {
    "call_select_lightllm": "LightLLM does not tell how likely a text is; call_select_vllm and the backend srt-raw choose",
    "run_bench_serving": "call run_benchmark of sglang.bench_serving",
}
_A_MODEL = re.compile(r"DEFAULT_(\w+_)?MODEL_NAME_FOR_\w+")


def __getattr__(name: str) -> Any:
    """Models that tests of the original name: all are the built-in one."""
    if _A_MODEL.fullmatch(name):
        return DEFAULT_MODEL_NAME_FOR_TEST
    if name in _MISSING:
        raise ImportError(f"{__name__}.{name} is not there: {_MISSING[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
