"""Outlines: its models for OpenAI, vLLM and SGLang servers, with every kind of output type, and streams. Usage: outlines_client.py URL
MODEL"""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any, Literal

import openai
import outlines
from cases import run
from outlines.inputs import Chat
from outlines.types import CFG, Regex
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
client = openai.OpenAI(base_url=URL, api_key="none")
MODELS = {
    "openai": outlines.from_openai(client, MODEL),
    "vllm": outlines.from_vllm(client, MODEL),
    "sglang": outlines.from_sglang(client, MODEL),
}
GIVEN: dict[str, Any] = {"max_tokens": 60, "temperature": 0}
CAPITAL = "What is the capital of France? Answer in one sentence."
GREETING = """?start: "hello" | "good" WORD
WORD: /[a-z]{2,5}/
"""


class Person(BaseModel):
    name: Annotated[str, Field(max_length=12)]
    age: Annotated[int, Field(ge=0, le=120)]


def answers() -> None:
    for name, model in MODELS.items():
        assert "Paris" in model(CAPITAL, **GIVEN), name
        chat = Chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": CAPITAL}])
        assert "Paris" in model(chat, **GIVEN), name
        assert "".join(model.stream(CAPITAL, **GIVEN)) == model(CAPITAL, **GIVEN), name


def schemas() -> None:
    for name, model in MODELS.items():
        assert Person.model_validate_json(model("Bob is 42.", Person, **GIVEN)).age >= 0, name
        assert Person.model_validate_json("".join(model.stream("Bob is 42.", Person, **GIVEN))).age >= 0, name


def patterns() -> None:
    for name in ("vllm", "sglang"):
        model = MODELS[name]
        assert model("Is Rome a city?", Literal["Yes", "No"], **GIVEN) in ("Yes", "No"), name
        assert re.fullmatch(r"[+-]?\d+", model("Two and two?", int, max_tokens=5, temperature=0)), name
        assert re.fullmatch(r"[A-Z]{3}-\d{2}", model("A code?", Regex(r"[A-Z]{3}-\d{2}"), **GIVEN)), name


def grammars() -> None:
    for name in ("vllm", "sglang"):
        assert re.fullmatch(r"hello|good[a-z]{2,5}", MODELS[name]("Say something.", CFG(GREETING), **GIVEN)), name


async def asynchronous() -> None:
    made = openai.AsyncOpenAI(base_url=URL, api_key="none")
    for model in (outlines.from_sglang(made, MODEL), outlines.from_vllm(made, MODEL), outlines.from_openai(made, MODEL)):
        assert Person.model_validate_json(await model("Bob is 42.", Person, **GIVEN)).age >= 0


if __name__ == "__main__":
    run(answers, schemas, patterns, grammars, asynchronous)
