"""Programs traced without a model."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint

from .native_server import NativeServer

RULES = "Answer every question in one short sentence. Be polite and exact, and never guess. "


@sgl.function
def qa(s: ProgramState, question: Any, mark: str = "?") -> None:
    s += sgl.system(RULES)
    s += sgl.user(question + mark)
    s += sgl.assistant(sgl.gen("answer", stop="\n") + sgl.select("sure", ["yes", "no"]))


def test_trace(capsys: pytest.CaptureFixture[str]) -> None:
    tracer = qa.trace()
    listing = tracer.last_node.print_graph_dfs()
    assert capsys.readouterr().out.strip() == listing
    assert "Gen('answer')" in listing and "%question" in listing and "Select('sure', choices=['yes', 'no'])" in listing
    assert [node.node_id for node in tracer.flatten_nodes()] == list(range(len(tracer.nodes)))
    assert set(tracer.variables) == {"answer", "sure"}
    assert "'Why'" in qa.trace(question="Why").last_node.print_graph_dfs()
    with pytest.raises(TypeError, match="no argument"):
        qa.trace(nothing=1)


def test_trace_of_forks_and_variables() -> None:
    @sgl.function
    def program(s: ProgramState, topic: Any) -> None:
        s += "About " + topic + sgl.gen("first")
        forks = s.fork(2)
        forks += lambda i: f"{i}" + sgl.gen("detail")
        forks.join()
        with s.user():
            s += s["detail"]  # type: ignore[operator]
        with s.var_scope("v"):
            s += "x"

    tracer = program.trace()
    listing = repr(tracer.flatten_nodes())
    assert "Fork(2)" in listing and "Join(gather_variable)" in listing and "$detail" in listing
    assert len([node for node in tracer.flatten_nodes() if "Gen('detail')" in repr(node)]) == 2


def test_a_placeholder_has_no_value() -> None:
    @sgl.function
    def formatted(s: ProgramState, x: Any) -> None:
        s += f"{x}"

    @sgl.function
    def decides(s: ProgramState, x: Any) -> None:
        if x:
            s += "a"

    for program in (formatted, decides):
        with pytest.raises(TypeError, match="argument 'x' has no value"):
            program.trace()


def test_programs_called_inside_are_traced() -> None:
    @sgl.function
    def outer(s: ProgramState) -> Any:
        return qa("x")

    inner = outer.trace().ret_value
    assert "Gen('answer')" in repr(inner.flatten_nodes())


def test_other_threads_are_not_traced(backend: RuntimeEndpoint) -> None:
    seen: list[Any] = []

    @sgl.function
    def program(s: ProgramState) -> None:
        thread = threading.Thread(target=lambda: seen.append(qa("Why")["answer"]))
        thread.start()
        thread.join(10)

    program.trace()
    assert isinstance(seen[0], str)


def test_cache_reads_the_common_beginning(native: NativeServer, backend: RuntimeEndpoint) -> None:
    text = qa.cache()
    assert text == f"<|im_start|>system\n{RULES}<|im_end|>\n<|im_start|>user\n"
    assert [body["text"] for body in native.prefills()] == [text]
    assert qa.bind(question="Why", mark="?").cache(backend) == text + "Why?<|im_end|>\n<|im_start|>assistant\n"


def test_cache_stops_where_code_needs_a_value(native: NativeServer, backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState, x: Any) -> None:
        s += "always "
        s += f"{x.upper()}"

    assert program.cache() == "always "
