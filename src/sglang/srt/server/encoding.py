"""The native API's /encode, for the HTTP server and the offline Engine: texts in, vectors out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import numpy as np

from sglang.srt.errors import RequestError
from sglang.srt.server.embedding_calls import Vector
from sglang.srt.server.fields import as_text, check_known
from sglang.srt.server.tokenizer_manager import TokenizerManager

MAX_TEXTS = 8192
_FIELDS = frozenset({"text", "input_ids", "rid", "sampling_params", "priority"})


async def encode(manager: TokenizerManager, body: dict[str, Any], show: Callable[[Vector], Any] = np.ndarray.tolist) -> Any:
    """{text | input_ids} -> {embedding, meta_info}, or a list of them for a list. `show`: a vector as it is to appear. Raises
    RequestError."""
    check_known(body, _FIELDS, "field")
    texts, is_list = read_texts(manager, body, "text" if body.get("text") is not None else "input_ids")
    began = time.monotonic()
    names = rids(as_text(body, "rid"), len(texts)) or [uuid4().hex for _ in texts]
    vectors = await manager.embed(texts, names)
    seconds = time.monotonic() - began
    replies = [
        {
            "embedding": show(vector),
            "meta_info": {"id": rid, "finish_reason": None, "prompt_tokens": len(ids), "e2e_latency": seconds},
        }
        for vector, ids, rid in zip(vectors, texts, names, strict=True)
    ]
    return replies if is_list else replies[0]


def read_texts(manager: TokenizerManager, body: dict[str, Any], name: str) -> tuple[list[list[int]], bool]:
    """Ids of all texts in the field `name`, and whether there was a list. Raises RequestError."""
    manager.need_embedder()
    value = body.get(name)
    if isinstance(value, str):
        return [_ids(manager, value, name)], False
    if not isinstance(value, list) or not value:
        raise RequestError(f"{name} must be a string, a list of strings, or token ids", name)
    if len(value) > MAX_TEXTS and not isinstance(value[0], int):
        raise RequestError(f"{name} may have at most {MAX_TEXTS} entries, got {len(value)}", name)
    if all(type(item) is int for item in value):
        return [value], False
    if all(isinstance(item, str) for item in value):
        return [_ids(manager, item, name) for item in value], True
    if all(isinstance(item, list) and item and all(type(i) is int for i in item) for item in value):
        return value, True
    raise RequestError(f"{name} must be a string, a list of strings, or token ids", name)


def _ids(manager: TokenizerManager, text: str, name: str) -> list[int]:
    tokenizer, limit = manager.need_tokenizer(), int(manager.info["context_len"])
    if len(text) > manager.max_chars:
        raise RequestError(f"a text of {len(text)} characters is more than {limit} tokens can hold", name)
    ids = tokenizer.encode(text)
    if not ids:
        raise RequestError(f"{name} must not be empty", name)
    if len(ids) > limit and manager.http.allow_auto_truncate:
        return [*ids[: limit - 1], ids[-1]]  # the closing token stays
    return ids


def rids(rid: str | None, count: int) -> list[str] | None:
    """A name for each text, if the request has one."""
    if rid is None:
        return None
    return [rid] if count == 1 else [f"{rid}_{i}" for i in range(count)]
