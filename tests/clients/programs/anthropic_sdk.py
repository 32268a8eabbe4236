"""Anthropic's SDK: messages, streams, typed answers, a tool runner, counts, errors. Usage: anthropic_sdk.py URL MODEL"""

from __future__ import annotations

import asyncio
import sys

import anthropic
from pydantic import BaseModel

URL, MODEL = sys.argv[1:3]
HELLO = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
JASON = [{"role": "user", "content": "Jason is 25 years old."}]
ROME = [{"role": "user", "content": "What is the weather in Rome?"}]
GREEDY = {"temperature": 0}


class Person(BaseModel):
    name: str
    age: int


@anthropic.beta_tool
def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: its name
    """
    return f"18 degrees in {city}"


def messages(client: anthropic.Anthropic) -> None:
    reply = client.messages.create(model=MODEL, max_tokens=24, messages=HELLO, extra_body=GREEDY)
    assert "Paris" in reply.content[0].text and reply.stop_reason == "end_turn", reply
    assert reply._request_id.startswith("req_")
    with client.messages.stream(model=MODEL, max_tokens=24, messages=HELLO, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == reply.content[0].text
    assert final.usage.output_tokens == reply.usage.output_tokens
    count = client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens
    assert count == reply.usage.input_tokens + reply.usage.cache_read_input_tokens


async def together() -> None:
    async with anthropic.AsyncAnthropic(base_url=URL, api_key="none") as client:
        work = (client.messages.create(model=MODEL, max_tokens=5, messages=HELLO) for _ in range(4))
        assert len({reply.id for reply in await asyncio.gather(*work)}) == 4


def typed(client: anthropic.Anthropic) -> None:
    for api in (client.messages, client.beta.messages):
        person = api.parse(model=MODEL, max_tokens=100, messages=JASON, output_format=Person, extra_body=GREEDY).parsed_output
        assert person == Person(name="Jason", age=25), person
    with client.messages.stream(model=MODEL, max_tokens=100, messages=JASON, output_format=Person, extra_body=GREEDY) as stream:
        assert stream.get_final_message().parsed_output == Person(name="Jason", age=25)


def tools(client: anthropic.Anthropic) -> None:
    for streams in (False, True):
        ask = {"model": MODEL, "max_tokens": 60, "messages": ROME, "tools": [get_weather], "tool_choice": {"type": "any"}}
        runner = client.beta.messages.tool_runner(**ask, max_iterations=2, stream=streams, extra_body=GREEDY)
        replies = [turn.get_final_message() if streams else turn for turn in runner]
        assert [reply.stop_reason for reply in replies] == ["tool_use", "tool_use"], replies
        assert replies[0].content[0].input == {"city": "Rome"}


def refusals(client: anthropic.Anthropic) -> None:
    wrong = [
        (
            lambda: client.messages.create(model=MODEL, max_tokens=9, messages=HELLO, extra_body={"temperature": -3}),
            "temperature",
        ),
        (lambda: client.messages.create(model=MODEL, max_tokens=9000, messages=HELLO), "exceed context limit"),
        (
            lambda: client.messages.create(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "x " * 20_000}]),
            "too long",
        ),
        (lambda: client.messages.batches.create(requests=[]), "batches"),
    ]
    for ask, words in wrong:
        try:
            ask()
        except anthropic.BadRequestError as error:
            assert words in error.body["error"]["message"] and error.request_id.startswith("req_"), error
        else:
            raise AssertionError(f"taken: {words}")


def main() -> None:
    client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
    for part in (messages, typed, tools, refusals):
        part(client)
    asyncio.run(together())
    print("all good")


if __name__ == "__main__":
    main()
