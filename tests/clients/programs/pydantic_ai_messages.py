"""pydantic-ai with Anthropic's model: text, streams, typed answers, tools. Usage: pydantic_ai_messages.py URL MODEL [tools]"""

from __future__ import annotations

import asyncio
import sys

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.providers.anthropic import AnthropicProvider

URL, NAME = sys.argv[1:3]
SETTINGS = {"temperature": 0, "max_tokens": 200}
MODEL = AnthropicModel(
    NAME,
    provider=AnthropicProvider(api_key="none", base_url=URL),
    profile=ModelProfile(supports_json_schema_output=True),
)


class Person(BaseModel):
    name: str
    age: int


async def streamed(question: str) -> str:
    async with Agent(MODEL, model_settings=SETTINGS).run_stream(question) as run:
        return [text async for text in run.stream_text()][-1]


def plain() -> None:
    question = "What is the capital of France? Answer in one sentence."
    answer = Agent(MODEL, model_settings=SETTINGS).run_sync(question).output
    assert "Paris" in answer and asyncio.run(streamed(question)) == answer
    for kind in (ToolOutput(Person), NativeOutput(Person)):
        person = Agent(MODEL, output_type=kind, model_settings=SETTINGS).run_sync("Jason is 25 years old.").output
        assert person == Person(name="Jason", age=25), (kind, person)


def tools() -> None:
    asked: list[str] = []

    def get_weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return f"It rains in {city}."

    agent = Agent(MODEL, model_settings=SETTINGS, tools=[get_weather])
    assert agent.run_sync("What is the weather in Rome?").output == "Take an umbrella." and asked == ["Rome"]


def main() -> None:
    (tools if sys.argv[3:] == ["tools"] else plain)()
    print("all good")


if __name__ == "__main__":
    main()
