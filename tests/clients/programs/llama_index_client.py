"""LlamaIndex's OpenAILike: completions, chats, streams, tools, structured answers. Usage: llama_index_client.py URL MODEL"""

from __future__ import annotations

import sys

from cases import run
from llama_index.core.llms import ChatMessage
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
CAPITAL = [ChatMessage(role="user", content="What is the capital of France? Answer in one sentence.")]


class Person(BaseModel):
    """Somebody."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


def llm(**options: object) -> OpenAILike:
    given = {"is_chat_model": True, "is_function_calling_model": True, "max_tokens": 60, "temperature": 0.0, **options}
    return OpenAILike(model=MODEL, api_base=URL, api_key="none", context_window=4096, **given)


def answers() -> None:
    reply = llm().chat(CAPITAL)
    assert "Paris" in reply.message.content
    pieces = list(llm().stream_chat(CAPITAL))
    assert len(pieces) > 2 and pieces[-1].message.content == reply.message.content
    assert llm().chat([*CAPITAL, reply.message, ChatMessage(role="user", content="And of Italy?")]).message.content
    assert llm().complete("Name a colour.").text


def texts() -> None:
    plain = llm(is_chat_model=False, max_tokens=8)
    assert plain.complete("Once upon a time").text
    assert list(plain.stream_complete("Once upon a time"))[-1].text


def hints() -> None:
    given = {"seed": 1, "user": "me", "top_p": 0.9, "logprobs": True, "top_logprobs": 2, "reasoning_effort": "low"}
    assert llm(additional_kwargs=given, max_tokens=3).chat(CAPITAL).message.content


def tools() -> None:
    def get_weather(city: str) -> str:
        """The weather in a city."""
        return f"It rains in {city}."

    tool = FunctionTool.from_defaults(get_weather)
    reply = llm().chat_with_tools([tool], user_msg="What is the weather in Rome?", tool_required=True)
    (call,) = llm().get_tool_calls_from_response(reply)
    assert call.tool_name == "get_weather" and "city" in call.tool_kwargs
    last = list(llm().stream_chat_with_tools([tool], user_msg="What is the weather in Rome?", tool_required=True))[-1]
    assert llm().get_tool_calls_from_response(last)[0].tool_name == "get_weather"


def structured() -> None:
    program = FunctionCallingProgram.from_defaults(Person, "Bob is 42.", llm=llm(), tool_choice="required")
    assert isinstance(program(), Person)
    assert isinstance(llm(should_use_structured_outputs=True).as_structured_llm(Person).chat(CAPITAL).raw, Person)


async def asynchronous() -> None:
    assert (await llm(max_tokens=5).achat(CAPITAL)).message.content
    assert [piece async for piece in await llm(max_tokens=5).astream_chat(CAPITAL)]


if __name__ == "__main__":
    run(answers, texts, hints, tools, structured, asynchronous)
