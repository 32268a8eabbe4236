"""POST /v1/score: probabilities of label tokens after each item, or the scores of a head for labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglang.srt.errors import RequestError
from sglang.srt.messages import LogprobOptions
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server.calls import Call
from sglang.srt.server.fields import Fields, as_bool, as_ids, as_int, as_text, as_texts, pack_row
from sglang.srt.server.generate_req import GenerateOut, GenerateReq, check_repeated
from sglang.srt.server.http.bodies import read_as
from sglang.srt.server.http.wire import CLIENT_GONE, LargeJsonResponse, answer, unless_gone
from sglang.srt.server.openai.answers import Usage
from sglang.srt.server.openai.reranking import check_count, encode_pairs, scored
from sglang.srt.server.openapi import schemas
from sglang.srt.server.openapi.openai_shapes import SCORED
from sglang.srt.server.openapi.operation import OPENAI, documented
from sglang.srt.server.tokenizer_manager import TokenizerManager

MAX_SCORES = 100_000
_SCORE = Fields.of(
    {
        "model": schemas.MODEL,
        "query": schemas.one_of(schemas.text(), schemas.IDS, says="what stands before each item, as text or as token ids"),
        "items": schemas.one_of(
            schemas.text(),
            schemas.TEXTS,
            schemas.IDS,
            schemas.list_of(schemas.IDS),
            says="what is scored after it, as the query is given",
        ),
        "label_token_ids": schemas.list_of(schemas.integer(), "tokens whose probability as the next one is told", minItems=1),
        "apply_softmax": schemas.truth("probabilities of the labels among themselves"),
        "item_first": schemas.truth("the item stands before the query"),
        "lora_path": schemas.text("the name of a loaded adapter, which scores; as `model` may name one, too"),
        "rid": schemas.RID,
        "priority": schemas.PRIORITY,
    },
    frozenset({"user"}),
    ids=frozenset({"query", "items"}),
    required=("query", "items"),
    name="ScoreRequest",
)


@dataclass(frozen=True)
class _ScoreCall:
    """One request to score. `softmax`: the labels' probabilities are among themselves."""

    req: GenerateReq
    model: str
    softmax: bool

    async def collect(self, call: Call) -> dict[str, Any]:
        outs: dict[int, GenerateOut] = {}
        usage = Usage(1)
        async for out in call:
            usage.add(out)
            outs[out.index] = out
        scores = [_probabilities(outs[i], self.softmax) for i in sorted(outs)]
        return {"object": "scoring", "model": self.model, "scores": scores, "usage": usage.as_dict()}


@dataclass(frozen=True)
class _JudgeCall:
    """Texts for a head for labels: ids, and where the second text begins."""

    pairs: list[tuple[list[int], int]]
    model: str
    softmax: bool


