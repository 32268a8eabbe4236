"""A question, a dialog turn and a choice.

.venv/bin/python examples/language/quickstart.py --url http://localhost:30000
"""

from __future__ import annotations

import argparse

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint


@sgl.function
def review(s: ProgramState, text: str) -> None:
    s += sgl.system("You judge film reviews.")
    s += sgl.user(f"Review: {text}\nIs it good or bad?")
    s += sgl.assistant("It is " + sgl.select("verdict", ["good", "bad"]) + ".")
    s += sgl.user("Why? One sentence.")
    s += sgl.assistant(sgl.gen("reason", max_tokens=32, stop="\n"))


def main(url: str) -> None:
    sgl.set_default_backend(RuntimeEndpoint(url))
    for text in ("I laughed and cried and want to see it again.", "I fell asleep after ten minutes."):
        state = review(text)
        print(f"{text}\n  {state['verdict']}: {state['reason'].strip()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://localhost:30000")
    main(parser.parse_args().url)
