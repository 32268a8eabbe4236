"""What the original's design makes easy to get wrong, and the test that holds each (checked below: they all exist).

after an error, later pieces and reads hang            test_errors::test_a_failed_state_ignores_more_and_never_hangs
... and so does a batch                                test_batch::test_an_error_of_the_model_stays_in_its_state
an iterator sleeps for ever                            test_stream::test_a_variable_that_never_comes
an iterator loses the last piece                       test_stream::test_pieces_join_to_the_text
... or raises KeyError after an error                  test_stream::test_an_error_in_the_stream
one event for two readers                              test_stream::test_two_readers_at_once
lost wake-ups                                          test_state::test_waiting_threads_see_the_end
waits without an end                                   test_errors::test_a_silent_server_times_out
the user's stop list grows                             test_sampling::test_stop_lists_are_never_mutated
a stop string and dtype=int crash                      test_typed::test_stops_of_numbers_and_a_plain_stop_string
run_batch with binds changes the caller's dicts        test_program::test_bind_leaves_the_batch_alone
a batch's prefix is found by running code twice        test_batch::test_no_body_runs_twice
tracing reaches other threads                          test_tracer::test_other_threads_are_not_traced
a fork's prefix is decided before what is queued       test_fork::test_the_prefix_is_decided_after_what_is_queued
copy() returns lists                                   test_fork::test_copy_gives_plain_values
`in` races with gens under way                         test_hazards::test_in_knows_what_is_under_way
a scope read from inside blocks for ever               test_state::test_reading_a_scope_from_inside_is_an_error
bind drops num_api_spec_tokens                         test_program::test_bind_wins_and_keeps_everything
separate_reasoning loses the text around               test_reasoning::test_the_prompt_keeps_the_answer_alone
... and fails with n > 1                               test_reasoning::test_several_samples
a thread for each state                                test_async::test_ten_thousand_states_take_no_threads
... and for each fork                                  test_fork::test_thousand_forks_of_eight_take_few_threads
a leaked state keeps the process alive                 test_utils::test_a_leaked_state_does_not_keep_the_process_alive
writing ahead counts characters for tokens             test_speculation::test_limits_count_tokens
writing ahead keeps its state on the backend           test_hazards::test_programs_that_write_ahead_share_a_backend
select scores the prompt's tokens                      test_choices::test_no_token_of_the_prompt_is_scored
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint

from .cloud_server import CloudServer
from .native_server import NativeServer


def test_every_test_named_above_exists() -> None:
    named = re.findall(r"(test_\w+)::(test_\w+)", __doc__ or "")
    assert len(named) == 26
    for file, name in named:
        source = Path(__file__).with_name(f"{file}.py").read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), f"{file}::{name}"


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