class ScoringApi:
    def __init__(self, manager: TokenizerManager, served_name: str) -> None:
        self._manager = manager
        self._name = served_name

    @documented(
        "Probabilities of label tokens after each item",
        OPENAI,
        body=_SCORE,
        reply=SCORED,
        examples=(
            {"query": "Is it a fruit? ", "items": ["apple:", "stone:"], "label_token_ids": [10, 20], "apply_softmax": True},
            {"query": [10, 11], "items": [[12], [13, 14]], "label_token_ids": [15]},
        ),
    )
    async def score(self, request: Request) -> Response:
        call = await read_as(request, _SCORE, self._score_call)
        if isinstance(call, _JudgeCall):
            return await self._judge(request, call)
        reply = await answer(request, self._manager, call.req, call.collect)
        return CLIENT_GONE if reply is None else LargeJsonResponse(reply)

    async def _judge(self, request: Request, call: _JudgeCall) -> Response:
        scores = await unless_gone(request, self._judged(call))
        if scores is None:
            return CLIENT_GONE
        count = sum(len(ids) for ids, _ in call.pairs)
        usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0}
        return LargeJsonResponse({"object": "scoring", "model": call.model, "scores": scores, "usage": usage})

    async def _judged(self, call: _JudgeCall) -> list[list[float]]:
        texts, first_lens = [ids for ids, _ in call.pairs], [first for _, first in call.pairs]
        rows: list[list[float]] = [vector.tolist() for vector in await self._manager.embed(texts, first_lens=first_lens)]
        return [_among_themselves(row) for row in rows] if call.softmax else rows

    async def scores(self, body: dict[str, Any]) -> list[list[float]]:
        """The scores of a body, for the offline engine. Raises RequestError."""
        score = self._score_call(body)
        if isinstance(score, _JudgeCall):
            return await self._judged(score)
        call = await self._manager.start(score.req)
        try:
            scores: list[list[float]] = (await score.collect(call))["scores"]
        finally:
            call.cancel()
        return scores

    def _judge_call(self, body: dict[str, Any]) -> _JudgeCall:
        """The call for a model with a head for labels: query and item are the two texts of a pair."""
        query, items = as_text(body, "query"), body.get("items")
        if body.get("label_token_ids") is not None:
            raise RequestError("this model has labels of its own: leave label_token_ids out", "label_token_ids")
        texts = [items] if isinstance(items, str) else as_texts(body, "items")
        check_count(texts, "items")
        check_repeated(len(query or ""), len(texts), "query", self._manager.max_chars)
        if not query or not all(texts):
            raise RequestError("query and items must be texts that are not empty: this model has a head for labels", "items")
        self._check_chars(max(len(query), *map(len, texts)))
        first = as_bool(body, "item_first")
        pairs = encode_pairs(self._manager, [(item, query) if first else (query, item) for item in texts])
        return _JudgeCall(pairs, as_text(body, "model") or self._name, as_bool(body, "apply_softmax"))

    def _check_chars(self, count: int) -> None:
        if count > self._manager.max_chars:
            raise self._manager.maker.too_many_chars(count, "items")

    def _score_call(self, body: dict[str, Any]) -> _ScoreCall | _JudgeCall:
        as_text(body, "lora_path")
        if self._manager.info.get("num_labels"):
            self._manager.adapters.check_none(body)
            return self._judge_call(body)
        labels = as_ids(body, "label_token_ids")
        if not labels:
            raise RequestError("label_token_ids must not be empty", "label_token_ids")
        prompts = self._score_prompts(body)
        if len(prompts) * len(labels) > MAX_SCORES:
            raise RequestError(f"at most {MAX_SCORES} scores are given at once: items times label_token_ids", "label_token_ids")
        req = GenerateReq(
            input_ids=prompts,
            sampling=SamplingParams(max_new_tokens=1, temperature=0.0),
            logprobs=LogprobOptions(token_ids=tuple(labels)),
            rid=as_text(body, "rid"),
            priority=as_int(body, "priority", 0, -(2**31), 2**31 - 1),
            adapter=self._manager.adapters.of_body(body),
        )
        return _ScoreCall(req, as_text(body, "model") or self._name, as_bool(body, "apply_softmax"))

    def _score_prompts(self, body: dict[str, Any]) -> list[Sequence[int]]:
        """Query and item joined, as text or as ids."""
        query, items, first = body.get("query"), body.get("items"), as_bool(body, "item_first")
        if isinstance(query, str):
            texts = [items] if isinstance(items, str) else as_texts(body, "items")
            check_count(texts, "items")
            check_repeated(len(query), len(texts), "query", self._manager.max_chars)
            self._check_chars(len(query) + max(map(len, texts)))
            return self._manager.maker.encode(item + query if first else query + item for item in texts)
        ids = pack_row(query, "query")
        rows = items if isinstance(items, list) and items and not isinstance(items[0], int) else [items]
        check_count(rows, "items")
        check_repeated(len(ids), len(rows), "query", self._manager.context_len)
        checked = [pack_row(row, "items") for row in rows]
        return self._manager.maker.join((row, ids) if first else (ids, row) for row in checked)


def _probabilities(out: GenerateOut, softmax: bool) -> list[float]:
    """The probabilities of the labels as the next token; with `softmax` among themselves."""
    logprobs = scored(out)
    return _among_themselves(logprobs) if softmax else [math.exp(value) for value in logprobs]


def _among_themselves(values: list[float]) -> list[float]:
    """Softmax."""
    best = max(values)
    weights = [math.exp(value - best) for value in values]
    total = sum(weights)
    return [weight / total for weight in weights]
