"""POST /v1/score: probabilities of label tokens after each item; POST /v1/rerank: documents by their similarity to a query."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from sglang.srt.errors import RequestError
from sglang.srt.messages import LogprobOptions
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server.calls import Call
from sglang.srt.server.fields import Fields, as_bool, as_ids, as_int, as_text, as_texts, pack_row
from sglang.srt.server.generate_req import GenerateOut, GenerateReq
from sglang.srt.server.http.bodies import read_as
from sglang.srt.server.http.wire import CLIENT_GONE, LargeJsonResponse, answer, unless_gone
from sglang.srt.server.openai.answers import Usage
from sglang.srt.server.openapi import schemas
from sglang.srt.server.openapi.openai_shapes import RERANKED, SCORED
from sglang.srt.server.openapi.operation import OPENAI, documented
from sglang.srt.server.tokenizer_manager import TokenizerManager

MAX_ITEMS = 4096
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
        "rid": schemas.RID,
        "priority": schemas.PRIORITY,
    },
    frozenset({"user"}),
    ids=frozenset({"query", "items"}),
    required=("query", "items", "label_token_ids"),
    name="ScoreRequest",
)
_RERANK = Fields.of(
    {
        "query": schemas.text("what is looked for", minLength=1),
        "documents": schemas.list_of(schemas.text(minLength=1), "texts to order", minItems=1, maxItems=MAX_ITEMS),
        "top_n": schemas.integer("only so many, the best ones", minimum=1, maximum=MAX_ITEMS),
        "return_documents": schemas.truth("repeat the texts in the reply"),
        "rid": schemas.RID,
    },
    frozenset({"model", "user"}),
    required=("query", "documents"),
    name="RerankRequest",
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
class _RerankCall:
    """`texts`: ids of the query, then of the documents; `shown`: the documents are repeated in the answer."""

    documents: list[str]
    texts: list[list[int]]
    top: int
    name: str
    shown: bool


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
        reply = await answer(request, self._manager, call.req, call.collect)
        return CLIENT_GONE if reply is None else LargeJsonResponse(reply)

    def _score_call(self, body: dict[str, Any]) -> _ScoreCall:
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
        )
        return _ScoreCall(req, as_text(body, "model") or self._name, as_bool(body, "apply_softmax"))

    def _score_prompts(self, body: dict[str, Any]) -> list[Sequence[int]]:
        """Query and item joined, as text or as ids."""
        query, items, first = body.get("query"), body.get("items"), as_bool(body, "item_first")
        if isinstance(query, str):
            texts = [items] if isinstance(items, str) else as_texts(body, "items")
            _check_count(texts, "items")
            if len(query) + max(map(len, texts)) > self._manager.max_chars:
                raise RequestError("an item is longer than the context can hold", "items")
            return self._manager.maker.encode(item + query if first else query + item for item in texts)
        ids = pack_row(query, "query")
        rows = items if isinstance(items, list) and items and not isinstance(items[0], int) else [items]
        _check_count(rows, "items")
        checked = [pack_row(row, "items") for row in rows]
        return self._manager.maker.join((row, ids) if first else (ids, row) for row in checked)

    @documented(
        "Documents by their nearness to a query",
        OPENAI,
        about="Only with an encoder, or with --is-embedding.",
        body=_RERANK,
        reply=RERANKED,
        examples=({"query": "pets", "documents": ["The cat sat.", "Stocks fell."], "top_n": 1},),
    )
    async def rerank(self, request: Request) -> Response:
        """A bare list of {score, document, index, meta_info}, best first. The score is the cosine of two embeddings."""
        call = await read_as(request, _RERANK, self._rerank_call)
        vectors = await unless_gone(request, self._manager.embed(call.texts))
        if vectors is None:
            return CLIENT_GONE
        results: list[dict[str, Any]] = [
            {
                "score": _cosine(vectors[0], vector),
                "document": document if call.shown else None,
                "index": i,
                "meta_info": {"id": call.name, "prompt_tokens": len(ids)},
            }
            for i, (document, vector, ids) in enumerate(zip(call.documents, vectors[1:], call.texts[1:], strict=True))
        ]
        results.sort(key=lambda result: (-result["score"], result["index"]))
        return LargeJsonResponse(results[: call.top])

    def _rerank_call(self, body: dict[str, Any]) -> _RerankCall:
        self._manager.maker.need_embedder()
        query, documents = as_text(body, "query"), as_texts(body, "documents")
        if not query:
            raise RequestError("query must be a string that is not empty", "query")
        _check_count(documents, "documents")
        if any(len(text) > self._manager.max_chars for text in (query, *documents)):
            raise RequestError("a document is longer than the context can hold", "documents")
        top = as_int(body, "top_n", len(documents), 1, MAX_ITEMS)
        tokenizer = self._manager.need_tokenizer()
        asks, tells = (tokenizer.sentences.first_of(*names) for names in (("query",), ("document", "passage", "corpus")))
        texts = tokenizer.encode_batch([asks + query, *(tells + document for document in documents)])
        if not all(texts):
            raise RequestError("documents must not hold an empty text", "documents")
        self._manager.maker.check_embed(texts)
        name = as_text(body, "rid") or uuid4().hex
        return _RerankCall(documents, texts, top, name, as_bool(body, "return_documents", True))


def _check_count(values: list[Any], name: str) -> None:
    if not 1 <= len(values) <= MAX_ITEMS:
        raise RequestError(f"{name} must have between 1 and {MAX_ITEMS} entries, got {len(values)}", name)


def _cosine(a: Any, b: Any) -> float:
    length = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / length if length else 0.0


def _probabilities(out: GenerateOut, softmax: bool) -> list[float]:
    """Of the labels, as the next token; with `softmax` among themselves."""
    if not out.output_logprobs:
        raise RequestError("the request was aborted")
    logprobs = [logprob for logprob, _ in next(out.output_logprobs.scored())]
    if not softmax:
        return [math.exp(value) for value in logprobs]
    best = max(logprobs)
    weights = [math.exp(value - best) for value in logprobs]
    total = sum(weights)
    return [weight / total for weight in weights]
