"""LangChain's ChatOpenAI: invoke, stream, batch, async, structured output, tools. Usage: langchain_client.py URL MODEL"""

from __future__ import annotations

import asyncio
import sys

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It rains in {city}."


def main() -> None:
    llm = ChatOpenAI(base_url=URL, api_key="None", model=MODEL, temperature=0, max_tokens=40, stream_usage=True)
    answer = llm.invoke(
        [SystemMessage("You are helpful."), HumanMessage("What is the capital of France? Answer in one sentence.")]
    )
    assert isinstance(answer, AIMessage) and "Paris" in answer.content
    assert answer.usage_metadata["output_tokens"] > 0 and answer.response_metadata["finish_reason"] in ("stop", "length")
    pieces = list(llm.stream("Count to five."))
    assert len(pieces) > 3 and "".join(p.content for p in pieces) == llm.invoke("Count to five.").content
    assert sum(p.usage_metadata["output_tokens"] for p in pieces if p.usage_metadata) > 0
    chain = ChatPromptTemplate.from_messages([("system", "Answer briefly."), ("human", "{question}")]) | llm
    assert len(chain.batch([{"question": "Hi"}, {"question": "Who are you?"}])) == 2
    assert asyncio.run(llm.ainvoke("Hello")).content
    assert OpenAI(base_url=URL, api_key="None", model=MODEL, max_tokens=5).invoke("Once upon a time")
    for method in ("json_schema", "function_calling"):
        longer = ChatOpenAI(base_url=URL, api_key="None", model=MODEL, temperature=0, max_tokens=300)
        person = longer.with_structured_output(Person, method=method).invoke("Bob is 42 years old.")
        assert isinstance(person, Person), method
    called = llm.bind_tools([get_weather], tool_choice="get_weather").invoke("What is the weather in Rome?")
    assert called.tool_calls and called.tool_calls[0]["name"] == "get_weather" and "city" in called.tool_calls[0]["args"]
    print("all good")


if __name__ == "__main__":
    main()
