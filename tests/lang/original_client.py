"""A program of the original's client, run by test_original_contract.py in an environment that has it.

argv: the server's URL. Prints what came back, as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import sglang as sgl


@sgl.function
def turns(s: Any, question: str) -> None:
    s += sgl.system("You are brief.")
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("a", max_tokens=8, temperature=0))
    s += sgl.user("A number?")
    s += sgl.assistant(sgl.gen("n", max_tokens=6, temperature=0, regex="[0-9]{1,3}"))


@sgl.function
def choose(s: Any) -> None:
    s += "Germany: Berlin. Italy: Rome. France:" + sgl.gen("c", choices=[" London", " Paris"])


@sgl.function
def forks(s: Any) -> None:
    s += "The history of the small town begins with a river and a bridge. " * 4
    both = s.fork(2)
    both += sgl.gen("x", max_tokens=3, temperature=0)
    both.join()


def main(url: str) -> dict[str, Any]:
    sgl.set_default_backend(sgl.RuntimeEndpoint(url))
    france, spain = "What is the capital of France?", "What is the capital of Spain?"
    state = turns.run(question=france)
    return {
        "version": sgl.__version__,
        "a": state["a"],
        "n": state["n"],
        "roles": [message["role"] for message in state.messages()],
        "meta": state.get_meta_info("a"),
        "pieces": list(turns.run(question=france, stream=True).text_iter("a")),
        "choice": choose.run()["c"],
        "forks": forks.run()["x"],
        "batch": [s["a"] for s in turns.run_batch([{"question": france}, {"question": spain}], num_threads=2)],
        "info": sorted(sgl.get_server_info()),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
