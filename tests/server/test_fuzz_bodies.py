"""Thousands of bodies that are nearly right, over all routes: an answer that is JSON, never a crash, nothing left behind. The same ones
each time. (test_security_schema.py sends others to a real server.)"""

from __future__ import annotations

import json

import httpx
import pytest

from tests.server.conftest import MakeStand
from tests.server.fuzzing import FUNCTION, RAW, SCALARS, SEEDS, spoiled
from tests.server.http_tools import client_of

COUNT = 1200
EMBEDS = ("/v1/embeddings", "/encode", "/v1/rerank")
HELLO = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}


def check(reply: httpx.Response, sent: bytes) -> None:
    assert reply.status_code < 500 or reply.status_code == 503, (reply.text, sent[:500])
    if reply.status_code == 400:
        message = reply.json()["error"]["message"]
        assert 5 < len(message) <= 2000, sent[:500]


@pytest.mark.parametrize(
    "options", [{}, {"reasoning_parser": "qwen3", "tool_call_parser": "pythonic"}], ids=["plain", "parsers"]
)
async def test_bodies_that_are_nearly_right(make_stand: MakeStand, options: dict[str, str]) -> None:
    stand, embedder = make_stand(**options), make_stand(info={"embedding_dim": 8})
    seen = set()
    async with client_of(stand) as client, client_of(embedder) as other:
        for number in range(COUNT):
            path, body = spoiled(number * 2 + bool(options))
            reply = await (other if path in EMBEDS else client).post(path, content=body)
            check(reply, body)
            seen.add((path, reply.status_code))
    assert stand.manager.num_in_flight == embedder.manager.num_in_flight == 0
    for path in {path.split("#")[0] for path in SEEDS}:
        assert {(path, 200), (path, 400)} & seen


@pytest.mark.parametrize("path", sorted(path for path in SEEDS if "#" not in path))
async def test_every_field_of_the_wrong_kind(make_stand: MakeStand, path: str) -> None:
    stand = make_stand(info={"embedding_dim": 8} if path in EMBEDS else {})
    needed = {name: value for name, value in SEEDS[path].items() if name in ("messages", "input", "max_tokens", "tokens")}
    async with client_of(stand) as client:
        for name in SEEDS[path]:
            texts = [*(json.dumps(value) for value in SCALARS), *RAW]
            for text in texts[:: 1 if len(SEEDS[path]) < 12 else 3]:
                plain = json.dumps({key: value for key, value in needed.items() if key != name})[1:-1]
                body = f"{{{json.dumps(name)}: {text}{', ' if plain else ''}{plain}}}".encode(errors="surrogatepass")
                check(await client.post(path, content=body), body)


# --- JSON inside strings, and values that code walks through ----------------------------------------------------------------


def nested(depth: int, is_list: bool = False) -> str:
    return "[" * depth + "]" * depth if is_list else '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize("depth", [100, 400, 990, 30_000])
