"""Values of a type behind generated texts."""

from __future__ import annotations

import asyncio
import enum
import json
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import pydantic
import pytest

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint
from sglang.lang.backend.base import Generation
from sglang.lang.errors import RequestRefusedError, TypedValueError
from sglang.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR
from sglang.lang.typed.output import typed_output

from .native_server import NativeServer


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Person(pydantic.BaseModel):
    name: str
    age: int


@dataclass
class Point:
    x: float
    y: float


class Colours(TypedDict):
    first: Colour


class Options(TypedDict, total=False):
    wide: bool
    colours: list[Colours]


def make(dtype: Any) -> sgl.lang.program.SglFunction:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += "v:" + sgl.gen("x", dtype=dtype, stop=["!"])

    return program


@pytest.mark.parametrize(
    ("dtype", "text", "value", "regex"),
    [
        (int, "-12", -12, REGEX_INT),
        ("int", "7", 7, REGEX_INT),
        (float, "1.5", 1.5, REGEX_FLOAT),
        (bool, "True", True, REGEX_BOOL),
        (str, '"two words"', "two words", REGEX_STR),
        (Literal["yes", "no"], "no", "no", "(yes|no)"),
        (Literal[1, 10], "10", 10, "(10|1)"),
        (Colour, "blue", Colour.BLUE, "(blue|red)"),
    ],
)
def test_by_regex(native: NativeServer, backend: RuntimeEndpoint, dtype: Any, text: str, value: Any, regex: str) -> None:
    native.answer = lambda prompt, params: text
    state = make(dtype)()
    assert state.value("x") == value and state["x"] == text and type(state.value("x")) is type(value)
    assert native.generated()[0]["sampling_params"]["regex"] == regex


@pytest.mark.parametrize(
    ("dtype", "text", "value"),
    [
        (Person, '{"name": "Ann", "age": 3}', Person(name="Ann", age=3)),
        (list[Person], '[{"name": "Ann", "age": 3}]', [Person(name="Ann", age=3)]),
        (Point, '{"x": 1, "y": 2.5}', Point(1, 2.5)),
        (Options, '{"wide": true}', {"wide": True}),
        (Options, '{"colours": [{"first": "red"}]}', {"colours": [{"first": Colour.RED}]}),
        (list[int], "[1, 2]", [1, 2]),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (int | None, "null", None),
    ],
)
def test_by_schema(native: NativeServer, backend: RuntimeEndpoint, dtype: Any, text: str, value: Any) -> None:
    native.answer = lambda prompt, params: text
    state = make(dtype)()
    assert state.value("x") == value and state["x"] == text
    json.loads(native.generated()[0]["sampling_params"]["json_schema"])


