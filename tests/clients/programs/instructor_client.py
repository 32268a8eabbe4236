"""instructor: structured answers in its modes, streamed partially, lists. Usage: instructor_client.py URL MODEL"""

from __future__ import annotations

import sys

import instructor
import openai
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


def main() -> None:
    messages = [{"role": "user", "content": "Jason is 25 years old."}]
    plain = openai.OpenAI(base_url=URL, api_key="None")
    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
        client = instructor.from_openai(plain, mode=mode)
        person = client.chat.completions.create(
            model=MODEL, messages=messages, response_model=Person, max_tokens=200, temperature=0, max_retries=1
        )
        assert isinstance(person, Person) and 0 <= person.age <= 150, mode
    client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
    partial = list(
        client.chat.completions.create_partial(
            model=MODEL, messages=messages, response_model=Person, max_tokens=200, temperature=0
        )
    )
    assert len(partial) > 1 and partial[-1].name is not None
    print("all good")


if __name__ == "__main__":
    main()
