"""instructor with Anthropic: tools, parallel tools, partial answers, JSON. Usage: instructor_messages.py URL MODEL [json]

json: the server answers by a script, since JSON modes only ask for JSON in words: plain, fenced, and wrong at first.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable

import anthropic
import instructor
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1:3]
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "Jason is 25 years old."}], "max_tokens": 300, "max_retries": 1}
JASON = {"name": "Jason", "age": 25}
JSON_MODES = (instructor.Mode.JSON, instructor.Mode.ANTHROPIC_JSON, instructor.Mode.JSON_SCHEMA)


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


def by_tools(plain: anthropic.Anthropic) -> None:
    for mode in (instructor.Mode.TOOLS, instructor.Mode.ANTHROPIC_TOOLS, instructor.Mode.ANTHROPIC_REASONING_TOOLS):
        person = instructor.from_anthropic(plain, mode=mode).create(**ASK, response_model=Person)
        assert isinstance(person, Person), mode
    several = instructor.from_anthropic(plain, mode=instructor.Mode.ANTHROPIC_PARALLEL_TOOLS)
    assert several.create(**ASK, response_model=Iterable[Person]) is not None
    partial = list(instructor.from_anthropic(plain).create_partial(**ASK, response_model=Person))
    assert len(partial) > 1 and partial[-1].age is not None


def by_json(plain: anthropic.Anthropic, held_to: dict[str, object]) -> None:
    """`held_to`: what else the requests have."""
    for mode in JSON_MODES:
        person = instructor.from_anthropic(plain, mode=mode).create(**ASK, **held_to, response_model=Person)
        assert isinstance(person, Person), mode
        assert held_to or person.model_dump() == JASON, (mode, person)


def main() -> None:
    warnings.simplefilter("ignore")  # JSON_SCHEMA: Anthropic's client has another name for what it would use
    plain = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
    if "json" in sys.argv[3:]:
        by_json(plain, {})
        partial = list(instructor.from_anthropic(plain, mode=instructor.Mode.JSON).create_partial(**ASK, response_model=Person))
        assert partial[-1].model_dump() == JASON
        for words in ("In a fence, please: Jason is 25 years old.", "Wrong at first: Jason is 25 years old."):
            ASK["messages"] = [{"role": "user", "content": words}]
            by_json(plain, {})
    else:
        by_tools(plain)
        schema = Person.model_json_schema()  # anthropic.transform_schema leaves limits to words
        by_json(plain, {"output_config": {"format": {"type": "json_schema", "schema": schema}}})
    print("all good")


if __name__ == "__main__":
    main()
