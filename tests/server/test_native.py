"""/generate and related routes: the shapes that clients of the native API read."""

from __future__ import annotations

import json
import pstats
import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from sglang.srt.config import SamplingDefaults
from sglang.srt.server.native.not_done import NOT_DONE
from tests.server.conftest import MakeStand, Stand
from tests.server.echo_scheduler import logprob_of
from tests.server.http_tools import client_of, events_of

TEXT = "The quick brown fox jumps"


async def post(stand: Stand, path: str, body: Any) -> httpx.Response:
    async with client_of(stand) as client:
        return await client.post(path, json=body)


async def generate(stand: Stand, **body: Any) -> Any:
    response = await post(stand, "/generate", body)
    assert response.status_code == 200, response.text
    return response.json()


def sampling(max_new_tokens: int | None = 4, **more: Any) -> dict[str, Any]:
    return {"max_new_tokens": max_new_tokens, "temperature": 0, **more}


async def test_one_prompt(stand: Stand) -> None:
    tokenizer = stand.manager.need_tokenizer()
    ids = tokenizer.encode(TEXT)
    began = time.monotonic()
    reply = await generate(stand, text=TEXT, sampling_params=sampling())
    elapsed = time.monotonic() - began
    assert reply["text"] == tokenizer.decode(ids[:4])
    assert reply["output_ids"] == ids[:4]
    meta = reply["meta_info"]
    assert meta["finish_reason"] == {"type": "length", "length": 4}
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == (len(ids), 4, 0)
    assert len(meta["id"]) == 32
    assert 0 < meta["e2e_latency"] <= elapsed
    assert "input_token_logprobs" not in meta


