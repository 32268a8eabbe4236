"""Bodies that cost more than they should."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.attack.target import ADMIN, KEY, Scale, Target, mostly_slow
from tests.server.fuzzing import NEEDED, SEEDS
from tests.server.long_values import ROUTES, VALUES, body_of

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}


def with_field(value: dict[str, Any], name: str, raw: bytes) -> bytes:
    """`value` with one more field, written by hand."""
    return json.dumps(value).encode()[:-1] + b"," + json.dumps(name).encode() + b":" + raw + b"}"


def bodies(mega: int) -> dict[str, Callable[[], tuple[str, bytes]]]:
    """Each about `mega` megabytes: makes (path, body)."""
    size = mega * 1_000_000
    chat, native = "/v1/chat/completions", "/generate"
    text = {"text": "x", "sampling_params": {"max_new_tokens": 1}}
    return {
        "a long unknown name": lambda: (chat, with_field(CHAT, "k" * size, b"1")),
        "a long unknown native name": lambda: (native, with_field(text, "k" * size, b"1")),
        "many unknown names": lambda: (chat, json.dumps(CHAT | {f"k{i:07d}": 0 for i in range(size // 14)}).encode()),
        "many empty lists in metadata": lambda: (chat, with_field(CHAT, "metadata", b"[" + b"[]," * (size // 3) + b"[]]")),
        "many empty objects in store": lambda: (chat, with_field(CHAT, "store", b"[" + b"{}," * (size // 3) + b"{}]")),
        "a long user": lambda: (chat, with_field(CHAT, "user", b'"' + b"u" * size + b'"')),
        "many prompts": lambda: (native, json.dumps({"text": ["x"] * (size // 5)}).encode()),
        "16,384 prompts": lambda: (native, json.dumps({"text": ["x"] * 16_384, "sampling_params": {"max_new_tokens": 1}}).encode()),
        "many messages": lambda: (chat, json.dumps({"messages": CHAT["messages"] * (size // 34), "max_tokens": 1}).encode()),
        "many ids": lambda: (native, b'{"input_ids":[' + b"1," * (size // 2) + b"1]}"),
        "many biases": lambda: (chat, with_field(CHAT, "logit_bias", json.dumps({str(i): 1 for i in range(size // 12)}).encode())),
        "many stops": lambda: (chat, with_field(CHAT, "stop", json.dumps(["s"] * (size // 5)).encode())),
        "many tools": lambda: (chat, with_field(CHAT, "tools", b"[" + b'{"type":"function","function":{"name":"f"}},' * (size // 45) + b"1]")),
        "deep": lambda: (chat, with_field(CHAT, "chat_template_kwargs", b'{"a":' * 400 + b"1" + b"}" * 400)),
        "very deep": lambda: (native, with_field(text, "metadata", b"[" * (size // 2) + b"]" * (size // 2))),
        "a long number": lambda: (native, with_field(text, "priority", b"9" * size)),
        "a long text": lambda: (native, json.dumps({"text": "x" * size}).encode()),
        "many texts to tokenize": lambda: ("/tokenize", json.dumps({"text": "x " * (size // 2)}).encode()),
        "many ids to detokenize": lambda: ("/detokenize", b'{"tokens":[' + b"1," * (size // 2) + b"1]}"),
        "many documents": lambda: ("/v1/rerank", json.dumps({"query": "x", "documents": ["x"] * (size // 5)}).encode()),
        "many items": lambda: ("/v1/score", json.dumps({"query": "x", "items": ["x"] * (size // 5)}).encode()),
        "many choices": lambda: ("/score_choices", json.dumps({"text": "x", "choices": ["x"] * (size // 5)}).encode()),
        "nothing but space": lambda: (chat, b" " * size),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(bodies(0)))
def test_bodies(text_target: Target, scale: Scale, name: str) -> None:
    mega = 60 if scale.times > 1 else 4
    path, body = bodies(mega)[name]()
    with text_target.watched() as watch:
        reply = text_target.post_bytes(path, body)
        assert reply.status_code in (200, 400, 413), f"{reply.status_code}: {reply.text[:300]}"
        assert reply.status_code == 200 or len(reply.content) < 10_000
    assert watch.peak_mb < text_target.warm_mb + 64 + 9 * mega, f"{watch.peak_mb:.0f} MB"
    text_target.check(watch)


@pytest.mark.parametrize("path", mostly_slow(ROUTES, 6))
def test_the_largest_bodies_of_every_route(text_target: Target, scale: Scale, path: str) -> None:
    """Long values in fields that the route needs, in others, and in one that it does not know."""
    mega, rng = (55 if scale.times > 1 else 3), random.Random(path)
    fields = [*NEEDED.get(path, ())[:2], rng.choice(sorted(SEEDS[path])), "metadata"]
    cases = [(field, name) for field in fields for name in VALUES if "schema" not in name]
    key = ADMIN if path.endswith("_lora_adapter") else KEY
    with text_target.watched() as watch:
        for field, name in rng.sample(cases, 2 + scale.times):
            reply = text_target.post_bytes(path, body_of(path, field, VALUES[name](mega * 1_000_000)), key)
            assert reply.status_code in (200, 400, 403, 404, 413), f"{field}, {name}: {reply.status_code}: {reply.text[:300]}"
            assert reply.status_code == 200 or len(reply.content) < 4000, f"{field}, {name}"
    assert watch.peak_mb < text_target.warm_mb + 64 + 9 * mega, f"{watch.peak_mb:.0f} MB"
    text_target.check(watch)
