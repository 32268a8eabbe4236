"""LangChain's ChatOpenAI, OpenAI and VLLMOpenAI of langchain-community: answers, streams, tools, structured output by every method.
Usage: langchain_client.py URL MODEL"""

from __future__ import annotations

import sys

from cases import run
from langchain_community.llms import VLLMOpenAI
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
CAPITAL = "What is the capital of France? Answer in one sentence."


class Person(BaseModel):
    """Somebody."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


class City(TypedDict):
    """A city."""

    size: int


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It rains in {city}."


def chat(**options: object) -> ChatOpenAI:
    given = {"temperature": 0, "max_tokens": 40, **options}
    return ChatOpenAI(base_url=URL, api_key="None", model=MODEL, **given)


def answers() -> None:
    llm = chat(stream_usage=True)
    answer = llm.invoke([SystemMessage("You are helpful."), HumanMessage(CAPITAL)])
    assert isinstance(answer, AIMessage) and "Paris" in answer.content
    assert answer.usage_metadata["output_tokens"] > 0 and answer.response_metadata["finish_reason"] in ("stop", "length")
    chain = ChatPromptTemplate.from_messages([("system", "Answer briefly."), ("human", "{question}")]) | llm
    assert len(chain.batch([{"question": "Hi"}, {"question": "Who are you?"}])) == 2
    assert llm.invoke([HumanMessage(CAPITAL), answer, HumanMessage("And of Italy?")]).content
    scored = chat(logprobs=True, top_logprobs=2).invoke("Hi")
    assert scored.response_metadata["logprobs"]["content"]


def hints() -> None:
    given = {"seed": 1, "n": 2, "user": "me", "metadata": {"a": "b"}, "service_tier": "auto", "reasoning_effort": "low"}
    more = {"store": False, "verbosity": "low", "presence_penalty": 0.1, "stop": ["zebra"], "logit_bias": {"100": -1}}
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "chat_template_kwargs": {"enable_thinking": False}}
    llm = chat(max_tokens=5, temperature=0.5, extra_body=extra, **given, **more, use_responses_api=False)
    assert llm.invoke([{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]).content


def streams() -> None:
    llm = chat(stream_usage=True)
    pieces = list(llm.stream("Count to five."))
    assert len(pieces) > 3 and "".join(p.content for p in pieces) == llm.invoke("Count to five.").content
    assert sum(p.usage_metadata["output_tokens"] for p in pieces if p.usage_metadata) > 0


async def asynchronous() -> None:
    assert (await chat().ainvoke("Hello")).content
    assert [piece async for piece in chat(max_tokens=5).astream("Hello")]
    assert [event async for event in chat(max_tokens=5).astream_events("Hello")]


def completions() -> None:
    llm = OpenAI(base_url=URL, api_key="None", model=MODEL, max_tokens=5)
    assert llm.invoke("Once upon a time") and list(llm.stream("Once upon a time"))
    assert len(llm.generate(["Once", "Twice"]).generations) == 2


def community() -> None:
    llm = VLLMOpenAI(openai_api_key="None", openai_api_base=URL, model_name=MODEL, max_tokens=5, model_kwargs={"stop": ["."]})
    assert llm.invoke("Once upon a time")
    assert list(llm.stream("Once upon a time"))


def structured_output() -> None:
    llm = chat(max_tokens=200)
    for method in ("json_schema", "function_calling"):
        for strict in (None, True):
            person = llm.with_structured_output(Person, method=method, strict=strict).invoke("Bob is 42 years old.")
            assert isinstance(person, Person), (method, strict)
        raw = llm.with_structured_output(Person, method=method, include_raw=True).invoke("Bob is 42 years old.")
        assert isinstance(raw["parsed"], Person) and raw["parsing_error"] is None, (method, raw)
        assert isinstance(llm.with_structured_output(City, method=method).invoke("Rome has 3 million people.")["size"], int)
        last = list(llm.with_structured_output(Person, method=method).stream("Bob is 42 years old."))[-1]
        assert isinstance(last, Person), method
    told = 'Bob is 42 years old. Answer in JSON like {"name": "Bob", "age": 42}.'
    raw = llm.with_structured_output(Person, method="json_mode", include_raw=True).invoke(told)
    assert raw["raw"].content.lstrip().startswith("{")


def tools() -> None:
    for choice in ("get_weather", "any", "required"):
        called = chat().bind_tools([get_weather], tool_choice=choice).invoke("What is the weather in Rome?")
        assert called.tool_calls[0]["name"] == "get_weather" and "city" in called.tool_calls[0]["args"], choice
    result = ToolMessage(get_weather.invoke({"city": "Rome"}), tool_call_id=called.tool_calls[0]["id"])
    history = [HumanMessage("What is the weather in Rome?"), called, result]
    assert chat().bind_tools([get_weather], tool_choice="none").invoke(history).content
    strict = chat().bind_tools([get_weather, Person], strict=True, parallel_tool_calls=False, tool_choice="any")
    assert len(strict.invoke("Bob is 42.").tool_calls) == 1
    whole = None
    for piece in chat().bind_tools([get_weather], tool_choice="any").stream("What is the weather in Rome?"):
        whole = piece if whole is None else whole + piece
    assert whole.tool_calls[0]["name"] == "get_weather" and "city" in whole.tool_calls[0]["args"]


if __name__ == "__main__":
    run(answers, hints, streams, asynchronous, completions, community, structured_output, tools)
