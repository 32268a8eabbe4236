"""The same greedy answer, to the bit, whatever else is running and however it was computed (the project's promise 3)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import sglang
from tests.conftest import DEFAULT_MODEL

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "Water boils at a temperature of",
    "Once upon a time, in a village by the sea, there lived an old fisherman who " * 5,
    "1, 1, 2, 3, 5, 8,",
    "Dear Sir or Madam,\n\nI am writing to",
    "The three primary colours are",
    "Q: What is the largest planet?\nA:",
]
NUM_NEW = 24
Answer = tuple[tuple[int, ...], tuple[float, ...]]


def request(prompt: str, **extra: Any) -> dict[str, Any]:
    params = {"temperature": 0, "max_new_tokens": NUM_NEW, "ignore_eos": True}
    return {"text": prompt, "sampling_params": params, "return_logprob": True, "logprob_start_len": -1} | extra


def answer(reply: dict[str, Any]) -> Answer:
    entries = reply["meta_info"]["output_token_logprobs"]
    return tuple(e[1] for e in entries), tuple(e[0] for e in entries)


def ask_engine(engine: sglang.Engine, prompts: list[str]) -> list[Answer]:
    body = request("")
    replies = engine.generate(prompts, body["sampling_params"], return_logprob=True)
    return [answer(r) for r in replies]


@pytest.fixture(scope="module")
def alone() -> Iterator[list[Answer]]:
    """Each prompt by itself, nothing cached."""
    with sglang.Engine(model_path=DEFAULT_MODEL, disable_radix_cache=True) as engine:
        yield [ask_engine(engine, [p])[0] for p in PROMPTS]


def test_in_a_mixed_batch_of_sixteen(alone: list[Answer]) -> None:
    with sglang.Engine(model_path=DEFAULT_MODEL) as engine:
        batch = PROMPTS + [f"Some other text, number {i}: " * (i + 1) for i in range(16 - len(PROMPTS))]
        assert ask_engine(engine, batch)[: len(PROMPTS)] == alone
        assert ask_engine(engine, batch)[: len(PROMPTS)] == alone, "with a warm cache"
        assert [ask_engine(engine, [p])[0] for p in PROMPTS] == alone, "alone with a warm cache"


@pytest.mark.parametrize(
    "flags", [{"chunked_prefill_size": 16}, {"chunked_prefill_size": 4096}, {"test_retract_every": 5}, {"threads": 1}]
)
def test_chunked_retracted_or_on_one_thread(alone: list[Answer], flags: dict[str, Any]) -> None:
    with sglang.Engine(model_path=DEFAULT_MODEL, **flags) as engine:
        assert ask_engine(engine, PROMPTS) == alone


STEP_BY_STEP = {"disable_overlap_schedule": True, "speculative_algorithm": "none", "disable_radix_cache": True}
CIRCLES = ["1 2 3 4 5 6 1 2 3 4 5 6 1 2 3", "row, row, row your boat, row, row, row your boat, row,", *PROMPTS[1:5]]


PENALTIES = {"presence_penalty": -0.5, "frequency_penalty": 0.1, "repetition_penalty": 0.95, "logit_bias": {"30": -1.0}}
"""with which texts repeat themselves"""
WAYS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.7},
    {"temperature": 0, **PENALTIES},
    {"temperature": 0.7, **PENALTIES},
]


@pytest.fixture(scope="module")
def steps() -> Iterator[list[list[list[int]]]]:
    """Greedy and sampled answers, with and without penalties, of one request at a time whose every step waits for the last one."""
    with sglang.Engine(model_path=DEFAULT_MODEL, **STEP_BY_STEP) as engine:
        yield [[ids for p in CIRCLES for ids in token_ids(engine, [p], way)] for way in WAYS]


def token_ids(engine: sglang.Engine, prompts: list[str], way: dict[str, Any]) -> list[list[int]]:
    params = {"sampling_seed": 5, "max_new_tokens": 28, "ignore_eos": True, **way}
    return [reply["output_ids"] for reply in engine.generate(prompts, params)]


@pytest.mark.parametrize(
    "flags",
    [{}, {"threads": 1}, {"threads": 3}, {"speculative_algorithm": "none"}, {"disable_overlap_schedule": True}],
    ids=str,
)
def test_ahead_of_its_tokens_and_with_drafts(steps: list[list[list[int]]], flags: dict[str, Any]) -> None:
    """Alone (where there are drafts), two at once (with the usual flags), and all (where steps only run ahead)."""
    with sglang.Engine(model_path=DEFAULT_MODEL, **flags) as engine:
        for way, want in zip(WAYS, steps, strict=True):
            for size in (1, len(CIRCLES)) if flags else (1, 2, len(CIRCLES)):
                groups = [CIRCLES[i : i + size] for i in range(0, len(CIRCLES), size)]
                assert [ids for group in groups for ids in token_ids(engine, group, way)] == want


def test_in_a_pool_so_small_that_requests_are_retracted(alone: list[Answer]) -> None:
    with sglang.Engine(model_path=DEFAULT_MODEL, max_total_tokens=256, schedule_conservativeness=0.1) as engine:
        replies = engine.generate(PROMPTS, request("")["sampling_params"], return_logprob=True)
        assert [answer(r) for r in replies] == alone


def test_over_http_together_and_streamed(alone: list[Answer], http: httpx.Client) -> None:
    replies = http.post("/generate", json=request("") | {"text": PROMPTS}).json()
    assert [answer(r) for r in replies] == alone
    for prompt, expected in zip(PROMPTS, alone, strict=True):
        with http.stream("POST", "/generate", json=request(prompt, stream=True)) as reply:
            lines = [line[6:] for line in reply.iter_lines() if line.startswith("data: {")]
        assert answer(json.loads(lines[-1])) == expected


def test_beside_requests_that_come_and_go(alone: list[Answer], http: httpx.Client, server: Any) -> None:
    async def run() -> list[Answer]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120, trust_env=False) as client:

            async def noise(i: int) -> None:
                body = {"text": f"noise {i} " * (i + 1), "sampling_params": {"max_new_tokens": 5 + 3 * i, "temperature": 1}}
                await client.post("/generate", json=body)

            async def measured(prompt: str) -> Answer:
                return answer((await client.post("/generate", json=request(prompt))).json())

            disturbance = [asyncio.ensure_future(noise(i)) for i in range(10)]
            answers = await asyncio.gather(*(measured(p) for p in PROMPTS))
            await asyncio.gather(*disturbance)
            return list(answers)

    assert asyncio.run(run()) == alone