async def test_a_batch_with_samples_comes_in_order(stand: Stand) -> None:
    tokenizer = stand.manager.need_tokenizer()
    texts = ["Paris is", "London is the", "a calculator"]
    replies = await generate(stand, text=texts, sampling_params=[sampling(n) | {"n": 2} for n in (1, 2, 3)])
    assert len(replies) == 6
    for i, reply in enumerate(replies):
        assert reply["output_ids"] == (tokenizer.encode(texts[i // 2]) * 3)[: i // 2 + 1]
    assert len({reply["meta_info"]["id"] for reply in replies}) == 6
    single = await generate(stand, text=["Paris is"], sampling_params=sampling())
    assert isinstance(single, list) and len(single) == 1


async def test_streams_are_cumulative_by_default(stand: Stand) -> None:
    whole = await generate(stand, text=TEXT, sampling_params=sampling(9))
    response = await post(stand, "/generate", {"text": TEXT, "sampling_params": sampling(9), "stream": True})
    events = events_of(response.text)
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert len(chunks) == 9
    texts = [chunk["text"] for chunk in chunks]
    assert all(b.startswith(a) for a, b in zip(texts, texts[1:], strict=False))
    assert texts[-1] == whole["text"]
    assert chunks[-1]["output_ids"] == whole["output_ids"]
    assert [c["meta_info"]["completion_tokens"] for c in chunks] == list(range(1, 10))
    assert [c["meta_info"]["finish_reason"] for c in chunks[:-1]] == [None] * 8
    assert chunks[-1]["meta_info"]["finish_reason"] == {"type": "length", "length": 9}


async def test_streams_can_be_disjoint(make_stand: MakeStand) -> None:
    stand = make_stand(stream_output=True)
    body = {"text": [TEXT, "Paris is"], "sampling_params": sampling(6), "stream": True, "return_logprob": True}
    events = events_of((await post(stand, "/generate", body)).text)
    chunks = [json.loads(event) for event in events[:-1]]
    for index, text in enumerate([TEXT, "Paris is"]):
        mine = [chunk for chunk in chunks if chunk["index"] == index]
        whole = await generate(stand, text=text, sampling_params=sampling(6), return_logprob=True)
        assert "".join(chunk["text"] for chunk in mine) == whole["text"]
        joined = [entry for chunk in mine for entry in chunk["meta_info"]["output_token_logprobs"]]
        assert joined == whole["meta_info"]["output_token_logprobs"]


async def test_stream_interval_joins_chunks(make_stand: MakeStand) -> None:
    stand = make_stand(stream_interval=4)
    body = {"text": TEXT, "sampling_params": sampling(10), "stream": True, "return_logprob": True}
    chunks = [json.loads(event) for event in events_of((await post(stand, "/generate", body)).text)[:-1]]
    assert [len(chunk["output_ids"]) for chunk in chunks] == [1, 5, 9, 10]
    assert len(chunks[-1]["meta_info"]["output_token_logprobs"]) == 10


async def test_logprobs(stand: Stand) -> None:
    tokenizer = stand.manager.need_tokenizer()
    ids = tokenizer.encode(TEXT)
    fields = {"return_logprob": True, "logprob_start_len": 2, "top_logprobs_num": 3, "token_ids_logprob": [7, 9]}
    reply = await generate(stand, text=TEXT, sampling_params=sampling(2), return_text_in_logprobs=True, **fields)
    meta = reply["meta_info"]
    entries = meta["input_token_logprobs"]
    assert [entry[1] for entry in entries] == ids[2:]
    assert entries[0] == [None, ids[2], tokenizer.token_text(ids[2])], "nothing is said about the first"
    assert [entry[0] for entry in entries[1:]] == [logprob_of(i, at) for at, i in enumerate(ids)][3:]
    assert [entry[1] for entry in meta["output_token_logprobs"]] == ids[:2]
    assert meta["input_top_logprobs"][0] is None
    assert len(meta["input_top_logprobs"][1]) == len(meta["output_top_logprobs"][0]) == 3
    assert [entry[1] for entry in meta["output_token_ids_logprobs"][1]] == [7, 9]
    plain = await generate(stand, text=TEXT, sampling_params=sampling(2), return_logprob=True)
    assert plain["meta_info"]["input_token_logprobs"] == []
    assert plain["meta_info"]["output_token_logprobs"][0][2] is None


async def test_the_two_step_select_of_the_original(stand: Stand) -> None:
    """Prime the prompt, then score all prompts with choices; then the choices alone."""
    prompt, choices = "I need a ", ["calculator", "search engine"]
    tokenizer = stand.manager.need_tokenizer()
    primed = await generate(stand, text=prompt, sampling_params={"max_new_tokens": 0})
    assert primed["text"] == ""
    assert primed["meta_info"]["finish_reason"] == {"type": "length", "length": 0}
    start = max(primed["meta_info"]["prompt_tokens"] - 2, 0)
    body = {
        "text": [prompt + choice for choice in choices],
        "sampling_params": {"max_new_tokens": 0, "temperature": 0},
        "return_logprob": True,
        "return_text_in_logprobs": True,
        "logprob_start_len": start,
    }
    replies = await generate(stand, **body)
    for choice, reply in zip(choices, replies, strict=True):
        entries = reply["meta_info"]["input_token_logprobs"]
        assert [entry[1] for entry in entries] == tokenizer.encode(prompt + choice)[start:]
        assert entries[0][0] is None
        assert "".join(entry[2] for entry in entries).endswith(choice)
    ids = tokenizer.encode(choices[0])
    alone = await generate(stand, input_ids=[ids], sampling_params={"max_new_tokens": 0}, return_logprob=True)
    assert [entry[1] for entry in alone[0]["meta_info"]["input_token_logprobs"]] == ids, "a 0-token request scores its prompt"


async def test_an_empty_text_is_a_beginning(stand: Stand) -> None:
    reply = await generate(stand, text="", sampling_params={"max_new_tokens": 0})
    assert reply["meta_info"]["prompt_tokens"] == 1


async def test_length_rules(stand: Stand, make_stand: MakeStand) -> None:
    ids = [5] * 250
    reply = await generate(stand, input_ids=ids, sampling_params=sampling(None))
    assert reply["meta_info"]["completion_tokens"] == 6, "null means the rest of the context"
    reply = await generate(stand, input_ids=ids)
    assert reply["meta_info"]["completion_tokens"] == 6, "a default shrinks to what fits"
    for body, words in (
        ({"input_ids": [5] * 256}, "context"),
        ({"input_ids": ids, "sampling_params": sampling(7)}, "at most 6"),
        ({"input_ids": ids, "sampling_params": {"min_new_tokens": 9, "max_new_tokens": None}}, "min_new_tokens"),
    ):
        response = await post(stand, "/generate", body)
        assert response.status_code == 400
        assert words in response.json()["error"]["message"]
    small = make_stand(info={"max_total_tokens": 100})
    assert (await post(small, "/generate", {"input_ids": [5] * 101})).status_code == 400, "it would never fit the pool"
    lenient = make_stand(allow_auto_truncate=True)
    reply = await generate(lenient, input_ids=[5] * 300, sampling_params=sampling(50))
    assert (reply["meta_info"]["prompt_tokens"], reply["meta_info"]["completion_tokens"]) == (255, 1)


@pytest.mark.parametrize(
    ("path", "body", "applies"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, True),
        ("/v1/completions", {"prompt": "hi"}, True),
        ("/v1/responses", {"input": "hi"}, True),
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}, True),
        ("/generate", {"text": "hi"}, False),
    ],
)
async def test_sampling_defaults_fill_gaps_but_those_of_the_native_api(
    make_stand: MakeStand, path: str, body: dict[str, Any], applies: bool
) -> None:
    stand = make_stand(sampling_defaults=SamplingDefaults({"temperature": 0.25, "top_p": 0.5}, "generation_config.json"))
    async with client_of(stand) as http:
        info = (await http.get("/get_model_info")).json()
        assert info["sampling_defaults"] == {"temperature": 0.25, "top_p": 0.5}
        assert info["sampling_defaults_from"] == "generation_config.json"
        assert (await http.post(path, json=body)).status_code == 200
        given = body | ({"sampling_params": {"temperature": 0.75}} if path == "/generate" else {"temperature": 0.75})
        assert (await http.post(path, json=given)).status_code == 200
    left_open, said = (m.sampling for m in stand.scheduler.received[-2:])  # type: ignore[union-attr]
    assert (left_open.temperature, left_open.top_p) == ((0.25, 0.5) if applies else (1.0, 1.0))
    assert (said.temperature, said.top_p) == (0.75, 0.5 if applies else 1.0)


SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "boolean"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})


@pytest.mark.parametrize(
    ("call", "more", "applies"),
    [
        (CHAT, {}, True),
        (CHAT, {"temperature": 0.5}, True),
        (CHAT, {"temperature": 0}, False),
        (CHAT, {"top_k": 1}, False),
        (CHAT, {"response_format": {"type": "text"}}, True),
        (CHAT, {"response_format": SCHEMA}, False),
        (CHAT, {"regex": "[a-z]+"}, False),
        (CHAT, {"tools": [TOOL], "tool_choice": "none"}, True),
        (CHAT, {"tools": [TOOL]}, False),
        (("/v1/completions", {"prompt": "hi", "max_tokens": 2}), {}, True),
        (("/v1/completions", {"prompt": "hi", "max_tokens": 2}), {"temperature": 0}, False),
        (("/v1/completions", {"prompt": "hi", "max_tokens": 2}), {"ebnf": 'root ::= "a"'}, False),
        (("/v1/responses", {"input": "hi", "max_output_tokens": 16}), {}, True),
        (("/v1/responses", {"input": "hi", "max_output_tokens": 16}), {"temperature": 0}, False),
        (("/v1/messages", CHAT[1]), {}, True),
        (("/v1/messages", CHAT[1]), {"temperature": 0}, False),
    ],
)
async def test_the_models_own_penalties_are_for_free_text_that_is_sampled(
    make_stand: MakeStand, call: tuple[str, dict[str, Any]], more: dict[str, Any], applies: bool
) -> None:
    """An operator's apply to all, and what a request asks for comes first."""
    defaults = SamplingDefaults({"temperature": 0.25, "presence_penalty": 1.25, "repetition_penalty": 1.5}, "the alias")
    stand = make_stand(sampling_defaults=defaults, preferred_sampling_params={"frequency_penalty": 0.75})
    path, body = call
    async with client_of(stand) as http:
        assert (await http.post(path, json=body | more)).status_code == 200
    sampling = stand.scheduler.received[-1].sampling  # type: ignore[union-attr]
    assert (sampling.presence_penalty, sampling.repetition_penalty) == ((1.25, 1.5) if applies else (0.0, 1.0))
    assert sampling.frequency_penalty == 0.75


