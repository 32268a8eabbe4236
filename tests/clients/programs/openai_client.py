"""The openai package: sync, async, streams, helpers, parse, errors. Usage: openai_client.py URL MODEL"""

from __future__ import annotations

import asyncio
import sys

import openai
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
HELLO = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


class City(BaseModel):
    name: str = Field(max_length=20)
    population: int = Field(ge=0, le=100_000_000)


def chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, max_tokens=24)
    assert "Paris" in (reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert reply.usage and reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details is not None and reply.usage.prompt_tokens_details.cached_tokens is not None
    several = client.chat.completions.create(model=MODEL, messages=HELLO, n=3, max_tokens=4, seed=1)
    assert [c.index for c in several.choices] == [0, 1, 2]
    again = client.chat.completions.create(model=MODEL, messages=HELLO, n=3, max_tokens=4, seed=1)
    assert [c.message.content for c in again.choices] == [c.message.content for c in several.choices]
    scored = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2)
    positions = scored.choices[0].logprobs.content
    assert len(positions) == 3 and all(len(p.top_logprobs) == 2 and p.logprob <= 0 for p in positions)
    stopped = client.completions.create(model=MODEL, prompt="1, 2, 3, 4, 5, 6,", max_tokens=30, temperature=0, stop=[" 9"])
    assert stopped.choices[0].finish_reason == "stop" and "9" not in stopped.choices[0].text


def streams(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, max_tokens=20).choices[0].message.content
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=HELLO, temperature=0, max_tokens=20, stream=True, stream_options=options
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[0].choices[0].delta.role == "assistant"
    assert sum(c.choices[0].finish_reason is not None for c in chunks if c.choices) == 1
    assert chunks[-1].usage and chunks[-1].choices == []
    pieces = client.completions.create(model=MODEL, prompt="Once upon", max_tokens=8, temperature=0, stream=True)
    text = client.completions.create(model=MODEL, prompt="Once upon", max_tokens=8, temperature=0).choices[0].text
    assert "".join(p.choices[0].text for p in pieces) == text


def helpers(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=HELLO, temperature=0, max_tokens=20) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content
    parsed = client.beta.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Tell me about Rome."}],
        response_format=City,
        max_tokens=200,
        temperature=0,
    )
    city = parsed.choices[0].message.parsed
    assert isinstance(city, City) and isinstance(city.population, int)
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": "And Oslo?"}], response_format=City, max_tokens=200, temperature=0
    ) as stream:
        stream.until_done()
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, City)


def errors(client: openai.OpenAI) -> None:
    for wrong in ({"temperature": -1}, {"messages": []}, {"max_tokens": -5}, {"extra_body": {"no_such_field": 1}}):
        try:
            client.chat.completions.create(**{"model": MODEL, "messages": HELLO, **wrong})
        except openai.BadRequestError as error:
            assert error.status_code == 400 and error.body["message"]
        else:
            raise AssertionError(f"{wrong} was accepted")
    try:
        client.models.retrieve("no-such-model")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found"
    assert client.models.list().data[0].id == MODEL


def deltas(client: openai.OpenAI) -> None:
    """What clients read of every chunk, though it is not OpenAI's."""
    for options in ({}, {"logprobs": True}, {"tools": [openai.pydantic_function_tool(City)], "tool_choice": "required"}):
        for chunk in client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=40, stream=True, **options):
            (choice,) = chunk.choices
            assert choice.delta.reasoning_content is None and chunk.usage is None
            assert choice.delta.tool_calls is None or choice.delta.tool_calls[0].index == 0
            assert choice.finish_reason is not None or choice.matched_stop is None


def tools(client: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(City)
    forced = {"tools": [tool], "tool_choice": "required", "max_tokens": 200, "temperature": 0}
    reply = client.chat.completions.parse(model=MODEL, messages=HELLO, **forced)
    (call,) = reply.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, City) and reply.choices[0].finish_reason == "tool_calls"
    with client.chat.completions.stream(model=MODEL, messages=HELLO, **forced) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert "tool_calls.function.arguments.delta" in kinds and final.function.arguments == call.function.arguments
    both = client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=City, **forced)
    assert both.choices[0].message.tool_calls  # a call that must be goes before the format
    history = [*HELLO, reply.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "Rome"}]
    assert client.chat.completions.create(model=MODEL, messages=history, tools=[tool], max_tokens=5).choices


def hints(client: openai.OpenAI) -> None:
    given = {
        **{"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "safety_identifier": "me", "prompt_cache_key": "k"},
        **{"user": "me", "verbosity": "low", "modalities": ["text"], "reasoning_effort": "none", "parallel_tool_calls": True},
        **{"prediction": {"type": "content", "content": "x"}, "max_completion_tokens": 3, "seed": 1, "logit_bias": {"5": 1}},
    }
    assert client.chat.completions.create(model=MODEL, messages=HELLO, **given).choices
    options = {"include_usage": True, "include_obfuscation": False}
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, stream_options=options, **given)
    assert list(stream)[-1].usage.completion_tokens == 3
    for asked, word in (
        ({"web_search_options": {}}, "web_search_options"),
        ({"max_completion_tokens": 10**6}, "max_completion"),
    ):
        try:
            client.chat.completions.create(model=MODEL, messages=HELLO, **asked)
        except openai.BadRequestError as error:
            assert word in error.body["message"] and word in error.param
        else:
            raise AssertionError(f"{asked} was accepted")


def raw(client: openai.OpenAI) -> None:
    response = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, max_tokens=3)
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    assert response.parse().choices and response.http_response.json()["choices"]
    with client.chat.completions.with_streaming_response.create(model=MODEL, messages=HELLO, max_tokens=3, stream=True) as got:
        assert list(got.iter_lines())[-2] == "data: [DONE]"
    answer = client.chat.completions.create(model="default", messages=HELLO, max_tokens=3).choices[0].message
    for echoed in (answer, answer.model_dump(), answer.to_dict()):
        assert client.chat.completions.create(model=MODEL, messages=[*HELLO, echoed, *HELLO], max_tokens=3).choices
    assert client.models.retrieve("default").id == MODEL


def embeddings(client: openai.OpenAI) -> None:
    try:
        client.embeddings.create(model=MODEL, input="x")
    except openai.BadRequestError as error:
        assert "--is-embedding" in str(error)


async def many() -> None:
    async with openai.AsyncOpenAI(base_url=URL, api_key="None") as client:
        asked = [client.completions.create(model=MODEL, prompt=f"{i} plus one is", max_tokens=4) for i in range(24)]
        assert all(reply.choices[0].text for reply in await asyncio.gather(*asked))
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=500, stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()


if __name__ == "__main__":
    with openai.OpenAI(base_url=URL, api_key="None", max_retries=0) as sync_client:
        for part in (chat, streams, helpers, deltas, tools, hints, raw, embeddings, errors):
            part(sync_client)
    asyncio.run(many())
    print("all good")
