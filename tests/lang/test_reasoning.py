"""Reasoning separated from answers, whole and streamed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint
from sglang.lang.typed.reasoning import AnswerSplitter, split_reasoning

from .native_server import NativeServer

REASONING_TEXT = "<think>\nLet me see <b>.\n</think>\n\nThe answer."


@sgl.function
def program(s: ProgramState) -> None:
    s += sgl.user("q")
    s += sgl.assistant("Well: " + sgl.separate_reasoning(sgl.gen("x", max_tokens=None), model_type="qwen3") + " Done.")


@pytest.mark.parametrize("stream", [False, True])
def test_the_prompt_keeps_the_answer_alone(native: NativeServer, backend: RuntimeEndpoint, stream: bool) -> None:
    native.answer = lambda prompt, params: REASONING_TEXT
    state = program.run(stream=stream)
    assert state["x"] == "The answer." and state["x_reasoning_content"] == "Let me see <b>."
    assert state.messages()[-1]["content"] == "Well: The answer. Done."
    if stream:
        assert "".join(state.text_iter("x")) == "The answer."
        assert "".join(state.text_iter("x_reasoning_content")).strip() == "Let me see <b>."


def test_several_samples(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.answer = lambda prompt, params: f"<think>t{params['index']}</think>a{params['index']}"

    @sgl.function
    def many(s: ProgramState) -> None:
        s += sgl.separate_reasoning(sgl.gen("x", n=2), "qwen3")

    for stream in (False, True):
        state = many.run(stream=stream)
        assert state["x"] == ["a0", "a1"] and state["x_reasoning_content"] == ["t0", "t1"]


def test_bad_use() -> None:
    with pytest.raises(ValueError, match="name"):
        sgl.separate_reasoning(sgl.gen(), "qwen3")
    with pytest.raises(ValueError, match="unknown model_type 'nothing'; known|unknown model_type 'nothing' for"):
        sgl.separate_reasoning(sgl.gen("x"), "nothing")
    with pytest.raises(ValueError, match="model_type"):
        sgl.separate_reasoning(sgl.gen("x"))
    marker = sgl.separate_reasoning(sgl.gen("x"), "qwen3")[-1]  # type: ignore[index]
    assert repr(marker) == "SeparateReasoning(model_type=qwen3, name=x_reasoning_content)"


TEXTS = [
    REASONING_TEXT,
    "no thinking",
    "<think>never closed",
    "  <think>a</think>",
    "<think></think>\n\n",
    "a <think>b</think>",
    "<thin",
    "",
]


@given(st.sampled_from(TEXTS), st.sampled_from(["qwen3", "deepseek-r1", "kimi"]), st.lists(st.integers(0, 60), max_size=8))
def test_any_cut_gives_the_same(text: str, model_type: str, cuts: list[int]) -> None:
    splitter = AnswerSplitter(model_type)
    points = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [splitter.feed(text[a:b]) for a, b in zip(points, points[1:], strict=False)] + [splitter.close()]
    joined = "".join(thinking for thinking, _ in parts).strip(), "".join(answer for _, answer in parts)
    assert joined == split_reasoning(text, model_type)


def test_formats() -> None:
    assert split_reasoning("thinking</think>answer", "deepseek-r1") == ("thinking", "answer")
    assert split_reasoning("<think>thinking</think>answer", "deepseek-r1") == ("thinking", "answer")
    assert split_reasoning("plain", "qwen3") == ("", "plain")
    assert split_reasoning("◁think▷a◁/think▷b", "kimi") == ("a", "b")


@pytest.mark.parametrize("stream", [False, True])
def test_text_that_may_begin_a_mark_is_part_of_the_prompt_at_the_end(
    native: NativeServer, backend: RuntimeEndpoint, stream: bool
) -> None:
    """The splitter holds "<thi" back: it may be the beginning of a mark, and is not when nothing follows."""
    native.answer = lambda prompt, params: "<thi"
    state = program.run(stream=stream)
    assert state["x"] == "<thi"
    assert state.messages()[-1]["content"] == "Well: <thi Done."
