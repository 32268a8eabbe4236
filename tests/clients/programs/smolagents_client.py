"""smolagents: its OpenAI model, tools, streams, an agent's steps. Usage: smolagents_client.py URL MODEL"""

from __future__ import annotations

import sys

from cases import run
from smolagents import CodeAgent, OpenAIModel, ToolCallingAgent, tool

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
CAPITAL = [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France? Answer in one sentence."}]}]


@tool
def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: Its name.
    """
    return f"It rains in {city}."


def model(**options: object) -> OpenAIModel:
    return OpenAIModel(MODEL, api_base=URL, api_key="none", max_tokens=40, temperature=0, **options)


def answers() -> None:
    reply = model()(CAPITAL)
    assert "Paris" in reply.content and reply.token_usage.output_tokens > 0
    pieces = list(model().generate_stream(CAPITAL))
    assert "".join(piece.content or "" for piece in pieces) == reply.content
    assert "Paris" not in model()(CAPITAL, stop_sequences=["Paris"]).content


def tools() -> None:
    reply = model()(CAPITAL, tools_to_call_from=[get_weather])
    assert reply.tool_calls[0].function.name == "get_weather"


def formats() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    assert '"n"' in model()(CAPITAL, response_format=form).content


def agents() -> None:
    """A small model's step may fail; the request must not."""
    for agent in (
        CodeAgent([get_weather], model(), max_steps=1, verbosity_level=0),
        CodeAgent([], model(), max_steps=1, verbosity_level=0, use_structured_outputs_internally=True, stream_outputs=True),
        ToolCallingAgent([get_weather], model(), max_steps=1, verbosity_level=0),
    ):
        agent.run("What is the weather in Rome?")
        assert "Error code" not in str([getattr(step, "error", None) for step in agent.memory.steps])


if __name__ == "__main__":
    run(answers, tools, formats, agents)
