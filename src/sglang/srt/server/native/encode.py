"""The native API's /encode, for the HTTP server and the offline Engine: texts in, vectors out."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np

from sglang.srt.checkpoint.sentence_files import SentenceFacts
from sglang.srt.errors import RequestError
from sglang.srt.server.embedding_calls import Vector
from sglang.srt.server.fields import Fields, as_text, check_known, pack_rows
from sglang.srt.server.openapi import schemas
from sglang.srt.server.tokenizer_manager import TokenizerManager

MAX_TEXTS = 8192
_CHARS_KEPT = 4
"""of a text that is to be cut, so many times what its tokens can hold: white space may be no token"""
PROMPT_NAME = schemas.text("one of the model's prompts, put before each text")
ENCODE_FIELDS = Fields.of(
    {
        "text": schemas.one_of(schemas.text(), schemas.TEXTS, says="a text, or a list of them"),
        "input_ids": schemas.one_of(schemas.IDS, schemas.list_of(schemas.IDS), says="the same as token ids"),
        "rid": schemas.RID,
        "sampling_params": schemas.anything("means nothing here"),
        "priority": schemas.anything("means nothing here"),
        "prompt_name": PROMPT_NAME,
    },
    ids=frozenset({"input_ids"}),
    name="EncodeRequest",
)


@dataclass(frozen=True)
class EncodeCall:
    """`texts` as ids, and a name for each."""

    texts: list[list[int]]
    names: list[str]
    is_list: bool


def read_encode(manager: TokenizerManager, body: dict[str, Any]) -> EncodeCall:
    """Checks a body: {text | input_ids, prompt_name?}. Raises RequestError."""
    check_known(body, ENCODE_FIELDS.read, "field")
    if None not in (body.get("text"), body.get("input_ids")):
        raise RequestError("text and input_ids say the same: give one of them", "input_ids")
    texts, is_list = read_texts(manager, body, "text" if body.get("text") is not None else "input_ids")
    return EncodeCall(texts, rids(as_text(body, "rid") or uuid4().hex, len(texts)), is_list)


async def encode(manager: TokenizerManager, call: EncodeCall, show: Callable[[Vector], Any] = np.ndarray.tolist) -> Any:
    """{embedding, meta_info}, or a list of them for a list. `show`: a vector as it is to appear. Raises RequestError."""
    began = time.monotonic()
    vectors = await manager.embed(call.texts, call.names)
    seconds = time.monotonic() - began
    replies = [
        {
            "embedding": show(vector),
            "meta_info": {"id": rid, "finish_reason": None, "prompt_tokens": len(ids), "e2e_latency": seconds},
        }
        for vector, ids, rid in zip(vectors, call.texts, call.names, strict=True)
    ]
    return replies if call.is_list else replies[0]


def read_texts(manager: TokenizerManager, body: dict[str, Any], name: str) -> tuple[list[list[int]], bool]:
    """Ids of all texts in the field `name`, each after the prompt that `prompt_name` or the model names, and whether there was a list.
    Raises RequestError."""
    texts, is_list = _read_texts(manager, body, name)
    manager.maker.check_embed(texts)
    return texts, is_list


def _read_texts(manager: TokenizerManager, body: dict[str, Any], name: str) -> tuple[list[list[int]], bool]:
    manager.maker.need_embedder()
    if manager.info.get("num_labels"):
        raise RequestError("this model has a head for labels and gives no vectors: use /v1/rerank or /v1/score")
    value = body.get(name)
    prompt = _prompt(manager, body)
    if isinstance(value, str):
        return [_ids(manager, prompt + value, name)], False
    if not isinstance(value, (list, array)) or not value:
        raise RequestError(f"{name} must be a string, a list of strings, or token ids", name)
    if len(value) > MAX_TEXTS and not isinstance(value[0], int):
        raise RequestError(f"{name} may have at most {MAX_TEXTS} entries, got {len(value)}", name)
    if all(isinstance(item, str) for item in value):
        return [_ids(manager, prompt + item, name) for item in value], True
    if body.get("prompt_name") is not None:
        raise RequestError(f"prompt_name is for texts: token ids of {name} are read as they are", "prompt_name")
    try:
        packed: Any = pack_rows(value, name)
    except RequestError as error:
        raise RequestError(f"{name} must be a string, a list of strings, or token ids", name) from error
    rows, is_list = (packed, True) if isinstance(packed, list) else ([packed], False)
    if not all(rows):
        raise RequestError(f"{name} must be a string, a list of strings, or token ids, and none of them empty", name)
    return rows, is_list


def _prompt(manager: TokenizerManager, body: dict[str, Any]) -> str:
    """The text before each text of a body."""
    asked = as_text(body, "prompt_name")
    known = manager.tokenizer.sentences if manager.tokenizer is not None else SentenceFacts()
    if asked is None:
        return known.default
    if asked not in known.prompts:
        names = ", ".join(sorted(known.prompts)) or "none"
        raise RequestError(f"this model has no prompt {asked[:100]!r}; there are: {names}", "prompt_name")
    return known.prompts[asked]


def _ids(manager: TokenizerManager, text: str, name: str) -> list[int]:
    tokenizer, limit = manager.need_tokenizer(), int(manager.info["context_len"])
    may_cut = manager.http.allow_auto_truncate
    if len(text) > manager.max_chars and not may_cut:
        raise manager.maker.too_many_chars(len(text), name)
    text = text[: _CHARS_KEPT * manager.max_chars]
    ids = tokenizer.encode(text)
    if not ids:
        raise RequestError(f"{name} must not be empty", name)
    if len(ids) > limit and may_cut:
        ends = ids[-1:] if ids[-1] in tokenizer.vocabulary.special_ids else []  # the closing token stays
        return [*ids[: limit - len(ends)], *ends]
    return ids


def rids(rid: str, count: int) -> list[str]:
    """A name for each text."""
    return [rid] if count == 1 else [f"{rid}_{i}" for i in range(count)]