@pytest.mark.parametrize("is_list", [False, True])
async def test_deep_values(make_stand: MakeStand, depth: int, is_list: bool) -> None:
    deep = nested(depth, is_list)
    quoted = json.dumps(f'{{"a":{deep}}}')
    call = f'{{"id":"c","type":"function","function":{{"name":"f","arguments":{quoted}}}}}'
    tool = f'{{"type":"function","function":{{"name":"f","parameters":{{"x":{deep}}}}}}}'
    plain = '"messages":[{"role":"user","content":"a"}],"max_tokens":1'
    chats = [
        f'{{{plain},"chat_template_kwargs":{{"a":{deep}}}}}',
        f'{{{plain},"tools":[{tool}]}}',
        f'{{{plain},"tools":[{tool}],"tool_choice":"required"}}',
        f'{{{plain},"json_schema":{quoted},"tools":[{json.dumps({"type": "function", "function": FUNCTION})}]}}',
        f'{{{plain},"response_format":{{"type":"json_schema","json_schema":{{"schema":{{"a":{deep}}}}}}}}}',
        f'{{"messages":[{{"role":"user","content":"a"}},{{"role":"assistant","tool_calls":[{call}]}}],"max_tokens":1}}',
        f'{{"messages":[{{"role":"user","content":{deep}}}],"max_tokens":1}}',
    ]
    others = {
        "/v1/responses": f'{{"input":[{{"type":"function_call","name":"f","call_id":"c","arguments":{quoted}}}],"max_output_tokens":1}}',
        "/v1/messages": f'{{"max_tokens":1,"messages":[{{"role":"assistant","content":[{{"type":"tool_use","id":"t","name":"f","input":{{"a":{deep}}}}}]}}]}}',
        "/generate": f'{{"text":"a","sampling_params":{{"max_new_tokens":1,"json_schema":{quoted}}}}}',
    }
    stand = make_stand()
    async with client_of(stand) as client:
        for path, body in [*(("/v1/chat/completions", chat) for chat in chats), *others.items()]:
            reply = await client.post(path, content=body)
            check(reply, body.encode())
            if depth >= 400 and path == "/v1/chat/completions" and quoted not in body:
                assert reply.status_code == 400, body[:200]


@pytest.mark.parametrize("text", ["{", "not json", "", "9" * 5000, '{"a":1,"a":2}', "\ud800", "NaN", "null"])
@pytest.mark.parametrize("choice", [None, "auto", "none", "required"])
async def test_json_schemas_that_are_no_json_beside_tools(make_stand: MakeStand, text: str, choice: str | None) -> None:
    body = {**HELLO, "json_schema": text, "tools": [{"type": "function", "function": FUNCTION}], "tool_choice": choice}
    async with client_of(make_stand()) as client:
        check(await client.post("/v1/chat/completions", content=json.dumps(body).encode()), json.dumps(body).encode())


@pytest.mark.parametrize(
    "schema",
    [
        {"type": 5},
        {"type": ["object", 5]},
        {"properties": 5},
        {"properties": []},
        {"properties": None},
        {"properties": {"a": 5}},
        {"properties": {"a": {"items": [5]}}},
        {"required": "a"},
        {"required": [5]},
        {"enum": 5},
        {"enum": []},
        {"anyOf": {}},
        {"allOf": [5]},
        {"additionalProperties": 5},
        {"$defs": 5},
        {"$ref": 5},
        {"$ref": "#/$defs/x"},
        {"properties": {"a": {"$ref": "#/properties/b"}}},
        {"pattern": 5},
        {"minimum": "1"},
        {"maxLength": -1},
    ],
)
@pytest.mark.parametrize("strict", [False, True])
async def test_invalid_schemas_of_tools_name_the_tool(make_stand: MakeStand, schema: dict[str, object], strict: bool) -> None:
    tool = {"name": "look_up", "parameters": {"type": "object", **schema}, "strict": strict}
    chat = {**HELLO, "tools": [{"type": "function", "function": tool}]}
    bodies = {
        "/v1/responses": {"input": "a", "tools": [{"type": "function", **tool}]},
        "/v1/messages": {**HELLO, "tools": [{"name": "look_up", "input_schema": tool["parameters"], "strict": strict}]},
        "/parse_function_call": {"text": "a", "tools": chat["tools"]},
    }
    async with client_of(make_stand()) as client:
        for choice in ("auto", "required"):
            reply = await client.post("/v1/chat/completions", json=chat | {"tool_choice": choice})
            assert reply.status_code == 400 and "look_up" in reply.json()["error"]["message"]
        for path, body in bodies.items():
            reply = await client.post(path, json=body)
            assert reply.status_code == 400 and "look_up" in reply.json()["error"]["message"]


async def test_recursive_schemas_of_tools_are_valid(make_stand: MakeStand) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/a~1b"}}}
    schema = {"$defs": {"a/b": node}, "type": "object", "properties": {"n": {"$ref": "#/$defs/a~1b"}, "root": {"$ref": "#"}}}
    body = {**HELLO, "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}
    async with client_of(make_stand(info={"context_len": 2000})) as client:
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
