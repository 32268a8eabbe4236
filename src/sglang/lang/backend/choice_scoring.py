"""Scores choices on servers that only have `/generate`, from the log probabilities of prompts.

Scoring begins at the first token where any prompt + choice differs from the prompt (common/prefixes.py says why).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from sglang.common.prefixes import first_difference
from sglang.lang.choices import mean
from sglang.lang.errors import BadReplyError

Post = Callable[[str, Any], Awaitable[Any]]
Fields = Mapping[str, Any]
FIRST_MARGIN = 4
"""tokens before the prompt's end that are looked at first"""


async def score_by_generate(
    post: Post, text: str, choices: Sequence[str], unconditional: bool, images: Fields, adapter: Fields
) -> list[dict[str, Any]]:
    """For each choice {"token_logprobs": [[logprob, id, text]...], "normalized": their mean} and, when asked for,
    "unconditional_token_logprobs": the same ids scored on their own. `images`, `adapter`: image_data and lora_path, if any."""
    beside = {**images, **adapter}
    scored = await _scored_after(post, text, choices, beside) if text else await _choice_rows(post, choices, 0, beside)
    result: list[dict[str, Any]] = [{"token_logprobs": row, "normalized": _mean_of_known(row)} for row in scored]
    if unconditional:
        ids = [[entry[1] for entry in row] for row in scored]
        for one, alone in zip(result, await _scored_alone(post, ids, adapter), strict=True):
            one["unconditional_token_logprobs"] = alone
    return result


async def _scored_after(post: Post, text: str, choices: Sequence[str], beside: Fields) -> list[list[Any]]:
    """The tokens of each choice after `text`."""
    first = await post("/generate", {"text": text, "sampling_params": {"max_new_tokens": 0}, **beside})
    prompt_len = int(first["meta_info"]["prompt_tokens"])
    margin = FIRST_MARGIN
    while True:
        start = max(prompt_len - margin, 0)
        rows = await _choice_rows(post, [text, *(text + choice for choice in choices)], start, beside)
        prompt, *ids = ([entry[1] for entry in row] for row in rows)
        split = first_difference(prompt, ids)
        # the entry at `start` has no log probability, so the difference must lie behind it
        if split > 0 or start == 0:
            return [row[split:] for row in rows[1:]]
        margin *= 4


async def _choice_rows(post: Post, texts: Sequence[str], start: int, beside: Fields) -> list[list[Any]]:
    payload = {
        "text": list(texts),
        "sampling_params": {"max_new_tokens": 0, "temperature": 0},
        "return_logprob": True,
        "return_text_in_logprobs": True,
        "logprob_start_len": start,
        **{name: [value] * len(texts) for name, value in beside.items()},
    }
    return _input_logprobs(await post("/generate", payload), len(texts))


async def _scored_alone(post: Post, ids: list[list[int]], adapter: Fields) -> list[list[Any]]:
    payload = {
        **adapter,
        "input_ids": ids,
        "sampling_params": {"max_new_tokens": 0, "temperature": 0},
        "return_logprob": True,
        "logprob_start_len": 0,
    }
    return _input_logprobs(await post("/generate", payload), len(ids))


def _input_logprobs(replies: Any, count: int) -> list[list[Any]]:
    if not isinstance(replies, list) or len(replies) != count:
        raise BadReplyError("the server's answer to a batch has another length than the batch")
    return [list(reply["meta_info"]["input_token_logprobs"]) for reply in replies]


def _mean_of_known(row: Sequence[Any]) -> float:
    """Mean without the first token of all, which nothing predicts."""
    return mean([float(entry[0]) for entry in row if entry[0] is not None])
