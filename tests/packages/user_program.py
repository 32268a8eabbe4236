"""A user's program, as strict as mypy can be: argument: the server's address."""

import asyncio
import sys

import sglang as sgl


@sgl.function
def lookup(s: sgl.ProgramState, topic: str, limit: int = 16) -> None:
    s += sgl.system("You are brief.")
    s += sgl.user(f"Tell me about {topic}.")
    s += sgl.assistant(sgl.gen("fact", max_tokens=limit, stop="\n"))
    forks = s.fork(2)
    for fork in forks:
        fork += sgl.gen("more", max_tokens=4, regex="[a-z ]+")
    forks.join()
    s += "Verdict: " + sgl.select("verdict", choices=["yes", "no"])
    s += "Count: " + sgl.gen_int("count")


@sgl.function
async def ask(s: sgl.AsyncProgramState, question: str) -> None:
    s += sgl.user(question)
    s += sgl.assistant_begin()
    async for piece in s.stream(sgl.gen("answer", max_tokens=16, temperature=0)):
        print(piece, end="")
    s += sgl.assistant_end()


def main(url: str) -> None:
    sgl.set_default_backend(sgl.RuntimeEndpoint(url))
    state = lookup.run(topic="otters", temperature=0.0)
    fact: str = state["fact"]
    print(fact.upper(), state["verdict"], len(state.text()))
    for piece in lookup.run(topic="seals", temperature=0.0, stream=True).text_iter():
        print(piece, end="")
    for one in lookup.run_batch([{"topic": "otters"}, {"topic": "seals"}], temperature=0.0):
        print(one["count"])


async def later() -> None:
    state = await ask.arun("What is the capital of France? Answer in one sentence.")
    print(state["answer"])


if __name__ == "__main__":
    main(sys.argv[1])
    asyncio.run(later())
