"""The default model on a real server: native API and OpenAI API, with curl and the real client."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import RunningServer

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
MODEL = "smollm2-135m-instruct"


@pytest.fixture()
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="None", timeout=120, max_retries=0)


def generate(http: httpx.Client, text: str, **params: Any) -> dict[str, Any]:
    reply = http.post("/generate", json={"text": text, "sampling_params": {"temperature": 0, **params}})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def server_state(http: httpx.Client) -> dict[str, Any]:
    state: dict[str, Any] = http.get("/get_server_info").json()["internal_states"][0]
    return state


def wait_until_idle(http: httpx.Client, seconds: float = 30.0) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while True:
        state = server_state(http)
        if state["num_running"] == state["num_waiting"] == state["num_grammar_waiting"] == 0:
            return state
        assert time.monotonic() < deadline, state
        time.sleep(0.05)


def test_chat_answers_the_question(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=40, temperature=0)
    assert "Paris" in (reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None and reply.usage.prompt_tokens_details is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_streamed_chat_is_the_same_text(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=40, temperature=0)
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=40, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completions_with_n_and_seed(client: openai.OpenAI) -> None:
    def ask(seed: int) -> list[str]:
        reply = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=12, n=2, seed=seed, temperature=1)
        return [c.text for c in reply.choices]

    first = ask(7)
    assert len(first) == 2 and first[0] != first[1]
    assert ask(7) == first
    assert ask(8) != first


def test_stop_strings_are_trimmed(client: openai.OpenAI) -> None:
    reply = client.completions.create(model=MODEL, prompt="Count: 1, 2, 3, 4,", max_tokens=40, temperature=0, stop=[" 7"])
    assert reply.choices[0].finish_reason == "stop"
    assert "6" in reply.choices[0].text and "7" not in reply.choices[0].text
    assert reply.choices[0].matched_stop == " 7"  # type: ignore[attr-defined]


def test_logprobs_have_openais_shape(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content) == 5
    for entry in logprobs.content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob), "greedy takes the best"
        assert bytes(entry.bytes or []).decode(errors="replace") == entry.token


def test_curl(server: RunningServer) -> None:
    body = json.dumps({"model": MODEL, "messages": QUESTION, "max_tokens": 20, "temperature": 0})
    command = ["curl", "-s", f"{server.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    answer = json.loads(subprocess.check_output(command))
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_a_repeated_request_recomputes_one_token(http: httpx.Client) -> None:
    text = "The quick brown fox jumps over the lazy dog and then takes a long rest under a tree in the repeated request test."
    generate(http, text, max_new_tokens=1)
    meta = generate(http, text, max_new_tokens=1)["meta_info"]
    assert meta["cached_tokens"] == meta["prompt_tokens"] - 1


def test_max_new_tokens_zero_fills_the_cache(http: httpx.Client) -> None:
    text = "A prefix that nobody has sent before, to be computed once and then shared by two: " * 3
    first = generate(http, text, max_new_tokens=0)
    assert first["text"] == "" and first["meta_info"]["completion_tokens"] == 0
    both = [generate(http, text + tail, max_new_tokens=2)["meta_info"] for tail in ("one", "two")]
    for meta in both:
        assert meta["cached_tokens"] >= first["meta_info"]["prompt_tokens"] - 2


def test_streaming_generate_is_cumulative(http: httpx.Client) -> None:
    body = {"text": "Once upon a time", "sampling_params": {"temperature": 0, "max_new_tokens": 20}, "stream": True}
    texts: list[str] = []
    with http.stream("POST", "/generate", json=body) as reply:
        lines = [line[len("data: ") :] for line in reply.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    texts = [json.loads(line)["text"] for line in lines[:-1]]
    assert all(b.startswith(a) for a, b in zip(texts, texts[1:], strict=False))
    assert texts[-1] == generate(http, "Once upon a time", max_new_tokens=20)["text"]


def test_regex_and_json_schema(http: httpx.Client) -> None:
    pattern = r"((25[0-5]|2[0-4]\d|[01]?\d\d?).){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)"
    text = generate(http, "The IP address of the Google DNS server is ", regex=pattern)["text"]
    assert re.fullmatch(pattern, text)
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    text = generate(http, "A person as JSON: ", json_schema=json.dumps(schema), max_new_tokens=80)["text"]
    person = json.loads(text)
    assert set(person) == {"name", "age"} and isinstance(person["age"], int)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "text"),
        ({"text": "a", "input_ids": [1]}, "text"),
        ({"text": "a", "sampling_params": {"temprature": 1}}, "temperature"),
        ({"text": "a", "sampling_params": {"temperature": -1}}, "temperature"),
        ({"text": "a", "sampling_params": {"top_p": 0}}, "top_p"),
        ({"text": "a", "sampling_params": {"regex": "(["}}, "regex"),
        ({"text": "a", "sampling_params": {"json_schema": "{"}}, "json"),
        ({"text": "word " * 20000}, "context"),
        ({"input_ids": [999999]}, "vocabulary"),
        ({"input_ids": []}, "empty"),
        ({"text": "a", "sampling_params": {"max_new_tokens": 1000000}}, "context"),
        ({"text": "a", "image_data": "aGVsbG8="}, "image"),
    ],
)
def test_bad_requests_get_a_sentence(http: httpx.Client, body: dict[str, Any], word: str) -> None:
    reply = http.post("/generate", json=body)
    assert reply.status_code == 400, reply.text
    assert word in reply.json()["error"]["message"].lower()
    assert http.get("/health_generate").status_code == 200


def test_a_client_that_leaves_is_aborted(http: httpx.Client) -> None:
    body = {
        "text": "Tell me a very long story.",
        "sampling_params": {"max_new_tokens": 4000, "ignore_eos": True},
        "stream": True,
    }
    with http.stream("POST", "/generate", json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        assert server_state(http)["num_running"] == 1
    state = wait_until_idle(http)
    assert state["num_used_tokens"] == 0


def test_abort_request_ends_it(http: httpx.Client) -> None:
    answers: list[httpx.Response] = []
    body = {"rid": "to-abort", "text": "Once", "sampling_params": {"max_new_tokens": 4000, "ignore_eos": True}}
    thread = threading.Thread(target=lambda: answers.append(http.post("/generate", json=body)))
    thread.start()
    deadline = time.monotonic() + 20
    while server_state(http)["num_running"] == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert http.post("/abort_request", json={"rid": "to-abort"}).status_code == 200
    thread.join(20)
    assert not thread.is_alive()
    assert "abort" in answers[0].text


def test_tokenize_and_back(http: httpx.Client) -> None:
    text = "Grüße, 世界! <|im_end|>"
    ids = http.post("/tokenize", json={"text": text}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": ids, "skip_special_tokens": False}).json()["text"] == text


def test_special_tokens_in_a_message_are_plain_text(client: openai.OpenAI) -> None:
    def prompt_tokens(content: str) -> int:
        reply = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}], max_tokens=1)
        assert reply.usage is not None
        return reply.usage.prompt_tokens

    assert prompt_tokens("<|im_end|>") > prompt_tokens("a")
