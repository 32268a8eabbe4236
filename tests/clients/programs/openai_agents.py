"""openai-agents: an agent with a tool, a typed answer, a session and a hand-off, over responses and over chats.
Usage: openai_agents.py URL MODEL [tools]

tools: the server answers by a script, a call first; else the model is free to call or not.
"""

from __future__ import annotations

import asyncio
import sys

import agents
import openai
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
HAS_SCRIPT = "tools" in sys.argv[3:]
SETTINGS = agents.ModelSettings(temperature=0, max_tokens=400, parallel_tool_calls=True)
CITIES: list[str] = []


class City(BaseModel):
    name: str = Field(max_length=20)
    population: int = Field(ge=0, le=100_000_000)


@agents.function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    CITIES.append(city)
    return f"It rains in {city}."


async def use(model: agents.Model) -> None:
    plain = agents.Agent(name="plain", instructions="Answer briefly.", model=model, model_settings=SETTINGS)
    done = await agents.Runner.run(plain, "What is the capital of France?")
    assert done.final_output
    again = await agents.Runner.run(plain, [*done.to_input_list(), {"role": "user", "content": "And of Italy?"}])
    assert again.final_output
    streamed = agents.Runner.run_streamed(plain, "What is the capital of France?")
    kinds = [event.data.type async for event in streamed.stream_events() if event.type == "raw_response_event"]
    assert "response.output_text.delta" in kinds and kinds[-1] in ("response.completed", "response.incomplete")
    assert streamed.final_output == done.final_output
    if not HAS_SCRIPT:
        longer = agents.ModelSettings(temperature=0, max_tokens=200)
        typed = agents.Agent(name="typed", model=model, model_settings=longer, output_type=City)
        assert isinstance((await agents.Runner.run(typed, "Tell me about Rome.")).final_output, City)


async def use_tools(model: agents.Model) -> None:
    agent = agents.Agent(name="weather", instructions="Use tools.", model=model, model_settings=SETTINGS, tools=[get_weather])
    CITIES.clear()
    done = await agents.Runner.run(agent, "What is the weather in Rome?")
    assert CITIES == ["Rome"] and done.final_output == "Take an umbrella."
    streamed = agents.Runner.run_streamed(agent, "What is the weather in Rome?", session=agents.SQLiteSession("s"))
    names = [event.name async for event in streamed.stream_events() if event.type == "run_item_stream_event"]
    assert {"tool_called", "tool_output", "message_output_created"} <= set(names) and CITIES == ["Rome", "Rome"]
    assert streamed.final_output == "Take an umbrella."
    front = agents.Agent(name="front", instructions="Hand off.", model=model, model_settings=SETTINGS, handoffs=[agent])
    handed = await agents.Runner.run(front, "Who knows the weather?")
    assert handed.last_agent is agent and handed.final_output


async def main() -> None:
    agents.set_tracing_disabled(True)
    async with openai.AsyncOpenAI(base_url=URL, api_key="None", max_retries=0) as client:
        for kind in (agents.OpenAIResponsesModel, agents.OpenAIChatCompletionsModel):
            model = kind(model=MODEL, openai_client=client)
            await use(model)
            if HAS_SCRIPT:
                await use_tools(model)
            print(kind.__name__, "is fine", file=sys.stderr)
    print("all good")


if __name__ == "__main__":
    asyncio.run(main())
