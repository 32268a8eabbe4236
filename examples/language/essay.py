"""Several essays at once, judged by the model itself, the best one kept: fork, join, select.

.venv/bin/python examples/language/essay.py --url http://localhost:30000
"""

from __future__ import annotations

import argparse

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint

NUM_DRAFTS = 3


@sgl.function
def best_essay(s: ProgramState, topic: str) -> None:
    s += sgl.system("You write short paragraphs.")
    s += sgl.user(f"Write a paragraph about {topic}.")
    drafts = s.fork(NUM_DRAFTS)  # the prompt so far is computed once
    for i, draft in enumerate(drafts):
        draft += sgl.assistant(sgl.gen("paragraph", max_tokens=48, temperature=0.9, seed=i))
        draft += sgl.user("Grade this paragraph.")
        draft += sgl.assistant("Grade: " + sgl.select("grade", ["A", "B", "C"]))
    drafts.join()
    best = min(range(NUM_DRAFTS), key=lambda i: str(s["grade"][i]))
    s += sgl.assistant(s["paragraph"][best])
    s["best"] = s["paragraph"][best]


def main(url: str) -> None:
    state = best_essay.run("rivers", backend=RuntimeEndpoint(url))
    for grade, paragraph in zip(state["grade"], state["paragraph"], strict=True):
        print(f"[{grade}] {paragraph.strip()[:70]}")
    print("\n" + state["best"].strip())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://localhost:30000")
    main(parser.parse_args().url)
