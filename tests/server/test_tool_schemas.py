"""Parameters of tools that are no JSON schema: the same 400, naming the tool, in every API and with every tool_choice. What is one is
taken, also where nothing can hold an answer to it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of

DRAFT = "http://json-schema.org/draft-0{}/schema#"


def within(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": schema}}


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"type": "bogus"}, "#/type"),
    ({"type": "Object"}, "#/type"),
    ({"type": []}, "#/type"),
    ({"type": ["object", "nothing"]}, "#/type"),
    (within({"type": "any"}), "#/properties/x/type"),
    (within({"type": "str"}), "#/properties/x/type"),
    (within({"anyOf": [{"type": "string"}, {"type": "int"}]}), "#/properties/x/anyOf/1/type"),
    (within({"type": "array", "items": {"type": "float"}}), "#/properties/x/items/type"),
    ({**within({"$ref": "#/$defs/n"}), "$defs": {"n": {"type": "list"}}}, "#/$defs/n/type"),
    (within({"type": "number", "multipleOf": 0}), "#/properties/x/multipleOf"),
    (within({"type": "number", "exclusiveMinimum": "0"}), "#/properties/x/exclusiveMinimum"),
    (within({"type": "array", "uniqueItems": "yes"}), "#/properties/x/uniqueItems"),
    (within({"type": "object", "dependentRequired": {"a": 3}}), "#/properties/x/dependentRequired/a"),
    (within({"type": "object", "dependencies": {"a": {"type": "dict"}}}), "#/properties/x/dependencies/a/type"),
    (within({"$ref": "#/$defs/nowhere"}), "#/properties/x/$ref"),
]
VALID: list[dict[str, Any]] = [
    {},
    within(True),
    within({"type": ["string", "null"], "description": "a type of its own", "default": {"type": "bogus"}}),
    within({"enum": [{"type": "bogus"}], "title": "x"}),
    {"type": "object", "properties": {"type": {"type": "string"}, "multipleOf": {"const": 0}}},
    within({"type": "array", "uniqueItems": True, "items": {"not": {"type": "null"}}}),
    within({"type": "object", "dependencies": {"a": ["b"], "c": {"required": ["d"]}}}),
    {"$schema": DRAFT.format(4), **within({"type": "number", "minimum": 0, "exclusiveMinimum": True})},
    {"$schema": DRAFT.format(3), **within({"type": "any"})},
]


@pytest.fixture
def stand(make_stand: MakeStand) -> Stand:
    return make_stand(info={"context_len": 2048})


async def replies(stand: Stand, parameters: Any, forced: bool, strict: bool = False) -> dict[str, httpx.Response]:
    about = {"name": "look", **({"strict": True} if strict else {})}
    turns = [{"role": "user", "content": "Hi"}]
    function = {**about, "parameters": parameters}
    choice: dict[str, Any] = {"tool_choice": "required"} if forced else {}
    any_call: dict[str, Any] = {"tool_choice": {"type": "any"}} if forced else {}
    bodies = {
        "/v1/chat/completions": {
            "messages": turns,
            "tools": [{"type": "function", "function": function}],
            "max_tokens": 2,
            **choice,
        },
        "/v1/responses": {"input": "Hi", "tools": [{"type": "function", **function}], "max_output_tokens": 2, **choice},
        "/v1/messages": {"messages": turns, "tools": [{**about, "input_schema": parameters}], "max_tokens": 2, **any_call},
    }
    async with client_of(stand) as client:
        return {path: await client.post(path, json=body) for path, body in bodies.items()}


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize(("parameters", "place"), INVALID)
async def test_an_invalid_schema_names_the_tool(stand: Stand, parameters: Any, place: str, forced: bool) -> None:
    for strict in (False, True):
        for path, reply in (await replies(stand, parameters, forced, strict)).items():
            said = reply.json()["error"]["message"]
            assert reply.status_code == 400, (path, reply.text)
            assert (
                said.startswith("the parameters of the tool 'look' are not a valid JSON schema: ") and f"{place} must" in said
            )
    assert stand.scheduler.received == []


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("parameters", VALID)
async def test_a_valid_schema_is_taken(stand: Stand, parameters: Any, forced: bool) -> None:
    for path, reply in (await replies(stand, parameters, forced)).items():
        assert reply.status_code == 200, (path, reply.text)
