"""Haystack: its OpenAI generators, chat and plain, tools, structured answers, streams. Usage: haystack_client.py URL MODEL"""

from __future__ import annotations

import sys

from cases import run
from haystack import Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import Tool
from haystack.utils import Secret
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
CAPITAL = [ChatMessage.from_user("What is the capital of France? Answer in one sentence.")]


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


def generator(**options: object) -> OpenAIChatGenerator:
    given = {"max_tokens": 60, "temperature": 0, **options.pop("generation_kwargs", {})}
    return OpenAIChatGenerator(
        api_key=Secret.from_token("none"), model=MODEL, api_base_url=URL, generation_kwargs=given, **options
    )


def answers() -> None:
    (reply,) = generator().run(CAPITAL)["replies"]
    assert "Paris" in reply.text and reply.meta["usage"]["completion_tokens"] > 0
    pieces = []
    (streamed,) = generator(streaming_callback=pieces.append).run(CAPITAL)["replies"]
    assert streamed.text == reply.text and len(pieces) > 3
    assert generator().run([*CAPITAL, reply, ChatMessage.from_user("And of Italy?")])["replies"][0].text


def pipelines() -> None:
    pipeline = Pipeline()
    pipeline.add_component(
        "prompt", ChatPromptBuilder(template=[ChatMessage.from_user("Say {{word}}.")], required_variables=["word"])
    )
    pipeline.add_component("llm", generator(generation_kwargs={"max_completion_tokens": 5, "n": 2, "temperature": 0.5}))
    pipeline.connect("prompt.prompt", "llm.messages")
    assert len(pipeline.run({"prompt": {"word": "yes"}})["llm"]["replies"]) == 2


def tools() -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
    weather = Tool("get_weather", "The weather in a city", parameters, lambda city: f"It rains in {city}.")
    for strict in (False, True):
        for options in ({}, {"streaming_callback": lambda piece: None}):
            made = generator(tools=[weather], tools_strict=strict, generation_kwargs={"tool_choice": "required"}, **options)
            (reply,) = made.run(CAPITAL)["replies"]
            assert reply.tool_calls[0].tool_name == "get_weather" and "city" in reply.tool_calls[0].arguments
    result = ChatMessage.from_tool("rain", origin=reply.tool_calls[0])
    assert generator(tools=[weather]).run([*CAPITAL, reply, result])["replies"]


def structured() -> None:
    (reply,) = generator(generation_kwargs={"response_format": Person, "max_tokens": 100}).run(CAPITAL)["replies"]
    assert Person.model_validate_json(reply.text).age >= 0


if __name__ == "__main__":
    run(answers, pipelines, tools, structured)
