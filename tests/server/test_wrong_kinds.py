"""Values of a kind that a field does not have, above all those that count as false: none is taken for an absent one. The fields are
those of /openapi.json, and nested ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.conftest import MakeStand, Stand
from tests.server.fuzzing import NEEDED, SEEDS
from tests.server.http_tools import client_of

WRONG: tuple[Any, ...] = (False, True, 0, 7, -0.0, "", [], {}, [False], {"": 0})
EMBEDS = ("/v1/embeddings", "/encode", "/v1/rerank")
MEAN_NOTHING = {("/apply_chat_template", "user")}
"""fields of a chat that change no prompt"""


def kind_of(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object", type(None): "null"}
    return names[type(value)]


class Document:
    def __init__(self, document: dict[str, Any]) -> None:
        self._shapes = document["components"]["schemas"]
        self.bodies = {
            path: methods["post"]["requestBody"]["content"]["application/json"]["schema"]
            for path, methods in document["paths"].items()
            if "application/json" in methods.get("post", {}).get("requestBody", {}).get("content", {})
        }

    def _read(self, schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            schema = self._shapes[schema["$ref"].rpartition("/")[2]]
        return schema

    def kinds(self, schema: dict[str, Any]) -> set[str]:
        """Empty if it does not say."""
        schema = self._read(schema)
        found = {kind for part in ("anyOf", "oneOf", "allOf") for one in schema.get(part, ()) for kind in self.kinds(one)}
        told = schema.get("type", [])
        found |= {told} if isinstance(told, str) else set(told)
        found |= {kind_of(value) for value in schema.get("enum", ())}
        return found | ({"integer"} if "number" in found else set())

    def members(self, schema: dict[str, Any]) -> dict[str, Any]:
        schema = self._read(schema)
        found = {
            name: one
            for part in ("anyOf", "oneOf", "allOf")
            for each in schema.get(part, ())
            for name, one in self.members(each).items()
        }
        return found | schema.get("properties", {})

    def fields(self, path: str) -> Iterator[tuple[tuple[str, ...], set[str]]]:
        """The way to each field whose kinds are told, and these."""
        for name, schema in self.members(self.bodies[path]).items():
            yield (name,), self.kinds(schema)
            if name != "messages":
                yield from (((name, inner), self.kinds(one)) for inner, one in self.members(schema).items())


def smallest(path: str) -> dict[str, Any]:
    seed = path if path in SEEDS else path.replace("/v1/tokenize", "/tokenize").replace("/v1/detokenize", "/detokenize")
    body = {name: SEEDS.get(seed, {})[name] for name in NEEDED.get(seed, ())}
    return body | {name: 1 for name in ("max_tokens", "max_output_tokens") if name in SEEDS.get(seed, {})}


async def refused(stand: Stand, path: str, body: Any) -> str | None:
    """What is wrong with the answer to a body that is to be refused."""
    async with client_of(stand) as client:
        reply = await client.post(path, json=body)
    if reply.status_code in (400, 404, 422, 501):  # 404: what serves no adapters says so first
        return None
    return f"{path}: {reply.status_code} for {json.dumps(body)[-200:]}"


async def test_fields(make_stand: MakeStand) -> None:
    plain, embedder = make_stand(), make_stand(info={"embedding_dim": 8})
    async with client_of(plain) as client:
        document = Document((await client.get("/openapi.json")).json())
    wrong = []
    for path in document.bodies:
        for way, kinds in document.fields(path):
            if not kinds or (path, way[0]) in MEAN_NOTHING:
                continue
            for value in WRONG:
                if kind_of(value) not in kinds:
                    inner = value if len(way) == 1 else {way[1]: value}
                    wrong.append(await refused(embedder if path in EMBEDS else plain, path, smallest(path) | {way[0]: inner}))
    assert not list(filter(None, wrong)), "\n".join(filter(None, wrong))


def said(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"max_tokens": 1, "messages": [{"role": role, "content": list(blocks)}, {"role": "user", "content": "a"}]}


def item(**members: Any) -> dict[str, Any]:
    return {"input": [members, {"role": "user", "content": "a"}], "max_output_tokens": 1}


NESTED: dict[str, Any] = {
    "result": ("/v1/messages", lambda v: said({"type": "tool_result", "tool_use_id": "t", "content": v}), "string array"),
    "use": ("/v1/messages", lambda v: said({"type": "tool_use", "id": "t", "name": "f", "input": v}, role="assistant"), "object"),
    "type of a tool": ("/v1/messages", lambda v: said({"type": "text", "text": "a"}) | {"tools": [{"name": "f", "type": v}]}, "string"),
    "calls": (
        "/v1/chat/completions",
        lambda v: {"messages": [{"role": "assistant", "content": "a", "tool_calls": v}, {"role": "user", "content": "a"}], "max_tokens": 1},
        "array",
    ),
    "arguments": ("/v1/responses", lambda v: item(type="function_call", call_id="c", name="f", arguments=v), "string object"),
    "shell": ("/v1/responses", lambda v: item(type="local_shell_call", call_id="c", action=v), "object"),
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED)
async def test_nested_ones(stand: Stand, name: str) -> None:
    path, make, kinds = NESTED[name]
    for value in WRONG:
        if kind_of(value) not in kinds.split():
            assert await refused(stand, path, make(value)) is None
