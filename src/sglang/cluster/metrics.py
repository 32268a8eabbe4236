"""Metrics of the gateway, and those of all servers as one text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class GatewayMetrics:
    """Requests handed on, by model."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        label = ["model_name"]
        self._requests = Counter("sglang:gateway_requests", "Requests handed on", label, registry=self._registry)
        self._retries = Counter(
            "sglang:gateway_retries", "Requests sent again, since their server had died", label, registry=self._registry
        )
        self._resumed = Counter(
            "sglang:gateway_resumed", "Streams that another server went on with", label, registry=self._registry
        )
        self._running = Gauge("sglang:gateway_running_requests", "Requests handed on now", label, registry=self._registry)
        self._loaded = Gauge("sglang:gateway_loaded", "Whether the model is in memory", label, registry=self._registry)
        self._memory = Gauge("sglang:gateway_memory_bytes", "Memory of the model's server", label, registry=self._registry)

    @contextlib.contextmanager
    def request(self, name: str) -> Iterator[None]:
        self._requests.labels(name).inc()
        with self._running.labels(name).track_inprogress():
            yield

    def retried(self, name: str) -> None:
        self._retries.labels(name).inc()

    def resumed(self, name: str, count: int) -> None:
        if count:
            self._resumed.labels(name).inc(count)

    def render(self, states: Iterable[dict[str, Any]]) -> str:
        """`states`: of all models, as /models shows them."""
        for state in states:
            self._loaded.labels(state["name"]).set(state["state"] == "ready")
            self._memory.labels(state["name"]).set(state.get("memory_bytes", 0))
        return generate_latest(self._registry).decode()


def labelled_metrics(text: str, replica: str) -> str:
    """The samples of one replica of several: with its name, so that no two samples are of the same series."""
    lines = []
    for line in text.removesuffix("\n").split("\n"):
        name, brace, rest = line.partition("{")
        if not line or line.startswith("#"):
            lines.append(line)
        elif brace:
            lines.append(f'{name}{{replica="{replica}",{rest}')
        else:
            name, _, value = line.partition(" ")
            lines.append(f'{name}{{replica="{replica}"}} {value}')
    return "\n".join(lines) + "\n"


def joined_metrics(texts: Iterable[str]) -> str:
    """Texts of several servers as one: the samples of each metric stand together behind its help, which is there once."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        name = ""
        for line in text.split("\n"):
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
            if line.startswith("#"):
                head = heads.setdefault(name, [])
                if line not in head and len(head) < 2:
                    head.append(line)
                samples.setdefault(name, [])
            elif line:
                samples.setdefault(name, []).append(line)
    lines = [line for name in samples for line in (*heads.get(name, ()), *samples[name])]
    return "\n".join(lines) + "\n"
