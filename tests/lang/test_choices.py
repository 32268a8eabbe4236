"""The three methods of select, by numbers, and which tokens are scored."""

from __future__ import annotations

from typing import Any

import pytest

import sglang as sgl
from sglang import RuntimeEndpoint
from sglang.lang.backend.choice_scoring import score_by_generate
from sglang.lang.choices import (
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)

from .native_server import NativeServer, token_id, token_logprob

CHOICES = ["organ", "organism", "antidisestablishmentarianism"]
MEANS = [-0.1, -0.2, -0.05]
GIVEN = [
    [[-0.1, 1, "organ"]],
    [[-0.1, 1, "organ"], [-0.3, 2, "ism"]],
    [[-0.3, 3, "ant"], [-0.01, 4, "idis"], [-0.01, 5, "establish"], [-0.01, 6, "ment"], [-0.01, 7, "arian"], [-0.01, 8, "ism"]],
]
ALONE = [
    [[None, 1, "organ"]],
    [[None, 1, "organ"], [-1.4, 2, "ism"]],
    [[None, 3, "ant"], [-0.01, 4, "idis"], [-0.01, 5, "establish"], [-0.01, 6, "ment"], [-0.01, 7, "arian"], [-0.01, 8, "ism"]],
]


def decide(method: object) -> object:
    assert callable(method)
    return method(
        choices=CHOICES,
        normalized_prompt_logprobs=MEANS,
        input_token_logprobs=GIVEN,
        output_token_logprobs=[[], [], []],
        unconditional_token_logprobs=ALONE,
    )


def test_token_length_normalized() -> None:
    decision = decide(token_length_normalized)
    assert decision.decision == "antidisestablishmentarianism"  # type: ignore[attr-defined]
    assert decision.meta_info["normalized_prompt_logprobs"] == MEANS  # type: ignore[attr-defined]
    assert not token_length_normalized.requires_unconditional_logprobs


def test_greedy_token_selection() -> None:
    decision = decide(greedy_token_selection)
    # organ and organism share their first token; organ goes on with its mean -0.1, which beats -0.3
    assert decision.decision == "organ"  # type: ignore[attr-defined]
    matrix = decision.meta_info["greedy_logprob_matrix"]  # type: ignore[attr-defined]
    assert [len(row) for row in matrix] == [6, 6, 6]
    assert matrix[0] == [-0.1] * 6


def test_unconditional_likelihood_normalized() -> None:
    decision = decide(unconditional_likelihood_normalized)
    assert decision.decision == "organism"  # type: ignore[attr-defined]
    scores = decision.meta_info["normalized_unconditional_prompt_logprobs"]  # type: ignore[attr-defined]
    assert scores == pytest.approx([-0.1, 0.5, -0.05])
    assert unconditional_likelihood_normalized.requires_unconditional_logprobs


def test_unconditional_needs_its_numbers() -> None:
    fields = {
        "choices": CHOICES,
        "normalized_prompt_logprobs": MEANS,
        "input_token_logprobs": GIVEN,
        "output_token_logprobs": [],
    }
    with pytest.raises(ValueError, match="needs"):
        unconditional_likelihood_normalized(**fields)
    with pytest.raises(ValueError, match="unconditional ones"):
        unconditional_likelihood_normalized(**fields, unconditional_token_logprobs=[GIVEN[1], GIVEN[1], GIVEN[2]])


def test_ties_go_to_the_first() -> None:
    decision = token_length_normalized(
        choices=["a", "b"],
        normalized_prompt_logprobs=[-1.0, -1.0],
        input_token_logprobs=[[], []],
        output_token_logprobs=[[], []],
    )
    assert decision.decision == "a"


@sgl.function
def choose(s, prompt, method=token_length_normalized):  # type: ignore[no-untyped-def]
    s += prompt + sgl.select("tool", ["calculator", "search engine"], choices_method=method)


METHODS = [token_length_normalized, greedy_token_selection, unconditional_likelihood_normalized]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prompt", ["I need a ", "I need a", "x", " "])
def test_both_contracts_give_the_same(native: NativeServer, backend: RuntimeEndpoint, method: object, prompt: str) -> None:
    """Our one-request endpoint, and the original's two steps on a server that has no other."""
    ours = choose(prompt, method)
    first = ours["tool"], ours.get_meta_info("tool")
    assert len(native.of("/score_choices")) == 1 and not native.of("/generate")
    native.has_score_choices = False
    theirs = choose(prompt, method)
    assert (theirs["tool"], theirs.get_meta_info("tool")["normalized_prompt_logprobs"]) == (
        first[0],
        pytest.approx(first[1]["normalized_prompt_logprobs"]),
    )
    assert theirs.get_meta_info("tool")["input_token_logprobs"] == first[1]["input_token_logprobs"]
    # the next select does not ask for the missing endpoint again
    seen = len(native.of("/score_choices"))
    choose(prompt, method).sync()
    assert len(native.of("/score_choices")) == seen


def test_a_space_that_melts_into_the_choice_is_scored_with_it(native: NativeServer, backend: RuntimeEndpoint) -> None:
    state = choose("I need a ")
    rows = state.get_meta_info("tool")["input_token_logprobs"]
    assert rows == [
        [[token_logprob(" calculator"), token_id(" calculator"), " calculator"]],
        [
            [token_logprob(" search"), token_id(" search"), " search"],
            [token_logprob(" engine"), token_id(" engine"), " engine"],
        ],
    ]
    assert state.text() == "I need a " + state["tool"]


def test_no_token_of_the_prompt_is_scored(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.has_score_choices = False
    rows = choose("a b c d e f g:").get_meta_info("tool")["input_token_logprobs"]
    # "g:" and the choice are one word for this tokenizer, and nothing before it
    assert [row[0][2] for row in rows] == [" g:calculator", " g:search"]


def test_the_empty_prompt(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.has_score_choices = False

    @sgl.function
    def program(s):  # type: ignore[no-untyped-def]
        s += sgl.select("x", ["a", "b"])

    assert program()["x"] in ("a", "b")


async def test_scoring_begins_where_a_choice_changes_the_prompts_own_tokens() -> None:
    """However far before its end that is."""
    ids = {"p": list(range(10)), "pa": [*range(10), 20, 21], "pb": [0, 1, 90, 91, 92]}
    starts = []

    async def post(path: str, body: Any) -> Any:
        if isinstance(body["text"], str):
            return {"meta_info": {"prompt_tokens": len(ids[body["text"]])}}
        start = body["logprob_start_len"]
        starts.append(start)
        rows = [
            [[None if i == start else -1.0, token, ""] for i, token in enumerate(ids[text])][start:] for text in body["text"]
        ]
        return [{"meta_info": {"input_token_logprobs": row}} for row in rows]

    first, second = await score_by_generate(post, "p", ["a", "b"], False, {}, {})
    assert [entry[1] for entry in first["token_logprobs"]] == [*range(2, 10), 20, 21]
    assert [entry[1] for entry in second["token_logprobs"]] == [90, 91, 92]
    assert starts == [6, 0]
