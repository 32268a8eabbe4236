"""Programs as objects: arguments, bind, methods, reserved names."""

from __future__ import annotations

import contextvars

import pytest

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint
from sglang.lang.program.program import SglFunction

from .native_server import NativeServer


@sgl.function
def greet(s: ProgramState, name: str, greeting: str = "Hello") -> None:
    s += f"{greeting}, {name}"


def test_arguments(backend: RuntimeEndpoint) -> None:
    assert isinstance(greet, SglFunction)
    assert greet.arg_names == ["name", "greeting"] and greet.arg_defaults == ["Hello"]
    assert greet("Ann").text() == greet.run(name="Ann").text() == "Hello, Ann"
    with pytest.raises(TypeError):
        greet()
    with pytest.raises(TypeError):
        greet("Ann", nme="x")


def test_the_first_argument_is_s() -> None:
    with pytest.raises(TypeError, match="named s"):
        sgl.function(lambda state: None)
    with pytest.raises(TypeError, match="named s"):
        sgl.function(lambda: None)


def test_bind_wins_and_keeps_everything(backend: RuntimeEndpoint) -> None:
    bound = greet.bind(greeting="Hi")
    assert bound("Ann").text() == "Hi, Ann"
    assert bound.run(name="Ann", greeting="Hello").text() == "Hi, Ann"
    assert bound.bind(name="Bo")().text() == "Hi, Bo"
    assert greet("Ann").text() == "Hello, Ann"
    with pytest.raises(TypeError, match="no argument 'x'"):
        greet.bind(x=1)
    assert sgl.function(num_api_spec_tokens=5)(greet.func).bind(name="x").num_api_spec_tokens == 5


def test_bind_leaves_the_batch_alone(backend: RuntimeEndpoint) -> None:
    batch = [{"name": "A"}, {"name": "B"}]
    states = greet.bind(greeting="Hi").run_batch(batch)
    assert [state.text() for state in states] == ["Hi, A", "Hi, B"]
    assert batch == [{"name": "A"}, {"name": "B"}]


def test_methods_can_be_programs(backend: RuntimeEndpoint) -> None:
    class Helper:
        mark = "!"

        @sgl.function
        def shout(self, s: ProgramState, text: str) -> None:
            s += text + self.mark

    assert Helper().shout("hey").text() == "hey!"


def test_an_argument_may_have_the_name_of_an_option(native: NativeServer, backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState, stop: str, n: int) -> None:
        s += f"{stop}{n}" + sgl.gen("x")

    assert program(stop="S", n=3, temperature=0.125).text().startswith("S3")
    params = native.generated()[0]["sampling_params"]
    assert params["n"] == 1 and params["temperature"] == 0.125


def test_programs_may_call_programs(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def outer(s: ProgramState) -> None:
        inner = greet("Bo")
        s += inner.text() + "."

    assert outer().text() == "Hello, Bo."


def test_context_variables_reach_the_body(backend: RuntimeEndpoint) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    @sgl.function
    def program(s: ProgramState) -> str:
        return variable.get()

    variable.set("here")
    assert program.run(stream=True).error() is None
    streamed = program.run(stream=True)
    streamed.sync()
    assert streamed.ret_value == "here"
    assert program.run_batch([{}, {}])[1].ret_value == "here"


def test_verbosity_prints_finished_programs(backend: RuntimeEndpoint, capsys: pytest.CaptureFixture[str]) -> None:
    sgl.global_config.verbosity = 2
    try:
        greet("Ann")
    finally:
        sgl.global_config.verbosity = 0
    assert capsys.readouterr().out == "ProgramState(Hello, Ann)\n"


def test_a_body_that_raises(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += "a"
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError):
        program()
    state = program.run(stream=True)
    with pytest.raises(ZeroDivisionError, match="mine"):
        state.text()
    assert isinstance(state.error(), ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        list(state.text_iter())
