"""POST /v1/rerank: documents by how well they meet a query, in the way that the model has.

a model that embeds            cosine of the vectors of query and document
a head for labels              its score of the pair                                    (cross-encoders)
a model that generates         how likely it answers "yes" rather than "no", asked as Qwen3-Reranker is (arXiv 2506.05176)
"""

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
from sglang.srt.server.fields import Fields, as_bool, as_int, as_text, as_texts
from sglang.srt.server.generate_req import GenerateOut, GenerateReq, check_repeated
from sglang.srt.server.http.bodies import read_as
from sglang.srt.server.http.wire import CLIENT_GONE, LargeJsonResponse, answer, unless_gone
from sglang.srt.server.openapi import schemas
from sglang.srt.server.openapi.openai_shapes import RERANKED
from sglang.srt.server.openapi.operation import OPENAI, documented
from sglang.srt.server.tokenizer_manager import TokenizerManager

MAX_ITEMS = 4096
_RERANK = Fields.of(
    {
        "model": schemas.MODEL,
        "query": schemas.text("what is looked for", minLength=1),
        "documents": schemas.list_of(schemas.text(minLength=1), "texts to order", minItems=1, maxItems=MAX_ITEMS),
        "top_n": schemas.integer("only so many, the best ones", minimum=1, maximum=MAX_ITEMS),
        "return_documents": schemas.truth("repeat the texts in the reply"),
        "instruct": schemas.text("what a model that is asked in words is to look for", minLength=1),
        "rid": schemas.RID,
    },
    frozenset({"user"}),
    required=("query", "documents"),
    name="RerankRequest",
)
_INSTRUCT = "Given a web search query, retrieve relevant passages that answer the query"
_JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)


@dataclass(frozen=True)
class _RerankCall:
    """`texts`: ids of each document, after its query or its question where the model reads them together; `query`: those of the
    query where it does not; `first_lens`: see EmbedReq; `answers`: ids of yes and no, and `adapter`: who answers; `shown`: documents
    are repeated in the reply."""

    documents: list[str]
    texts: list[list[int]]
    top: int
    name: str
    shown: bool
    query: list[int] | None = None
    first_lens: list[int] | None = None
    answers: tuple[int, ...] = ()
    adapter: str | None = None


