"""guidance: its models for SGLang and vLLM servers, with patterns, choices and JSON. Usage: guidance_client.py URL MODEL"""

from __future__ import annotations

import sys

from cases import run
from guidance import assistant, gen, select, system, user
from guidance import json as gen_json
from guidance.models.experimental import SglangModel, VLLMModel
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
KINDS = (SglangModel, VLLMModel)


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


def begin(kind: type, question: str) -> object:
    lm = kind(MODEL, base_url=URL, api_key="none", echo=False)
    with system():
        lm += "You are helpful."
    with user():
        lm += question
    return lm


def answers() -> None:
    for kind in KINDS:
        lm = begin(kind, "What is the capital of France? Answer in one sentence.")
        with assistant():
            lm += gen("answer", max_tokens=24, temperature=0.01)
        assert "Paris" in lm["answer"], (kind, lm["answer"])


def choices() -> None:
    for kind in KINDS:
        lm = begin(kind, "Is Rome a city?")
        with assistant():
            lm += select(["yes", "no"], name="answer")
        assert lm["answer"] in ("yes", "no"), kind


def patterns() -> None:
    for kind in KINDS:
        lm = begin(kind, "What is two and two?")
        with assistant():
            lm += "It is " + gen("answer", regex="[0-9]{1,2}") + "."
        assert lm["answer"].isdigit(), kind


def schemas() -> None:
    """Of a vLLM server guidance asks by a grammar that takes oneOf for anyOf, which is refused."""
    lm = begin(SglangModel, "Bob is 42.")
    with assistant():
        lm += gen_json("answer", schema=Person, max_tokens=100)
    assert Person.model_validate_json(lm["answer"]).age >= 0


if __name__ == "__main__":
    run(answers, choices, patterns, schemas)
