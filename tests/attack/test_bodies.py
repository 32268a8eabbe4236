"""Bodies that cost more than they should."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.attack.target import Scale, Target

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}


def body_of(value: dict[str, Any], name: str, raw: bytes) -> bytes:
    """`value` with one more field, written by hand."""
    return json.dumps(value).encode()[:-1] + b"," + json.dumps(name).encode() + b":" + raw + b"}"


def bodies(mega: int) -> dict[str, Callable[[], tuple[str, bytes]]]:
    """Each about `mega` megabytes: makes (path, body)."""
    size = mega * 1_000_000
    chat, native = "/v1/chat/completions", "/generate"
    text = {"text": "x", "sampling_params": {"max_new_tokens": 1}}
    return {
        "a long unknown name": lambda: (chat, body_of(CHAT, "k" * size, b"1")),
        "a long unknown native name": lambda: (native, body_of(text, "k" * size, b"1")),
        "many unknown names": lambda: (chat, json.dumps(CHAT | {f"k{i:07d}": 0 for i in range(size // 14)}).encode()),
        "many empty lists in metadata": lambda: (chat, body_of(CHAT, "metadata", b"[" + b"[]," * (size // 3) + b"[]]")),
        "many empty objects in store": lambda: (chat, body_of(CHAT, "store", b"[" + b"{}," * (size // 3) + b"{}]")),
        "a long user": lambda: (chat, body_of(CHAT, "user", b'"' + b"u" * size + b'"')),
        "many prompts": lambda: (native, json.dumps({"text": ["x"] * (size // 5)}).encode()),
        "16,384 prompts": lambda: (native, json.dumps({"text": ["x"] * 16_384, "sampling_params": {"max_new_tokens": 1}}).encode()),
        "many messages": lambda: (chat, json.dumps({"messages": CHAT["messages"] * (size // 34), "max_tokens": 1}).encode()),
        "many ids": lambda: (native, b'{"input_ids":[' + b"1," * (size // 2) + b"1]}"),
        "many biases": lambda: (chat, body_of(CHAT, "logit_bias", json.dumps({str(i): 1 for i in range(size // 12)}).encode())),
        "many stops": lambda: (chat, body_of(CHAT, "stop", json.dumps(["s"] * (size // 5)).encode())),
        "many tools": lambda: (chat, body_of(CHAT, "tools", b"[" + b'{"type":"function","function":{"name":"f"}},' * (size // 45) + b"1]")),
        "deep": lambda: (chat, body_of(CHAT, "chat_template_kwargs", b'{"a":' * 400 + b"1" + b"}" * 400)),
        "very deep": lambda: (native, body_of(text, "metadata", b"[" * (size // 2) + b"]" * (size // 2))),
        "a long number": lambda: (native, body_of(text, "priority", b"9" * size)),
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
