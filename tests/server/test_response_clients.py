"""What clients of /v1/responses send besides what the answer needs: hints, hosted tools, namespaces, items of other servers. And
what errors call the fields."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest

from sglang.srt.server.openai.responses.input_items import ItemMessages
from sglang.srt.server.openai.responses.response_tools import read_tools
from sglang.srt.server.openai.responses.truncation import _cuts
from tests.server.conftest import MakeStand, Stand
from tests.server.echo_scheduler import logprob_of
from tests.server.http_tools import client_of
from tests.server.test_tools import ARGUMENTS, CALL, prompt_of, received, says

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "name": "get_weather", "parameters": SCHEMA}
USER = {"role": "user", "content": "The quick"}


@pytest.fixture
def stand(make_stand: MakeStand) -> Stand:
    return make_stand(info={"context_len": 2048})


async def ask(stand: Stand, **body: Any) -> httpx.Response:
    async with client_of(stand) as http:
        return await http.post("/v1/responses", json={"input": "The quick", **body})


async def good(stand: Stand, **body: Any) -> dict[str, Any]:
    reply = await ask(stand, **body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def refused(stand: Stand, **body: Any) -> dict[str, Any]:
    reply = await ask(stand, **body)
    assert reply.status_code == 400, reply.text
    return dict(reply.json()["error"])


# --- hints ------------------------------------------------------------------------------------------------------------------

HINTS: list[dict[str, Any]] = [
    {"client_metadata": {"installation": "x" * 5000}, "prompt_cache_key": "k", "safety_identifier": "s"},
    {"include": ["reasoning.encrypted_content", "web_search_call.action.sources", "something.new"]},
    {"truncation": "auto"},
    {"stream_options": {"include_obfuscation": True, "include_usage": True}},
    {"verbosity": "low", "text": {"verbosity": "high", "tone": "dry"}},
    {"reasoning": {"effort": "xhigh", "summary": "auto", "context": "all_turns"}},
    {"context_management": [{"type": "compaction", "compact_threshold": 1000, "note": "n" * 500}], "max_tool_calls": 3},
    {
        "moderation": {"model": "m"},
        "access_programs": {"cyber": "standard"},
        "of_next_month": {"a": [1]},
        "modalities": ["text"],
    },
    {"tools": [{**WEATHER, "defer_loading": True, "allowed_callers": ["direct"], "output_schema": {}, "async": True}]},
    {"logit_bias": {}, "functions": [], "request_id": "r", "prompt": None},
    *(
        {"input": [{"type": kind, "id": "x", "status": "completed", "action": {"query": "q"}}, USER]}
        for kind in ("web_search_call", "file_search_call", "mcp_call", "mcp_list_tools", "tool_search_output")
    ),
    {"input": [{"role": "user", "phase": "x", "content": [{"type": "input_text", "text": "The quick", "of_next_month": 1}]}]},
]


@pytest.mark.parametrize("hints", HINTS, ids=lambda hints: " ".join(hints))
async def test_hints_change_no_answer(stand: Stand, hints: dict[str, Any]) -> None:
    says(stand, "Yes.")
    reply = await good(stand, **hints)
    assert reply["output"][0]["content"][0]["text"] == "Yes."
    assert prompt_of(stand).endswith("<|im_start|>user\nThe quick<|im_end|>\n<|im_start|>assistant\n")


async def test_an_ignored_hint_is_noted_once(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    says(stand, "Yes.")
    caplog.set_level(logging.WARNING, "sglang.srt.server.fields")
    for _ in range(3):
        await good(stand, noted_hint_a=1, include=["noted_b"], tools=[{"type": "noted_c"}, {**WEATHER, "noted_d": 1}])
    lines = [record.getMessage() for record in caplog.records]
    for name in "abcd":
        assert len([line for line in lines if f"_{name}" in line and line.startswith("ignored")]) == 1, lines


@pytest.mark.parametrize(
    "image", ["data:image/png;base64,AA==", {"url": "data:image/png;base64,AA==", "detail": "low", "hint": 1}]
)
async def test_images_take_hints_too(stand: Stand, image: Any) -> None:
    part = {"type": "input_image", "image_url": image, "prompt_cache_breakpoint": {}, "of_next_month": 1}
    error = await refused(stand, input=[{"role": "user", "content": [part]}])
    assert "reads text only" in error["message"], "the hints were no trouble"


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"prompt": {"id": "p"}}, "prompt", "prompt is not supported"),
        ({"conversation": "c"}, "conversation", "conversation"),
        ({"background": True}, "background", "background"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "logit_bias"),
        ({"n": 2}, "n", "n is not supported"),
        *(
            ({name: value}, name, f"{name} is not supported")
            for name, value in (
                ("messages", [USER]),
                ("response_format", {"type": "json_object"}),
                ("max_tokens", 5),
                ("max_new_tokens", 5),
                ("reasoning_effort", "low"),
                ("max_completion_tokens", 5),
                ("system", "Be brief."),
                ("stop_sequences", ["."]),
                ("output_config", {"effort": "low"}),
                ("output_format", {"type": "json_schema"}),
            )
        ),
        ({"truncation": "middle"}, "truncation", "auto or disabled"),
        ({"include": "all"}, "include", "list of strings"),
        ({"max_ouput_tokens": 5}, "max_ouput_tokens", "did you mean 'max_output_tokens'"),
        ({"tools": [{**WEATHER, "parameterss": {}}]}, "parameterss", "parameters"),
        ({"tools": [{"type": "functions", "name": "x"}]}, "functions", "did you mean 'function'"),
        ({"input": [{"type": "computer_call_output"}]}, "input", "'computer_call_output'"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input", "'input_audio'"),
    ],
)
async def test_what_would_change_the_answer_is_refused_by_name(
    stand: Stand, change: dict[str, Any], param: str, words: str
) -> None:
    error = await refused(stand, **change)
    assert error["param"] == param
    assert words in error["message"]


# --- tokens of a prompt, and compaction ---------------------------------------------------------------------------------------

ASKED: list[dict[str, Any]] = [
    {},
    {"instructions": "Be kind.", "tools": [WEATHER], "personality": "friendly"},
    {"tools": [WEATHER, {"type": "web_search"}], "tool_choice": {"type": "function", "name": "get_weather"}},
    {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}, "reasoning": {"effort": "low"}},
    {"input": [USER, {"role": "assistant", "content": "brown"}, USER], "parallel_tool_calls": False},
    {"input": "word " * 3000, "truncation": "auto"},
]


@pytest.mark.parametrize("body", ASKED, ids=lambda body: " ".join(body))
async def test_tokens_are_counted_before_a_response_is_asked_for(stand: Stand, body: dict[str, Any]) -> None:
    says(stand, "Yes.")
    async with client_of(stand) as http:
        first = {"input": "The quick", "model": "m"}
        counted = (await http.post("/v1/responses/input_tokens", json={**first, **body})).json()
        assert counted["object"] == "response.input_tokens" and not stand.scheduler.received
        if "truncation" in body:
            assert counted["input_tokens"] > 2048, "the oldest turns may go, and there is one"
            return
        usage = (await good(stand, **body))["usage"]
        assert counted["input_tokens"] == usage["input_tokens"]
        stored = await good(stand, **body)
        follows = {"input": "More", "previous_response_id": stored["id"]}
        more = (await http.post("/v1/responses/input_tokens", json=follows)).json()
        assert more["input_tokens"] == (await good(stand, **follows))["usage"]["input_tokens"]


async def test_tokens_of_what_is_wrong_are_not_counted(stand: Stand) -> None:
    async with client_of(stand) as http:
        for change, param in (
            ({"input": 5}, "input"),
            ({"max_tokens": 5}, "max_tokens"),
            ({"tool_choice": "f"}, "tool_choice"),
        ):
            reply = await http.post("/v1/responses/input_tokens", json={"input": "x", **change})
            assert reply.status_code == 400 and reply.json()["error"]["param"] == param
        assert (await http.get("/v1/responses/input_tokens")).status_code == 404, "it is the name of no response"


async def test_compaction_is_refused_with_the_way_out(stand: Stand) -> None:
    async with client_of(stand) as http:
        reply = await http.post("/v1/responses/compact", json={"model": "m", "input": [USER]})
    assert reply.status_code == 400 and "summary" in reply.json()["error"]["message"]
    for item in ({"type": "compaction", "encrypted_content": "x"}, {"type": "compaction_trigger"}):
        error = await refused(stand, input=[USER, item])
        assert "compact" in error["message"] and "summary" in error["message"], error


# --- errors name the client's fields -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"max_output_tokens": 100_000}, "max_output_tokens", "max_output_tokens 100000"),
        ({"max_output_tokens": -1}, "max_output_tokens", "max_output_tokens"),
        ({"max_output_tokens": "many"}, "max_output_tokens", "max_output_tokens"),
        ({"input": "word " * 5000}, "input", "context length"),
        ({"input": [USER, {"type": "reasoning"}, {"role": "robot", "content": "x"}]}, "input", "input[2].role"),
        ({"instructions": "Hi", "input": [USER, {"role": "user", "content": [3]}]}, "input", "input[1].content[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": None}]}, "input", "input[0].content"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format", "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": 3}}}, "text.format", "text.format.schema"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort", "reasoning.effort"),
        ({"top_logprobs": 30}, "top_logprobs", "between 0 and 20"),
        ({"tools": [{"type": "web_search"}, {"type": "function", "name": "a b"}]}, "tools", "tools[1].name"),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [WEATHER, {**WEATHER, "name": ""}]}]},
            "tools",
            "tools[0].tools[1]",
        ),
        ({"tools": [{"type": "namespace", "name": "n"}]}, "tools", "tools[0]"),
        ({"tools": [WEATHER, WEATHER]}, "tools", "get_weather"),
    ],
)
async def test_errors_name_the_clients_fields(stand: Stand, change: dict[str, Any], param: str, words: str) -> None:
    error = await refused(stand, **change)
    assert error["param"] == param
    assert words in error["message"]
    assert not any(
        name in error["message"] for name in ("max_new_tokens", "max_completion_tokens", "messages[", "response_format")
    )


# --- tools --------------------------------------------------------------------------------------------------------------------

LEFT_OUT = [
    "web_search",
    "web_search_preview",
    "custom",
    "image_generation",
    "local_shell",
    "mcp",
    "code_interpreter",
    "of_next_month",
]


@pytest.mark.parametrize("kind", LEFT_OUT)
async def test_tools_that_are_no_functions_are_left_out(stand: Stand, kind: str) -> None:
    other = {"type": kind, "name": "other", "server_label": "s", "container": {"type": "auto"}}
    says(stand, CALL)
    for choice in ("auto", "required", {"type": "function", "name": "get_weather"}):
        reply = await good(stand, tools=[other, WEATHER], tool_choice=choice)
        (call,) = reply["output"]
        assert (call["name"], call["arguments"]) == ("get_weather", ARGUMENTS)
        assert "other" not in prompt_of(stand)
        assert reply["tools"] == [other, WEATHER], "the answer says again what was asked"
    says(stand, "Yes.")
    assert (await good(stand, tools=[other]))["output"][0]["type"] == "message"
    entries = [{"type": kind}, {"type": "function", "name": "get_weather"}]
    await good(stand, tools=[other, WEATHER], tool_choice={"type": "allowed_tools", "mode": "required", "tools": entries})
    assert received(stand).sampling.json_schema is not None
    await good(stand, tools=[other, WEATHER], tool_choice={"type": "allowed_tools", "mode": "auto", "tools": entries[:1]})
    assert "get_weather" not in prompt_of(stand)


@pytest.mark.parametrize("kind", LEFT_OUT)
async def test_a_forced_tool_that_is_no_function_is_refused(stand: Stand, kind: str) -> None:
    other = {"type": kind, "name": "other"}
    only = {"type": "allowed_tools", "mode": "required", "tools": [{"type": kind, "name": "other"}]}
    for tools, choice in (([other], "required"), ([other, WEATHER], {"type": kind, "name": "other"}), ([other, WEATHER], only)):
        error = await refused(stand, tools=tools, tool_choice=choice)
        assert error["param"] == "tool_choice"
        assert f"'{kind}'" in error["message"]


async def test_functions_of_namespaces(stand: Stand) -> None:
    other = {"type": "function", "name": "close", "parameters": {"type": "object", "properties": {}}}
    tools = [
        {
            "type": "namespace",
            "name": "one",
            "description": "d",
            "tools": [other, WEATHER, {"type": "custom", "name": "patch"}],
        },
        {"type": "namespace", "name": "two", "description": "d", "tools": [{**other, "defer_loading": True}]},
        WEATHER,
    ]
    for shown, namespace, name in (
        ("get_weather", None, "get_weather"),
        ("one__get_weather", "one", "get_weather"),
        ("close", "one", "close"),
        ("two__close", "two", "close"),
    ):
        says(stand, json.dumps({"name": shown, "arguments": {"city": "Paris"}}))
        (call,) = (await good(stand, tools=tools))["output"]
        assert (call.get("namespace"), call["name"]) == (namespace, name)
        choice = {"type": "function", "name": name, **({"namespace": namespace} if namespace else {})}
        await good(stand, tools=tools, tool_choice=choice)
        assert f'"const": "{shown}"' in (received(stand).sampling.json_schema or "")
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "18 degrees"}
        await good(stand, input=[USER, call, result], tools=tools)
        assert f'"name": "{shown}"' in prompt_of(stand).split("<|im_start|>assistant")[1]
    assert "patch" not in prompt_of(stand)


async def test_items_may_add_tools(stand: Stand) -> None:
    """Each once, wherever it is defined; what the request itself defines counts."""
    other = {"type": "function", "name": "close", "parameters": {"type": "object", "properties": {}}}
    item = {
        "type": "additional_tools",
        "role": "developer",
        "tools": [WEATHER, {"type": "namespace", "name": "n", "tools": [other]}],
    }
    says(stand, json.dumps({"name": "close", "arguments": {}}))
    (call,) = (await good(stand, input=[item, USER, item], tools=[{**WEATHER, "description": "mine"}]))["output"]
    assert (call["namespace"], call["name"]) == ("n", "close")
    assert prompt_of(stand).count('"name": "get_weather"') == 1 and "mine" in prompt_of(stand)
    async with client_of(stand) as http:
        response = await http.post("/v1/responses", json={"input": [{**item, "tools": None}, USER]})
    assert response.status_code == 400 and "additional_tools" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "kind", ["web_search_call", "mcp_call", "mcp_approval_request", "mcp_approval_response", "program", "program_output"]
)
async def test_what_hosted_tools_left_is_not_read(stand: Stand, kind: str) -> None:
    says(stand, "Yes.")
    await good(stand, input=[USER, {"type": kind, "id": "x", "code": "hidden", "result": "hidden"}, USER])
    assert "hidden" not in prompt_of(stand)


async def test_a_forced_call_wins_over_a_format(stand: Stand) -> None:
    says(stand, CALL)
    text = {
        "format": {"type": "json_schema", "name": "x", "strict": True, "schema": {"type": "object", "properties": {"a": {}}}}
    }
    for choice in ("required", {"type": "function", "name": "get_weather"}):
        for form in (text, {"format": {"type": "json_object"}}):
            (call,) = (await good(stand, tools=[WEATHER], tool_choice=choice, text=form))["output"]
            assert call["name"] == "get_weather"
            sampling = received(stand).sampling
            assert '"const": "get_weather"' in (sampling.json_schema or "")
            assert sampling.json_schema_strict == {"#/$defs/get_weather": False}, "how strict a call is says its tool"
    error = await refused(stand, tools=[WEATHER], tool_choice="required", text={"format": {"type": "json_schema", "schema": 3}})
    assert error["param"] == "text.format", "what is no schema is wrong still"


async def test_a_format_gives_way_in_chats_too(stand: Stand) -> None:
    function = {key: WEATHER[key] for key in ("name", "parameters")}
    body: dict[str, Any] = {
        "messages": [USER],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
    }
    says(stand, CALL)
    async with client_of(stand) as http:
        tag = {"type": "structural_tag", "structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<a>"]}
        for form in ({"type": "json_object"}, {"type": "text"}, tag):
            reply = await http.post("/v1/chat/completions", json={**body, "response_format": form})
            assert reply.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
            assert received(stand).sampling.structural_tag is None
        refusal = await http.post("/v1/chat/completions", json={**body, "regex": "a+"})
    assert refusal.status_code == 400, "a constraint that was asked for by name does not"


# --- items --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        ({"type": "custom_tool_call", "name": "apply_patch", "input": "*** Begin"}, '"arguments": {"input": "*** Begin"}'),
        ({"type": "local_shell_call", "action": {"type": "exec", "command": ["ls"]}}, '"name": "local_shell"'),
        ({"type": "shell_call", "action": {"commands": ["ls"]}}, '"arguments": {"commands": ["ls"]}'),
        ({"type": "apply_patch_call", "operation": {"type": "delete_file", "path": "a"}}, '"path": "a"'),
        (
            {"type": "function_call", "name": "f", "arguments": "", "async": True, "caller": {"type": "direct"}},
            '"arguments": {}',
        ),
    ],
)
async def test_calls_of_other_tools_in_the_input(stand: Stand, call: dict[str, Any], shown: str) -> None:
    says(stand, "Yes.")
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x", "content": None}
    for output in ("18 files", [{"type": "input_text", "text": "18 files"}], [{"stdout": "18 files", "stderr": ""}]):
        result = {"type": f"{call['type']}_output", "call_id": "c1", "output": output, "status": "completed"}
        await good(stand, input=[USER, reasoning, {**call, "call_id": "c1", "id": "x"}, result])
        assert shown in prompt_of(stand) and "18 files" in prompt_of(stand).split("<|im_start|>")[-2]


# --- a whole turn of an agent ---------------------------------------------------------------------------------------------------


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


async def test_two_turns_as_an_agent_streams_them(stand: Stand) -> None:
    """What coding agents send: no storage, everything again in the second turn, reasoning encrypted."""
    common: dict[str, Any] = {
        "instructions": "Be kind.",
        "tools": [WEATHER, {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}}, {"type": "web_search"}],
        "tool_choice": "auto", "parallel_tool_calls": True, "reasoning": {"effort": "medium", "summary": "auto"}, "store": False,
        "stream": True, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "client_metadata": {"a": "b"},
    }  # fmt: skip
    says(stand, CALL)
    events = events_of((await ask(stand, **common, input=[USER])).text)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert [kind for kind in kinds if not kind.endswith("delta")] == [
        "created", "in_progress", "output_item.added", "function_call_arguments.done", "output_item.done", "completed"
    ]  # fmt: skip
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    item, response = events[-2]["item"], events[-1]["response"]
    assert (item["arguments"], item["status"]) == (ARGUMENTS, "completed")
    assert response["output"] == [item] and response["usage"]["total_tokens"] > 0 and response["store"] is False
    assert "".join(event["delta"] for event in events if event["type"].endswith("arguments.delta")) == ARGUMENTS
    says(stand, "It rains.")
    result = {"type": "function_call_output", "call_id": item["call_id"], "output": "rain"}
    events = events_of((await ask(stand, **common, input=[USER, item, result])).text)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert [kind for kind in kinds if not kind.endswith("delta")] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.done", "content_part.done",
        "output_item.done", "completed",
    ]  # fmt: skip
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "It rains."
    assert f"<|im_start|>assistant\n{CALL}<|im_end|>\n<|im_start|>user\nResult of get_weather:\nrain" in prompt_of(stand)


# --- models ---------------------------------------------------------------------------------------------------------------------


async def test_the_served_model_is_found_by_its_name_and_as_default(stand: Stand) -> None:
    async with client_of(stand) as http:
        cards = [(await http.get(f"/v1/models/{name}")).json() for name in ("default", "test-model")]
        assert cards[0] == cards[1] == (await http.get("/v1/models")).json()["data"][0]
        missing = await http.get("/v1/models/other")
    assert cards[0]["id"] == "test-model"
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


# --- references ---------------------------------------------------------------------------------------------------------------


async def test_items_are_referred_to_by_their_ids(make_stand: MakeStand) -> None:
    """What clients send in the place of what they know to be stored."""
    stand = make_stand(info={"context_len": 2048}, api_keys=("one", "two"))
    async with client_of(stand, authorization="Bearer one") as one, client_of(stand, authorization="Bearer two") as two:

        async def post(http: httpx.AsyncClient, *items: dict[str, Any], **more: Any) -> httpx.Response:
            return await http.post("/v1/responses", json={"input": [USER, *items], "tools": [WEATHER], **more})

        says(stand, f"I look. {CALL}")
        text, call = (await post(one)).json()["output"]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}
        says(stand, "It rains.")
        referring = [{"type": "item_reference", "id": text["id"]}, {"id": call["id"]}, result]
        reply = (await post(one, *referring)).json()
        prompt = prompt_of(stand)
        await post(one, text, call, result)
        assert prompt == prompt_of(stand), "as if the items were there"
        kept = (await one.get(f"/v1/responses/{reply['id']}/input_items")).json()["data"]
        assert kept == [{"type": "message", **USER, "id": kept[0]["id"]}, text, call, {**result, "id": kept[3]["id"]}]
        assert (await post(two, *referring)).status_code == 400, "they belong to a key"
        for wrong in ({"id": "msg_0"}, {"type": "item_reference"}, {"type": "item_reference", "id": 3}, referring[0]):
            refusal = (await post(one, referring[0], wrong)).json()["error"]
            assert refusal["param"] == "input" and "input[2]" in refusal["message"]
        says(stand, "Not kept.")
        (gone,) = (await post(one, store=False)).json()["output"]
        assert (await post(one, {"type": "item_reference", "id": gone["id"]})).status_code == 400


# --- log probabilities ----------------------------------------------------------------------------------------------------------


def tokens_of(positions: list[dict[str, Any]]) -> str:
    return b"".join(bytes(position["bytes"]) for position in positions).decode()


@pytest.mark.parametrize("asked", [{"include": ["message.output_text.logprobs"], "top_logprobs": 2}, {"top_logprobs": 2}])
async def test_log_probabilities_of_a_text(stand: Stand, asked: dict[str, Any]) -> None:
    says(stand, "The quick brown fox jumps")
    (item,) = (await good(stand, **asked))["output"]
    (part,) = item["content"]
    assert tokens_of(part["logprobs"]) == part["text"], "without what ended the answer"
    chat = {"messages": [USER], "logprobs": True, "top_logprobs": 2}
    async with client_of(stand) as http:
        reply = (await http.post("/v1/chat/completions", json=chat)).json()
    assert reply["choices"][0]["logprobs"]["content"][:-1] == part["logprobs"]
    events = events_of((await ask(stand, **asked, stream=True)).text)
    deltas = [event for event in events if event["type"].endswith("text.delta")]
    assert len(deltas) > 2
    assert [position for event in deltas for position in event["logprobs"]] == part["logprobs"]
    done = {event["type"]: event for event in events}
    assert done["response.output_text.done"]["logprobs"] == part["logprobs"]
    assert (
        done["response.content_part.done"]["part"] == done["response.completed"]["response"]["output"][0]["content"][0] == part
    )


async def test_log_probabilities_of_texts_among_other_things(make_stand: MakeStand) -> None:
    """Of reasoning and calls there is none, even where they say the same as the text."""
    stand = make_stand(info={"context_len": 2048}, reasoning_parser="qwen3")
    says(stand, f"<think>Yes. Yes.</think>Yes. We look. {CALL}")
    async with client_of(stand) as http:
        body = {"input": "The quick", "tools": [WEATHER], "include": ["message.output_text.logprobs"]}
        reply = (await http.post("/v1/responses", json=body)).json()
        events = events_of((await http.post("/v1/responses", json={**body, "stream": True})).text)
        kept = (await http.get(f"/v1/responses/{reply['id']}")).json()
    assert [item["type"] for item in reply["output"]] == ["reasoning", "message", "function_call"]
    (part,) = reply["output"][1]["content"]
    assert tokens_of(part["logprobs"]).strip() == part["text"].strip() == "Yes. We look."
    first = len(stand.manager.need_tokenizer().encode("<think>Yes. Yes.</think>", add_special_tokens=False))
    prompt = len(received(stand).input_ids)
    assert part["logprobs"][0]["logprob"] == logprob_of(received_id(stand, "Yes. We look."), prompt + first)
    assert events[-1]["response"]["output"][1]["content"] == reply["output"][1]["content"]
    assert kept == reply


def received_id(stand: Stand, text: str) -> int:
    return stand.manager.need_tokenizer().encode(text, add_special_tokens=False)[0]


async def test_without_being_asked_for_there_are_none(stand: Stand) -> None:
    says(stand, "Yes.")
    assert (await good(stand, top_logprobs=0, include=[]))["output"][0]["content"][0]["logprobs"] == []
    assert received(stand).logprobs is None


# --- truncation ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_turns", [1, 5, 40])
async def test_the_oldest_turns_are_left_out(stand: Stand, num_turns: int) -> None:
    call = {"type": "function_call", "name": "get_weather", "arguments": '{"city": "Paris"}'}
    items: list[dict[str, Any]] = []
    for i in range(num_turns):
        result = {"type": "function_call_output", "call_id": f"c{i}", "output": f"result {i} " + "word " * 60}
        items += [{"role": "user", "content": f"turn {i}"}, {**call, "call_id": f"c{i}"}, result]
    items.append({"role": "user", "content": "The quick"})
    body = {"instructions": "Be kind.", "input": items, "tools": [WEATHER], "max_output_tokens": 100}
    says(stand, "Yes.")
    reply = await good(stand, **body, truncation="auto")
    assert reply["truncation"] == "auto"
    prompt, length = prompt_of(stand), len(received(stand).input_ids)
    shown = [i for i in range(num_turns) if f"turn {i}<" in prompt]
    assert shown == [i for i in range(num_turns) if f"result {i} " in prompt], "no result without its call"
    assert "Be kind." in prompt and "get_weather" in prompt and "The quick<|im_end|>" in prompt
    assert length + 100 <= 2048
    if num_turns < 40:
        assert len(shown) == num_turns
        await good(stand, **body)
        assert prompt == prompt_of(stand), "what fits is left alone"
    else:
        assert shown == list(range(shown[0], num_turns)) and shown[0] > 0
        one_more = items[3 * (shown[0] - 1) :]
        assert (await ask(stand, **{**body, "input": one_more})).status_code == 400, "as many as fit"
        assert (await ask(stand, **body)).status_code == 400


async def test_what_is_too_long_by_itself_is_refused_under_truncation_too(stand: Stand) -> None:
    for long in ("word " * 3000, "word " * 300_000):
        error = await refused(
            stand, truncation="auto", input=[USER, {"role": "assistant", "content": "a"}, {**USER, "content": long}]
        )
        assert error["param"] in ("input", None)
    error = await refused(stand, truncation="auto", input=[USER, {"role": "user", "content": 5}])
    assert "input[1].content" in error["message"]


async def test_many_log_probabilities_are_written_on_another_thread(make_stand: MakeStand) -> None:
    stand = make_stand(info={"context_len": 8192, "max_total_tokens": 8192})
    says(stand, "The quick brown fox jumps. " * 60)
    (part,) = (await good(stand, top_logprobs=3))["output"][0]["content"]
    assert len(part["logprobs"]) > 300 and tokens_of(part["logprobs"]) == part["text"]
    events = events_of((await ask(stand, top_logprobs=3, stream=True)).text)
    assert events[-1]["response"]["output"][0]["content"] == [part]


def test_turns_are_left_out_up_to_a_users_message() -> None:
    """No result stays without its call, nor an answer without its question."""
    roles = ["system", "user", "assistant", "tool", "user", "assistant"]
    assert _cuts([{"role": role} for role in roles]) == [[0, 1, 2, 3, 4, 5], [0, 4, 5]]


def test_calls_that_follow_one_another_are_of_one_message() -> None:
    found = ItemMessages(read_tools(None))
    calls = [{"type": "function_call", "call_id": f"c{i}", "id": f"fc{i}", "name": "f", "arguments": "{}"} for i in range(2)]
    for item in (*calls, {"type": "function_call_output", "call_id": "c0", "output": "1"}, calls[0]):
        found.add(item, "input")
    assert [message["role"] for message in found.messages] == ["assistant", "tool", "assistant"]
    assert [call["id"] for call in found.messages[0]["tool_calls"]] == ["c0", "c1"]
    assert found.messages[1]["tool_call_id"] == "c0"


@pytest.mark.parametrize(
    "given", [{"image_url": "https://a.b/c", "detail": "low"}, {"image_url": {"url": "https://a.b/c", "detail": "low"}}]
)
def test_how_closely_to_look_is_said_beside_an_image_or_in_it(given: dict[str, Any]) -> None:
    found = ItemMessages(read_tools(None))
    found.add({"role": "user", "content": [{"type": "input_image", **given}]}, "input[0]")
    (part,) = found.messages[0]["content"]
    assert part == {"type": "image_url", "image_url": {"url": "https://a.b/c", "detail": "low"}}
