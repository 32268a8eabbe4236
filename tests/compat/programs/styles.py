"""Programs in the styles of benchmarks: plans in branches, an agent's turns, a judge of several dimensions, functions of a simulation
with bound arguments, choices, variables over several parts. Usage: styles.py --host HOST --port PORT"""

from __future__ import annotations

import argparse

import sglang as sgl
from sglang.lang.ir import SglExpr
from sglang.test.test_utils import add_common_sglang_args_and_parse, select_sglang_backend

TEMPERATURE = 0.3
DIMENSIONS = ("clarity", "depth")


def propose(s, question, num_branches):
    s += sgl.user(f"Make a plan: {question}")
    forks = s.fork(num_branches)
    forks += sgl.assistant(sgl.gen("plan", max_tokens=8, temperature=TEMPERATURE))
    return forks


@sgl.function
def search(s, question, num_branches):
    found = []
    for plan in propose(s, question, num_branches):
        plan += sgl.user("Do it.")
        solutions = plan.fork(num_branches)
        solutions += sgl.assistant(sgl.gen("answer", max_tokens=8, temperature=TEMPERATURE))
        for solution in solutions:
            solution += sgl.user("How good is that, from 1 to 3?")
            solution += sgl.assistant(sgl.gen("score", choices=["1", "2", "3"]))
            found.append((solution["score"], solution["answer"]))
    return max(found)


@sgl.function
def act(s, question, steps):
    s += f"Question: {question}"
    for i, (thought, observation) in enumerate(steps, 1):
        s += f"\nThought {i}:"
        branch = s.fork(1)
        branch[0] += sgl.gen("thought_action", max_tokens=6, stop="Observation")
        branch.join()
        s += f" {thought}\nObservation {i}: {observation}"


@sgl.function
def judge(s, essay):
    s += sgl.user(f"Essay: {essay}")
    forks = s.fork(len(DIMENSIONS))
    for fork, dimension in zip(forks, DIMENSIONS, strict=True):
        fork += sgl.user(f"How is its {dimension}?")
        fork += sgl.assistant("It is " + sgl.gen("judgment", max_tokens=6, stop="\n"))
    s += sgl.user("Together: " + " ".join(fork["judgment"] for fork in forks))
    s += sgl.assistant_begin() + sgl.gen("number", max_tokens=4, dtype=int) + sgl.assistant_end()
    with s.copy() as other:
        other += "x"
    with s.user():
        s += "Bye."


@sgl.function
def rate(s, persona, event):
    """Docstrings are no text."""
    s += f"{persona}\nEvent: {event}\nRate (return a number between 1 to 10):" + sgl.gen(name="rate", max_tokens=2)


@sgl.function
def parts(s, question, n=3):
    with s.var_scope("all"):
        s += f"{question}{n}" + sgl.gen("one", max_tokens=2) + "," + sgl.gen_int("two", max_tokens=3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--num-branches", type=int, default=2)
    args = add_common_sglang_args_and_parse(parser)
    backend = select_sglang_backend(args)
    common = {"temperature": 0, "backend": backend, "num_threads": args.parallel}
    questions = [{"question": "Tom has 2 apples.", "num_branches": args.num_branches}] * 2
    found = search.run_batch(questions, progress_bar=True, **common)
    assert all(state.ret_value[0] in "123" for state in found)
    acted = act.run_batch([{"question": "Who?", "steps": [("a", "b"), ("c", "d")]}], progress_bar=args.parallel == 1, **common)
    assert acted[0].text().endswith("Thought 2: c\nObservation 2: d")
    sgl.set_default_backend(backend)
    state = judge("Rain.", temperature=0)
    assert state["number"].strip().lstrip("+-").isdigit() and state.messages()[-1] == {"role": "user", "content": "Bye."}
    bound = rate.bind(persona="Ann is kind.")
    assert all(bound.run(event=event, temperature=0)["rate"] for event in ("tea", "a quarrel"))
    for one in parts.run_batch([("p",), ("q", 4)], generator_style=True, num_threads=1):
        assert one["all"].endswith(one["one"] + "," + one["two"])
    assert isinstance(sgl.gen("x") + "y", SglExpr)
    print("all good")


if __name__ == "__main__":
    main()
