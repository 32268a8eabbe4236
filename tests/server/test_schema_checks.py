"""Answers that are checked against their schema after the end: what the client sees, how often the model is asked, what is reported."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import msgspec
import pytest

from sglang.srt.messages import TokenizedReq, TokenOut
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server.schema_check_work import Verdict, check
from sglang.srt.server.schema_checks import MAX_RETRIES, RETRY_TEMPERATURE, SchemaChecks, answer_of, next_attempt
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of, events_of

SCHEMA = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
TWICE, ONCE = '["a", "a"]', '["a", "b"]'
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
HELLO = [{"role": "user", "content": "hi"}]


def verdict_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are checked in this process: what a child adds has its own test."""

    async def verdict(self: SchemaChecks, schema: str, answer: str) -> Verdict:
        return check(json.loads(schema), answer)

    monkeypatch.setattr(SchemaChecks, "verdict", verdict)


@pytest.fixture
def stand(make_stand: MakeStand, monkeypatch: pytest.MonkeyPatch) -> Stand:
    verdict_here(monkeypatch)
    made = make_stand(info={"context_len": 2048})
    made.scheduler.unenforced = ("#/uniqueItems",)
    return made


def answers(stand: Stand, *texts: str) -> None:
    """Lets the scheduler answer with these, one after the other, and with the last one from then on."""
    tokenizer = stand.manager.need_tokenizer()
    end = min(tokenizer.vocabulary.eos_token_ids)
    ids = [[*tokenizer.encode(text, add_special_tokens=False), end] for text in texts]

    def next_of(req: TokenizedReq, i: int) -> int:
        attempt = sum(isinstance(one, TokenizedReq) and one.rid == req.rid for one in stand.scheduler.received)
        return ids[min(attempt, len(ids)) - 1][i]

    stand.scheduler.next_of = next_of


def requests_of(stand: Stand) -> list[TokenizedReq]:
    return [one for one in stand.scheduler.received if isinstance(one, TokenizedReq)]


async def post(stand: Stand, path: str, **body: Any) -> httpx.Response:
    async with client_of(stand) as client:
        return await client.post(path, json=body)


async def test_a_valid_answer_comes_at_once(stand: Stand) -> None:
    answers(stand, ONCE)
    choice = (await post(stand, "/v1/chat/completions", messages=HELLO, response_format=FORMAT)).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (ONCE, "stop")
    assert choice["finish_details"] == {
        "schema_check": {"valid": True, "attempts": 1, "discarded_tokens": 0, "error": None, "keywords": ["#/uniqueItems"]}
    }


async def test_an_answer_that_is_not_valid_is_generated_anew(stand: Stand) -> None:
    answers(stand, TWICE, TWICE, ONCE)
    reply = (
        await post(stand, "/generate", text="x", sampling_params={"json_schema": json.dumps(SCHEMA), "temperature": 0})
    ).json()
    assert reply["text"] == ONCE
    finish = reply["meta_info"]["finish_reason"]
    assert finish["type"] == "stop" and finish["schema_check"]["valid"] and finish["schema_check"]["attempts"] == 3
    first, second, third = requests_of(stand)
    assert first.sampling.is_greedy and second.sampling.temperature == third.sampling.temperature == RETRY_TEMPERATURE
    assert second.sampling.seed != third.sampling.seed and first.input_ids == third.input_ids


async def test_after_the_last_attempt_it_is_reported(stand: Stand) -> None:
    answers(stand, TWICE)
    reply = (await post(stand, "/generate", text="x", sampling_params={"json_schema": json.dumps(SCHEMA)})).json()
    report = reply["meta_info"]["finish_reason"]["schema_check"]
    assert reply["text"] == TWICE and not report["valid"]
    assert report["attempts"] == 1 + MAX_RETRIES == len(requests_of(stand))
    assert "non-unique" in report["error"] and report["keywords"] == ["#/uniqueItems"]


async def test_a_stream_shows_nothing_that_is_thrown_away(stand: Stand) -> None:
    answers(stand, TWICE, ONCE)
    for path, prompt in (("/v1/chat/completions", {"messages": HELLO}), ("/v1/completions", {"prompt": "x"})):
        stand.scheduler.received.clear()
        reply = await post(stand, path, stream=True, response_format=FORMAT, **prompt)
        choices = [event["choices"][0] for event in map(json.loads, events_of(reply.text)[:-1]) if event["choices"]]
        text = "".join(choice.get("text") or (choice.get("delta") or {}).get("content") or "" for choice in choices)
        assert text == ONCE
        assert choices[-1]["finish_details"]["schema_check"]["attempts"] == 2
        assert all("finish_details" not in choice for choice in choices[:-1])


