"""The load of the server, in the two formats that SGLang's routers and benchmarks read: /get_load and the newer /v1/loads."""

from __future__ import annotations

import time
from typing import Any

from sglang.srt.messages import SchedulerStats


def core_of_load(stats: SchedulerStats) -> dict[str, Any]:
    """One element of /get_load. `num_reqs` counts those that wait, too."""
    waiting = _num_waiting(stats)
    return {
        "dp_rank": 0,
        "num_reqs": stats.num_running + waiting,
        "num_waiting_reqs": waiting,
        "num_tokens": stats.num_used_tokens,
        "ts_tic": time.perf_counter(),  # seconds of a clock that only differences are taken of
    }


def format_load(stats: SchedulerStats, max_running_requests: int) -> dict[str, Any]:
    """One element of `loads` of /v1/loads. `timestamp`: seconds since 1970; `gen_throughput`: tokens per second."""
    return {
        "dp_rank": 0,
        "timestamp": time.time(),
        "num_running_reqs": stats.num_running,
        "num_waiting_reqs": _num_waiting(stats),
        "num_used_tokens": stats.num_used_tokens,
        "num_total_tokens": stats.num_used_tokens,
        "max_total_num_tokens": stats.max_total_tokens,
        "max_running_requests": max_running_requests,
        "token_usage": stats.num_used_tokens / max(stats.max_total_tokens, 1),
        "gen_throughput": stats.gen_throughput,
        "cache_hit_rate": stats.cache_hit_rate,
    }


def _num_waiting(stats: SchedulerStats) -> int:
    return stats.num_waiting + stats.num_grammar_waiting