class RerankApi:
    def __init__(self, manager: TokenizerManager) -> None:
        self._manager = manager

    @documented(
        "Documents by how well they meet a query",
        OPENAI,
        about="With a cross-encoder its scores, with a model that embeds cosines, with one that generates its answers.",
        body=_RERANK,
        reply=RERANKED,
        examples=({"query": "pets", "documents": ["The cat sat.", "Stocks fell."], "top_n": 1},),
    )
    async def rerank(self, request: Request) -> Response:
        """A bare list of {score, document, index, meta_info}, best first."""
        call = await read_as(request, _RERANK, self._call)
        scores = await self._scores(request, call)
        if scores is None:
            return CLIENT_GONE
        results: list[dict[str, Any]] = [
            {
                "score": score,
                "document": document if call.shown else None,
                "index": i,
                "meta_info": {"id": call.name, "prompt_tokens": len(ids)},
            }
            for i, (document, score, ids) in enumerate(zip(call.documents, scores, call.texts, strict=True))
        ]
        results.sort(key=lambda result: (-result["score"], result["index"]))
        return LargeJsonResponse(results[: call.top])

    async def _scores(self, request: Request, call: _RerankCall) -> list[float] | None:
        """None if the client has gone."""
        if call.answers:
            options = LogprobOptions(token_ids=call.answers)
            sampling = SamplingParams(max_new_tokens=1, temperature=0.0)
            prompts: list[Sequence[int]] = list(call.texts)
            req = GenerateReq(input_ids=prompts, sampling=sampling, logprobs=options, adapter=call.adapter)
            return await answer(request, self._manager, req, _answers)
        if call.query is None:
            vectors = await unless_gone(request, self._manager.embed(call.texts, first_lens=call.first_lens))
            return None if vectors is None else [float(vector[0]) for vector in vectors]
        vectors = await unless_gone(request, self._manager.embed([call.query, *call.texts]))
        return None if vectors is None else [_cosine(vectors[0], vector) for vector in vectors[1:]]

    def _call(self, body: dict[str, Any]) -> _RerankCall:
        query, documents = as_text(body, "query"), as_texts(body, "documents")
        if not query:
            raise RequestError("query must be a string that is not empty", "query")
        check_count(documents, "documents")
        longest = max(map(len, (query, *documents)))
        if longest > self._manager.max_chars:
            raise self._manager.maker.too_many_chars(longest, "documents")
        if not all(documents):
            raise RequestError("documents must not hold an empty text", "documents")
        top = as_int(body, "top_n", len(documents), 1, MAX_ITEMS)
        common = (top, as_text(body, "rid") or uuid4().hex, as_bool(body, "return_documents", True))
        info, instruct = self._manager.info, as_text(body, "instruct")
        num_labels = info.get("num_labels", 0)  # none: a model that generates, or one that embeds
        as_text(body, "model")  # of_body leaves what is no text to its caller
        adapter = self._manager.adapters.of_body(body)
        if num_labels or info.get("embedding_dim"):
            self._manager.adapters.check_none(body)
        if info.get("embedding_dim") and not num_labels:
            return self._by_vectors(query, documents, instruct, common)
        if num_labels > 1:
            raise RequestError(f"this model gives a text {num_labels} labels, of which none is its rank: use /v1/score")
        check_repeated(len(query) + len(instruct or ""), len(documents), "query", self._manager.max_chars)
        tokenizer = self._manager.need_tokenizer()
        if num_labels and not tokenizer.has_chat_template:
            _refuse_instruct(instruct)
            pairs = encode_pairs(self._manager, [(query, document) for document in documents])
            return _RerankCall(documents, [ids for ids, _ in pairs], *common, first_lens=[first for _, first in pairs])
        questions = [self._question(query, document, instruct or _INSTRUCT) for document in documents]
        if num_labels:
            self._manager.maker.check_embed(questions)
            return _RerankCall(documents, questions, *common)
        answers = [tokenizer.encode_ordinary(word) for word in ("yes", "no")]
        if any(len(ids) != 1 for ids in answers):
            raise RequestError("this model cannot be asked to rank: yes and no are several tokens of it")
        return _RerankCall(documents, questions, *common, answers=tuple(ids[0] for ids in answers), adapter=adapter)

    def _by_vectors(self, query: str, documents: list[str], instruct: str | None, common: tuple[int, str, bool]) -> _RerankCall:
        _refuse_instruct(instruct)
        tokenizer = self._manager.need_tokenizer()
        asks, tells = (tokenizer.sentences.first_of(*names) for names in (("query",), ("document", "passage", "corpus")))
        texts = tokenizer.encode_batch([asks + query, *(tells + document for document in documents)])
        self._manager.maker.check_embed(texts)
        return _RerankCall(documents, texts[1:], *common, query=texts[0])

    def _question(self, query: str, document: str, instruct: str) -> list[int]:
        """A prompt in the form of Qwen3-Reranker, by the model's own chat template."""
        asked = f"<Instruct>: {instruct}\n<Query>: {query}\n<Document>: {document}"
        messages = [{"role": "system", "content": _JUDGE}, {"role": "user", "content": asked}]
        ids = self._manager.need_tokenizer().encode_chat(
            messages, template_variables={"enable_thinking": False}, max_chars=self._manager.max_chars
        )
        limit = self._manager.maker.context_len - 1
        if len(ids) > limit:  # cutting its end would take the question away
            raise RequestError(
                f"query and document make a prompt of {len(ids)} tokens; the model takes at most {limit}", "documents"
            )
        return ids


def encode_pairs(manager: TokenizerManager, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """Ids of each pair, and where its second text begins, for a model with a head for labels. Raises RequestError."""
    limit = int(manager.info["context_len"]) if manager.http.allow_auto_truncate else None
    found = manager.need_tokenizer().encode_pairs(pairs, limit)
    manager.maker.check_embed([ids for ids, _ in found])
    return found


def check_count(values: Sequence[Any], name: str) -> None:
    if not 1 <= len(values) <= MAX_ITEMS:
        raise RequestError(f"{name} must have between 1 and {MAX_ITEMS} entries, got {len(values)}", name)


def _refuse_instruct(instruct: str | None) -> None:
    if instruct is not None:
        raise RequestError("instruct means nothing to this model: it is not asked in words", "instruct")


def _cosine(a: Any, b: Any) -> float:
    length = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / length if length else 0.0


async def _answers(call: Call) -> list[float]:
    """The probability of yes against no after each prompt, from 0 to 1."""
    outs: dict[int, GenerateOut] = {}
    async for out in call:
        outs[out.index] = out
    scores = []
    for i in sorted(outs):
        yes, no = scored(outs[i])
        scores.append(1 / (1 + math.exp(no - yes)) if no - yes < 700 else 0.0)
    return scores


def scored(out: GenerateOut) -> list[float]:
    """Log probabilities of the tokens that were asked for, as the next one."""
    if not out.output_logprobs:
        raise RequestError("the request was aborted")
    return [logprob for logprob, _ in next(out.output_logprobs.scored())]
