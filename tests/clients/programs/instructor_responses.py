"""instructor's modes over responses: answers as models, lists, partial ones. Usage: instructor_responses.py URL MODEL"""

from __future__ import annotations

import asyncio
import sys

import instructor
import openai
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
MODES = (instructor.Mode.RESPONSES_TOOLS, instructor.Mode.RESPONSES_TOOLS_WITH_INBUILT_TOOLS)
COMMON = {"model": MODEL, "max_output_tokens": 200, "temperature": 0, "max_retries": 1}
TEXT = "Jason is 25 years old."


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


def check(person: object) -> None:
    assert isinstance(person, Person) and 0 <= person.age <= 150, person


def use(client: instructor.Instructor) -> None:
    check(client.responses.create(input=TEXT, response_model=Person, **COMMON))
    check(client.chat.completions.create(messages=[{"role": "user", "content": TEXT}], response_model=Person, **COMMON))
    person, raw = client.responses.create_with_completion(input=TEXT, response_model=Person, **COMMON)
    check(person)
    assert raw.output
    partial = list(client.responses.create_partial(input=TEXT, response_model=Person, **COMMON))
    assert partial and partial[-1].name is not None


async def use_async() -> None:
    async with openai.AsyncOpenAI(base_url=URL, api_key="None", max_retries=0) as plain:
        client = instructor.from_openai(plain, mode=MODES[0])
        check(await client.responses.create(input=TEXT, response_model=Person, **COMMON))


def main() -> None:
    with openai.OpenAI(base_url=URL, api_key="None", max_retries=0) as plain:
        for mode in MODES:
            use(instructor.from_openai(plain, mode=mode))
            print(mode, "is fine", file=sys.stderr)
    asyncio.run(use_async())
    print("all good")


if __name__ == "__main__":
    main()
