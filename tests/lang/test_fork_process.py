"""A process that forks after it has used the language: the child has an event loop and connections of its own."""

from __future__ import annotations

import os

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint

from .native_server import NativeServer


@sgl.function
def program(s: ProgramState) -> None:
    s += "p" + sgl.gen("x", max_tokens=2)


def test_a_forked_child_works(native: NativeServer, backend: RuntimeEndpoint) -> None:
    assert program()["x"]
    pid = os.fork()
    if pid == 0:  # no assert here: the child must not run pytest's clean-up
        is_well = bool(program()["x"]) and len(program.run_batch([{}, {}])) == 2
        os._exit(0 if is_well else 1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert program()["x"]
