"""API speculation on remote models: fewer calls, the same text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import sglang as sgl
from sglang import ProgramState
from sglang.lang.errors import ProgramError
from sglang.lang.ir import Gen, Text
from sglang.lang.run.speculation import match_pattern

from .cloud_server import CloudServer

pytest.importorskip("openai")
CARD = "Name: Ann\nAge: 30\nJob: cook\nThe end of it."


@pytest.fixture()
def cloud() -> Iterator[CloudServer]:
    with CloudServer() as server:
        yield server


def backend_of(cloud: CloudServer, model: str) -> Any:
    return sgl.OpenAI(model, base_url=f"{cloud.url}/v1", api_key="k", max_retries=0)


def card(s: ProgramState) -> None:
    s += "Card\nName:" + sgl.gen("name", stop="\n", max_tokens=8) + "\nAge:" + sgl.gen("age", stop="\n", max_tokens=8)
    s += "\nJob:" + sgl.gen("job", stop="\n", max_tokens=8)


def continue_card(prompt: str, params: dict[str, Any]) -> str:
    whole = "Card\n" + CARD
    return whole[len(prompt) :] if whole.startswith(prompt) else " something else\nand more"


def test_completion_takes_one_call(cloud: CloudServer) -> None:
    cloud.answer = continue_card
    backend = backend_of(cloud, "gpt-3.5-turbo-instruct")
    plain = sgl.function(card).run(backend=backend)
    plain.sync()
    calls, tokens = len(cloud.requests), backend.token_usage.prompt_tokens
    backend.token_usage.reset()
    state = sgl.function(num_api_spec_tokens=64)(card).run(backend=backend)
    assert state.text() == plain.text() == "Card\n" + CARD[: CARD.index("\nThe end")]
    assert (state["name"], state["age"], state["job"]) == (" Ann", " 30", " cook")
    assert calls == 3 and len(cloud.requests) == 4
    assert 0 < backend.token_usage.prompt_tokens < tokens
    assert "stop" not in cloud.requests[-1][1]


def test_other_text_throws_the_rest_away(cloud: CloudServer) -> None:
    cloud.answer = continue_card

    @sgl.function(num_api_spec_tokens=64)
    def program(s: ProgramState) -> None:
        s += "Card\nName:" + sgl.gen("name", stop="\n") + "\nCity:" + sgl.gen("city", stop="\n")

    state = program.run(backend=backend_of(cloud, "gpt-3.5-turbo-instruct"))
    assert state["city"] == " something else" and len(cloud.requests) == 2


def test_limits_count_tokens(cloud: CloudServer) -> None:
    cloud.answer = lambda prompt, params: " one two three four five six seven"

    @sgl.function(num_api_spec_tokens=6)
    def program(s: ProgramState) -> None:
        s += "p" + sgl.gen("x", max_tokens=2) + sgl.gen("y", max_tokens=3)

    state = program.run(backend=backend_of(cloud, "gpt-3.5-turbo-instruct"))
    assert (state["x"], state["y"]) == (" one two", " three four five") and len(cloud.requests) == 1


def test_chat_takes_one_call(cloud: CloudServer) -> None:
    cloud.answer = lambda prompt, params: CARD

    @sgl.function(num_api_spec_tokens=64)
    def program(s: ProgramState) -> None:
        s += sgl.user("Fill the card")
        s += sgl.assistant_begin()
        s += "Name:" + sgl.gen("name", stop="\n") + "\nAge:" + sgl.gen("age", stop="\n") + "\nJob:"
        s += sgl.gen("job", stop="\n")
        s += sgl.assistant_end()

    state = program.run(backend=backend_of(cloud, "gpt-4o"))
    assert (state["name"], state["age"], state["job"]) == (" Ann", " 30", " cook")
    assert state.messages()[-1]["content"] == "Name: Ann\nAge: 30\nJob: cook"
    assert len(cloud.requests) == 1 and cloud.requests[0][1]["max_tokens"] == 64


def test_reading_inside_the_message_does_not_hang(cloud: CloudServer) -> None:
    cloud.answer = lambda prompt, params: "Name: Ann\n"

    @sgl.function(num_api_spec_tokens=64)
    def program(s: ProgramState) -> str:
        s += sgl.user("q")
        s += sgl.assistant_begin() + "Name:" + sgl.gen("name", stop="\n")
        return str(s["name"])

    assert program.run(backend=backend_of(cloud, "gpt-4o")).ret_value == " Ann"


def test_an_answer_that_does_not_fit(cloud: CloudServer) -> None:
    cloud.answer = lambda prompt, params: "I would rather not."

    @sgl.function(num_api_spec_tokens=64)
    def program(s: ProgramState) -> None:
        s += sgl.user("q")
        s += sgl.assistant("Name:" + sgl.gen("name", stop="\n"))

    with pytest.warns(UserWarning, match="does not follow"):
        state = program.run(backend=backend_of(cloud, "gpt-4o"))
        assert state["name"] and len(cloud.requests) == 3


def test_what_does_not_go_together(cloud: CloudServer) -> None:
    backend = backend_of(cloud, "gpt-4o")

    @sgl.function(num_api_spec_tokens=8)
    def program(s: ProgramState) -> None:
        s += sgl.assistant(sgl.gen("a", temperature=0) + "," + sgl.gen("b", temperature=1))

    with pytest.raises(ProgramError, match="same sampling"):
        program.run(backend=backend).sync()
    with pytest.raises(ValueError, match="stream"):
        program.run(backend=backend, stream=True)
    with pytest.raises(ValueError, match="at least 1"):
        sgl.function(num_api_spec_tokens=0)(card).run(backend=backend)


def test_matching() -> None:
    gen = Gen("x", {"stop": "\n"})
    assert match_pattern([Text(" A:"), gen, Text("\nB")], "A: 1\nB") == ([" A:", " 1", "\nB"], True)
    assert match_pattern([gen], "no stop") == (["no stop"], True)
    assert match_pattern([Text("A"), Gen("x"), Text(".")], "Ahello. more") == (["A", "hello", "."], True)
    assert match_pattern([Text("A"), gen], "B") == (["A", "B"], False)
    assert match_pattern([gen, Text("x")], "abc")[1] is False
