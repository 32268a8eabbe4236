"""Vertex AI through Google's own client, against the HTTP server of the tests."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

import sglang as sgl
from sglang import ProgramState
from sglang.lang.errors import (
    BackendConnectionError,
    BackendTimeoutError,
    BadReplyError,
    ProgramError,
    RequestRefusedError,
    ServerError,
    UnsupportedFeatureError,
)

from .cloud_server import CloudServer
from .test_cloud import PNG, chat

pytest.importorskip("google.genai")


@pytest.fixture()
def cloud() -> Iterator[CloudServer]:
    with CloudServer(answer=lambda prompt, params: f" reply {params['index']} to {prompt[:30]}") as server:
        yield server


@pytest.fixture()
def google(cloud: CloudServer, monkeypatch: pytest.MonkeyPatch) -> sgl.VertexAI:
    monkeypatch.setenv("GCP_PROJECT_ID", "my-project")
    monkeypatch.setenv("GCP_LOCATION", "europe-west4")
    return vertex(cloud.url)


def vertex(url: str, safety_settings: Any = None, **http: Any) -> sgl.VertexAI:
    from google.oauth2.credentials import Credentials

    return sgl.VertexAI("gemini-x", safety_settings, credentials=Credentials("a-token"), http_options={"base_url": url, **http})


@sgl.function
def one_turn(s: ProgramState, expr: Any) -> None:
    s += sgl.user("q")
    s += sgl.assistant(expr)


def test_a_conversation(cloud: CloudServer, google: sgl.VertexAI) -> None:
    state = chat.run("Hello there", backend=google)
    assert state["one"] == " reply 0 to Hello there" and state["two"] == " reply 0 to And?"
    assert state.get_meta_info("one") == {
        "prompt_tokens": state.get_meta_info("one")["prompt_tokens"], "completion_tokens": 5, "cached_tokens": 0,
        "finish_reason": "stop",
    }  # fmt: skip
    assert google.token_usage.completion_tokens == 5 + 4
    (path, first), (_, second) = cloud.requests
    place = "/projects/my-project/locations/europe-west4/publishers/google/models/gemini-x:generateContent"
    assert path == "/v1beta1" + place
    assert cloud.last_headers["authorization"] == "Bearer a-token"
    assert first["systemInstruction"]["parts"] == [{"text": "Be brief."}]
    assert first["generationConfig"] == {"maxOutputTokens": 5}
    assert second["generationConfig"] == {"maxOutputTokens": 5, "temperature": 0}
    said = [(content["role"], content["parts"][0]["text"]) for content in second["contents"]]
    assert said == [("user", "Hello there"), ("model", "reply 0 to Hello there"), ("user", "And?")]


def test_a_stream(cloud: CloudServer, google: sgl.VertexAI) -> None:
    state = chat.run("Hello there", backend=google, stream=True)
    pieces = [event.text for event in state.events() if event.kind == "var_delta" and event.name == "one"]
    assert len(pieces) == 5 and "".join(pieces) == state["one"] == " reply 0 to Hello there"
    assert state.get_meta_info("one")["finish_reason"] == "stop"
    state.sync()
    assert google.token_usage.completion_tokens == 5 + 4
    assert all(":streamGenerateContent" in path for path, _ in cloud.requests)


def test_fields(cloud: CloudServer, google: sgl.VertexAI) -> None:
    expr = sgl.gen(
        "x", max_tokens=None, n=2, seed=3, top_k=4, top_p=0.5, stop="!", presence_penalty=0.5, frequency_penalty=0.25
    )
    state = one_turn.run(expr, backend=google)
    assert state["x"] == [" reply 0 to q", " reply 1 to q"]
    assert cloud.requests[0][1]["generationConfig"] == {
        "candidateCount": 2, "seed": 3, "topK": 4, "topP": 0.5, "stopSequences": ["!"],
        "presencePenalty": 0.5, "frequencyPenalty": 0.25,
    }  # fmt: skip


def test_types_become_schemas(cloud: CloudServer, google: sgl.VertexAI) -> None:
    cloud.answer = lambda prompt, params: "[1, 2]"
    assert one_turn.run(sgl.gen("x", dtype=list[int]), backend=google).value("x") == [1, 2]
    config = cloud.requests[0][1]["generationConfig"]
    assert config["responseMimeType"] == "application/json"
    assert config["responseJsonSchema"] == {"type": "array", "items": {"type": "integer"}}


def test_images_and_safety(cloud: CloudServer, google: sgl.VertexAI) -> None:
    @sgl.function
    def program(s: ProgramState, image: Any) -> None:
        s += sgl.user(sgl.image(image) + "What is it?")
        s += sgl.assistant(sgl.gen("x"))

    backend = vertex(cloud.url, {"HARM_CATEGORY_HARASSMENT": "BLOCK_NONE"})
    program.run(PNG, backend=backend).sync()
    body = cloud.requests[0][1]
    text, image = body["contents"][0]["parts"]
    assert text == {"text": "What is it?"}
    data = image["inlineData"]
    assert data.get("mimeType", data.get("mime_type")) == "image/png" and base64.urlsafe_b64decode(data["data"]) == PNG
    assert body["safetySettings"] == [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]
    with pytest.raises(UnsupportedFeatureError, match="images by URL"):
        program.run("https://example.com/x.png", backend=backend).sync()


@pytest.mark.parametrize(("status", "kind"), [(400, RequestRefusedError), (429, RequestRefusedError), (500, ServerError)])
@pytest.mark.parametrize("stream", [False, True])
def test_refusals(cloud: CloudServer, google: sgl.VertexAI, status: int, kind: type[Exception], stream: bool) -> None:
    cloud.failures = [(status, {"error": {"code": status, "message": "the reason", "status": "X"}})]
    with pytest.raises(kind, match="the reason"):
        chat.run("q", backend=google, stream=stream).sync()


def test_what_goes_wrong(cloud: CloudServer, google: sgl.VertexAI) -> None:
    with CloudServer() as other:
        gone = vertex(other.url)
    with pytest.raises(BackendConnectionError):
        chat.run("q", backend=gone).sync()
    with CloudServer() as slow:
        slow.delay = 1.0
        with pytest.raises(BackendTimeoutError):
            chat.run("q", backend=vertex(slow.url, timeout=200)).sync()
    cloud.failures = [(200, {"promptFeedback": {"blockReason": "SAFETY"}})]
    with pytest.raises(BadReplyError, match="blocked .SAFETY"):
        chat.run("q", backend=google).sync()
    for expr, error in (
        (sgl.select("x", ["a", "b"]), UnsupportedFeatureError),
        (sgl.gen("x", regex="a+"), UnsupportedFeatureError),
        ("Well, " + sgl.gen("x"), ProgramError),
    ):
        with pytest.raises(error):
            one_turn.run(expr, backend=google).sync()


def test_the_project_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GCP_PROJECT_ID", raising=False)
    with pytest.raises(ValueError, match="GCP_PROJECT_ID"):
        sgl.VertexAI("gemini-x")
