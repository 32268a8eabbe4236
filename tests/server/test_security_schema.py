"""Requests made from our own OpenAPI document, right ones and wrong ones: never a 5xx, never a hang, always an answer that is
JSON. A few hundred in the suite; `pytest -m slow` sends 5,000."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.conftest import RunningServer, start_server
from tests.server.http_tools import JSON

SKIPPED = ("/pause_generation", "/continue_generation", "/start_profile", "/stop_profile")
"""they stop everybody else"""
FAST, SLOW = 200, 5000
MAX_ROUNDS = 20


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Contexts so short that no request takes long."""
    limits = [
        "--context-length",
        "128",
        "--max-total-tokens",
        "4096",
        "--request-timeout",
        "60",
        "--grammar-compile-timeout",
        "2",
    ]
    server = start_server(tmp_path_factory.mktemp("small") / "log", *limits, "--enable-metrics")
    yield server
    server.process.kill()
    server.process.wait()


def operations(url: str) -> list[Any]:
    document = httpx.get(f"{url}/openapi.json", trust_env=False).json()
    schema = schemathesis.openapi.from_dict(document)
    return [found.ok() for found in schema.get_all_operations() if not found.ok().path.startswith(SKIPPED)]


def check(status: int, text: str, content_type: str, sent: object) -> None:
    """A request of any kind may be refused, and a server may be too busy; it may not break."""
    assert status < 500 or status in (503, 504), (sent, text)
    assert "Traceback" not in text
    if status >= 400 and status not in (404, 405) and "json" in content_type:
        error = json.loads(text).get("error")
        assert isinstance(error, dict) and error["message"], (sent, text)


def try_all(server: RunningServer, count: int) -> Counter[int]:
    """Spreads `count` cases over all operations. Returns how often each status was seen."""
    found = operations(server.url)
    assert {"/generate", "/v1/chat/completions", "/v1/completions"} <= {op.path for op in found}
    seen: Counter[int] = Counter()
    children = server.children()
    for number in range(MAX_ROUNDS):
        if sum(seen.values()) >= count:
            break
        for operation in found:
            attack(server, operation, number, max((count - sum(seen.values())) // len(found), 4), seen)
    assert server.children() == children, "the scheduler did not survive"
    return seen


def attack(server: RunningServer, operation: Any, number: int, count: int, seen: Counter[int]) -> None:
    """At most `count` cases of one operation: few, for one that takes nothing."""

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode)))
    def send(case: Any) -> None:
        reply = case.call(base_url=server.url, timeout=90)
        seen[reply.status_code] += 1
        check(reply.status_code, reply.text, reply.headers.get("content-type", [""])[0], case.body)

    send()


def test_requests_made_from_our_own_document(small: RunningServer) -> None:
    seen = try_all(small, FAST)
    assert seen[200] > 5 and seen[400] > 20, seen


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_thousand_requests_made_from_our_own_document(small: RunningServer) -> None:
    assert sum(try_all(small, SLOW).values()) >= SLOW


# --- bodies that are nearly right -------------------------------------------------------------------------------------------

SCALARS: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    1e308,
    0.5,
    "",
    "a",
    "\x00",
    "é🎉\ud800",
    "<|im_end|>",
    [],
    {},
    [None],
    {"a": 1},
]
SEEDS: dict[str, dict[str, Any]] = {
    "/generate": {
        "text": "Hi", "input_ids": [5, 6], "stream": False, "return_logprob": True, "top_logprobs_num": 2, "logprob_start_len": 0,
        "token_ids_logprob": [3], "rid": None, "cache_salt": "x", "priority": 1,
        "sampling_params": {
            "max_new_tokens": 3, "min_new_tokens": 1, "stop": ["a"], "stop_token_ids": [4], "temperature": 0.5, "top_p": 0.9,
            "top_k": 5, "min_p": 0.1, "n": 2, "seed": 3, "regex": "[a-z]+", "json_schema": "{}", "logit_bias": {"5": 1.0},
            "frequency_penalty": 0.5, "ignore_eos": True, "stop_regex": "b",
        },
    },
    "/v1/chat/completions": {
        "model": "x", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}], "max_tokens": 3,
        "temperature": 0.2, "n": 2, "stop": "a", "seed": 1, "logprobs": True, "top_logprobs": 2, "stream": True,
        "stream_options": {"include_usage": True}, "response_format": {"type": "json_object"}, "logit_bias": {"5": 1},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}], "tool_choice": "auto",
        "user": "u", "chat_template_kwargs": {"a": 1}, "continue_final_message": True,
    },
    "/v1/completions": {
        "model": "x", "prompt": "Hi", "max_tokens": 3, "echo": True, "logprobs": 2, "n": 2, "best_of": 2, "stop": ["a"],
        "stream": False, "suffix": "", "seed": 4, "temperature": 0, "logit_bias": {"5": 1}, "top_p": 0.5,
    },
    "/tokenize": {"text": "Hi", "add_special_tokens": True},
    "/detokenize": {"tokens": [1, 2], "skip_special_tokens": False},
    "/score_choices": {"text": "Hi", "choices": ["a", "b"]},
}  # fmt: skip


def mutated(rng: random.Random, value: Any) -> Any:
    """The value with something in it replaced, left out, repeated or put elsewhere."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return rng.choice(SCALARS)
    copy: Any = value.copy()
    key: Any = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
    match rng.randrange(5):
        case 0:
            del copy[key]
        case 1:
            copy[key] = [copy[key]] * rng.choice([1, 2, 50])
        case 2 if isinstance(copy, dict):
            copy[str(key) + "s"] = copy[key]
        case _:
            copy[key] = mutated(rng, copy[key])
    return copy


@given(number=st.integers(0, 2**32), path=st.sampled_from(sorted(SEEDS)), rounds=st.integers(1, 4))
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_bodies_that_are_nearly_right(small: RunningServer, number: int, path: str, rounds: int) -> None:
    rng = random.Random(number)
    body: Any = {k: v for k, v in SEEDS[path].items() if rng.random() < 0.5 or k in ("messages", "prompt", "sampling_params")}
    for _ in range(rounds):
        body = mutated(rng, body)
    reply = httpx.post(small.url + path, content=json.dumps(body), headers=JSON, timeout=90, trust_env=False)
    check(reply.status_code, reply.text, reply.headers.get("content-type", ""), body)
