"""The output of benchmarks: a table on the terminal, JSON lines in a file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglang.commands.report import Outcome, percentile

WIDTH = 50
_TIMES = {
    "e2e_latency": ("End-to-End Latency", "E2E Latency", ("mean", "median", "p90", "p99")),
    "ttft": ("Time to First Token", "TTFT", ("mean", "median", "p99")),
    "tpot": ("Time per Output Token (excl. 1st token)", "TPOT", ("mean", "median", "p99")),
    "itl": ("Inter-Token Latency", "ITL", ("mean", "median", "p95", "p99", "max")),
}


def row(name: str, value: object) -> str:
    """One line of the table. Scripts look for its name and take what stands at the end."""
    shown = f"{value:<10.2f}" if isinstance(value, float) else f"{value!s:<10}"
    return f"{name + ':':<40} {shown}"


def title(text: str, rule: str = "=") -> str:
    return f"{{s:{rule}^{WIDTH}}}".format(s=f" {text} " if rule == "=" else text)


def append_line(path: str, result: dict[str, Any]) -> None:
    """Adds a line of JSON to a file."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


def rates(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Counts, and tokens and requests a second, of what was answered."""
    good = [o for o in outcomes if o.error is None]
    num_in, num_out = sum(o.input_len for o in good), sum(o.output_len for o in good)
    return {
        "duration": seconds,
        "completed": len(good),
        "total_input_tokens": num_in,
        "total_output_tokens": num_out,
        "request_throughput": len(good) / seconds,
        "input_throughput": num_in / seconds,
        "output_throughput": num_out / seconds,
        "total_throughput": (num_in + num_out) / seconds,
        "concurrency": sum(o.total for o in good) / seconds,
    }


def latencies(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Milliseconds by name: mean_ttft_ms, p99_itl_ms, ...; 0 where nothing was measured."""
    good = [o for o in outcomes if o.error is None]
    measured = {
        "e2e_latency": [o.total for o in good],
        "ttft": [o.first for o in good],
        "tpot": [(o.total - o.first) / (o.output_len - 1) for o in good if o.output_len > 1],
        "itl": [gap for o in good for gap in o.gaps],
    }
    return {f"{key}_{name}_ms": 1e3 * value for name, values in measured.items() for key, value in _points(values).items()}


def _points(values: list[float]) -> dict[str, float]:
    if not values:
        return dict.fromkeys(("mean", "median", "std", "p90", "p95", "p99", "max"), 0.0)
    percents = {f"p{p}": percentile(values, p) for p in (90, 95, 99)}
    spread = {"mean": statistics.fmean(values), "median": percentile(values, 50), "std": statistics.pstdev(values)}
    return {**spread, **percents, "max": max(values)}


def latency_lines(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, (heading, short, points) in _TIMES.items():
        lines.append(title(heading, "-"))
        lines += [row(f"{point.capitalize()} {short} (ms)", float(result[f"{point}_{name}_ms"])) for point in points]
    return lines
