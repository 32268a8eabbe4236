"""Grammars out of pieces, and tools."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint
from sglang.lang.errors import TypedValueError
from sglang.lang.typed.grammar import (
    capture,
    compile_grammar,
    concat,
    json_schema,
    literal,
    one_of,
    optional,
    parse_captures,
    regex,
    repeat,
)
from sglang.lang.typed.tools import describe_tools, tool_output, tool_spec

from .native_server import NativeServer

AGE = concat("Age: ", capture("age", regex("[0-9]+")), optional(" years"), capture("mood", one_of("!", "?", " (ok)")))
LIST = "[" + repeat(capture("item", regex("[a-z]+")), 1, 3, separator=", ") + "]"
MIXED = concat("data=", capture("data", json_schema({"type": "array", "items": {"type": "integer"}})), ";") | literal("none")


@pytest.mark.parametrize(
    ("grammar", "text", "captures"),
    [
        (AGE, "Age: 12 years!", {"age": "12", "mood": "!"}),
        (AGE, "Age: 12 (ok)", {"age": "12", "mood": " (ok)"}),
        (LIST, "[ab]", {"item": "ab"}),
        (LIST, "[ab, c, d]", {"item": ["ab", "c", "d"]}),
        (MIXED, "data=[1, 2];", {"data": [1, 2]}),
        (MIXED, "none", {}),
        (repeat(regex("a*"), 0, None) + "b", "aab", {}),
    ],
)
def test_texts_of_a_grammar(grammar: Any, text: str, captures: dict[str, Any]) -> None:
    assert parse_captures(grammar, text) == captures
    kind, compiled = compile_grammar(grammar)
    if kind == "regex":
        assert re.fullmatch(compiled, text)


@pytest.mark.parametrize(
    ("grammar", "text"), [(AGE, "Age: !"), (LIST, "[]"), (LIST, "[a, b, c, d]"), (LIST, "[a,b]"), (MIXED, "data=[1;")]
)
def test_other_texts(grammar: Any, text: str) -> None:
    with pytest.raises(ValueError):
        parse_captures(grammar, text)
    kind, compiled = compile_grammar(grammar)
    assert kind == "ebnf" or not re.fullmatch(compiled, text)


def test_bad_pieces() -> None:
    with pytest.raises(re.error):
        regex("(")
    with pytest.raises(TypeError):
        concat(3)  # type: ignore[arg-type]
    for low, high in ((-1, 2), (3, 2), (0, 0)):
        with pytest.raises(ValueError):
            repeat("a", low, high)
    with pytest.raises(ValueError, match="one constraint, got grammar and regex"):
        sgl.gen("x", grammar=AGE, regex="a")


def test_engines_understand_them() -> None:
    llguidance = pytest.importorskip("llguidance")
    for grammar in (AGE, LIST, MIXED):
        kind, text = compile_grammar(grammar)
        source = llguidance.grammar_from(kind, text)
        assert not llguidance.LLMatcher.validate_grammar(source)


def test_gen_with_a_grammar(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.answer = lambda prompt, params: "Age: 7?"

    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.gen("x", grammar=AGE)

    state = program()
    assert state["x"] == "Age: 7?" and state.value("x") == {"age": "7", "mood": "?"}
    assert native.generated()[0]["sampling_params"]["regex"] == compile_grammar(AGE)[1]


# --- tools ---


def weather(city: str, days: int = 1) -> str:
    """Tells the weather.

    Args:
        city: where
        days: how many days ahead
    """
    if city == "Nowhere":
        raise LookupError("no such place")
    return f"sunny in {city} for {days}"


async def population(city: str) -> int:
    """Counts the people of a city."""
    return len(city)


def test_a_function_as_a_model_sees_it() -> None:
    spec = tool_spec(weather)
    assert spec.name == "weather" and spec.description == "Tells the weather."
    assert spec.parameters["properties"]["city"] == {"description": "where", "title": "City", "type": "string"}
    assert spec.parameters["required"] == ["city"]
    assert '"name": "population"' in describe_tools([weather, population])
    with pytest.raises(TypeError, match="must have names"):
        tool_spec(lambda *args: None)
    for bad in ([], [weather, weather]):
        with pytest.raises(ValueError, match="different names"):
            tool_output(bad)


def test_calls(native: NativeServer, backend: RuntimeEndpoint) -> None:
    calls = [
        {"name": "weather", "arguments": {"city": "Rome"}},
        {"name": "weather", "arguments": {"city": "Nowhere", "days": 2}},
    ]
    native.answer = lambda prompt, params: json.dumps(calls)

    @sgl.function
    def program(s: ProgramState) -> list[str]:
        s += sgl.gen("call", tools=[weather, population], max_tokens=None)
        return [str(result) for result in s.call_tools("call")]

    state = program()
    assert state.ret_value == [
        'weather returned "sunny in Rome for 1"',
        "weather failed: LookupError: no such place",
    ]
    assert [call.arguments for call in state.value("call")] == [{"city": "Rome", "days": 1}, {"city": "Nowhere", "days": 2}]
    schema = json.loads(native.generated()[0]["sampling_params"]["json_schema"])
    assert {item["properties"]["name"]["const"] for item in schema["items"]["anyOf"]} == {"weather", "population"}


async def test_calls_of_an_async_program(native: NativeServer, backend: RuntimeEndpoint) -> None:
    calls = [{"name": "population", "arguments": {"city": "Rome"}}, {"name": "weather", "arguments": {"city": "Bonn"}}]
    native.answer = lambda prompt, params: json.dumps(calls)

    @sgl.function
    async def program(s: sgl.AsyncProgramState) -> list[Any]:
        s += sgl.gen("call", tools=[weather, population])
        return [result.value for result in await s.call_tools("call")]

    assert (await program.arun()).ret_value == [4, "sunny in Bonn for 1"]


@pytest.mark.parametrize("text", ['[{"name": "other"}]', '[{"name": "weather", "arguments": {"town": 1}}]', "{}", "["])
def test_calls_that_make_no_sense(native: NativeServer, backend: RuntimeEndpoint, text: str) -> None:
    native.answer = lambda prompt, params: text

    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.gen("call", tools=[weather])

    with pytest.raises(TypedValueError):
        program().call_tools("call")
