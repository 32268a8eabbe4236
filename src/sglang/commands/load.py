"""A load generator: sends requests to a server at a fixed rate or concurrency, and times each as its client sees it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import httpx

from sglang.commands.address import Address
from sglang.commands.report import Outcome
from sglang.common.sse import EventReader

WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state", "family")


@dataclass(frozen=True)
class Shape:
    """The shape of the requests. Lengths are sampled uniformly from [(1 - spread) * length, length]. With `shared_len`, every
    prompt begins with one of `num_shared` common prefixes of that length."""

    input_len: int
    output_len: int
    spread: float = 0.0
    shared_len: int = 0
    num_shared: int = 1


@dataclass(frozen=True)
class Target:
    """Where requests go. `api`: native (/generate), completions or chat. `vocab_size`: ids below it are sampled for prompts; with
    None prompts are words, about one token each."""

    address: Address
    api: str
    model: str
    vocab_size: int | None


class Prompts:
    """Random prompts of one shape; the same for the same seed."""

    def __init__(self, shape: Shape, vocab_size: int | None, seed: int) -> None:
        self._shape = shape
        self._vocab = vocab_size
        self._rng = random.Random(seed)
        self._shared = [self._tokens(shape.shared_len) for _ in range(shape.num_shared)]

    def _tokens(self, count: int) -> list[int]:
        # the lowest ids are special in many vocabularies
        return [self._rng.randrange(min(256, self._vocab // 2), self._vocab) if self._vocab else 0 for _ in range(count)]

    def _length(self, longest: int) -> int:
        return self._rng.randint(max(1, round(longest * (1 - self._shape.spread))), longest)

    def sample(self) -> tuple[list[int] | str, int, int]:
        """(prompt, its length, output length)."""
        shared = self._rng.randrange(len(self._shared))
        own = self._length(self._shape.input_len)
        out = self._length(self._shape.output_len)
        total = self._shape.shared_len + own
        if self._vocab:
            return [*self._shared[shared], *self._tokens(own)], total, out
        common = random.Random(shared)
        words = [common.choice(WORDS) for _ in range(self._shape.shared_len)] + [self._rng.choice(WORDS) for _ in range(own)]
        return " ".join(words), total, out


def body_of(target: Target, prompt: list[int] | str, output_len: int) -> tuple[str, dict[str, Any]]:
    """(path, body) of a streamed, greedy request of exactly `output_len` tokens."""
    if target.api == "native":
        name = "text" if isinstance(prompt, str) else "input_ids"
        params = {"max_new_tokens": output_len, "temperature": 0, "ignore_eos": True}
        return "/generate", {name: prompt, "sampling_params": params, "stream": True}
    body = {
        "model": target.model,
        "max_tokens": output_len,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if target.api == "chat":
        return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": prompt}]}
    return "/v1/completions", body | {"prompt": prompt}


class _Reader:
    """Times the events of one answer."""

    def __init__(self, outcome: Outcome, began: float) -> None:
        self._outcome = outcome
        self._began = began
        self._last = 0.0

    def take(self, event: dict[str, Any]) -> None:
        """One event of any of the three APIs."""
        if event.get("error"):
            error = event["error"]
            self._outcome.error = str(error.get("message", error) if isinstance(error, dict) else error)
            return
        meta, usage = event.get("meta_info"), event.get("usage")
        if isinstance(meta, dict):
            self._counts(meta["prompt_tokens"], meta["completion_tokens"], meta.get("cached_tokens", 0))
        elif isinstance(usage, dict):
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            self._counts(usage["prompt_tokens"], usage["completion_tokens"], cached)
        choices = event.get("choices")
        if meta is not None or (choices and _has_text(choices[0])):
            self._note(time.perf_counter())

    def _counts(self, input_len: int, output_len: int, cached_len: int) -> None:
        self._outcome.input_len, self._outcome.output_len, self._outcome.cached_len = input_len, output_len, cached_len

    def _note(self, now: float) -> None:
        if self._last:
            self._outcome.gaps.append(now - self._last)
        else:
            self._outcome.first = now - self._began
        self._last = now
        self._outcome.total = now - self._began


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or choice.get("message") or {}
    return bool(choice.get("text") or delta.get("content") or delta.get("reasoning_content"))


async def send(client: httpx.AsyncClient, path: str, body: dict[str, Any], since: float) -> Outcome:
    """One request, to its end. Whatever goes wrong is in the outcome."""
    began = time.perf_counter()
    outcome = Outcome(sent_at=began - since)
    reader = _Reader(outcome, began)
    try:
        async with client.stream("POST", path, json=body) as reply:
            if reply.status_code != 200:
                text = (await reply.aread()).decode(errors="replace")
                outcome.error = f"status {reply.status_code}: {text[:200]}"
                return outcome
            if not body.get("stream"):
                reader.take(json.loads(await reply.aread()))
                return outcome
            stream = EventReader()
            async for chunk in reply.aiter_bytes():
                for data in stream.feed(chunk):
                    if data.strip() != "[DONE]":
                        reader.take(json.loads(data))
    except (httpx.HTTPError, ValueError, KeyError) as error:
        outcome.error = f"{type(error).__name__}: {error}"
    if outcome.error is None and not outcome.total:
        outcome.error = "the answer had no tokens"
    return outcome


async def run_load(
    target: Target,
    prompts: Prompts,
    count: int,
    rate: float | None,
    concurrency: int | None,
    seed: int,
    note: Callable[[Outcome], None],
) -> tuple[list[Outcome], float]:
    """Sends `count` requests, as `send_all` does."""
    requests = (body_of(target, prompt, output_len) for prompt, _, output_len in (prompts.sample() for _ in range(count)))
    return await send_all(target.address, target.address.headers, requests, rate, concurrency or count, seed, note)


async def send_all(
    address: Address,
    headers: dict[str, str],
    requests: Iterable[tuple[str, dict[str, Any]]],
    rate: float | None,
    concurrency: int,
    seed: int,
    note: Callable[[Outcome], None],
) -> tuple[list[Outcome], float]:
    """Sends requests, each a path and a body: with `rate`, at times of a Poisson process; never more than `concurrency` at once.
    Calls `note` after each. Returns the outcomes and the seconds all of it took."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=concurrency)
    gate = asyncio.Semaphore(concurrency)
    rng = random.Random(seed)
    timeout = httpx.Timeout(None, connect=30.0)
    transport = address.async_transport(limits)
    async with httpx.AsyncClient(base_url=address.base_url, headers=headers, timeout=timeout, transport=transport) as client:
        since = time.perf_counter()

        async def one(path: str, body: dict[str, Any]) -> Outcome:
            async with gate:
                outcome = await send(client, path, body, since)
            note(outcome)
            return outcome

        tasks: list[asyncio.Task[Outcome]] = []
        due = since
        for path, body in requests:
            tasks.append(asyncio.create_task(one(path, body)))
            if rate is not None:
                due += rng.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
        outcomes = await asyncio.gather(*tasks)
        return list(outcomes), time.perf_counter() - since
