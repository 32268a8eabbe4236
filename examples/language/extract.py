"""Objects out of texts, a whole batch, with results on disk so that an interrupted batch can be resumed.

.venv/bin/python examples/language/extract.py --url http://localhost:30000 --out people.jsonl
"""

from __future__ import annotations

import argparse

from pydantic import BaseModel, Field

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint

TEXTS = (
    "Ada Lovelace was born in 1815 in London.",
    "Alan Turing, born 1912, grew up in England.",
    "Grace Hopper was born in New York in 1906.",
)


class Person(BaseModel):
    name: str = Field(max_length=30)
    born: int = Field(ge=1000, le=2100)


@sgl.function
def extract(s: ProgramState, text: str) -> None:
    s += sgl.system("You extract facts from sentences and answer in JSON.")
    s += sgl.user(text)
    s += sgl.assistant(sgl.gen("person", dtype=Person, max_tokens=64, temperature=0))


def main(url: str, out: str | None = None) -> None:
    sgl.set_default_backend(RuntimeEndpoint(url))
    more = {"out": out, "resume": True} if out else {}
    for state in extract.run_batch([{"text": text} for text in TEXTS], progress_bar=True, **more):
        if state is None:
            continue  # an earlier run has it in the file
        person: Person = state.value("person")
        print(f"{person.name}, born {person.born}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://localhost:30000")
    parser.add_argument("--out")
    given = parser.parse_args()
    main(given.url, given.out)
