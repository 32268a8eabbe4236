"""Roles, text, variables and messages of one state."""

from __future__ import annotations

import threading
import time

import pytest

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint
from sglang.lang.errors import NoBackendError, ProgramError
from sglang.lang.run.variables import Variables

from .native_server import NativeServer

SMOL = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


def test_roles_and_messages(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def chat(s: ProgramState, question: str) -> str:
        s += sgl.system("Be brief.")
        s += sgl.user(question)
        s += sgl.assistant("Well: " + sgl.gen("answer", max_tokens=8))
        return "done"

    state = chat("How?")
    assert state.ret_value == "done"
    assert state.text() == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow?<|im_end|>\n"
        f"<|im_start|>assistant\nWell: {state['answer']}<|im_end|>\n"
    )
    assert state.messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How?"},
        {"role": "assistant", "content": "Well: " + state["answer"]},
    ]
    assert repr(state) == f"ProgramState({state.text()})"


def test_the_default_system_message_comes_first(native: NativeServer, backend: RuntimeEndpoint) -> None:
    @sgl.function
    def chat(s: ProgramState) -> None:
        s += sgl.user("Hi")
        s += sgl.assistant(sgl.gen("x"))

    state = chat()
    assert state.text().startswith(SMOL + "<|im_start|>user\nHi")
    assert state.messages()[0]["content"] == SMOL.split("\n")[1].removesuffix("<|im_end|>")
    assert "<|im_end|>" in native.generated()[0]["sampling_params"]["stop"]


