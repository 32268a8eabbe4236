"""Requests whose size is the attack: they are refused by counting, before anything is done for each of their parts."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from starlette.types import Message

from sglang.srt.errors import GrammarError, RequestError
from sglang.srt.scheduler.grammar.engines.keyword_arguments import MAX_ARGUMENTS, keyword_grammar
from sglang.srt.server.generate_req import MAX_SEQUENCES
from sglang.srt.server.native.routes import MAX_DETOKENIZE, MAX_TOKENIZE_CHARS
from sglang.srt.server.openai.prompts import MAX_MESSAGES
from sglang.srt.server.parsers.pieces import Text
from sglang.srt.server.parsers.tool_calls import create_parser
from sglang.srt.server.tokenization import tokenizer as tokenizers_module
from sglang.srt.server.tokenization.tokenizer import Tokenizer
from tests.server.conftest import Stand
from tests.server.http_tools import client_of

MANY = MAX_SEQUENCES + 1
HELLO = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"text": ["a"] * MANY}),
        ("/generate", {"input_ids": [[1]] * MANY}),
        ("/generate", {"input_ids": [1] * 3_000_000}),
        ("/generate", {"input_ids": [[1] * 3_000_000]}),
        ("/generate", {"input_ids": [[1], 2]}),
        ("/generate", {"input_ids": [1], "sampling_params": {"stop_token_ids": [1] * 5000}}),
        ("/v1/completions", {"prompt": ["a"] * MANY}),
        ("/v1/completions", {"prompt": [[1]] * MANY}),
        ("/v1/chat/completions", {"messages": [HELLO] * (MAX_MESSAGES + 1)}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * (MAX_MESSAGES + 1)}]},
        ),
        ("/tokenize", {"text": ["a"] * MANY}),
        ("/tokenize", {"text": "a" * (MAX_TOKENIZE_CHARS + 1)}),
        ("/detokenize", {"tokens": [1] * (MAX_DETOKENIZE + 1)}),
        ("/detokenize", {"tokens": [[1]] * MANY}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
async def test_too_many_parts(stand: Stand, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]) -> None:
    def work(*_: Any) -> None:
        raise AssertionError("work was done for a request that is refused")

    for name in ("encode", "encode_batch", "encode_chat", "decode"):
        monkeypatch.setattr(Tokenizer, name, work)
    async with client_of(stand) as client:
        reply = await client.post(path, json=body)
    assert reply.status_code == 400, reply.text[:200]
    assert len(reply.text) < 1000 and reply.json()["error"]["message"]
    assert stand.scheduler.received == []


@pytest.mark.parametrize("value", [2**31, 2**64, 2**70, -(2**63) - 1])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/generate"])
async def test_priorities_that_no_message_can_carry(stand: Stand, path: str, value: int) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": [HELLO]},
        "/v1/completions": {"prompt": "a"},
        "/v1/responses": {"input": "a"},
        "/generate": {"text": "a"},
    }
    async with client_of(stand) as client:
        reply = await client.post(path, json=bodies[path] | {"priority": value})
    assert reply.status_code == 400 and "priority" in reply.json()["error"]["message"]


async def test_long_prompts_of_ids_are_cut_where_that_is_allowed(make_stand: Any) -> None:
    stand = make_stand(allow_auto_truncate=True)
    async with client_of(stand) as client:
        body = {"input_ids": [5] * 100_000, "sampling_params": {"max_new_tokens": 1}}
        assert (await client.post("/generate", json=body)).status_code == 200
    assert len(stand.scheduler.received[0].input_ids) == stand.manager.context_len - 1


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_crash(stand: Stand) -> None:
    messages: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    head = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/generate", "query_string": b"", "headers": head, "http_version": "1.1"}
    await stand.app(scope | {"scheme": "http", "server": ("x", 1), "client": ("y", 2), "root_path": ""}, receive, send)
    assert sent[0]["status"] == 499


def test_chains_of_arguments_that_the_engine_cannot_follow() -> None:
    properties = {f"a{i}": {"type": "string"} for i in range(MAX_ARGUMENTS + 1)}
    with pytest.raises(GrammarError, match=str(MAX_ARGUMENTS)):
        keyword_grammar({"properties": properties}, lambda schema: schema)


def test_the_longest_chain_of_arguments_is_followed(tokenizer: Tokenizer) -> None:
    import json

    from sglang.srt.config import GrammarOptions
    from sglang.srt.scheduler.grammar.engines.llguidance_backend import LLGuidanceBackend

    properties = {f"a{i}": {"type": "integer"} for i in range(MAX_ARGUMENTS)}
    tag = {
        "structures": [{"begin": "[f(", "schema": {"properties": properties}, "end": ")]", "keywords": True}],
        "triggers": ["[f("],
    }
    state = LLGuidanceBackend(tokenizer.vocabulary, GrammarOptions()).compile("structural_tag", json.dumps(tag))
    assert state.accept_all(tokenizer.encode(f"[f(a0=1, a{MAX_ARGUMENTS - 1}=2)]", False))


def test_calls_that_are_nested_too_deeply_are_text() -> None:
    text = "<start_function_call>call:f{" + "a:{" * 4000 + "}" * 4000 + "}<end_function_call>"
    parser = create_parser("gemma", ["f"])
    assert "".join(piece.text for piece in (*parser.feed(text), *parser.finish()) if isinstance(piece, Text)) == text


async def test_one_long_word_is_refused_before_it_is_tokenized(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = stand.manager.need_tokenizer()
    word = "x" * (stand.manager.max_chars + 1)
    monkeypatch.setattr(tokenizers_module, "_encoding", lambda *_: pytest.fail("it was tokenized"))
    async with client_of(stand) as client:
        for path, body in (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": word}]}),
            ("/v1/responses", {"input": word}),
        ):
            reply = await client.post(path, json=body)
            assert reply.status_code == 400 and "tokens or more" in reply.json()["error"]["message"]
    with pytest.raises(RequestError):
        tokenizer.encode_chat([{"role": "user", "content": word}], max_chars=10)


async def test_one_long_word_is_cut_where_that_is_allowed(make_stand: Any) -> None:
    stand = make_stand(allow_auto_truncate=True)
    body = {"messages": [{"role": "user", "content": "x" * (stand.manager.max_chars + 1)}], "max_tokens": 1}
    async with client_of(stand) as client:
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    assert len(stand.scheduler.received[0].input_ids) == stand.manager.context_len - 1


def test_others_run_while_a_long_text_is_tokenized(tokenizer: Tokenizer) -> None:
    """The interpreter's lock is let go: `encode` of the library keeps it."""
    turns, done = 0, False

    def count() -> None:
        nonlocal turns
        while not done:
            turns += 1
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    before = turns
    tokenizer.encode("hello world " * 40_000)
    during = turns - before
    done = True
    counter.join()
    assert during > 3
