"""The openai package's Responses: whole, streamed, stored, parsed, tools, log probabilities. Usage: openai_responses.py URL MODEL"""

from __future__ import annotations

import asyncio
import json
import sys

import openai
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
QUESTION = "What is the capital of France? Answer in one sentence."
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
WEATHER = {"type": "function", "name": "get_weather", "description": "Weather", "parameters": SCHEMA, "strict": True}


class City(BaseModel):
    name: str = Field(max_length=20)
    population: int = Field(ge=0, le=100_000_000)


def texts(client: openai.OpenAI) -> None:
    common = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 24}
    reply = client.responses.create(**common, truncation="auto", reasoning={"effort": "none"}, text={"verbosity": "low"})
    assert "Paris" in reply.output_text
    assert client.responses.input_tokens.count(model=MODEL, input=QUESTION).input_tokens == reply.usage.input_tokens
    with client.responses.stream(**common) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == reply.output_text
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == reply.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert client.responses.retrieve(reply.id).output_text == reply.output_text
    scored = client.responses.create(**common, include=["message.output_text.logprobs"], top_logprobs=2)
    positions = scored.output[0].content[0].logprobs
    assert "".join(position.token for position in positions).startswith(scored.output_text)
    assert all(len(position.top_logprobs) == 2 for position in positions)
    parsed = client.responses.parse(
        model=MODEL, input="Tell me about Rome.", text_format=City, temperature=0, max_output_tokens=200
    )
    assert isinstance(parsed.output_parsed, City)


def tools(client: openai.OpenAI) -> None:
    common = {"model": MODEL, "tools": [WEATHER, {"type": "web_search"}], "temperature": 0, "max_output_tokens": 60}
    question = {"role": "user", "content": "What is the weather in Rome?"}
    asked = client.responses.create(**common, input=[question], tool_choice="required")
    (call,) = asked.output
    assert call.name == "get_weather" and "city" in json.loads(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}
    for before in ([question, call], [question, {"type": "item_reference", "id": call.id}]):
        assert client.responses.create(**common, input=[*before, result], tool_choice="none").output_text
    assert client.responses.create(**common, input=[result], previous_response_id=asked.id, tool_choice="none").output_text
    with client.responses.stream(**common, input=[question], tool_choice={"type": "function", "name": "get_weather"}) as stream:
        (streamed,) = stream.until_done().get_final_response().output
    assert streamed.arguments == call.arguments


def errors(client: openai.OpenAI) -> None:
    for wrong, param in (({"max_output_tokens": 10**7}, "max_output_tokens"), ({"input": []}, "input")):
        try:
            client.responses.create(**{"model": MODEL, "input": QUESTION, **wrong})
        except openai.BadRequestError as error:
            assert error.param == param and param in error.body["message"], error
        else:
            raise AssertionError(f"{wrong} was accepted")
    try:
        client.responses.compact(model=MODEL, input=QUESTION)
    except openai.BadRequestError as error:
        assert "summary" in error.body["message"], error
    else:
        raise AssertionError("a compaction that nobody else could read was made")
    assert client.models.retrieve("default").id == MODEL


async def many() -> None:
    async with openai.AsyncOpenAI(base_url=URL, api_key="None") as client:
        asked = [client.responses.create(model=MODEL, input=f"{i} plus one", max_output_tokens=16) for i in range(8)]
        assert all(reply.output for reply in await asyncio.gather(*asked))
        stream = await client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=500, stream=True)
        async for event in stream:
            if event.type == "response.output_text.delta":
                break
        await stream.close()


if __name__ == "__main__":
    with openai.OpenAI(base_url=URL, api_key="None", max_retries=0) as sync_client:
        for part in (texts, tools, errors):
            part(sync_client)
    asyncio.run(many())
    print("all good")
