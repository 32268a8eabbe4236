"""Jump-forward: tokens that the grammar forces are appended without sampling, and nothing but the number of steps changes."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.config import GrammarOptions, ScheduleOptions
from sglang.srt.messages import AbortReq, FinishReason, TokenizedReq
from tests.scheduler.test_grammar import CHARACTER, run_with_compiling
from tests.scheduler.toy import EOS, THINK_END, VOCABULARY, Answer, Harness, ToyWorker, logprob_options, make_req, toy_logprob

JUMPING = GrammarOptions()
STEPPING = GrammarOptions(jump_forward=False)
PATTERNS = [
    r'\{"name":"[a-c]{1,4}","age":[0-9]{1,2},"tags":\["the","abc"\]\}',
    r"(the end, truly|there is more of the same|no)( abc){0,3}",
    r"x{40}[ab]y{3}",
    r"the\n\nabc",
    r"[ab]{3}(, END){2}z*",
]


def answers(
    grammar: GrammarOptions, reqs: list[TokenizedReq], worker: ToyWorker | None = None, **schedule: object
) -> list[Answer]:
    options = ScheduleOptions(**schedule)  # type: ignore[arg-type]
    return run_with_compiling(Harness(worker, options, grammar), reqs)


def shape(answer: Answer) -> tuple[object, ...]:
    return (
        answer.ids,
        answer.finish,
        answer.last.trim_bytes,
        answer.last.completion_len,
        answer.input_logprobs,
        answer.output_logprobs,
    )


@st.composite
def requests(draw: st.DrawFn, rid: str) -> TokenizedReq:
    stem = draw(st.sampled_from([0, 7]))
    return make_req(
        rid,
        [(stem + i) % 250 for i in range(draw(st.integers(1, 50)))],
        draw(st.integers(0, 60)),
        stream=draw(st.booleans()),
        temperature=draw(st.sampled_from([0.0, 0.8])),
        seed=draw(st.integers(0, 3)),
        regex=draw(st.sampled_from(PATTERNS)),
        stop=draw(st.sampled_from([(), ("same",), ('":"b', "END, ")])),
        min_new_tokens=0,
        ignore_eos=draw(st.booleans()),
        no_stop_trim=draw(st.booleans()),
        logprobs=draw(st.sampled_from([None, logprob_options(0, 2, (5,)), logprob_options(-1, 1)])),
        grammar_after=draw(st.sampled_from([(), (), (THINK_END, 3, 77)])),
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_answers_are_the_same_with_and_without(data: st.DataObject) -> None:
    reqs = [data.draw(requests(f"r{i}")) for i in range(data.draw(st.integers(1, 8)))]
    worker = ToyWorker(
        num_slots=data.draw(st.sampled_from([256, 1024])),
        run=data.draw(st.sampled_from([1, 16])),
        max_running=data.draw(st.sampled_from([2, 8])),
        max_batch_tokens=data.draw(st.sampled_from([9, 40, 256])),
        context_len=data.draw(st.sampled_from([90, 512])),
    )
    schedule = {
        "chunked_prefill_size": data.draw(st.sampled_from([5, 512])),
        "page_size": data.draw(st.sampled_from([1, 16])),
        "disable_radix_cache": data.draw(st.booleans()),
        "test_retract_every": data.draw(st.sampled_from([0, 0, 1, 3])),
    }
    context_len = worker.info.context_len
    jumped = answers(JUMPING, reqs, worker, **schedule)
    for req, answer in zip(reqs, jumped, strict=True):
        (alone,) = answers(STEPPING, [req], ToyWorker(context_len=context_len))
        if answer.finish is not None and "KV pool" in str(answer.finish.message):
            assert answer.ids == alone.ids[: len(answer.ids)]
        else:
            assert shape(answer) == shape(alone)


@pytest.mark.usefixtures("patient")
def test_forced_tokens_cost_no_steps() -> None:
    req = make_req("a", [1, 2, 3], 200, temperature=1.0, seed=3, regex=CHARACTER)
    steps = []
    for options in (JUMPING, STEPPING):
        worker = ToyWorker()
        (answer,) = answers(options, [req], worker)
        assert re.fullmatch(CHARACTER, answer.text().decode())
        steps.append(len(worker.batches))
        assert steps[-1] <= len(answer.ids)
    assert steps[0] < 0.6 * steps[1]


@pytest.mark.parametrize("stream", [False, True])
def test_an_output_without_any_choice_needs_no_model(stream: bool) -> None:
    worker = ToyWorker()
    (answer,) = answers(JUMPING, [make_req("a", [1], 50, stream, regex="the abc, END")], worker)
    assert answer.text() == b"the abc, END" and answer.finish == FinishReason("stop", matched=answer.ids[-1])
    assert worker.batches == []


def test_log_probabilities_of_forced_tokens_are_the_models_own() -> None:
    for stream in (False, True):
        req = make_req("a", [1, 2], 50, stream, regex="the abc, END", logprobs=logprob_options(0, 1, (9,)))
        worker = ToyWorker()
        (answer,) = answers(JUMPING, [req], worker)
        assert len(worker.batches) == 1, "one extend scores them all"
        assert [p.token_id for p in answer.output_logprobs] == answer.ids
        for i, position in enumerate(answer.output_logprobs):
            history = worker.tokens[worker.table[0, : 2 + i]]
            assert position.logprob == pytest.approx(toy_logprob(history, answer.ids[i]))
            assert len(position.top) == 1 and [t for _, t in position.ids] == [9]


def test_the_length_limit_cuts_forced_tokens() -> None:
    for limit in range(12):
        (answer,) = answers(JUMPING, [make_req("a", [1], limit, regex="x{8}")])
        assert len(answer.ids) == min(limit, 8)
        assert answer.finish is not None and answer.finish.type == ("stop" if limit >= 8 else "length")


def test_more_is_forced_than_a_step_holds() -> None:
    worker = ToyWorker(max_batch_tokens=16, num_slots=4096, context_len=2048)
    reqs = [make_req(f"r{i}", [i], 1500, regex=f"[ab]x{{{700 + i}}}[cd]y{{90}}") for i in range(4)]
    for req, answer in zip(reqs, answers(JUMPING, reqs, worker), strict=True):
        assert re.fullmatch(str(req.sampling.regex), answer.text().decode())
    assert max(batch.num_tokens for batch in worker.batches) <= 16


def test_aborting_a_request_with_forced_tokens_ahead() -> None:
    harness = Harness(ToyWorker(max_batch_tokens=16), grammar=JUMPING)
    harness.put(make_req("a", [1], 300, True, regex="[ab]x{200}", logprobs=logprob_options()))
    for _ in range(200):
        if not harness.step() and harness.scheduler._running.reqs:
            break
        if len(harness.worker.batches) == 3:
            break
        import time

        time.sleep(0.001)
    harness.put(AbortReq("a"))
    answer = harness.answers["a"]
    assert answer.finish is not None and answer.finish.type == "abort"
    assert len(answer.ids) == len(answer.output_logprobs) == answer.last.completion_len < 200
    assert harness.scheduler.check_integrity() == []


def test_the_jump_begins_where_thinking_ends() -> None:
    for seed in range(20):
        req = make_req(
            "a", [seed], 400, temperature=1.0, seed=seed, regex="the END", grammar_after=(THINK_END,), ignore_eos=True
        )
        worker = ToyWorker()
        (answer,) = answers(JUMPING, [req], worker)
        if THINK_END in answer.ids:
            at = answer.ids.index(THINK_END)
            assert VOCABULARY.text_bytes(answer.ids[at + 1 :]) == b"the END" and EOS not in answer.ids
            assert len(worker.batches) == at + 1, "what follows is forced"
            return
    raise AssertionError("no request stopped thinking")
