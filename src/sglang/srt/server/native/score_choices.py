"""Scores choices: the log probabilities of several continuations of a prompt, in one call.

Each choice is tokenized together with the prompt, and scored from the first token where any of them differs from the prompt
(common/prefixes.py says why). The sequences share the prompt, which is computed once and taken from the prefix cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglang.common.prefixes import first_difference
from sglang.srt.errors import RequestError
from sglang.srt.messages import LogprobOptions, Logprobs, TokenIds, pack_ids
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server.calls import Call
from sglang.srt.server.fields import Fields, as_bool, as_int, as_text, as_texts, check_known, pack_row
from sglang.srt.server.generate_req import GenerateOut, GenerateReq, check_repeated
from sglang.srt.server.openapi import schemas
from sglang.srt.server.request_maker import LONG_TEXT, TEXT_COST, RequestMaker
from sglang.srt.server.side_threads import run_in_thread
from sglang.srt.server.tokenization.tokenizer import Tokenizer

MAX_CHOICES = 4096
SCORE_FIELDS = Fields.of(
    {
        "text": schemas.text("the prompt"),
        "input_ids": {**schemas.IDS, "description": "the prompt as token ids, instead of text"},
        "choices": schemas.list_of(schemas.text(minLength=1), "what may follow it", minItems=1, maxItems=MAX_CHOICES),
        "unconditional": schemas.truth("log probabilities of the choices without the prompt, too"),
        "lora_path": schemas.text("the name of a loaded adapter, which scores"),
        "rid": schemas.RID,
        "cache_salt": schemas.SALT,
        "priority": schemas.PRIORITY,
    },
    ids=frozenset({"input_ids"}),
    required=("choices",),
    name="ScoreChoicesRequest",
)


@dataclass(frozen=True)
class ScoreReq:
    """`text` or `input_ids` is the prompt. `unconditional`: score the choices' tokens without a prompt as well."""

    text: str | None
    input_ids: TokenIds | None
    choices: list[str]
    unconditional: bool = False
    rid: str | None = None
    cache_salt: str | None = None
    priority: int = 0
    adapter: str | None = None


def parse_score(body: dict[str, Any]) -> ScoreReq:
    """Checks a /score_choices body. Raises RequestError."""
    check_known(body, SCORE_FIELDS.read, "field")
    text = as_text(body, "text")
    ids = pack_row(body["input_ids"], "input_ids") if body.get("input_ids") is not None else None
    if (text is None) == (ids is None):
        raise RequestError("give exactly one of text and input_ids", "text")
    choices = as_texts(body, "choices")
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise RequestError(f"choices must have between 1 and {MAX_CHOICES} entries, got {len(choices)}", "choices")
    if any(not choice for choice in choices):
        raise RequestError("choices must not contain an empty string", "choices")
    priority = as_int(body, "priority", 0, -(2**31), 2**31 - 1)
    salt = as_text(body, "cache_salt")
    adapter = as_text(body, "lora_path") or None
    return ScoreReq(text, ids, choices, as_bool(body, "unconditional"), as_text(body, "rid"), salt, priority, adapter)


@dataclass(frozen=True)
class ScorePlan:
    """The sequences to score: those of the choices, then, when asked for, their tails alone. `start` is where tails begin."""

    req: GenerateReq
    start: int
    prompt_len: int
    num_choices: int
    unconditional: bool


async def plan_score(maker: RequestMaker, score: ScoreReq) -> ScorePlan:
    """Tokenizes prompt and choices. Raises RequestError if a choice adds no token to the prompt, or if they are too long."""
    prompt_size = len(score.text or score.input_ids or ())
    size = len(score.choices) * (prompt_size + TEXT_COST) + sum(map(len, score.choices))
    return await run_in_thread(_plan, maker, score) if size > LONG_TEXT else _plan(maker, score)


def _plan(maker: RequestMaker, score: ScoreReq) -> ScorePlan:
    prompt, sequences = _tokenize(maker, score)
    start = first_difference(prompt, sequences)
    for choice, sequence in zip(score.choices, sequences, strict=True):
        if len(sequence) <= start:
            raise RequestError(f"the choice {choice[:50]!r} adds no token to the prompt", "choices")
    tails = [sequence[start:] for sequence in sequences] if score.unconditional else []
    conditional: list[LogprobOptions | None] = [LogprobOptions(start_len=start)] * len(sequences)
    req = GenerateReq(
        input_ids=sequences + tails,
        sampling=SamplingParams(max_new_tokens=0, temperature=0.0),
        logprobs=conditional + [LogprobOptions(start_len=0)] * len(tails),
        rid=score.rid,
        cache_salt=score.cache_salt,
        priority=score.priority,
        begins_alike=True,
        adapter=score.adapter,
    )
    return ScorePlan(req, start, len(prompt), len(sequences), score.unconditional)


def _tokenize(maker: RequestMaker, score: ScoreReq) -> tuple[Sequence[int], list[Sequence[int]]]:
    """The prompt's ids and those of the prompt with each choice. Ids of a prompt are taken as they are: then there is no text
    to join a choice with, and the choice's own tokens follow."""
    tokenizer = maker.need_tokenizer()
    if score.input_ids is not None:
        ids = score.input_ids
        check_repeated(len(ids), len(score.choices), "input_ids", maker.context_len)
        return ids, maker.join((ids, tail) for tail in maker.encode(score.choices, special=False))
    assert score.text is not None
    check_repeated(len(score.text), len(score.choices), "text", maker.max_chars)
    prompt = tokenizer.encode(maker.check_size(score.text))
    bos = tokenizer.vocabulary.bos_token_id
    if not prompt and bos is not None:  # as for an empty prompt of /generate: something must predict the first token
        return pack_ids([bos]), maker.join(([bos], tail) for tail in maker.encode(score.choices))
    return pack_ids(prompt), maker.encode(score.text + choice for choice in score.choices)


async def collect_scores(plan: ScorePlan, call: Call, tokenizer: Tokenizer) -> dict[str, Any]:
    """The reply: per choice its tokens with log probabilities, their mean, and what the choices have in common."""
    outs: list[GenerateOut | None] = [None] * (plan.num_choices * (2 if plan.unconditional else 1))
    async for out in call:
        outs[out.index] = out
    if any(out is None for out in outs):
        return {}  # cancelled: nobody reads this
    results = []
    for i in range(plan.num_choices):
        await asyncio.sleep(0)
        entries = _entries(outs[i], tokenizer)
        known = [entry[0] for entry in entries if entry[0] is not None]
        result: dict[str, Any] = {"token_logprobs": entries, "normalized": sum(known) / len(known) if known else 0.0}
        if plan.unconditional:
            result["unconditional_token_logprobs"] = _entries(outs[plan.num_choices + i], tokenizer)
        results.append(result)
    scored = [out for out in outs[: plan.num_choices] if out is not None]
    meta = {
        "id": call.name,
        "prompt_tokens": plan.prompt_len,
        "scored_from": plan.start,
        "cached_tokens": sum(out.cached_len for out in scored),
        "total_tokens": sum(out.prompt_len for out in outs if out is not None),
        "e2e_latency": max(out.seconds for out in outs if out is not None),
    }
    return {"choices": results, "meta_info": meta}


def _entries(out: GenerateOut | None, tokenizer: Tokenizer) -> list[list[Any]]:
    logprobs = out.input_logprobs if out is not None else None
    return [[logprob, token_id, tokenizer.token_text(token_id)] for logprob, token_id in (logprobs or Logprobs()).chosen()]
