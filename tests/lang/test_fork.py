"""Forks, joins and copies."""

from __future__ import annotations

import threading

import pytest

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint
from sglang.lang.errors import RequestRefusedError
from sglang.lang.ir import VarEnd
from sglang.lang.run.variables import Variables

from .native_server import NativeServer

LONG = "A text that is long enough to be worth reading once, not once for each of the forks. "


def test_forks_run_at_once_and_the_prefix_is_read_once(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.delay = 0.1

    @sgl.function
    def program(s: ProgramState) -> None:
        s += LONG
        forks = s.fork(4)
        for i, f in enumerate(forks):
            f += f"{i}:" + sgl.gen("x", max_tokens=3)
        s += " ".join(f["x"] for f in forks)

    state = program()
    assert len(native.prefills()) == 1 and native.prefills()[0]["text"] == LONG
    assert native.max_open == 4
    assert native.requests[1][0] == "/generate" and native.requests[1][1]["sampling_params"] == {"max_new_tokens": 0}
    assert state.text().startswith(LONG + " answer")


def test_no_request_when_there_is_nothing_to_share(native: NativeServer, backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        for f in s.fork(3):  # nothing written yet
            f += "x" + sgl.gen("x")
        s += LONG
        s.fork(1)[0].sync()  # nobody to share with
        s += sgl.gen("y")  # the server has read and written all of this
        for f in s.fork(2):
            f += sgl.gen("z")

    program().sync()
    assert native.prefills() == []


def test_the_prefix_is_decided_after_what_is_queued(native: NativeServer, backend: RuntimeEndpoint) -> None:
    """fork() right after a gen: what the gen writes belongs to the prefix."""
    native.delay = 0.05

    @sgl.function
    def program(s: ProgramState) -> None:
        s += "p" + sgl.gen("x") + LONG
        for f in s.fork(2):
            f += sgl.gen("y")

    state = program()
    state.sync()
    assert [body["text"] for body in native.prefills()] == [state.text()]


@pytest.mark.parametrize("assigned_first", [True, False])
def test_what_a_fork_assigns_stays_whatever_its_parent_writes(
    native: NativeServer, backend: RuntimeEndpoint, assigned_first: bool
) -> None:
    """Before the fork starts, while its parent still writes a variable of that name, and after."""
    native.delay = 0.1

    @sgl.function
    def program(s: ProgramState) -> None:
        s["set"] = "parent"
        s += "p" + sgl.gen("x", max_tokens=2) + LONG
        forks = s.fork(2)
        if not assigned_first:
            forks[0].sync()
        forks[0]["x"], forks[0]["set"] = "child", 7
        s["set"] = "parent again"
        forks[1].sync()
        assert (forks[0]["x"], forks[0]["set"]) == ("child", 7)
        assert forks[1]["x"] == s["x"] != "child"
        child = forks[0]
        child += sgl.gen("y", max_tokens=2)
        assert forks[0]["y"] and forks[0]["x"] == "child"

    state = program()
    state.sync()
    assert state["set"] == "parent again" and state["x"] != "child"


def test_variables_of_a_fork_come_before_those_it_inherits() -> None:
    parent, child = Variables(), Variables()
    for variables, name in ((parent, "parent"), (child, "child")):
        variables.store("x", name, {"of": name})
        variables.objects["x"] = name
    parent.store("y", "parent")
    child.expect_parents(parent.names)
    child.inherit(parent)
    assert child.texts == {"x": "child", "y": "parent"} and child.objects == {"x": "child"}
    assert child.metas["x"] == {"of": "child"} and parent.texts["x"] == "parent"


def test_gather(native: NativeServer, backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += "a" + sgl.gen("mine", max_tokens=2)
        forks = s.fork(2)
        forks += lambda i: f"{i}" + sgl.gen("x", max_tokens=2)
        forks += ["l", "r"]
        forks += "both"
        forks[0]["own"] = 1
        forks.join()
        s += "end"

    state = program()
    assert isinstance(state["mine"], str)
    assert state["x"] == [
        native.text_for({"text": f"a{state['mine']}{i}", "sampling_params": {"max_new_tokens": 2}}) for i in (0, 1)
    ]
    assert state["own"] == [1, None]
    assert state.text() == f"a{state['mine']}end"
    assert [meta["completion_tokens"] for meta in state.get_meta_info("x")] == [2, 2]


def test_concatenate(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += "start."
        forks = s.fork(3)
        forks += lambda i: f" part {i}."
        forks.join("concate_and_append")
        s += " end."

    assert program().text() == "start. part 0. part 1. part 2. end."


def test_children_inherit(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.user("q")
        s += sgl.assistant_begin() + "so " + sgl.gen("x", max_tokens=2)
        f = s.fork()[0]
        assert "x" in f
        assert f["x"] == s["x"]
        assert f.get_meta_info("x") == s.get_meta_info("x")
        f["x"] = "changed"
        f += "." + sgl.assistant_end()
        assert [m["role"] for m in f.messages()] == ["system", "user", "assistant"]
        s += sgl.assistant_end()
        assert s["x"] != "changed"

    program().sync()


def test_copy_gives_plain_values(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += "a"
        with s.copy() as c:
            c += "b" + sgl.gen("x", max_tokens=2)
        s += "c"

    state = program()
    assert isinstance(state["x"], str) and state.text() == "ac"
    assert state.get_meta_info("x")["completion_tokens"] == 2


def test_groups(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        forks = s.fork(2)
        assert len(forks) == 2 and [f.text() for f in forks] == ["", ""]
        with pytest.raises(ValueError, match="as many"):
            forks += ["a"]
        with pytest.raises(ValueError, match="mode"):
            forks.join("nonsense")  # type: ignore[arg-type]
        with pytest.raises(ValueError):
            s.fork(0)
        with pytest.warns(UserWarning, match="position_ids_offset has no effect"):
            s.fork(1, position_ids_offset=[0])

    program()


def test_a_failed_parent_fails_its_forks(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.failures = [(400, {"error": {"message": "no"}})]

    @sgl.function
    def program(s: ProgramState) -> None:
        s += "p" + sgl.gen("x")
        forks = s.fork(2)
        forks += "q" + sgl.gen("y")
        for f in forks:
            with pytest.raises(RequestRefusedError):
                f["y"]
            with pytest.raises(RequestRefusedError):
                f.text()

    state = program()
    with pytest.raises(RequestRefusedError):
        state["x"]


def test_a_failed_fork_fails_the_join(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.failures = [(400, {"error": {"message": "no"}})]

    @sgl.function
    def program(s: ProgramState) -> None:
        s += "p"
        forks = s.fork(2)
        forks += sgl.gen("x")
        forks.join()

    with pytest.raises(RequestRefusedError):
        program()["x"]


def test_forks_of_forks(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += "r"
        forks = s.fork(2)
        for f in forks:
            inner = f.fork(2)
            inner += sgl.gen("x", max_tokens=1)
            inner.join()
        forks.join()

    value = program()["x"]
    assert len(value) == 2 and all(len(v) == 2 for v in value)


def test_thousand_forks_of_eight_take_few_threads(native: NativeServer, backend: RuntimeEndpoint) -> None:
    most = 0

    @sgl.function
    def program(s: ProgramState, i: int) -> None:
        nonlocal most
        s += f"{i}"
        forks = s.fork(8)
        forks += lambda j: f"{j}" + sgl.gen("x", max_tokens=1)
        forks.join()
        most = max(most, threading.active_count())
        assert len(s["x"]) == 8

    before = threading.active_count()
    states = program.run_batch([(i,) for i in range(250)])
    assert len(states) == 250 and all(len(state["x"]) == 8 for state in states)
    assert most - before < 68


def test_one_fork_is_written_by_its_place(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += "p"
        forks = s.fork(3)
        for i in range(len(forks)):
            forks[i] += f" {i}" + sgl.gen(f"x{i}", max_tokens=2)
        forks[-1] += " last"
        same = forks[0]
        forks[0] = same
        with pytest.raises(TypeError, match=r"forks\[0\] \+= "):
            forks[0] = forks[1]
        with pytest.raises(TypeError):
            forks[0] = "text"  # type: ignore[call-overload]
        with pytest.raises(IndexError):
            forks[3] += "x"
        forks.join("concate_and_append")

    state = program()
    assert state.text().startswith("p 0 answer") and state.text().endswith(" last") and " 1 answer" in state.text()


def test_one_fork_of_an_async_program_and_of_a_traced_one(backend: RuntimeEndpoint) -> None:
    @sgl.function
    async def program(s: sgl.AsyncProgramState) -> None:
        forks = s.fork(2)
        forks[1] += "b" + sgl.gen("x", max_tokens=2)
        assert (await forks[1]["x"]).startswith(" answer")

    assert program().error() is None

    @sgl.function
    def plain(s: ProgramState) -> None:
        forks = s.fork(2)
        forks[1] += "b" + sgl.gen("x")
        with pytest.raises(TypeError):
            forks[1] = forks[0]

    assert "x" in plain.trace().children[1].variables


@pytest.mark.parametrize("offset", [[0, 0], (3, 7), []])
def test_position_offsets_warn(backend: RuntimeEndpoint, offset: list[int]) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        with pytest.warns(UserWarning, match="position_ids_offset has no effect"):
            forks = s.fork(2, offset)
        forks += "a" + sgl.gen("x", max_tokens=2)
        forks.join()

    assert len(program()["x"]) == 2


def test_requests_say_of_which_run_and_branch_they_are(
    native: NativeServer, backend: RuntimeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += "a" + sgl.gen("x", max_tokens=2)
        forks = s.fork(2)
        forks += sgl.gen("secret", max_tokens=2)
        inner = forks[1].fork(1)
        inner += sgl.gen("y", max_tokens=2)
        inner.join()
        forks.join()

    def places() -> list[tuple[str, str | None]]:
        found = [(h["x-sglang-run"], h.get("x-sglang-variable")) for h in native.headers if "x-sglang-run" in h]
        native.headers.clear()
        return found

    for traced in (False, True):
        if traced:
            monkeypatch.setenv("SGLANG_TRACE", "server")
        places()
        program.run(backend=backend).text()
        found = places()
        assert len({place.split("/")[0] for place, _ in found}) == 1
        assert {place.split("/")[1] for place, _ in found} >= {"0", "0.0", "0.1", "0.1.0"}
        assert {name for _, name in found} == ({"x", "secret", "y"} if traced else {None})


def test_a_variable_that_nobody_writes_is_an_error_in_a_fork(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += "a"
        fork = s.fork(1)[0]
        fork += "b"
        fork.sync()
        with pytest.raises(KeyError, match="nobody"):
            fork["nobody"]

    program().sync()


def test_a_fork_inside_a_scope_has_the_scope_too(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += "before "
        with s.var_scope("v"):
            s += "shared "
            fork = s.fork(1)[0]
            s += "mine"
        fork += "its own"
        fork += VarEnd("v")
        assert fork["v"] == "shared its own"

    assert program()["v"] == "shared mine"


def test_a_join_leaves_the_variables_that_the_parent_had(backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s["x"] = "parent"
        forks = s.fork(2)
        forks += sgl.gen("x", max_tokens=2)
        forks[0]["y"] = "child"
        forks.join()
        s += "end"

    state = program()
    assert state["x"] == "parent" and state["y"] == ["child", None]
