"""Backends of other APIs, through the vendors' own clients, against a real HTTP server of the tests."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sglang as sgl
from sglang import ProgramState
from sglang.lang.backend.base import BaseBackend
from sglang.lang.errors import (
    BackendConnectionError,
    BadReplyError,
    ProgramError,
    RequestRefusedError,
    ServerError,
    UnsupportedFeatureError,
)

from .cloud_server import CloudServer

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


@pytest.fixture()
def cloud() -> Iterator[CloudServer]:
    with CloudServer(answer=lambda prompt, params: f" reply {params['index']} to {prompt[:30]}") as server:
        yield server


def openai_backend(cloud: CloudServer, **more: Any) -> BaseBackend:
    pytest.importorskip("openai")
    settings = {"base_url": f"{cloud.url}/v1", "api_key": "k", "max_retries": 0, **more}
    return sgl.OpenAI(settings.pop("model_name", "gpt-4o"), **settings)


def anthropic_backend(cloud: CloudServer) -> BaseBackend:
    pytest.importorskip("anthropic")
    return sgl.Anthropic("claude-x", base_url=cloud.url, api_key="k", max_retries=0)


def litellm_backend(cloud: CloudServer) -> BaseBackend:
    pytest.importorskip("litellm")
    return sgl.LiteLLM("openai/gpt-4o", base_url=f"{cloud.url}/v1", api_key="k", max_retries=0)


BACKENDS = {"openai": openai_backend, "anthropic": anthropic_backend, "litellm": litellm_backend}
Make = Callable[[CloudServer], BaseBackend]


@pytest.fixture(params=BACKENDS)
def make(request: pytest.FixtureRequest) -> Make:
    return BACKENDS[request.param]


@sgl.function
def chat(s: ProgramState, question: str) -> None:
    s += sgl.system("Be brief.")
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("one", max_tokens=5))
    s += sgl.user("And?")
    s += sgl.assistant(sgl.gen("two", max_tokens=5, temperature=0))


def test_a_conversation(cloud: CloudServer, make: Make) -> None:
    backend = make(cloud)
    state = chat.run("Hello there", backend=backend)
    assert state["one"] == " reply 0 to Hello there" and state["two"] == " reply 0 to And?"
    assert state.get_meta_info("one")["completion_tokens"] == 5
    assert backend.token_usage.completion_tokens == 5 + 4  # type: ignore[attr-defined]
    assert [m["role"] for m in state.messages()] == ["system", "user", "assistant", "user", "assistant"]
    (_, first), (_, second) = cloud.requests
    assert second["temperature"] == 0 and first["max_tokens"] == 5
    assert first.get("system", first["messages"][0]["content"]) == "Be brief."
    assert second["messages"][-1]["content"] == "And?"
    # the state's own messages still have the system message that was sent apart
    assert state.messages()[0] == {"role": "system", "content": "Be brief."}


def test_a_stream(cloud: CloudServer, make: Make) -> None:
    state = chat.run("Hello there", backend=make(cloud), stream=True)
    assert "".join(state.text_iter()) == state.text()
    assert state["one"] == " reply 0 to Hello there"
    assert all(body["stream"] for _, body in cloud.requests)


@pytest.mark.parametrize(("status", "kind"), [(400, RequestRefusedError), (401, RequestRefusedError), (500, ServerError)])
def test_refusals(cloud: CloudServer, make: Make, status: int, kind: type[Exception]) -> None:
    cloud.failures = [(status, {"error": {"message": "the reason", "type": "x"}})]
    with pytest.raises(kind, match="the reason"):
        chat.run("q", backend=make(cloud)).sync()


def test_nobody_there(make: Make) -> None:
    with CloudServer() as cloud:
        backend = make(cloud)
    with pytest.raises(BackendConnectionError):
        chat.run("q", backend=backend).sync()


@pytest.mark.parametrize("reason", [ConnectionRefusedError("refused"), ValueError("odd")])
def test_litellm_errors_that_cause_each_other(cloud: CloudServer, reason: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    backend: Any = litellm_backend(cloud)
    error = backend._litellm.InternalServerError("the reason", "openai", "m")
    error.__cause__, reason.__cause__ = reason, error

    async def fail(**fields: Any) -> None:
        raise error

    monkeypatch.setattr(backend._litellm, "acompletion", fail)
    with pytest.raises(BackendConnectionError if isinstance(reason, OSError) else ServerError, match="the reason"):
        chat.run("q", backend=backend).sync()


def test_text_before_the_answer(cloud: CloudServer, make: Make) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.user("q")
        s += sgl.assistant("Well, " + sgl.gen("x"))

    backend = make(cloud)
    if backend.name == "OpenAI":  # a compatible server may continue a begun message
        assert program.run(backend=backend)["x"]
        assert cloud.requests[-1][1]["continue_final_message"] is True
        assert cloud.requests[-1][1]["messages"][-1] == {"role": "assistant", "content": "Well, "}
        return
    with pytest.raises(ProgramError, match="right after the begin"):
        program.run(backend=backend)["x"]


def test_images(cloud: CloudServer, make: Make) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.user(sgl.image(PNG) + "What is it?")
        s += sgl.assistant(sgl.gen("x"))

    backend = make(cloud)
    program.run(backend=backend).sync()
    content = cloud.requests[-1][1]["messages"][-1]["content"]
    assert content[0] == {"type": "text", "text": "What is it?"}
    if backend.name == "Anthropic":
        assert content[1]["source"] == {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()}
    else:
        assert content[1]["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(PNG).decode()


def test_what_an_api_cannot_do(cloud: CloudServer, make: Make) -> None:
    backend = make(cloud)

    @sgl.function
    def program(s: ProgramState, expr: Any) -> None:
        s += sgl.user("q")
        s += sgl.assistant(expr)

    with pytest.raises(UnsupportedFeatureError, match="select"):
        program.run(sgl.select("x", ["a", "b"]), backend=backend).sync()
    with pytest.raises(NotImplementedError):
        program.run(sgl.select("x", ["a", "b"]), backend=backend).sync()
    if backend.name != "OpenAI":
        with pytest.raises(UnsupportedFeatureError, match="regex"):
            program.run(sgl.gen("x", regex="a+"), backend=backend).sync()


def test_typed_values_are_asked_for_again(cloud: CloudServer, make: Make) -> None:
    answers = iter(["about forty-two", "well", "42"])
    cloud.answer = lambda prompt, params: next(answers)
    backend = make(cloud)
    backend.constraints = frozenset()

    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.user("How many?")
        s += sgl.assistant(sgl.gen("x", dtype=int))

    state = program.run(backend=backend)
    assert state.value("x") == 42 and state["x"] == "42"
    assert state.messages()[-1]["content"] == "42"
    last = cloud.requests[-1][1]["messages"]
    assert [m["content"] for m in last if m["role"] == "assistant"] == ["well"]
    assert "is not an integer" in last[-1]["content"]
    assert len(cloud.requests) == 3


# --- OpenAI alone ---


def test_openai_fields(cloud: CloudServer) -> None:
    backend = openai_backend(cloud)

    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.user("q")
        s += sgl.assistant(sgl.gen("x", top_k=3, regex="a|b", seed=1, logit_bias={7: 2.0}, stop=["!"], max_tokens=None, n=2))

    state = program.run(backend=backend)
    assert state["x"] == [" reply 0 to q", " reply 1 to q"]
    body = cloud.requests[0][1]
    assert body["top_k"] == 3 and body["regex"] == "a|b" and body["seed"] == 1 and body["stop"] == ["!"]
    assert body["logit_bias"] == {"7": 2.0} and "max_tokens" not in body and body["n"] == 2


def test_openai_official_is_stricter(cloud: CloudServer, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = openai_backend(cloud, model_name="o3-mini")
    monkeypatch.setattr(backend, "_is_official", True)
    monkeypatch.setattr(backend, "constraints", frozenset({"json_schema"}))

    @sgl.function
    def program(s: ProgramState, expr: Any) -> None:
        s += sgl.user("q")
        s += sgl.assistant(expr)

    with pytest.warns(UserWarning, match="no top_k"):
        program.run(sgl.gen("x", top_k=3), backend=backend).sync()
    assert cloud.requests[-1][1]["max_completion_tokens"] == 128 and "max_tokens" not in cloud.requests[-1][1]
    with pytest.raises(UnsupportedFeatureError, match="regex"):
        program.run(sgl.gen("x", regex="a"), backend=backend).sync()
    with pytest.raises(ProgramError):
        program.run("text " + sgl.gen("x"), backend=backend).sync()
    program.run(sgl.gen("x", json_schema='{"type": "object"}'), backend=backend).sync()
    assert cloud.requests[-1][1]["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_openai_completions(cloud: CloudServer) -> None:
    backend = openai_backend(cloud, model_name="gpt-3.5-turbo-instruct")
    assert not backend.is_chat_model

    @sgl.function
    def program(s: ProgramState) -> None:
        s += "Once" + sgl.gen("x", max_tokens=3) + "." + sgl.gen("y", n=2, max_tokens=3)

    state = program.run(backend=backend)
    assert state["x"] == " reply 0 to" and state["y"] == [" reply 0 to", " reply 1 to"]
    assert cloud.requests[0][0] == "/v1/completions" and cloud.requests[0][1]["prompt"] == "Once"
    state = program.run(backend=backend, stream=True)
    assert "".join(state.text_iter()) == state.text()


def local_encoding() -> Any:
    """Bytes, and a few longer tokens: nothing to download."""
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([i]): i for i in range(256)}
    for text in ("re", "gr", "ee", "en", " gr", " re", " gree", " green", " red", " b", " bl"):
        ranks[text.encode()] = len(ranks)
    return tiktoken.Encoding("local", pat_str=r" ?\w+|.", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)})


@pytest.mark.parametrize(
    ("choices", "wanted", "num_calls"),
    [
        ([" red", " green", " blue"], " green", 1),
        ([" red apple", " red pear", " red plum"], " red plum", 2),  # " red p" is common to two: no call for it
        ([" red", " red pear"], " red", 1),
        ([" red", " red pear"], " red pear", 1),
        (["same", "same"], "same", 0),
        (["alone"], "alone", 0),
    ],
)
def test_openai_select_writes_token_by_token(cloud: CloudServer, choices: list[str], wanted: str, num_calls: int) -> None:
    encoding = local_encoding()
    backend = openai_backend(cloud, model_name="gpt-3.5-turbo-instruct", encoding=encoding)

    def answer(prompt: str, params: dict[str, Any]) -> str:
        """The model wants to write `wanted`, and keeps to the tokens that it is allowed."""
        assert params["max_tokens"] == 1 and params["temperature"] == 0 and prompt.startswith("It is")
        rest = [*encoding.encode_ordinary(wanted), encoding.eot_token][len(encoding.encode_ordinary(prompt[len("It is") :])) :]
        assert str(rest[0]) in params["logit_bias"] and len(params["logit_bias"]) > 1
        return "" if rest[0] == encoding.eot_token else str(encoding.decode(rest[:1]))

    @sgl.function
    def program(s: ProgramState) -> None:
        s += "It is" + sgl.select("x", choices) + "."

    cloud.answer = answer
    state = program.run(backend=backend)
    assert state.text() == f"It is{wanted}." and len(cloud.requests) == num_calls
    assert len(state.get_meta_info("x")["scores"]) == len(choices)


def test_openai_select_refuses_what_was_not_allowed(cloud: CloudServer) -> None:
    """Such as half a character, where the choices part inside of one."""
    backend = openai_backend(cloud, model_name="gpt-3.5-turbo-instruct", encoding=local_encoding())
    cloud.answer = lambda prompt, params: "what"

    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.select("x", [" gr\u00fc", " gr\u00f6"])

    with pytest.raises(BadReplyError, match="matches none"):
        program.run(backend=backend).sync()


def test_openai_select_needs_to_know_the_tokens(cloud: CloudServer) -> None:
    pytest.importorskip("tiktoken")
    backend = openai_backend(cloud, model_name="some-other-model", is_chat_model=False)

    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.select("x", ["a", "b"])

    with pytest.raises(UnsupportedFeatureError, match="pass encoding="):
        program.run(backend=backend).sync()


def test_openai_on_our_own_server(request: pytest.FixtureRequest) -> None:
    pytest.importorskip("openai")
    server = request.getfixturevalue("server")
    backend = sgl.OpenAI("default", base_url=f"{server.url}/v1", api_key="none")

    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.user("What is the capital of France?")
        s += sgl.assistant(sgl.gen("x", max_tokens=8, temperature=0))
        s += sgl.user("A number?")
        s += sgl.assistant(sgl.gen("n", dtype=int, max_tokens=4, temperature=0))

    state = program.run(backend=backend)
    assert state["x"].strip() and isinstance(state.value("n"), int)
    assert state.get_meta_info("x")["completion_tokens"] <= 8
    streamed = program.run(backend=backend, stream=True)
    assert "".join(streamed.text_iter()) == streamed.text() == state.text()
