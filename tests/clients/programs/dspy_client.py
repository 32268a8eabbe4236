"""DSPy: predictions, chains of thought, typed signatures, JSON adapter, streams. Usage: dspy_client.py URL MODEL"""

from __future__ import annotations

import sys

import dspy
from cases import run

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]


def model(**options: object) -> dspy.LM:
    given = {"temperature": 0.0, "max_tokens": 60, "cache": False, "num_retries": 0, **options}
    return dspy.LM(f"openai/{MODEL}", api_base=URL, api_key="none", **given)


def answers() -> None:
    lm = model()
    assert "Paris" in lm("What is the capital of France? Answer in one sentence.")[0]
    assert len(lm(messages=[{"role": "user", "content": "Hi"}], n=2, temperature=0.7)) == 2
    assert lm.history[-1]["usage"]["completion_tokens"] > 0


def of_texts() -> None:
    assert model(model_type="text")("The capital of France is")[0]


def signatures() -> None:
    """A small model may not keep to the format: then that is said, and not that the request was wrong."""
    for adapter in (dspy.ChatAdapter(), dspy.JSONAdapter()):
        with dspy.context(lm=model(max_tokens=200), adapter=adapter):
            for program in (dspy.Predict("question -> answer: int"), dspy.ChainOfThought("question -> answer: bool")):
                try:
                    assert program(question="Is two and two four?").answer is not None
                except Exception as error:
                    assert "BadRequest" not in repr(error) and "400" not in str(error), error


def tools() -> None:
    def add(a: int, b: int) -> int:
        """The sum."""
        return a + b

    with dspy.context(lm=model(max_tokens=100)):
        try:
            dspy.ReAct("question -> answer", tools=[add], max_iters=1)(question="What is 2 plus 3?")
        except Exception as error:
            assert "BadRequest" not in repr(error), error


if __name__ == "__main__":
    run(answers, of_texts, signatures, tools)