async def test_a_request_may_ask_for_a_penalty_where_the_models_do_not_apply(make_stand: MakeStand) -> None:
    stand = make_stand(sampling_defaults=SamplingDefaults({"presence_penalty": 1.25}, "the alias"))
    async with client_of(stand) as http:
        for more in ({"temperature": 0, "presence_penalty": 0.5}, {"presence_penalty": 0}):
            assert (await http.post(CHAT[0], json=CHAT[1] | more)).status_code == 200
    asked = [m.sampling.presence_penalty for m in stand.scheduler.received]  # type: ignore[union-attr]
    assert asked == [0.5, 0.0]


async def test_preferred_sampling_params_fill_gaps(make_stand: MakeStand) -> None:
    stand = make_stand(preferred_sampling_params={"max_new_tokens": 3, "stop": "zzz", "top_k": 5})
    reply = await generate(stand, text=TEXT)
    assert reply["meta_info"]["completion_tokens"] == 3
    await generate(stand, text=TEXT, sampling_params={"top_k": 9, "max_new_tokens": 1})
    first, second = (m.sampling for m in stand.scheduler.received)  # type: ignore[union-attr]
    assert (first.top_k, first.stop, second.top_k, second.stop) == (5, ("zzz",), 9, ("zzz",))
    async with client_of(stand) as client:
        await client.post("/v1/completions", json={"prompt": TEXT})
    assert stand.scheduler.received[-1].sampling.top_k == 5  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "exactly one of text and input_ids"),
        ({"text": "a", "input_ids": [1]}, "exactly one"),
        ({"text": 5}, "string"),
        ({"text": []}, "empty"),
        ({"input_ids": []}, "empty"),
        ({"input_ids": [[1], []], "sampling_params": []}, "2 prompts"),
        ({"input_ids": [True]}, "integers"),
        ({"input_ids": [1, [2]]}, "integers"),
        ({"input_ids": [-1]}, "vocabulary"),
        ({"input_ids": [10**30]}, "vocabulary"),
        ({"text": "a", "sampling_parms": {}}, "did you mean 'sampling_params'"),
        ({"text": "a", "sampling_params": {"tempature": 1}}, "did you mean 'temperature'"),
        ({"text": "a", "sampling_params": {"top_p": 0}}, "top_p"),
        ({"text": "a", "sampling_params": []}, "dict"),
        ({"text": "a", "image_data": "x"}, "text only"),
        ({"text": "a", "lora_path": "x"}, "serves no adapters"),
        ({"text": "a", "stream": "yes"}, "true or false"),
        ({"text": "a", "rid": 7}, "rid"),
        ({"text": ["a", "b"], "rid": ["x", "x"]}, "differ"),
        ({"text": ["a", "b"], "rid": ["x"]}, "2 prompts"),
        ({"text": "a", "return_logprob": True, "logprob_start_len": 99}, "logprob_start_len"),
        ({"text": "a", "return_logprob": True, "top_logprobs_num": -1}, "top_logprobs_num"),
        ({"text": "a", "return_logprob": True, "token_ids_logprob": [10**6]}, "vocabulary"),
        ({"text": "a", "return_logprob": [True, False]}, "bool"),
        ({"text": "a", "sampling_params": {"regex": "a", "ebnf": "b"}}, "only one constraint"),
        ({"text": "a", "priority": 1.5}, "priority"),
    ],
)
async def test_wrong_requests_are_told_what_is_wrong(stand: Stand, body: dict[str, Any], words: str) -> None:
    response = await post(stand, "/generate", body)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    assert stand.scheduler.received == []


async def test_a_server_without_a_tokenizer_speaks_ids(make_stand: MakeStand) -> None:
    stand = make_stand(with_tokenizer=False)
    reply = await generate(stand, input_ids=[5, 6], sampling_params=sampling(3))
    assert reply["output_ids"] == [5, 6, 5]
    assert "text" not in reply
    for body in ({"text": "a"}, {"input_ids": [1], "sampling_params": {"stop": "x"}}):
        response = await post(stand, "/generate", body)
        assert response.status_code == 400
        assert "tokenizer" in response.json()["error"]["message"]
    async with client_of(stand) as client:
        assert (
            await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
        ).status_code == 400
        assert (await client.get("/get_model_info")).status_code == 200


