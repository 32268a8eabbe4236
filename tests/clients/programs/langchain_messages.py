"""LangChain's ChatAnthropic: invoke, stream, batch, structured output, tools, documents. Usage: langchain_messages.py URL MODEL"""

from __future__ import annotations

import sys

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1:3]


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"18 degrees in {city}"


def main() -> None:
    model = ChatAnthropic(model=MODEL, base_url=URL, api_key="none", temperature=0, max_tokens=60, max_retries=0)
    question = "What is the capital of France? Answer in one sentence."
    whole = model.invoke(question)
    assert "Paris" in whole.content and whole.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.text for chunk in model.stream(question)) == whole.content
    assert len(model.batch(["Hello", "What is 2+2?"])) == 2
    for method in ("function_calling", "json_schema"):
        person = model.with_structured_output(Person, method=method).invoke("Jason is 25 years old.")
        assert person == Person(name="Jason", age=25), (method, person)
    asks = model.bind_tools([get_weather], tool_choice="any")
    ask = HumanMessage("What is the weather in Rome?")
    called = asks.invoke([ask])
    assert [call["args"] for call in called.tool_calls] == [{"city": "Rome"}]
    chunks = list(asks.stream([ask]))
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert [call["args"] for call in total.tool_calls] == [{"city": "Rome"}]
    result = ToolMessage("18 degrees", tool_call_id=called.tool_calls[0]["id"])
    assert model.bind_tools([get_weather]).invoke([ask, called, result]).response_metadata["stop_reason"]
    thinks = ChatAnthropic(
        model=MODEL, base_url=URL, api_key="none", max_tokens=1100, thinking={"type": "enabled", "budget_tokens": 1024}
    )
    assert thinks.bind(stop=["."]).invoke("Say hello.").content is not None
    assert model.get_num_tokens_from_messages([ask]) > 5
    document = {"type": "text-plain", "text": "The sky is green.", "mime_type": "text/plain"}
    assert model.invoke([HumanMessage([document, {"type": "text", "text": "What colour is the sky?"}])]).content
    print("all good")


if __name__ == "__main__":
    main()
