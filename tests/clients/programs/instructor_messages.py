"""instructor with Anthropic: tools, parallel tools, partial answers, a schema. Usage: instructor_messages.py URL MODEL"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import anthropic
import instructor
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1:3]
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "Jason is 25 years old."}], "max_tokens": 300, "max_retries": 1}


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


def main() -> None:
    plain = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
    for mode in (instructor.Mode.TOOLS, instructor.Mode.ANTHROPIC_TOOLS, instructor.Mode.ANTHROPIC_REASONING_TOOLS):
        person = instructor.from_anthropic(plain, mode=mode).create(**ASK, response_model=Person)
        assert isinstance(person, Person), mode
    several = instructor.from_anthropic(plain, mode=instructor.Mode.ANTHROPIC_PARALLEL_TOOLS)
    assert several.create(**ASK, response_model=Iterable[Person]) is not None
    partial = list(instructor.from_anthropic(plain).create_partial(**ASK, response_model=Person))
    assert len(partial) > 1 and partial[-1].age is not None
    print("all good")


if __name__ == "__main__":
    main()
