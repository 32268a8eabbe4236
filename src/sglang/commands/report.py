"""Reports of load tests: percentiles, a table, JSON, and a chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape

PERCENTILES = (50, 90, 99)
_COLORS = ("#2563eb", "#f59e0b", "#10b981", "#ef4444")
_PANEL, _WIDTH, _LEFT, _PLOT = 190, 720, 60, 120


@dataclass
class Outcome:
    """One request as its client saw it. Times are seconds since it was sent; `gaps` lie between two events with tokens.
    Without an `error` it is a whole answer."""

    sent_at: float
    first: float = 0.0
    total: float = 0.0
    gaps: list[float] = field(default_factory=list)
    input_len: int = 0
    output_len: int = 0
    cached_len: int = 0
    error: str | None = None


def percentile(values: Sequence[float], percent: float) -> float:
    """Between ranks, linearly; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    at = (len(ordered) - 1) * percent / 100
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def distribution(values: Sequence[float]) -> dict[str, float]:
    """mean, percentiles and largest, in milliseconds."""
    if not values:
        return {}
    points = {f"p{p}": 1e3 * percentile(values, p) for p in PERCENTILES}
    return {"mean": 1e3 * sum(values) / len(values), **points, "max": 1e3 * max(values)}


def times(outcomes: list[Outcome]) -> dict[str, list[float]]:
    """The distributions that matter, by name, in seconds."""
    good = [o for o in outcomes if o.error is None]
    return {
        "time to first token": [o.first for o in good],
        "time per output token": [(o.total - o.first) / (o.output_len - 1) for o in good if o.output_len > 1],
        "inter-token latency": [gap for o in good for gap in o.gaps],
        "end-to-end latency": [o.total for o in good],
    }


def summarize(outcomes: list[Outcome], seconds: float, settings: dict[str, Any]) -> dict[str, Any]:
    """The report as plain data; times in milliseconds."""
    good = [o for o in outcomes if o.error is None]
    errors: dict[str, int] = {}
    for o in outcomes:
        if o.error is not None:
            errors[o.error] = errors.get(o.error, 0) + 1
    num_in, num_out = sum(o.input_len for o in good), sum(o.output_len for o in good)
    return {
        "settings": settings,
        "seconds": seconds,
        "completed": len(good),
        "failed": len(outcomes) - len(good),
        "errors": errors,
        "input_tokens": num_in,
        "cached_tokens": sum(o.cached_len for o in good),
        "output_tokens": num_out,
        "requests_per_second": len(good) / seconds,
        "input_tokens_per_second": num_in / seconds,
        "output_tokens_per_second": num_out / seconds,
        "mean_concurrency": sum(o.total for o in good) / seconds,
        "milliseconds": {name.replace(" ", "_"): distribution(values) for name, values in times(outcomes).items()},
    }


def table(summary: dict[str, Any]) -> str:
    """The report as a table for a terminal."""
    lines = [
        f"{summary['completed']} requests completed, {summary['failed']} failed, in {summary['seconds']:.1f} s"
        f" ({summary['mean_concurrency']:.1f} at once on average)",
        f"  {summary['requests_per_second']:.2f} requests/s, {summary['input_tokens_per_second']:.0f} input tokens/s"
        f" ({_share(summary)} cached), {summary['output_tokens_per_second']:.1f} output tokens/s",
        "",
        f"{'milliseconds':24}" + "".join(f"{name:>10}" for name in ("mean", "p50", "p90", "p99", "max")),
    ]
    for name, row in summary["milliseconds"].items():
        if row:
            lines.append(f"{name.replace('_', ' '):24}" + "".join(f"{value:10.1f}" for value in row.values()))
    lines += [f"error ({count} times): {message}" for message, count in summary["errors"].items()]
    return "\n".join(lines)


def _share(summary: dict[str, Any]) -> str:
    return f"{summary['cached_tokens'] / summary['input_tokens']:.0%}" if summary["input_tokens"] else "none"


def chart(title: str, distributions: dict[str, list[float]]) -> str:
    """A self-contained SVG: for each distribution the share of values at or below a time (its cumulative curve)."""
    parts = [f'<text x="12" y="24" font-size="16" font-weight="bold">{escape(title)}</text>']
    y = 44
    for i, (name, values) in enumerate(distributions.items()):
        if values:
            parts.append(_panel(name, sorted(values), y, _COLORS[i % len(_COLORS)]))
            y += _PANEL
    style = 'font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" {style}>'
    return head + '<rect width="100%" height="100%" fill="white"/>' + "\n".join(parts) + "</svg>\n"


def _panel(name: str, ordered: list[float], top: int, color: str) -> str:
    longest = ordered[-1] or 1e-9
    width = _WIDTH - _LEFT - 30
    bottom = top + 20 + _PLOT
    step = max(len(ordered) // 400, 1)
    picked = [*range(0, len(ordered), step), len(ordered) - 1]
    points = " ".join(
        f"{_LEFT + width * ordered[i] / longest:.1f},{bottom - _PLOT * (i + 1) / len(ordered):.1f}" for i in picked
    )
    parts = [f'<text x="{_LEFT}" y="{top + 12}">{escape(name)} (ms)</text>']
    for share in (0.0, 0.5, 1.0):
        y = bottom - _PLOT * share
        parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{_LEFT + width}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{share:.0%}</text>')
    for k in range(5):
        parts.append(
            f'<text x="{_LEFT + width * k / 4:.1f}" y="{bottom + 16}" text-anchor="middle">{1e3 * longest * k / 4:.4g}</text>'
        )
    parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
    return "".join(parts)