async def test_responses_and_messages_report_it_too(stand: Stand) -> None:
    parameters = {"type": "object", "properties": {"x": SCHEMA}}
    call = '{"name": "f", "arguments": {"x": ["a", "a"]}}'
    claude = {"tools": [{"name": "f", "input_schema": parameters}], "tool_choice": {"type": "any"}}
    for path, text, body in (
        ("/v1/responses", TWICE, {"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}}),
        ("/v1/messages", call, {"max_tokens": 90, "messages": HELLO, **claude}),
    ):
        answers(stand, text)
        reply = (await post(stand, path, **body)).json()
        report = reply["finish_details"]["schema_check"]
        assert not report["valid"] and report["attempts"] == 1 + MAX_RETRIES
        stand.scheduler.received.clear()
        streamed = (await post(stand, path, stream=True, **body)).text
        told = [event.partition("\n")[0] for event in streamed.split("\n\n") if "schema_check" in event]
        assert told == ["event: response.completed" if path == "/v1/responses" else "event: message_delta"]
        stand.scheduler.received.clear()
        answers(stand, ONCE if path == "/v1/responses" else call.replace('"a", "a"', '"a"'))
        assert (await post(stand, path, **body)).json()["finish_details"]["schema_check"]["valid"]


async def test_each_sample_is_checked_by_itself(stand: Stand) -> None:
    answers(stand, TWICE, ONCE)
    sampling = {"json_schema": json.dumps(SCHEMA), "n": 3, "sampling_seed": 5}
    replies = (await post(stand, "/generate", text="x", sampling_params=sampling)).json()
    assert [reply["text"] for reply in replies] == [ONCE] * 3
    assert len({request.sampling.seed for request in requests_of(stand)}) >= 4


async def test_an_abort_while_the_answer_is_checked(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def verdict(self: SchemaChecks, schema: str, answer: str) -> Verdict:
        asked.set()
        await go.wait()
        return Verdict("late")

    monkeypatch.setattr(SchemaChecks, "verdict", verdict)
    answers(stand, TWICE)
    body = {"json_schema": json.dumps(SCHEMA)}
    call = asyncio.create_task(post(stand, "/generate", text="x", rid="mine", sampling_params=body))
    await asked.wait()
    stand.manager.abort("mine")
    assert (await call).json()["meta_info"]["finish_reason"]["type"] == "abort"
    go.set()
    await asyncio.sleep(0)
    assert len(requests_of(stand)) == 1 and stand.manager.num_in_flight == 0


async def test_strictness_goes_to_the_engine(stand: Stand) -> None:
    stand.scheduler.unenforced = ()
    answers(stand, ONCE)
    await post(stand, "/v1/chat/completions", messages=HELLO, response_format=FORMAT)
    strict = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
    choice = (await post(stand, "/v1/chat/completions", messages=HELLO, response_format=strict)).json()["choices"][0]
    assert "finish_details" not in choice
    assert [request.sampling.json_schema_strict for request in requests_of(stand)] == [False, True]


def test_the_check_itself() -> None:
    assert check(SCHEMA, ONCE) == Verdict()
    no_json = Verdict("the answer is not JSON: Expecting ',' delimiter: line 1 column 5 (char 4)", is_whole=False)
    assert check(SCHEMA, '["a"') == no_json
    older = {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 3, "exclusiveMinimum": True}
    assert check(older, "3").error is not None and check(older, "4").error is None
    verdict = check({"$ref": "https://example.com/x.json"}, "1")
    assert verdict.is_final and verdict.error is not None and "cannot be checked" in verdict.error
    own = {"$id": "tool0", "$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}
    assert check({"properties": {"a": own}}, '{"a": 1}') == Verdict() and check({"properties": {"a": own}}, '{"a": "x"}').error


async def test_a_pattern_that_takes_for_ever_is_given_up() -> None:
    checks = SchemaChecks()
    try:
        verdict = await checks.verdict(json.dumps({"pattern": "^(a|a)*$"}), json.dumps("a" * 60 + "b"))
        assert verdict.is_final and verdict.error is not None and verdict.error.startswith("checking the answer took more than")
        assert await checks.verdict(json.dumps(SCHEMA), ONCE) == Verdict()
    finally:
        checks.close()


def test_reasoning_is_no_part_of_the_answer(stand: Stand) -> None:
    tokenizer = stand.manager.need_tokenizer()
    vocabulary = tokenizer.vocabulary
    end = tokenizer.encode("x", add_special_tokens=False)[0]
    ids = [*tokenizer.encode("[1", add_special_tokens=False), end, *tokenizer.encode(ONCE, add_special_tokens=False)]
    request = TokenizedReq("r", [1], SamplingParams(json_schema="{}"), grammar_after=(end,))
    assert answer_of(TokenOut("r", ids), request, vocabulary) == ONCE
    plain = msgspec.structs.replace(request, grammar_after=())
    assert answer_of(TokenOut("r", ids[3:]), plain, vocabulary) == ONCE


def test_another_attempt_is_another_answer() -> None:
    request = TokenizedReq("r", [1], SamplingParams(json_schema="{}", temperature=1.0, top_k=1, seed=2**63 - 1))
    again = next_attempt(request, 1)
    assert not again.sampling.is_greedy and again.sampling.seed == 0 and request.sampling.top_k == 1
    warm = TokenizedReq("r", [1], SamplingParams(json_schema="{}", temperature=0.3, top_k=5, seed=4))
    assert (again := next_attempt(warm, 2)).sampling.seed == 6 and (again.sampling.temperature, again.sampling.top_k) == (
        0.3,
        5,
    )


@pytest.mark.parametrize(
    ("limits", "text", "finish"),
    [
        ({"stop": ["b"]}, '["a", "', {"type": "stop", "matched": "b"}),
        ({"stop": [", "], "no_stop_trim": True}, '["a", ', {"type": "stop", "matched": ", "}),
        ({"max_new_tokens": 3}, None, {"type": "length", "length": 3}),
    ],
)
async def test_a_cut_answer_is_not_generated_again(stand: Stand, limits: dict[str, Any], text: str, finish: Any) -> None:
    answers(stand, '["a", "b"]')
    body = {"json_schema": json.dumps(SCHEMA), **limits}
    reply = (await post(stand, "/generate", text="x", sampling_params=body)).json()
    assert reply["meta_info"]["finish_reason"] == finish and len(requests_of(stand)) == 1
    assert text is None or reply["text"] == text
    stand.scheduler.received.clear()
    choice = (await post(stand, "/v1/chat/completions", messages=HELLO, response_format=FORMAT, stop=["b"])).json()["choices"][
        0
    ]
    assert choice["finish_reason"] == "stop" and "finish_details" not in choice and len(requests_of(stand)) == 1


async def test_a_whole_answer_before_a_stop_is_checked_once(stand: Stand) -> None:
    """No other answer would be cut elsewhere; but what is wrong with this one is told."""
    answers(stand, TWICE)
    body = {"json_schema": json.dumps(SCHEMA), "stop": ["]"], "no_stop_trim": True}
    reply = (await post(stand, "/generate", text="x", sampling_params=body)).json()
    assert reply["text"] == TWICE and len(requests_of(stand)) == 1
    assert not reply["meta_info"]["finish_reason"]["schema_check"]["valid"]


@pytest.mark.parametrize("by", ["stop", "stop_token_ids"])
async def test_the_models_own_end_cuts_nothing(stand: Stand, by: str) -> None:
    """Clients name it among their stops as well."""
    vocabulary = stand.manager.need_tokenizer().vocabulary
    end = min(vocabulary.eos_token_ids)
    name = vocabulary.token_bytes[end].decode()
    answers(stand, TWICE, ONCE)
    body = {"json_schema": json.dumps(SCHEMA), by: [name if by == "stop" else end]}
    reply = (await post(stand, "/generate", text="x", sampling_params=body)).json()
    assert reply["text"] == ONCE and len(requests_of(stand)) == 2


async def test_what_the_attempts_cost(stand: Stand) -> None:
    answers(stand, TWICE, TWICE, ONCE)
    reply = (await post(stand, "/v1/chat/completions", messages=HELLO, response_format=FORMAT)).json()
    tokenizer = stand.manager.need_tokenizer()
    once, twice = (len(tokenizer.encode(text, add_special_tokens=False)) + 1 for text in (ONCE, TWICE))
    assert reply["usage"]["completion_tokens"] == once
    report = reply["choices"][0]["finish_details"]["schema_check"]
    assert (report["attempts"], report["discarded_tokens"]) == (3, 2 * twice)


CALLS = {
    "type": "object",
    "properties": {"name": {"const": "f"}, "arguments": {"$ref": "#/$defs/f"}},
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
EITHER = {
    "anyOf": [{"$ref": "#/$defs/(answer)"}, {"type": "array", "items": {"anyOf": [CALLS, {**CALLS, "properties": {"name": {"const": "g"}}}]}}],
    "$defs": {
        "f": {"type": "object", "properties": {"x": SCHEMA}},
        "(answer)": {"type": "object", "properties": {"tags": SCHEMA, "size": {"type": "integer"}}, "required": ["tags"]},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ('{"tags": ["a", "a"]}', "$.tags: ['a', 'a'] has non-unique elements"),
        ('{"tags": [], "size": "x"}', "$.size: 'x' is not of type 'integer'"),
        ('{"size": 1}', "$: 'tags' is a required property"),
        ('[{"name": "f", "arguments": {"x": ["a", "a"]}}]', "$[0].arguments.x: ['a', 'a'] has non-unique elements"),
        ('[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"x": [1]}}]', "$[1].arguments.x[0]: 1 is not of type 'string'"),
    ],
)  # fmt: skip
def test_the_error_is_that_of_the_branch_that_was_meant(answer: str, error: str) -> None:
    assert check(EITHER, answer).error == error