def test_a_value_that_is_cut_off_raises_only_when_asked_for(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.answer = lambda prompt, params: '{"name": "An'
    state = make(Person)()
    assert state["x"] == '{"name": "An' and state.error() is None
    with pytest.raises(TypedValueError, match="is not JSON that fits"):
        state.value("x")
    assert len(native.generated()) == 1  # decoding was held to the schema: asking again is no use


def test_stops_of_numbers_and_a_plain_stop_string(native: NativeServer, backend: RuntimeEndpoint) -> None:
    """A stop that is a string, a template without stop strings, and a number: the original crashed."""

    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.gen_int("x", stop="!") + sgl.gen_string("y")

    native.answer = lambda prompt, params: "5"
    program.run(backend=RuntimeEndpoint(native.url, chat_template_name="default")).sync()
    first, second = native.generated()
    assert first["sampling_params"]["stop"] == ["!", " ", "\n"] and second["sampling_params"]["stop"] == []
    assert second["sampling_params"]["regex"] == REGEX_STR


def test_several_samples(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.answer = lambda prompt, params: str(params["index"])

    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.gen("x", dtype=int, n=3)

    assert program().value("x") == [0, 1, 2] and program()["x"] == ["0", "1", "2"]


def test_values_of_forks_are_gathered(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.answer = lambda prompt, params: str(len(prompt))

    @sgl.function
    def program(s: ProgramState, mode: str, *dtypes: type | None) -> None:
        forks = s.fork(len(dtypes))
        for i, dtype in enumerate(dtypes):
            forks[i] += "." * i + sgl.gen("x", dtype=dtype)
        forks.join(mode)
        s += "end"

    assert program("gather_variable", int, int).value("x") == [0, 1]
    assert program("gather_variable", int, None, float).value("x") == [0, "1", 2.0]
    assert program("gather_variable", int, int)["x"] == ["0", "1"]
    native.answer = lambda prompt, params: "no" if prompt else "7"
    with pytest.raises(TypedValueError):
        program("gather_variable", int, int).value("x")

    @sgl.function
    def copied(s: ProgramState) -> None:
        with s.copy() as one:
            one += sgl.gen("x", dtype=int)
        s += "end"

    assert copied().value("x") == 7


def test_a_variable_that_is_written_again_has_its_new_value(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.answer = lambda prompt, params: "7" if not prompt else "none"

    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.gen("x", dtype=int) + sgl.gen("x")

    assert program().value("x") == "none"


def test_a_text_variable_has_its_text_as_value(native: NativeServer, backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.gen("x")

    state = program()
    assert state.value("x") == state["x"]
    state["x"] = "other"
    assert state.value("x") == "other"


def test_asking_again_is_bounded_and_told(
    native: NativeServer, backend: RuntimeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "constraints", frozenset())
    native.answer = lambda prompt, params: "never"
    state = make(int)()
    with pytest.raises(TypedValueError, match="is not an integer"):
        state.value("x")
    assert len(native.generated()) == 3  # once, and twice more
    assert "Answer again" in native.generated()[1]["text"] and "regex" not in native.generated()[0]["sampling_params"]
    assert state.text() == "v:never"


def test_what_is_no_type() -> None:
    for bad in (3, object(), lambda: None):
        with pytest.raises(TypeError):
            typed_output(bad)


def test_markdown_around_json() -> None:
    assert typed_output(list[int]).read("```json\n[1]\n```") == [1]


def test_a_schema_that_the_server_refuses_is_checked_instead(native: NativeServer, backend: RuntimeEndpoint) -> None:
    """One refused request, then as with a backend that cannot be held: asked again with what was wrong."""
    native.failures = [(400, {"error": {"message": "json_schema: the keyword at #/x is not supported"}})]
    native.answer = lambda prompt, params: "[1, 1, 2]" if "Answer again" in prompt else "one"
    state = make(set[int])()
    assert state.value("x") == {1, 2}
    held, first, second = native.generated()
    assert "json_schema" in held["sampling_params"]
    assert not {"json_schema"} & (first["sampling_params"].keys() | second["sampling_params"].keys())


def test_another_refusal_is_an_error(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.failures = [(400, {"error": {"message": "the prompt is too long"}})]
    state = make(set[int])()
    assert isinstance(state.error(), RequestRefusedError)
    assert len(native.generated()) == 1


def test_an_answer_that_the_server_found_wrong_is_asked_for_again() -> None:
    typed = typed_output(set[int])
    failed = {"finish_reason": {"type": "stop", "schema_check": {"valid": False, "attempts": 4, "error": "x", "keywords": []}}}
    passed = {"finish_reason": {"type": "stop", "schema_check": {"valid": True, "attempts": 1, "error": None, "keywords": []}}}
    asked: list[str] = []

    async def again(wrong: TypedValueError) -> Generation:
        asked.append(wrong.text)
        return Generation(["[2]"], [passed])

    async def run() -> None:
        options = {"json_schema": "{}"}
        _, values = await typed.check(Generation(["nothing"], [failed]), options, again)
        assert values == [{2}] and asked == ["nothing"]
        _, values = await typed.check(Generation(["cut"], [passed]), options, again)
        assert isinstance(values[0], TypedValueError) and len(asked) == 1

    asyncio.run(run())


def test_the_prompt_goes_on_with_the_answer_that_was_right(
    native: NativeServer, backend: RuntimeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "constraints", frozenset())
    native.answer = lambda prompt, params: "42" if "Answer again" in prompt else "forty-two"

    @sgl.function
    def program(s: ProgramState) -> None:
        s += "n: " + sgl.gen("x", dtype=int) + ";"
        s += sgl.gen("y")

    state = program()
    assert state.value("x") == 42 and state.text().startswith("n: 42;")
    assert native.generated()[-1]["text"] == "n: 42;"