async def test_tokenize_and_detokenize(stand: Stand) -> None:
    tokenizer = stand.manager.need_tokenizer()
    ids = tokenizer.encode("Füße <|im_end|>")
    reply = (await post(stand, "/tokenize", {"text": "Füße <|im_end|>"})).json()
    assert reply == {"tokens": ids, "count": len(ids), "max_model_len": 256}
    assert (await post(stand, "/v1/tokenize", {"prompt": ["a", "b c"]})).json()["count"] == [1, len(tokenizer.encode("b c"))]
    assert (await post(stand, "/detokenize", {"tokens": ids})).json() == {"text": "Füße ", "prompt": "Füße "}
    body = {"tokens": [ids, [5]], "skip_special_tokens": False}
    assert (await post(stand, "/detokenize", body)).json()["text"][0] == "Füße <|im_end|>"
    for path, bad in (("/tokenize", {"text": 5}), ("/detokenize", {"tokens": [-1]}), ("/detokenize", {"tokens": "x"})):
        assert (await post(stand, path, bad)).status_code == 400


async def test_a_profile_is_written_to_a_file_of_the_servers_choice(stand: Stand) -> None:
    async with client_of(stand) as client:
        assert (await client.post("/stop_profile")).status_code == 400
        assert (await client.post("/start_profile")).status_code == 200
        assert (await client.post("/start_profile")).status_code == 400
        await client.post("/generate", json={"text": "a", "sampling_params": {"max_new_tokens": 1}})
        path = Path((await client.post("/stop_profile")).json()["message"])
    try:
        assert pstats.Stats(str(path)).total_calls > 0  # type: ignore[attr-defined]
    finally:
        shutil.rmtree(path.parent)


@pytest.mark.parametrize("path", sorted(NOT_DONE))
async def test_what_is_not_done_says_so(stand: Stand, path: str) -> None:
    async with client_of(stand) as client:
        response = await client.post(path, json={})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == NOT_DONE[path]


@pytest.mark.parametrize("name", ["top_k", "max_new_tokens", "stop", "json_schema"])
async def test_a_sampling_parameter_beside_the_others_is_sent_to_them(stand: Stand, name: str) -> None:
    async with client_of(stand) as client:
        response = await client.post("/generate", json={"text": "a", name: 1})
    assert response.status_code == 400
    assert f"{name!r}: it belongs into sampling_params" in response.json()["error"]["message"]


async def test_names_of_adapters_are_refused(stand: Stand) -> None:
    async with client_of(stand) as client:
        body = {"model": "test-model:poet", "prompt": "a", "max_tokens": 1}
        response = await client.post("/v1/completions", json=body)
        assert response.status_code == 400
        assert "'poet'" in response.json()["error"]["message"]
        assert (await client.post("/v1/completions", json={**body, "model": "other:poet"})).status_code == 200


NEUTRAL = {
    **dict.fromkeys(("lora_path", "bootstrap_room", "routed_dp_rank", "lora_id", "token_type_ids", "input_embeds")),
    **dict.fromkeys(("background", "return_bytes", "return_entropy", "require_reasoning", "return_hidden_states"), False),
    "data_parallel_rank": 0,
}
NOTED = {"custom_labels": {"a": "b"}, "routing_key": "k", "external_trace_header": {}, "received_time": 1.5, "no_logs": True}


async def test_a_request_as_routers_pass_it_on(stand: Stand) -> None:
    """With all fields of the native API; those that ask for what is not done are refused by name."""
    assert (await generate(stand, text=TEXT, sampling_params=sampling(), **NEUTRAL, **NOTED))["text"]
    batch = await generate(stand, text=[TEXT, TEXT], sampling_params=sampling(), lora_path=[None, None], input_embeds=[])
    assert len(batch) == 2
    for name in NEUTRAL:
        response = await post(stand, "/generate", {"text": TEXT, "sampling_params": sampling(), name: 3})
        assert response.status_code == 400 and name in response.json()["error"]["message"], name
