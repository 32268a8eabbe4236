"""Many conversations at once on one event loop, each streaming its answer.

.venv/bin/python examples/language/async_chat.py --url http://localhost:30000
"""

from __future__ import annotations

import argparse
import asyncio

import sglang as sgl
from sglang import AsyncProgramState, RuntimeEndpoint


@sgl.function
async def talk(s: AsyncProgramState, who: str, question: str) -> None:
    s += sgl.user(question)
    s += sgl.assistant_begin()
    async for piece in s.stream(sgl.gen("answer", max_tokens=24)):
        print(f"{who}: {piece!r}")
    s += sgl.assistant_end()


async def converse(url: str) -> None:
    backend = await asyncio.to_thread(RuntimeEndpoint, url)
    questions = {"Ann": "What is rain?", "Bo": "What is snow?", "Cy": "What is wind?"}
    states = await asyncio.gather(*(talk.arun(who, question, backend=backend) for who, question in questions.items()))
    for who, state in zip(questions, states, strict=True):
        print(f"{who} was told: {state['answer'].strip()}")


def main(url: str) -> None:
    asyncio.run(converse(url))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://localhost:30000")
    main(parser.parse_args().url)