def test_begin_and_end_and_with(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def chat(s: ProgramState) -> None:
        s += sgl.system_begin() + "a" + sgl.system_end()
        with s.user():
            s += "b"
        s.assistant("c" + sgl.gen("x", max_tokens=1))
        s += sgl.user()
        s += sgl.assistant_begin()
        s += " d"
        s += sgl.assistant_end()

    roles = [(m["role"], m["content"]) for m in chat().messages()]
    assert roles == [("system", "a"), ("user", "b"), ("assistant", roles[2][1]), ("user", ""), ("assistant", "d")]


def test_a_message_added_by_a_method_is_not_added_twice(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def chat(s: ProgramState) -> None:
        s += s.system("once")

    assert len(chat().messages()) == 1


def test_a_message_ends_even_when_its_block_raises(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def chat(s: ProgramState) -> None:
        try:
            with s.user():
                s += "half"
                raise KeyError
        except KeyError:
            pass
        s += sgl.assistant("fine")

    assert [m["content"] for m in chat().messages()[1:]] == ["half", "fine"]


def test_nested_roles_are_refused_where_they_are_written(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def nested(s: ProgramState) -> None:
        s += sgl.user("a" + sgl.gen("x") + sgl.assistant("b"))

    @sgl.function
    def unopened(s: ProgramState) -> None:
        s += sgl.user_end()

    with pytest.raises(ProgramError, match="assistant message cannot begin inside a user message"):
        nested()
    with pytest.raises(ProgramError, match="user_end without user_begin"):
        unopened()


def test_what_cannot_be_added(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def add(s: ProgramState, what: object) -> None:
        s += what  # type: ignore[operator]

    with pytest.raises(ValueError, match="None"):
        add(None)
    for bad in (1, 1.5, ["a"], b"x"):
        with pytest.raises(TypeError, match="use str"):
            add(bad)
    with pytest.raises(TypeError):
        sgl.gen("x") + 1  # type: ignore[operator]


def test_variables(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        with s.var_scope("whole"):
            s += "a " + sgl.gen("x", max_tokens=2)
            s += " b"
        s["mine"] = 7
        s.set_var("other", [1])
        assert "mine" in s and "x" in s and "nothing" not in s
        s += sgl.gen(max_tokens=1)

    state = program()
    assert state["whole"] == f"a {state['x']} b"
    assert state["mine"] == 7 and state.get_var("other") == [1]
    assert isinstance(state["x"], str)
    assert state[None] == state.get_var(None)
    with pytest.raises(KeyError):
        state["nothing"]
    assert state.get_meta_info("nothing") is None
    assert state.get_meta_info("x")["completion_tokens"] == 2


def test_a_variable_written_again_has_the_latest_value(native: NativeServer, backend: RuntimeEndpoint) -> None:
    @sgl.function
    def loop(s: ProgramState) -> list[str]:
        seen = []
        for i in range(3):
            s += f"{i}" + sgl.gen("x")
            seen.append(s["x"])
        return seen

    native.answer = lambda prompt, params: f"[{len(prompt)}]"
    state = loop()
    assert state.ret_value == ["[1]", "[5]", "[9]"]
    assert state["x"] == "[9]"


def test_reading_a_scope_from_inside_is_an_error(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        with s.var_scope("v"):
            s += "a"
            s["v"]

    with pytest.raises(ProgramError, match="inside its own var_scope"):
        program()


def test_gen_does_not_block(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.delay = 0.2
    gate = threading.Event()

    @sgl.function
    def program(s: ProgramState) -> None:
        s += "p" + sgl.gen("x")
        gate.set()

    state = program()
    assert gate.is_set()
    with pytest.raises(TimeoutError):
        state.get_meta_info("x", timeout=0.01)
    assert state["x"]


def test_use_thread_false_waits_for_each_piece(native: NativeServer, backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> list[int]:
        counts = []
        for _ in range(2):
            s += "p" + sgl.gen("x")
            counts.append(len(native.generated()))
        return counts

    assert program.run(use_thread=False).ret_value == [1, 2]


def test_sampling_of_run_and_gen(native: NativeServer, backend: RuntimeEndpoint) -> None:
    stop = ["\n"]

    @sgl.function
    def program(s: ProgramState) -> None:
        s += "p" + sgl.gen("x", temperature=0.25, stop=stop, seed=3, logit_bias={5: -1.0})

    program.run(temperature=0.5, top_k=7, repetition_penalty=1.5, max_new_tokens=None).sync()
    params = native.generated()[0]["sampling_params"]
    assert params["temperature"] == 0.25 and params["top_k"] == 7 and params["repetition_penalty"] == 1.5
    assert params["max_new_tokens"] is None and params["seed"] == 3 and params["logit_bias"] == {"5": -1.0}
    assert params["stop"] == ["\n", "<|im_end|>"] and stop == ["\n"]
    assert params["skip_special_tokens"] is True


def test_logprobs_come_as_meta_info(native: NativeServer, backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += "a b" + sgl.gen("x", max_tokens=2, return_logprob=True, top_logprobs_num=1, logprob_start_len=0)

    meta = program().get_meta_info("x")
    assert len(meta["output_token_logprobs"]) == 2 and len(meta["input_token_logprobs"]) == 2
    body = native.generated()[0]
    assert body["return_logprob"] is True and body["top_logprobs_num"] == 1 and "return_text_in_logprobs" not in body


def test_several_samples_are_a_list(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.answer = lambda prompt, params: f"sample{params['index']}"

    @sgl.function
    def program(s: ProgramState) -> None:
        s += "p:" + sgl.gen("x", n=3) + "!"

    for stream in (False, True):
        state = program.run(stream=stream)
        assert state["x"] == ["sample0", "sample1", "sample2"]
        assert state.text() == "p:sample0!"
        assert [meta["completion_tokens"] for meta in state.get_meta_info("x")] == [1, 1, 1]


def test_a_state_iterates_over_its_variables(native: NativeServer, backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s["given"] = 1
        s += "p:" + sgl.gen("x", max_tokens=1) + sgl.gen("y", max_tokens=1)
        assert list(s) == ["given", "x", "y"]

    state = program.run()
    assert {name: state[name] for name in state}.keys() == {"given", "x", "y"}


def test_without_a_backend() -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += "a"

    with pytest.raises(NoBackendError, match="set_default_backend"):
        program()
    with pytest.raises(TypeError, match="not a backend"):
        program.run(backend="http://x")
    assert sgl.flush_cache() is False
    assert sgl.get_server_info() is None


def test_control(native: NativeServer, backend: RuntimeEndpoint) -> None:
    assert sgl.flush_cache() is True
    assert sgl.flush_cache(backend) is True
    info = sgl.get_server_info()
    assert info is not None and info["version"] == "test"
    assert backend.get_model_name() == "smollm2-135m-instruct"
    assert backend.model_info["is_generation"] is True


def test_waiting_threads_see_the_end(native: NativeServer, backend: RuntimeEndpoint) -> None:
    """Many readers of one variable, none left behind."""
    native.delay = 0.05

    @sgl.function
    def program(s: ProgramState) -> None:
        s += "p" + sgl.gen("x")

    state = program()
    seen: list[str] = []
    threads = [threading.Thread(target=lambda: seen.append(state["x"])) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert seen == [state["x"]] * 20


def test_a_dropped_state_stops_generating(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.delay = 5.0

    @sgl.function
    def program(s: ProgramState) -> None:
        s += "p" + sgl.gen("x") + sgl.gen("y")

    state = program()
    deadline = time.monotonic() + 60
    while not native.num_open and time.monotonic() < deadline:
        time.sleep(0.01)
    executor = state.stream_executor
    del state
    while not executor.is_idle and time.monotonic() < deadline:
        time.sleep(0.01)
    assert executor.is_idle and len(native.generated()) == 1


def test_a_name_is_pending_until_its_last_writer_has_written() -> None:
    variables = Variables()
    variables.expect(["a", "a"])
    variables.store("a", "x")
    assert variables.is_pending("a") and variables.texts["a"] == "x"
    variables.store("a", "y")
    assert not variables.is_pending("a") and variables.texts["a"] == "y"


def test_a_name_that_is_assigned_has_neither_its_old_object_nor_its_failure() -> None:
    variables = Variables()
    variables.expect(["a", "b"])
    variables.store("a", "1")
    variables.objects["a"] = 1
    variables.fail()
    assert variables.has_failed("b") and not variables.has_failed("a")
    for name in ("a", "b"):
        variables.assign(name, "new")
        assert (variables.texts[name], name in variables.objects, variables.has_failed(name)) == ("new", False, False)
