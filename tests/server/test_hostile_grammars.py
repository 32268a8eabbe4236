"""A real server and constraints out to do harm, on every route: its scheduler is the same process afterwards, and others are served."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import RunningServer, start_server

pytestmark = pytest.mark.attack

CRASHES = {"foo": {"type": "integer", "minimum": -1e19, "maximum": -1e19}, "$ref": "#/foo"}
OTHERS = [
    {"x": [{"type": "number", "exclusiveMinimum": 1e300, "maximum": 1e300}], "type": "array", "items": {"$ref": "#/x/0"}},
    {"a b": {"c~/": {"type": "integer", "minimum": 2**64, "maximum": 2**64}}, "anyOf": [{"$ref": "#/a%20b/c~0~1"}]},
    {"$ref": "#n", "$defs": {"m": {"$anchor": "n", "properties": {"p": {"type": "integer", "maximum": -(2**70)}}}}},
    {"$ref": "#/x", "x": {"$ref": "#/y"}, "y": {"const": -(2**63)}},
    {"type": "array", "minItems": 10**9, "items": {"enum": [[], {}]}},
]
HOURS = {"allOf": [{"type": "string", "pattern": f"(.*{chr(65 + i)}){{2}}.*"} for i in range(18)]}
TEXTS = {"allOf": [{"type": "string", "pattern": f".*{chr(97 + i)}.*"} for i in range(20)]}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = start_server(tmp_path_factory.mktemp("own") / "log", "--grammar-compile-timeout", "3")
    yield server
    server.process.terminate()
    server.process.wait(60)


def tag(schema: Any) -> dict[str, Any]:
    return {"structures": [{"begin": "<f>", "schema": schema, "end": "</f>"}], "triggers": ["<f>"]}


def routes(schema: Any) -> list[tuple[str, dict[str, Any]]]:
    """The ways in which a schema comes to an engine."""
    say = {"messages": [{"role": "user", "content": "Go"}], "max_tokens": 4, "temperature": 0}
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": schema}}
    named = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}

    def native(**constraint: str) -> tuple[str, dict[str, Any]]:
        return "/generate", {"text": "Go", "sampling_params": {"max_new_tokens": 4, **constraint}}

    return [
        native(json_schema=json.dumps(schema)),
        native(ebnf="start: %json " + json.dumps(schema)),
        native(structural_tag=json.dumps(tag(schema))),
        ("/v1/chat/completions", {**say, "response_format": named}),
        ("/v1/chat/completions", {**say, "response_format": {"type": "structural_tag", **tag(schema)}}),
        ("/v1/chat/completions", {**say, "tools": [tool], "tool_choice": "auto"}),
        ("/v1/chat/completions", {**say, "tools": [tool], "tool_choice": "required"}),
    ]


@pytest.mark.parametrize("schema", [CRASHES, *OTHERS])
def test_no_schema_ends_the_scheduler(own: RunningServer, schema: Any) -> None:
    before = own.scheduler()
    for i, (path, body) in enumerate(routes(schema)):
        reply = httpx.post(own.url + path, json=body, timeout=120, trust_env=False)
        assert reply.status_code in (200, 400), (path, reply.text)
        if schema is CRASHES and i == 0:  # not strict: the numbers are left out, and checked at the end of what is not cut
            assert reply.json()["meta_info"]["finish_reason"]["type"] == "length", reply.text
        elif schema is CRASHES:
            assert reply.status_code == 400 and "number" in reply.text, reply.text
    assert own.scheduler() == before, "it was restarted"


def test_what_takes_too_long_keeps_nobody_waiting(own: RunningServer) -> None:
    replies: list[httpx.Response] = []

    def attack(schema: Any) -> None:
        path, body = routes(schema)[0]
        replies.append(httpx.post(own.url + path, json=body, timeout=120, trust_env=False))

    bad = [{**schema, "title": str(i)} for i in range(3) for schema in (HOURS, TEXTS)]
    threads = [threading.Thread(target=attack, args=(schema,)) for schema in bad]
    for thread in threads:
        thread.start()
    path, body = routes({"type": "object", "properties": {"a": {"enum": ["x", int(time.time())]}}})[0]
    assert httpx.post(own.url + path, json=body, timeout=60, trust_env=False).status_code == 200
    assert any(thread.is_alive() for thread in threads), "it came first"
    for thread in threads:
        thread.join(120)
    assert len(replies) == len(bad) and all(reply.status_code in (400, 503) for reply in replies)
    assert any("took more than 3 s" in reply.text for reply in replies)


def test_stop_expressions_do_not_stop_the_others(own: RunningServer) -> None:
    hostile = [rf"(?s)[^~].*.*[0-9]{{6}}[a-z]{{{i + 1}}}" for i in range(64)]
    params = {"max_new_tokens": 200, "ignore_eos": True}
    bad = {"text": "x" * 3000, "sampling_params": {**params, "stop_regex": hostile}}
    replies: list[httpx.Response] = []
    thread = threading.Thread(
        target=lambda: replies.append(httpx.post(f"{own.url}/generate", json=bad, timeout=120, trust_env=False))
    )
    thread.start()
    good = httpx.post(f"{own.url}/generate", json={"text": "y", "sampling_params": params}, timeout=120, trust_env=False)
    assert good.status_code == 200 and good.json()["meta_info"]["completion_tokens"] == 200
    thread.join(120)
    assert replies[0].status_code in (200, 400)
    large = {"text": "y", "sampling_params": {"max_new_tokens": 2, "stop_regex": ["(((a{1000}){1000}){1000})"]}}
    refused = httpx.post(f"{own.url}/generate", json=large, timeout=120, trust_env=False)
    assert refused.status_code == 400 and "stop_regex" in refused.text
