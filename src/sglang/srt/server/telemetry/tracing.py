"""OpenTelemetry traces (optional): one span per sequence, with child spans for the queue, the prompt and the answer.

Spans are written when a request has ended, from times that are recorded anyway, so tracing costs nothing during generation. A
request with a W3C `traceparent` header becomes part of that trace. Names of attributes: OpenTelemetry's conventions for generative AI.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sglang.common.install import install_extras
from sglang.srt.errors import ConfigError
from sglang.srt.messages import TokenizedReq
from sglang.srt.server.generate_req import own_rid


@dataclass(frozen=True)
class Moments:
    """The times of a request's stages, by the monotonic clock; 0.0: not reached."""

    arrived: float
    started: float
    first: float
    ended: float


class Tracing:
    """Writes spans to an OTLP endpoint over HTTP, on its own thread."""

    def __init__(self, endpoint: str, model: str) -> None:
        """Raises ConfigError where OpenTelemetry is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"--otlp-traces-endpoint needs OpenTelemetry ({error.name} is missing): {install_extras('otel')}"
            ) from error
        url = endpoint if endpoint.rstrip("/").endswith("/v1/traces") else endpoint.rstrip("/") + "/v1/traces"
        self._model = model
        self._provider = TracerProvider(resource=Resource.create({"service.name": "sglang"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer("sglang")
        self._propagator = TraceContextTextMapPropagator()

    def ended(self, request: TokenizedReq, moments: Moments, trace: str | None, facts: dict[str, Any]) -> None:
        """Writes the spans of one sequence. `facts` are attributes; `trace` is the traceparent it came with."""
        from opentelemetry.trace import set_span_in_context

        offset = time.time_ns() - int(time.monotonic() * 1e9)

        def at(moment: float) -> int:
            return int(moment * 1e9) + offset

        parent = self._propagator.extract({"traceparent": trace}) if trace else None
        attributes = {
            "gen_ai.operation.name": "generate",
            "gen_ai.request.model": self._model,
            "gen_ai.request.id": own_rid(request),
            "gen_ai.request.temperature": request.sampling.temperature,
            "gen_ai.request.top_p": request.sampling.top_p,
            **facts,
        }
        span = self._tracer.start_span("generate", parent, attributes=attributes, start_time=at(moments.arrived))
        inside = set_span_in_context(span)
        stages = (
            ("queue", moments.arrived, moments.started),
            ("prefill", moments.started, moments.first),
            ("decode", moments.first, moments.ended),
        )
        for name, begin, end in stages:
            if begin and end:
                self._tracer.start_span(name, inside, start_time=at(begin)).end(at(max(begin, end)))
        span.end(at(moments.ended))

    def close(self) -> None:
        """Sends what is left, for a few seconds at most."""
        self._provider.force_flush(3000)
        self._provider.shutdown()
