"""POST /v1/embeddings, and /encode of the native API: texts in, vectors out."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from sglang.srt.errors import RequestError
from sglang.srt.server.embedding_calls import Vector
from sglang.srt.server.encoding import encode, read_texts, rids
from sglang.srt.server.fields import as_int, as_text, check_known
from sglang.srt.server.json_pieces import Late, LateArray
from sglang.srt.server.responses import CLIENT_GONE, LargeJsonResponse, read_object, unless_gone
from sglang.srt.server.tokenizer_manager import TokenizerManager

_FIELDS = frozenset({"model", "input", "encoding_format", "dimensions", "user", "rid"})


class EmbeddingsApi:
    def __init__(self, manager: TokenizerManager, served_name: str) -> None:
        self._manager = manager
        self._name = served_name

    async def embeddings(self, request: Request) -> Response:
        body = await read_object(request)
        check_known(body, _FIELDS, "field")
        texts, _ = read_texts(self._manager, body, "input")
        dim = int(self._manager.info.get("embedding_dim", 0))
        size = as_int(body, "dimensions", dim, 1, max(dim, 1))
        form = as_text(body, "encoding_format") or "float"
        if form not in ("float", "base64"):
            raise RequestError(f"encoding_format must be float or base64, got {form[:50]!r}", "encoding_format")
        model, rid = as_text(body, "model") or self._name, as_text(body, "rid")
        vectors = await unless_gone(request, self._manager.embed(texts, rids(rid, len(texts))))
        if vectors is None:
            return CLIENT_GONE
        data = LateArray(
            {"object": "embedding", "index": i, "embedding": _encoded(_shortened(vector, size), form)}
            for i, vector in enumerate(vectors)
        )
        count = sum(map(len, texts))
        usage = {"prompt_tokens": count, "total_tokens": count}
        return LargeJsonResponse({"object": "list", "data": data, "model": model, "usage": usage})

    async def encode(self, request: Request) -> Response:
        """/encode of the native API."""
        work = encode(self._manager, await read_object(request), lambda vector: Late(vector.tolist))
        reply = await unless_gone(request, work)
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
