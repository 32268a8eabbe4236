"""instructor: structured answers in every mode of its OpenAI provider, partial ones, lists, unions. Usage: instructor_client.py URL
MODEL"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated, Literal, Union

import instructor
import openai
from cases import run
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
MESSAGES = [{"role": "user", "content": "Jason is 25 years old."}]
COMMON = {"model": MODEL, "max_tokens": 200, "temperature": 0, "max_retries": 1}
Mode = instructor.Mode
HELD = ("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA")
"""modes in which the server holds the answer to the schema"""
ASKED = ("JSON", "MD_JSON", "JSON_O1")
"""modes in which the model is only told: the small one may get it wrong"""


class Person(BaseModel):
    """Somebody."""

    name: Annotated[str, Field(max_length=12)]
    age: Annotated[int, Field(ge=0, le=120)]


class Weather(BaseModel):
    """The weather."""

    kind: Literal["rain", "sun"]


EITHER = Union[Person, Weather]  # noqa: UP007  the client knows no other


def client(mode: str) -> instructor.Instructor:
    return instructor.from_openai(openai.OpenAI(base_url=URL, api_key="none"), mode=getattr(Mode, mode))


def create(mode: str) -> Person:
    return client(mode).chat.completions.create(messages=MESSAGES, response_model=Person, **COMMON)


def held_modes() -> None:
    for mode in HELD:
        assert isinstance(create(mode), Person), mode


def asked_modes() -> None:
    """The request must be taken; what a small model makes of it is its own affair."""
    for mode in ASKED:
        if not hasattr(Mode, mode):
            continue
        try:
            assert isinstance(create(mode), Person), mode
        except Exception as error:
            cause = f"{error!r} {error.__cause__!r}"
            assert "Error code" not in cause, cause


def parallel_tools() -> None:
    """The model is free to call or not to."""
    try:
        found = client("PARALLEL_TOOLS").chat.completions.create(
            messages=[{"role": "user", "content": "Jason is 25 years old, and it rains."}],
            response_model=Iterable[Person | Weather],
            **{**COMMON, "max_retries": 0},
        )
        assert all(isinstance(one, (Person, Weather)) for one in found)
    except Exception as error:
        assert "Error code" not in repr(error), error


def partial() -> None:
    for mode in HELD:
        pieces = list(client(mode).chat.completions.create_partial(messages=MESSAGES, response_model=Person, **COMMON))
        assert len(pieces) > 1 and isinstance(pieces[-1].age, int), mode


def several() -> None:
    for mode in ("TOOLS", "JSON_SCHEMA"):
        with_end = {**COMMON, "max_tokens": 60}
        for person in client(mode).chat.completions.create_iterable(messages=MESSAGES, response_model=Person, **with_end):
            assert isinstance(person, Person)
            break


def other_types() -> None:
    made = client("TOOLS").chat.completions.create
    assert isinstance(made(messages=MESSAGES, response_model=int, **COMMON), int)
    assert made(messages=MESSAGES, response_model=Literal["old", "young"], **COMMON) in ("old", "young")
    assert isinstance(made(messages=MESSAGES, response_model=EITHER, **COMMON), (Person, Weather))
    person, raw = client("TOOLS").chat.completions.create_with_completion(messages=MESSAGES, response_model=Person, **COMMON)
    assert isinstance(person, Person) and raw.usage.total_tokens > 0


async def asynchronous() -> None:
    made = instructor.from_openai(openai.AsyncOpenAI(base_url=URL, api_key="none"))
    assert isinstance(await made.chat.completions.create(messages=MESSAGES, response_model=Person, **COMMON), Person)


def provider() -> None:
    made = instructor.from_provider(f"openai/{MODEL}", base_url=URL, api_key="none")
    assert isinstance(
        made.chat.completions.create(messages=MESSAGES, response_model=Person, max_tokens=200, temperature=0), Person
    )


if __name__ == "__main__":
    run(held_modes, asked_modes, parallel_tools, partial, several, other_types, asynchronous, provider)
