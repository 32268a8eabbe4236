"""Hazards of concurrency: several operations at once."""

from __future__ import annotations

import pytest

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint

from .cloud_server import CloudServer
from .native_server import NativeServer


def test_in_knows_what_is_under_way(native: NativeServer, backend: RuntimeEndpoint) -> None:
    """A gen that was added counts from that moment on, whether or not it has begun."""
    native.delay = 0.2

    @sgl.function
    def program(s: ProgramState) -> None:
        assert "x" not in s
        s += "q" + sgl.gen("x") + sgl.gen("y")
        assert "x" in s and "y" in s and "z" not in s
        (child,) = s.fork(1)
        child += sgl.gen("z")
        assert "x" in child and "z" in child and "z" not in s

    for _ in range(5):
        state = program.run()
        assert state["x"] and state["y"] and "z" not in state


def test_programs_that_write_ahead_share_a_backend() -> None:
    pytest.importorskip("openai")

    @sgl.function(num_api_spec_tokens=64)
    def program(s: ProgramState, name: str) -> None:
        s += sgl.user(name)
        s += sgl.assistant_begin()
        s += "Name:" + sgl.gen("name", stop="\n") + "\nJob:" + sgl.gen("job", stop="\n")
        s += sgl.assistant_end()

    with CloudServer(answer=lambda prompt, params: f"Name: {prompt}\nJob: {prompt * 2}\nand more") as cloud:
        cloud.delay = 0.05
        backend = sgl.OpenAI("gpt-4o", base_url=f"{cloud.url}/v1", api_key="k", max_retries=0)
        names = [f"n{i}" for i in range(12)]
        states = program.run_batch([(name,) for name in names], backend=backend, num_threads=6)
        assert [(s["name"], s["job"]) for s in states] == [(f" {name}", f" {name * 2}") for name in names]
        assert len(cloud.requests) == len(names)
