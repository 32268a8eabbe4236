"""POST /v1/embeddings, and /encode of the native API: texts in, vectors out."""

from __future__ import annotations

import base64
import time
from typing import Any
from uuid import uuid4

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from sglang.srt.errors import RequestError
from sglang.srt.server.embedding_calls import Vector
from sglang.srt.server.fields import as_int, as_text, check_known
from sglang.srt.server.responses import CLIENT_GONE, JsonResponse, read_object, unless_gone
from sglang.srt.server.tokenizer_manager import TokenizerManager

MAX_TEXTS = 8192
_FIELDS = frozenset({"model", "input", "encoding_format", "dimensions", "user", "rid"})
_NATIVE_FIELDS = frozenset({"text", "input_ids", "rid", "sampling_params", "priority"})


class EmbeddingsApi:
    def __init__(self, manager: TokenizerManager, served_name: str) -> None:
        self._manager = manager
        self._name = served_name

    async def embeddings(self, request: Request) -> Response:
        body = await read_object(request)
        check_known(body, _FIELDS, "field")
        texts, _ = self._tokenized(body, "input")
        dim = int(self._manager.info.get("embedding_dim", 0))
        size = as_int(body, "dimensions", dim, 1, max(dim, 1))
        form = as_text(body, "encoding_format") or "float"
        if form not in ("float", "base64"):
            raise RequestError(f"encoding_format must be float or base64, got {form[:50]!r}", "encoding_format")
        model, rid = as_text(body, "model") or self._name, as_text(body, "rid")
        vectors = await unless_gone(request, self._manager.embed(texts, _rids(rid, len(texts))))
        if vectors is None:
            return CLIENT_GONE
        data = [
            {"object": "embedding", "index": i, "embedding": _encoded(_shortened(vector, size), form)}
            for i, vector in enumerate(vectors)
        ]
        count = sum(map(len, texts))
        usage = {"prompt_tokens": count, "total_tokens": count}
        return JsonResponse({"object": "list", "data": data, "model": model, "usage": usage})

    async def encode(self, request: Request) -> Response:
        """{text | input_ids} -> {embedding, meta_info}, or a list of them for a list."""
        body = await read_object(request)
        check_known(body, _NATIVE_FIELDS, "field")
        name = "text" if body.get("text") is not None else "input_ids"
        texts, is_list = self._tokenized(body, name)
        began = time.monotonic()
        names = _rids(as_text(body, "rid"), len(texts)) or [uuid4().hex for _ in texts]
        vectors = await unless_gone(request, self._manager.embed(texts, names))
        if vectors is None:
            return CLIENT_GONE
        seconds = time.monotonic() - began
        replies = [
            {
                "embedding": vector.tolist(),
                "meta_info": {"id": rid, "finish_reason": None, "prompt_tokens": len(ids), "e2e_latency": seconds},
            }
            for vector, ids, rid in zip(vectors, texts, names, strict=True)
        ]
        return JsonResponse(replies if is_list else replies[0])

    def _tokenized(self, body: dict[str, Any], name: str) -> tuple[list[list[int]], bool]:
        """Ids of all texts, and whether there was a list. Raises RequestError."""
        self._manager.need_embedder()
        value = body.get(name)
        if isinstance(value, str):
            return [self._ids(value, name)], False
        if not isinstance(value, list) or not value:
            raise RequestError(f"{name} must be a string, a list of strings, or token ids", name)
        if len(value) > MAX_TEXTS and not isinstance(value[0], int):
            raise RequestError(f"{name} may have at most {MAX_TEXTS} entries, got {len(value)}", name)
        if all(type(item) is int for item in value):
            return [value], False
        if all(isinstance(item, str) for item in value):
            return [self._ids(item, name) for item in value], True
        if all(isinstance(item, list) and item and all(type(i) is int for i in item) for item in value):
            return value, True
        raise RequestError(f"{name} must be a string, a list of strings, or token ids", name)

    def _ids(self, text: str, name: str) -> list[int]:
        manager = self._manager
        tokenizer, limit = manager.need_tokenizer(), int(manager.info["context_len"])
        if len(text) > manager.max_chars:
            raise RequestError(f"a text of {len(text)} characters is more than {limit} tokens can hold", name)
        ids = tokenizer.encode(text)
        if not ids:
            raise RequestError(f"{name} must not be empty", name)
        if len(ids) > limit and manager.http.allow_auto_truncate:
            return [*ids[: limit - 1], ids[-1]]  # the closing token stays
        return ids


def _rids(rid: str | None, count: int) -> list[str] | None:
    if rid is None:
        return None
    return [rid] if count == 1 else [f"{rid}_{i}" for i in range(count)]


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
