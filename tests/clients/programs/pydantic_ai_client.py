"""Pydantic AI's OpenAI chat model: answers, tools, output types in all their modes, streams, histories. Usage:
pydantic_ai_client.py URL MODEL"""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cases import run
from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelRetry, NativeOutput, PromptedOutput, TextOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIChatModelSettings
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
SETTINGS = OpenAIChatModelSettings(temperature=0, max_tokens=200, timeout=120)
CAPITAL = "What is the capital of France? Answer in one sentence."


class Person(BaseModel):
    """Somebody."""

    name: Annotated[str, Field(max_length=12)]
    age: Annotated[int, Field(ge=0, le=120)]


class City(BaseModel):
    """A city."""

    kind: Literal["city"]
    size: Literal["small", "large"]


model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key="none"))


def agent(**options: object) -> Agent:
    return Agent(model, model_settings=SETTINGS, retries=2, **options)


def answers() -> None:
    result = agent(instructions="You are helpful.").run_sync(CAPITAL)
    assert "Paris" in result.output and result.usage.output_tokens > 0
    more = agent().run_sync("And of Italy?", message_history=result.all_messages())
    assert more.output and len(more.all_messages()) == 4


def hints() -> None:
    settings = OpenAIChatModelSettings(
        max_tokens=5,
        seed=1,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logit_bias={"100": -1},
        stop_sequences=["zebra"],
        parallel_tool_calls=True,
        openai_reasoning_effort="low",
        openai_user="me",
        openai_service_tier="auto",
        openai_logprobs=True,
        openai_top_logprobs=2,
        openai_store=True,
        openai_text_verbosity="low",
        openai_prompt_cache_key="k",
        openai_prediction={"type": "content", "content": "x"},
    )
    result = Agent(model).run_sync("Hello", model_settings=settings)
    assert result.response.provider_details["logprobs"]


async def streams() -> None:
    whole = (await agent().run(CAPITAL)).output
    async with agent().run_stream(CAPITAL) as result:
        pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
    assert len(pieces) > 2 and "".join(pieces) == whole
    assert result.usage.output_tokens > 0


async def streamed_output() -> None:
    for output in (ToolOutput(Person), NativeOutput(Person)):
        async with agent(output_type=output).run_stream("Bob is 42 years old.") as result:
            found = [person async for person in result.stream_output()]
        assert isinstance(found[-1], Person), output


def loud(text: str) -> str:
    return text.upper()


def output_types() -> None:
    for output in (Person, ToolOutput(Person, strict=True), NativeOutput(Person), NativeOutput(Person, strict=True)):
        result = agent(output_type=output).run_sync("Bob is 42 years old.")
        assert isinstance(result.output, Person), output
    assert isinstance(agent(output_type=[Person, City]).run_sync("Rome is large.").output, (Person, City))
    assert isinstance(agent(output_type=NativeOutput([Person, City])).run_sync("Rome is large.").output, (Person, City))
    assert isinstance(agent(output_type=ToolOutput(int)).run_sync("What is two and two?").output, int)
    assert isinstance(agent(output_type=bool).run_sync("Is Rome a city?").output, bool)
    assert agent(output_type=TextOutput(loud)).run_sync(CAPITAL).output.isupper()


def prompted_output() -> None:
    """The format is asked for in words, and held by a JSON object."""
    try:
        result = agent(output_type=PromptedOutput(Person)).run_sync("Bob is 42 years old.")
    except Exception as error:
        assert "retries" in str(error) or "exceeded" in str(error).lower(), error  # a small model's mistake, not the server's
    else:
        assert isinstance(result.output, Person)


def tools() -> None:
    called: list[str] = []
    helper = agent(output_type=[str, Person])

    @helper.tool_plain
    def get_weather(city: str) -> str:
        """The weather in a city."""
        called.append(city)
        return f"It rains in {city}."

    @helper.tool_plain
    def fails(reason: str) -> str:
        """Never works."""
        raise ModelRetry("try something else")

    try:
        result = helper.run_sync("What is the weather in Rome? Use get_weather.", usage_limits=UsageLimits(request_limit=4))
    except Exception as error:
        assert "limit" in str(error) or "retries" in str(error), error  # it may call again and again
    else:
        assert result.output is not None


if __name__ == "__main__":
    run(answers, hints, streams, output_types, prompted_output, tools, streamed_output)
