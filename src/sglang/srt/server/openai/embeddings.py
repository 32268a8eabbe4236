"""POST /v1/embeddings, and /encode of the native API: texts in, vectors out."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from sglang.srt.errors import RequestError
from sglang.srt.server.embedding_calls import Vector
from sglang.srt.server.fields import Fields, as_int, as_text
from sglang.srt.server.http.bodies import read_as
from sglang.srt.server.http.json_pieces import Late, LateArray
from sglang.srt.server.http.wire import CLIENT_GONE, LargeJsonResponse, unless_gone
from sglang.srt.server.native.encode import ENCODE_FIELDS, PROMPT_NAME, encode, read_encode, read_texts, rids
from sglang.srt.server.openapi import openai_shapes as shapes
from sglang.srt.server.openapi import schemas
from sglang.srt.server.openapi.native_shapes import VECTORS
from sglang.srt.server.openapi.operation import NATIVE, OPENAI, documented
from sglang.srt.server.tokenizer_manager import TokenizerManager

_FIELDS = Fields.of(
    {
        "model": schemas.MODEL,
        "input": shapes.INPUT,
        "encoding_format": schemas.text("how vectors are written", enum=["float", "base64"]),
        "dimensions": schemas.integer("only so many numbers of each vector", minimum=1),
        "rid": schemas.RID,
        "prompt_name": PROMPT_NAME,
    },
    frozenset({"user"}),
    ids=frozenset({"input"}),
    required=("input",),
    name="EmbeddingsRequest",
)
_NEEDS_EMBEDDER = "Only with an encoder, or with --is-embedding."


@dataclass(frozen=True)
class _EmbedCall:
    """`texts` as ids; the first `size` numbers of their vectors are asked for, in the form `form`."""

    texts: list[list[int]]
    size: int
    form: str
    model: str
    rid: str


class EmbeddingsApi:
    def __init__(self, manager: TokenizerManager, served_name: str) -> None:
        self._manager = manager
        self._name = served_name

    @documented(
        "Vectors of texts",
        OPENAI,
        about=_NEEDS_EMBEDDER,
        body=_FIELDS,
        reply=shapes.EMBEDDINGS,
        examples=(
            {"model": "default", "input": ["The cat sat.", "A dog ran."]},
            {"input": "The cat sat.", "encoding_format": "base64"},
        ),
    )
    async def embeddings(self, request: Request) -> Response:
        call = await read_as(request, _FIELDS, self._call)
        vectors = await unless_gone(request, self._manager.embed(call.texts, rids(call.rid, len(call.texts))))
        if vectors is None:
            return CLIENT_GONE
        count = sum(map(len, call.texts))
        usage = {"prompt_tokens": count, "total_tokens": count}
        data = LateArray(
            {"object": "embedding", "index": i, "embedding": _encoded(_shortened(vector, call.size), call.form)}
            for i, vector in enumerate(vectors)
        )
        return LargeJsonResponse({"object": "list", "data": data, "model": call.model, "usage": usage})

    def _call(self, body: dict[str, Any]) -> _EmbedCall:
        self._manager.adapters.check_none(body)
        texts, _ = read_texts(self._manager, body, "input")
        dim = int(self._manager.info.get("embedding_dim", 0))
        size = as_int(body, "dimensions", dim, 1, max(dim, 1))
        form = as_text(body, "encoding_format") or "float"
        if form not in ("float", "base64"):
            raise RequestError(f"encoding_format must be float or base64, got {form[:50]!r}", "encoding_format")
        return _EmbedCall(texts, size, form, as_text(body, "model") or self._name, as_text(body, "rid") or uuid4().hex)

    @documented(
        "Vectors of texts",
        NATIVE,
        about=_NEEDS_EMBEDDER,
        body=ENCODE_FIELDS,
        reply=VECTORS,
        examples=({"text": "The cat sat."}, {"text": ["The cat sat.", "A dog ran."]}),
    )
    async def encode(self, request: Request) -> Response:
        """/encode of the native API."""
        call = await read_as(request, ENCODE_FIELDS, partial(read_encode, self._manager))
        reply = await unless_gone(request, encode(self._manager, call, lambda vector: Late(vector.tolist)))
        return CLIENT_GONE if reply is None else LargeJsonResponse(reply)


def _shortened(vector: Vector, size: int) -> Vector:
    """The first `size` numbers, made as long as the whole vector is (Matryoshka embeddings, arXiv 2205.13147)."""
    if size == len(vector):
        return vector
    head = vector[:size].astype(np.float64)
    length, whole = float(np.sqrt(head @ head)), float(np.sqrt(vector.astype(np.float64) @ vector))
    return (head * (whole / max(length, 1e-12))).astype(np.float32)


def _encoded(vector: Vector, form: str) -> Any:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
