"""/score_choices: every choice is judged after the same tokens, in one call."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import Stand
from tests.server.echo_scheduler import logprob_of
from tests.server.http_tools import client_of


async def score(stand: Stand, **body: Any) -> Any:
    async with client_of(stand) as client:
        response = await client.post("/score_choices", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_tokens_from_the_first_difference_are_scored(stand: Stand) -> None:
    """The prompt ends in a space, which the tokenizer joins with the choice: that position is scored, for both."""
    tokenizer = stand.manager.need_tokenizer()
    prompt, choices = "I need a ", ["calculator", "search engine"]
    ids = tokenizer.encode(prompt)
    both = [tokenizer.encode(prompt + choice) for choice in choices]
    start = min(next(i for i, (a, b) in enumerate(zip(ids, row, strict=False)) if a != b) for row in both)
    assert start == len(ids) - 1, "the seam is healed"
    reply = await score(stand, text=prompt, choices=choices)
    assert len(stand.scheduler.received) == 2, "one sequence a choice"
    for row, result in zip(both, reply["choices"], strict=True):
        entries = result["token_logprobs"]
        assert [entry[1] for entry in entries] == row[start:]
        expected = [logprob_of(i, at) for at, i in enumerate(row)][start:]
        assert [entry[0] for entry in entries] == expected
        assert result["normalized"] == pytest.approx(sum(expected) / len(expected))
        assert "unconditional_token_logprobs" not in result
    assert "".join(entry[2] for entry in reply["choices"][1]["token_logprobs"]) == " search engine"
    assert reply["meta_info"]["prompt_tokens"] == len(ids)


async def test_without_a_seam_only_the_choices_count(stand: Stand) -> None:
    tokenizer = stand.manager.need_tokenizer()
    prompt, choices = "Answer:", ["\n1", "\n2", "\n34"]
    reply = await score(stand, text=prompt, choices=choices)
    for choice, result in zip(choices, reply["choices"], strict=True):
        entries = result["token_logprobs"]
        assert "".join(entry[2] for entry in entries) == choice
        assert [entry[1] for entry in entries] == tokenizer.encode(prompt + choice)[len(tokenizer.encode(prompt)) :]


async def test_unconditional_scores_are_of_the_same_tokens(stand: Stand) -> None:
    reply = await score(stand, text="I need a ", choices=["fox", "dog"], unconditional=True)
    for result in reply["choices"]:
        alone, together = result["unconditional_token_logprobs"], result["token_logprobs"]
        assert [entry[1] for entry in alone] == [entry[1] for entry in together]
        assert alone[0][0] is None


async def test_ids_and_empty_prompts(stand: Stand) -> None:
    tokenizer = stand.manager.need_tokenizer()
    reply = await score(stand, input_ids=[5, 6, 7], choices=["fox"])
    assert [entry[1] for entry in reply["choices"][0]["token_logprobs"]] == tokenizer.encode("fox")
    reply = await score(stand, text="", choices=["fox", "dog"])
    entries = reply["choices"][0]["token_logprobs"]
    assert [entry[1] for entry in entries] == tokenizer.encode("fox")
    assert entries[0][0] is not None, "something stands before the first token"


async def test_hundreds_of_choices(stand: Stand) -> None:
    choices = [f"number {i}" for i in range(300)]
    reply = await score(stand, text="Pick a ", choices=choices)
    assert len(reply["choices"]) == 300
    assert len(stand.scheduler.received) == 300
    assert len({req.group for req in stand.scheduler.received}) == 1 and stand.scheduler.received[0].group is not None


async def test_a_priority_reaches_the_scheduler(stand: Stand) -> None:
    await score(stand, text="Pick a ", choices=["fox", "dog"], priority=3)
    assert [req.priority for req in stand.scheduler.received] == [3, 3]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": "a"},
        {"text": "a", "choices": []},
        {"text": "a", "choices": [""]},
        {"text": "a", "choices": "ab"},
        {"text": "a", "choices": ["b", 3]},
        {"text": "a", "input_ids": [1], "choices": ["b"]},
        {"text": "a", "choices": ["b"], "unconditional": 1},
        {"text": "a", "choices": ["b"], "choice": 1},
        {"text": "a", "choices": ["b"], "priority": "high"},
        {"input_ids": [10**9], "choices": ["b"]},
        {"text": "a" * 10000, "choices": ["b"]},
    ],
)
async def test_wrong_requests(stand: Stand, body: dict[str, Any]) -> None:
    async with client_of(stand) as client:
        response = await client.post("/score_choices", json=body)
    assert response.status_code == 400
    assert len(response.json()["error"]["message"]) > 10
