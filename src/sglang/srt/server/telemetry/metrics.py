"""Prometheus metrics, with the names of the original's dashboards. One registry per server, nothing global."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sglang.srt.messages import DraftCounts, SchedulerStats, TokenizedReq
from sglang.srt.server.generate_req import GenerateOut

_FIRST_TOKEN = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 25, 60, 120)
_BETWEEN = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1, 2)
_WHOLE = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 5, 10, 20, 40, 60, 120, 300, 600)
_TOKENS = (1, 8, 32, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)

STAGES = ("queue", "prefill", "decode")
QUEUE_AVERAGE_WEIGHT = 0.05

_GAUGES = {
    "num_running_reqs": ("requests being generated", "num_running"),
    "num_queue_reqs": ("requests waiting", "num_waiting"),
    "num_grammar_queue_reqs": ("requests waiting for their grammar", "num_grammar_waiting"),
    "num_used_tokens": ("KV slots in use", "num_used_tokens"),
    "gen_throughput": ("tokens generated a second", "gen_throughput"),
    "cache_hit_rate": ("share of prompt tokens found in the prefix cache", "cache_hit_rate"),
}
_DRAFTS = {
    "spec_proposed_tokens_total": ("tokens that drafts proposed", "proposed"),
    "spec_accepted_tokens_total": ("proposed tokens that were sampled as proposed", "accepted"),
    "spec_rows_total": ("rows of steps that drafts took", "rows"),
}

_DISK_GAUGES = {
    "cache_host_bytes": ("bytes of the prefix cache in host memory", "host_bytes"),
    "cache_disk_bytes": ("bytes of the prefix cache on disk", "bytes"),
    "cache_disk_records": ("records of the prefix cache on disk, of 16 tokens each", "records"),
}
_DISK_COUNTERS = {
    "cache_host_records_written_total": ("records written to the prefix cache in host memory", "host_written"),
    "cache_disk_records_written_total": ("records written to the prefix cache on disk", "written"),
    "cache_disk_records_read_total": ("records read from the prefix cache on disk", "read"),
    "cache_disk_records_damaged_total": ("records that were not what had been written, and were computed", "damaged"),
}


class Metrics:
    """Counters and histograms of this server. Label: model_name; of drafts also proposer."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        label, registry = ("model_name",), self.registry

        def counter(name: str, text: str) -> Counter:
            return Counter(f"sglang:{name}", text, label, registry=registry).labels(model_name)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"sglang:{name}", text, label, registry=registry).labels(model_name)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"sglang:{name}", text, label, buckets=buckets, registry=registry).labels(model_name)

        self._prompt_tokens = counter("prompt_tokens", "prompt tokens of requests that have ended")
        self._generation_tokens = counter("generation_tokens", "generated tokens of requests that have ended")
        self._cached_tokens = counter("cached_tokens", "prompt tokens served from the prefix cache")
        self._requests = counter("num_requests", "requests received")
        self._structured = counter("num_so_requests", "finished requests with a constraint")
        self._aborted = counter("num_aborted_requests", "requests aborted")
        self._retracted = counter("num_retractions", "times a request gave its memory back")
        self._restarts = counter("num_scheduler_restarts", "times a scheduler died and another took its place")
        self._resumed = counter("num_resumed_requests", "requests that another scheduler continued")
        self._first_token = histogram("time_to_first_token_seconds", "from arrival to the first token", _FIRST_TOKEN)
        self._between = histogram("inter_token_latency_seconds", "between two tokens of a request", _BETWEEN)
        self._whole = histogram("e2e_request_latency_seconds", "from arrival to the end", _WHOLE)
        self._queue_time = histogram("queue_time_seconds", "from arrival to the first step", _FIRST_TOKEN)
        self._stages = self._stage_histograms(model_name)
        self._prompt_len = histogram("prompt_tokens_histogram", "tokens of a prompt", _TOKENS)
        self._generation_len = histogram("generation_tokens_histogram", "tokens of an answer", _TOKENS)
        self._average_queue = gauge("avg_request_queue_latency", "seconds in the queue, averaged over the last requests")
        self._queue_average = 0.0
        self._retracted_reqs = gauge("total_retracted_reqs", "retractions since the scheduler started")
        self._usage = gauge("token_usage", "share of the KV pool in use")
        self._gauges = {attribute: gauge(name, text) for name, (text, attribute) in _GAUGES.items()}
        self._draft_counters = {
            attribute: Counter(f"sglang:{name}", text, ("model_name", "proposer"), registry=registry)
            for name, (text, attribute) in _DRAFTS.items()
        }
        self._tiers = Counter(
            "sglang:cached_tokens_by_tier",
            "cached prompt tokens, by where they were",
            ("model_name", "tier"),
            registry=registry,
        )
        self._disk_gauges = {attribute: gauge(name, text) for name, (text, attribute) in _DISK_GAUGES.items()}
        self._disk_counters = {attribute: counter(name, text) for name, (text, attribute) in _DISK_COUNTERS.items()}
        self._model_name = model_name
        self._drafts: dict[str, DraftCounts] = {}
        self._cached: dict[str, int] = {}
        self._disk: dict[str, int] = {}
        """what the scheduler told last"""

    def _stage_histograms(self, model_name: str) -> dict[str, Histogram]:
        name, labels = "sglang:per_stage_req_latency_seconds", ("model_name", "stage")
        histogram = Histogram(name, "seconds that requests spend in a stage", labels, buckets=_WHOLE, registry=self.registry)
        return {stage: histogram.labels(model_name, stage) for stage in STAGES}

    def received(self, requests: list[TokenizedReq]) -> None:
        self._requests.inc(len(requests))

    def first_token(self, seconds: float, queue_seconds: float) -> None:
        self._first_token.observe(seconds)
        self._queue_time.observe(queue_seconds)
        self._stages["queue"].observe(queue_seconds)
        self._stages["prefill"].observe(max(seconds - queue_seconds, 0.0))
        self._queue_average += QUEUE_AVERAGE_WEIGHT * (queue_seconds - self._queue_average)
        self._average_queue.set(self._queue_average)

    def next_tokens(self, seconds: float, count: int) -> None:
        """`count` tokens that came `seconds` after the last."""
        self._between.observe(seconds / count)

    def restarted(self, num_resumed: int, counts_anew: bool = True) -> None:
        self._restarts.inc()
        if counts_anew:  # with the new scheduler
            self._drafts, self._cached, self._disk = {}, {}, {}
        self._resumed.inc(num_resumed)

    def aborted(self) -> None:
        """A client left. `left` follows when the scheduler has ended its request."""
        self._aborted.inc()

    def left(self, prompt_len: int, cached_len: int, completion_len: int) -> None:
        """Counts the work for a request whose client has left, or for an answer that was discarded."""
        self._count_tokens(prompt_len, cached_len, completion_len)

    def _count_tokens(self, prompt_len: int, cached_len: int, completion_len: int) -> None:
        self._prompt_tokens.inc(prompt_len)
        self._cached_tokens.inc(cached_len)
        self._generation_tokens.inc(completion_len)

    def finished(self, out: GenerateOut, first_seconds: float | None, has_grammar: bool) -> None:
        """`first_seconds`: when the first token came, if one did."""
        if first_seconds is not None:
            self._stages["decode"].observe(max(out.seconds - first_seconds, 0.0))
        self._count_tokens(out.prompt_len, out.cached_len, out.completion_len)
        self._whole.observe(out.seconds)
        self._prompt_len.observe(out.prompt_len)
        self._generation_len.observe(out.completion_len)
        if has_grammar:
            self._structured.inc()
        if out.num_retractions:
            self._retracted.inc(out.num_retractions)
        if out.finish is not None and out.finish.type == "abort":
            self._aborted.inc()

    def scheduler(self, stats: SchedulerStats) -> None:
        for attribute, gauge in self._gauges.items():
            gauge.set(getattr(stats, attribute))
        self._retracted_reqs.set(stats.num_retractions)
        self._usage.set(stats.num_used_tokens / stats.max_total_tokens if stats.max_total_tokens else 0.0)
        for proposer, counts in stats.drafts.items():
            before = self._drafts.get(proposer, DraftCounts())
            for attribute, counter in self._draft_counters.items():
                new = getattr(counts, attribute) - getattr(before, attribute)
                counter.labels(self._model_name, proposer).inc(max(new, 0))
        self._drafts = stats.drafts
        for tier, num_tokens in stats.cached_tokens.items():
            self._tiers.labels(self._model_name, tier).inc(max(num_tokens - self._cached.get(tier, 0), 0))
        self._cached = stats.cached_tokens
        if stats.disk:
            self._note_disk(stats.disk)

    def _note_disk(self, disk: dict[str, int]) -> None:
        for name, gauge in self._disk_gauges.items():
            gauge.set(disk.get(name, 0))
        for name, counter in self._disk_counters.items():
            counter.inc(max(disk.get(name, 0) - self._disk.get(name, 0), 0))
        self._disk = disk

    def render(self) -> bytes:
        """The page, in Prometheus's text format."""
        return generate_latest(self.registry)
