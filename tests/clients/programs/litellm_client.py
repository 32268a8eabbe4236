"""LiteLLM: completion, streams, tools, schemas, text completion, errors. Usage: litellm_client.py URL MODEL"""

from __future__ import annotations

import sys

import litellm
from cases import run
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
HELLO = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
COMMON = {"api_base": URL, "api_key": "None"}
PROVIDERS = ("openai", "hosted_vllm", "litellm_proxy")
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]},
    },
}


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


def ask(provider: str, **options: object) -> object:
    given = {"messages": HELLO, "temperature": 0, "max_tokens": 24, **options}
    return litellm.completion(model=f"{provider}/{MODEL}", **given, **COMMON)


def answers() -> None:
    for provider in PROVIDERS:
        reply = ask(provider)
        assert "Paris" in reply.choices[0].message.content and reply.usage.completion_tokens > 0
        assert reply.choices[0].finish_reason in ("stop", "length")
        message = reply.choices[0].message.model_dump()
        more = ask(provider, messages=[*HELLO, message, {"role": "user", "content": "And of Italy?"}])
        assert more.choices[0].message.content


def streams() -> None:
    for provider in PROVIDERS:
        whole = ask(provider).choices[0].message.content
        chunks = list(ask(provider, stream=True, stream_options={"include_usage": True}))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole, provider
        rebuilt = litellm.stream_chunk_builder(chunks, messages=HELLO)
        assert rebuilt.choices[0].message.content == whole and rebuilt.usage.completion_tokens > 0


def hints() -> None:
    given = {"seed": 1, "user": "me", "reasoning_effort": "low", "metadata": {"a": "b"}, "top_p": 0.9, "stop": ["zebra"]}
    for provider in PROVIDERS:
        litellm.drop_params = True
        assert (
            ask(provider, max_tokens=3, n=2, temperature=0.5, logprobs=True, top_logprobs=2, **given).choices[1].message.content
        )
    for thinking in ({"type": "enabled", "budget_tokens": 1024}, {"type": "disabled"}):
        assert ask("hosted_vllm", max_tokens=3, thinking=thinking).choices
    litellm.drop_params = False


def tools() -> None:
    for provider in PROVIDERS:
        for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
            reply = ask(provider, tools=[TOOL], tool_choice=choice, max_tokens=60)
            (call,) = reply.choices[0].message.tool_calls
            assert call.function.name == "get_weather" and reply.choices[0].finish_reason == "tool_calls"
        history = [*HELLO, reply.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
        assert ask(provider, messages=history, tools=[TOOL]).choices[0].finish_reason
        chunks = list(ask(provider, tools=[TOOL], tool_choice="required", max_tokens=60, stream=True))
        built = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls[0].function
        assert built.name == "get_weather" and "city" in built.arguments


def schemas() -> None:
    for provider in PROVIDERS:
        reply = ask(provider, response_format=Person, max_tokens=100)
        assert Person.model_validate_json(reply.choices[0].message.content).age >= 0
        assert ask(provider, response_format={"type": "json_object"}).choices[0].message.content.lstrip().startswith("{")


async def asynchronous() -> None:
    several = await litellm.acompletion(model=f"openai/{MODEL}", messages=HELLO, n=2, max_tokens=5, **COMMON)
    assert len(several.choices) == 2
    stream = await litellm.acompletion(model=f"hosted_vllm/{MODEL}", messages=HELLO, max_tokens=5, stream=True, **COMMON)
    assert [chunk async for chunk in stream]


def texts() -> None:
    text = litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt="Once upon", max_tokens=5, **COMMON)
    assert text.choices[0].text
    assert litellm.batch_completion(model=f"openai/{MODEL}", messages=[HELLO, HELLO], max_tokens=3, **COMMON)[1].choices


def errors() -> None:
    for provider, change, word in (
        ("openai", {"temperature": -3}, "temperature"),
        ("hosted_vllm", {"max_tokens": 10**6}, "max_tokens"),
        ("openai", {"max_completion_tokens": 10**6, "max_tokens": None}, "max_completion_tokens"),
    ):
        try:
            ask(provider, num_retries=0, **change)
        except litellm.BadRequestError as error:
            assert word in str(error), error
        else:
            raise AssertionError(f"{change} was accepted")


if __name__ == "__main__":
    run(answers, streams, hints, tools, schemas, asynchronous, texts, errors)
