"""Formats of the native API: a /generate body to a GenerateReq, outputs to dicts.

Used by the HTTP server and by the offline Engine, so both give the same answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.messages import ORIGINS, DraftCounts, FinishReason, LogprobOptions, Logprobs, Pairs, SchedulerStats
from sglang.srt.sampling_params import SamplingParams, parse_sampling_params
from sglang.srt.server.fields import Fields, as_bool, as_int, as_text, check_known, pack_rows
from sglang.srt.server.generate_req import GenerateOut, GenerateReq, check_count
from sglang.srt.server.multimodal.inputs import parse_media
from sglang.srt.server.native.not_done import NOT_DONE_FIELDS, NOTED
from sglang.srt.server.openapi.native_shapes import SESSION, sampling_schema
from sglang.srt.server.openapi.schemas import (
    IDS,
    PRIORITY,
    RID,
    SALT,
    TEXTS,
    Schema,
    anything,
    free,
    integer,
    list_of,
    nullable,
    one_of,
    text,
    truth,
)
from sglang.srt.server.sessions import SessionParams
from sglang.srt.server.tokenization.tokenizer import Tokenizer

PART_VALUES = 8192
"""log probabilities that are entered into a reply at once"""

_SAMPLING_SCHEMA = sampling_schema()
_MEDIA = one_of(
    text(), list_of(one_of(text(), list_of(text()))), says="URLs, data URIs or base64; in a batch an entry for each prompt"
)
_SCHEMAS: dict[str, Schema] = {
    "text": one_of(text(), TEXTS, says="the prompt, or a list of them"),
    "input_ids": one_of(IDS, list_of(IDS), says="the prompt as token ids"),
    "sampling_params": one_of(
        _SAMPLING_SCHEMA, list_of(nullable(_SAMPLING_SCHEMA)), says="for all prompts, or a list with those of each"
    ),
    "rid": one_of(RID, TEXTS, says="the id of the request, or those of each of its prompts"),
    "return_logprob": one_of(truth(), list_of(truth()), says="log probabilities in meta_info"),
    "logprob_start_len": one_of(integer(), list_of(integer()), says="the token of the prompt from which on; -1: none of it"),
    "top_logprobs_num": one_of(integer(), list_of(integer()), says="how many of the likeliest tokens at each place"),
    "token_ids_logprob": one_of(IDS, list_of(nullable(IDS)), says="ids whose log probabilities are told at each place"),
    "return_text_in_logprobs": truth("the texts of tokens beside their log probabilities"),
    "return_token_origins": truth("where each token comes from, in meta_info: sampled, draft or forced"),
    "stream": truth("server-sent events; each has the answer so far, or what is new of it with --stream-output"),
    "cache_salt": SALT,
    "extra_key": text("another part of cache_salt"),
    "lora_path": one_of(text(), list_of(nullable(text())), says="the name of a loaded adapter, or of that of each prompt"),
    "priority": PRIORITY,
    "token_healing": truth("the last token of the prompt may be finished differently"),
    "session_params": {
        **free("the place of the request in a session", **SESSION),
        "required": ["id"],
        "additionalProperties": False,
    },
    "image_data": _MEDIA,
    "video_data": _MEDIA,
    "audio_data": anything("refused: audio is not understood"),
    "modalities": anything("image, multi-images or video: what image_data and video_data say"),
    "mm_processor_kwargs": free("of images", min_pixels=integer(), max_pixels=integer()),
}
_FIELDS = frozenset(_SCHEMAS)
_SAMPLING = frozenset(SamplingParams.__struct_fields__) - _FIELDS - NOTED - NOT_DONE_FIELDS.keys()
GENERATE_FIELDS = Fields.of(
    _SCHEMAS,
    NOTED,
    frozenset(NOT_DONE_FIELDS),
    ids=frozenset({"input_ids"}),
    members=_SAMPLING,
    members_of="sampling_params",
    name="GenerateRequest",
)


@dataclass(frozen=True)
class LogprobStyle:
    """Which log probabilities a reply shows."""

    wanted: bool = False
    texts: bool = False
    top: bool = False
    ids: bool = False


@dataclass(frozen=True)
class NativeCall:
    """A /generate body: the request and how its reply is to look. `is_list`: the reply is a list."""

    req: GenerateReq
    styles: list[LogprobStyle]
    is_list: bool
    samples: list[int] = field(default_factory=list)
    """samples of each prompt"""

    @property
    def wants_logprobs(self) -> bool:
        return any(style.wanted for style in self.styles)

    def styles_of_sequences(self) -> list[LogprobStyle]:
        """One for each sample of each prompt."""
        return [style for count, style in zip(self.samples, self.styles, strict=True) for _ in range(count)]


def parse_generate(body: dict[str, Any], preferred: dict[str, Any] | None = None) -> NativeCall:
    """Checks a /generate body. `preferred` are sampling parameters for what the body leaves open.

    Raises RequestError for unknown fields (naming the nearest), wrong types; UnsupportedError for what would
    change the answer and is not done here.
    """
    check_known(body, GENERATE_FIELDS.known, "field")
    for name in body.keys() & NOT_DONE_FIELDS.keys():
        for value in body[name] if isinstance(body[name], list) else [body[name]]:  # a batch may have one for each prompt
            NOT_DONE_FIELDS[name].check(name, value)
    text, ids = _prompt(body)
    is_batch = isinstance(text, list) or bool(ids and not isinstance(ids[0], int))
    count = len(text) if isinstance(text, list) else len(ids) if is_batch and ids is not None else 1
    raw = _items(body, "sampling_params", count, is_batch, dict)
    sampling = _samplings(body, raw, preferred or {})
    logprobs = _logprobs(body, sampling, count, is_batch)
    req = GenerateReq(
        text=text,
        input_ids=ids,
        sampling=sampling if is_batch else sampling[0],
        logprobs=[options for options, _ in logprobs] if is_batch else logprobs[0][0],
        media=parse_media(body, count, is_batch),
        origins=as_bool(body, "return_token_origins"),
        rid=_rid(body),
        stream=as_bool(body, "stream"),
        max_new_tokens_is_default=not any("max_new_tokens" in {**(preferred or {}), **(s or {})} for s in raw),
        cache_salt=_salt(body),
        adapter=_adapter(body, count, is_batch),
        priority=as_int(body, "priority", 0, -(2**31), 2**31 - 1),
        token_healing=as_bool(body, "token_healing"),
        session=_session(body),
    )
    if req.session is not None:
        _check_session(req, sampling)
    samples = [s.n for s in sampling]
    return NativeCall(req, [style for _, style in logprobs], is_batch or samples[0] > 1, samples)


def _samplings(body: dict[str, Any], raw: list[Any], preferred: dict[str, Any]) -> list[SamplingParams]:
    """The sampling parameters of each prompt; one that all share is parsed once."""
    if not isinstance(body.get("sampling_params"), list):
        return [parse_sampling_params({**preferred, **(raw[0] or {})})] * len(raw) if raw else []
    return [parse_sampling_params({**preferred, **(s or {})}) for s in raw]


def _prompt(body: dict[str, Any]) -> tuple[str | list[str] | None, Any]:
    text, ids = body.get("text"), body.get("input_ids")
    if (text is None) == (ids is None):
        raise RequestError("give exactly one of text and input_ids", "text")
    if text is not None:
        if isinstance(text, list):
            check_count(len(text), "text")
        if not (isinstance(text, str) or (isinstance(text, list) and all(isinstance(t, str) for t in text))):
            raise RequestError("text must be a string or a list of strings", "text")
        return text, None
    if isinstance(ids, list) and ids and not isinstance(ids[0], int):
        check_count(len(ids), "input_ids")
    return None, pack_rows(ids, "input_ids")


def _items(body: dict[str, Any], name: str, count: int, is_batch: bool, kind: type) -> list[Any]:
    """One value (None allowed) for each prompt, from a field that holds one or a list of them."""
    value = body.get(name)
    values = value if isinstance(value, list) and is_batch else [value] * count
    if len(values) != count:
        raise RequestError(f"{name} has {len(values)} entries for {count} prompts", name)
    for item in values:
        if item is not None and (not isinstance(item, kind) or (kind is int and isinstance(item, bool))):
            raise RequestError(f"{name}: expected {kind.__name__}, got {type(item).__name__}", name)
    return values


def _logprobs(
    body: dict[str, Any], sampling: list[SamplingParams], count: int, is_batch: bool
) -> list[tuple[LogprobOptions | None, LogprobStyle]]:
    wanted = _items(body, "return_logprob", count, is_batch, bool)
    starts = _items(body, "logprob_start_len", count, is_batch, int)
    tops = _items(body, "top_logprobs_num", count, is_batch, int)
    texts = as_bool(body, "return_text_in_logprobs")
    ids: Any = body.get("token_ids_logprob")
    nested = is_batch and isinstance(ids, list) and bool(ids) and all(i is None or isinstance(i, list) for i in ids)
    per_prompt = ids if nested else [ids] * count
    if len(per_prompt) != count:
        raise RequestError(f"token_ids_logprob has {len(per_prompt)} entries for {count} prompts", "token_ids_logprob")
    result: list[tuple[LogprobOptions | None, LogprobStyle]] = []
    for want, start, top, token_ids, params in zip(wanted, starts, tops, per_prompt, sampling, strict=True):
        if token_ids is not None and not (isinstance(token_ids, list) and all(type(i) is int for i in token_ids)):
            raise RequestError("token_ids_logprob must be a list of integers", "token_ids_logprob")
        if not want:
            result.append((None, LogprobStyle()))
            continue
        if start is None:  # a request that generates nothing can only mean its prompt
            start = 0 if params.max_new_tokens == 0 else -1
        options = LogprobOptions(start_len=start, top_num=top or 0, token_ids=tuple(token_ids or ()))
        result.append((options, LogprobStyle(True, texts, bool(top), bool(token_ids))))
    return result


def _rid(body: dict[str, Any]) -> str | list[str] | None:
    rid = body.get("rid")
    if isinstance(rid, list) and all(isinstance(r, str) and r for r in rid):
        return rid
    if rid is None or (isinstance(rid, str) and rid):
        return rid
    raise RequestError("rid must be a non-empty string or a list of them", "rid")


def _salt(body: dict[str, Any]) -> str | None:
    """cache_salt and extra_key both name a namespace of the prefix cache; together they name a pair."""
    parts = [value for name in ("cache_salt", "extra_key") if (value := as_text(body, name)) is not None]
    return "\x1f".join(parts) if parts else None


def _adapter(body: dict[str, Any], count: int, is_batch: bool) -> str | list[str | None] | None:
    """An empty name asks for the model itself, as null does."""
    if body.get("lora_path") is None:
        return None
    names = [name or None for name in _items(body, "lora_path", count, is_batch, str)]
    return names if is_batch else names[0]


def _session(body: dict[str, Any]) -> SessionParams | None:
    raw = body.get("session_params")
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise RequestError("session_params must be an object", "session_params")
    check_known(raw, SESSION, "key of session_params")
    name = as_text(raw, "id")
    if name is None:
        raise RequestError("session_params must have the id that open_session gave", "session_params")
    return SessionParams(
        id=name,
        rid=as_text(raw, "rid"),
        offset=as_int(raw, "offset", 0, -(2**31), 2**31 - 1),
        replace=as_bool(raw, "replace"),
        drop_previous_output=as_bool(raw, "drop_previous_output"),
    )


def _check_session(req: GenerateReq, sampling: list[SamplingParams]) -> None:
    """A turn of a session is one sequence of text."""
    if req.is_batch or sampling[0].n > 1:
        raise RequestError("session_params is for a single prompt with one answer", "session_params")
    if req.media is not None:
        raise UnsupportedError("sessions are kept of text only: send images with the whole prompt", "session_params")
    if req.token_healing:
        raise UnsupportedError("token_healing cannot be combined with session_params", "token_healing")


# --- replies ----------------------------------------------------------------------------------------------------------------


def finish_dict(finish: FinishReason | None) -> dict[str, Any] | None:
    if finish is None:
        return None
    if finish.type == "stop":
        return {"type": "stop", "matched": finish.matched} | check_dict(finish)
    if finish.type == "length":
        return {"type": "length", "length": finish.length}
    return {"type": "abort", "message": finish.message, "status_code": finish.status_code, "err_type": finish.err_type}


def check_dict(finish: FinishReason) -> dict[str, Any]:
    """The result of the schema check at the end; empty without one."""
    check = finish.check
    if check is None:
        return {}
    about = {
        "valid": check.error is None,
        "attempts": check.num_attempts,
        "discarded_tokens": check.num_discarded,
        "error": check.error,
        "keywords": list(check.keywords),
    }
    return {"schema_check": about}


class Column(Protocol):
    """A list that grows: `list` itself, or one that is made to be written as JSON (json_pieces.py)."""

    def extend(self, items: Iterable[Any], /) -> None: ...

    def copy(self) -> Any: ...


NewColumn = Callable[[], Column]


class Reply:
    """The output of one sequence so far, as the native API's dict. With `whole` every dict holds all of it, otherwise only what
    is new. Each entry is added to a list once, however often that list is shown."""

    def __init__(self, style: LogprobStyle, tokenizer: Tokenizer | None, whole: bool, new_column: NewColumn) -> None:
        self._style = style
        self._tokenizer = tokenizer
        self._whole = whole
        self._new_column = new_column
        self._text = ""
        self._ids: list[int] = []
        self._origins: list[str] = []
        self._columns: dict[str, Column] = {}
        self._is_input_begun = False

    async def add(self, out: GenerateOut) -> dict[str, Any]:
        if self._whole:
            self._text += out.text
            self._ids += out.ids
        else:
            self._text, self._ids, self._columns = out.text, out.ids, {}
        meta: dict[str, Any] = {
            "id": out.rid,
            "finish_reason": finish_dict(out.finish),
            "prompt_tokens": out.prompt_len,
            "completion_tokens": out.completion_len,
            "cached_tokens": out.cached_len,
        }
        if self._style.wanted:
            await self._add_logprobs("input", out.input_logprobs)
            await self._add_logprobs("output", out.output_logprobs)
            meta |= {name: column.copy() for name, column in self._columns.items()}
        if out.origins or self._origins:
            self._origins = [*(self._origins if self._whole else ()), *(ORIGINS[origin] for origin in out.origins)]
            meta["output_token_origins"] = self._origins
        if out.finish is not None:
            meta["num_retractions"] = out.num_retractions
            meta["e2e_latency"] = out.seconds
            drafts = out.drafts or DraftCounts()
            meta["spec_verify_ct"] = drafts.steps
            meta["spec_draft_token_num"] = drafts.proposed
            meta["spec_accept_token_num"] = drafts.accepted
        reply: dict[str, Any] = {"text": self._text} if self._tokenizer is not None else {}
        reply["output_ids"], reply["meta_info"] = list(self._ids), meta
        return reply

    async def _add_logprobs(self, side: str, logprobs: Logprobs | None) -> None:
        """Adds them in parts, so that many of them delay no other request."""
        for i, part in enumerate((logprobs or Logprobs()).parts(PART_VALUES)):
            if i:
                await asyncio.sleep(0)
            is_first = side == "input" and not self._is_input_begun and len(part) > 0
            self._is_input_begun |= is_first
            for name, items in self._items(side, part):
                column = self._columns.get(name)
                if column is None:
                    column = self._columns[name] = self._new_column()
                column.extend(_without_first(items, name) if is_first else items)

    def _items(self, side: str, logprobs: Logprobs) -> Iterator[tuple[str, Iterator[Any]]]:
        yield f"{side}_token_logprobs", (self._entry(logprob, token_id) for logprob, token_id in logprobs.chosen())
        if self._style.top:
            yield f"{side}_top_logprobs", map(self._entries, logprobs.best())
        if self._style.ids:
            yield f"{side}_token_ids_logprobs", map(self._entries, logprobs.scored())

    def _entry(self, logprob: float | None, token_id: int) -> list[Any]:
        text = self._tokenizer.token_text(token_id) if self._style.texts and self._tokenizer is not None else None
        return [logprob, token_id, text]

    def _entries(self, pairs: Pairs) -> list[list[Any]] | None:
        return [self._entry(logprob, token_id) for logprob, token_id in pairs] or None


def _without_first(items: Iterator[Any], name: str) -> Iterator[Any]:
    """Replaces the first position asked for with null, on which clients rely."""
    first = next(items)
    yield [None, *first[1:]] if name == "input_token_logprobs" else None
    yield from items


async def collect(
    native: NativeCall, outs: AsyncIterator[GenerateOut], tokenizer: Tokenizer | None, new_column: NewColumn = list
) -> dict[str, Any] | list[dict[str, Any]]:
    """The reply to a call that does not stream."""
    replies = StreamReplies(native, tokenizer, True, new_column)
    latest: list[dict[str, Any]] = [{} for _ in range(sum(native.samples))]
    async for out in outs:
        latest[out.index] = await replies.of(out)
    return latest if native.is_list else latest[0]


class StreamReplies:
    """The replies of a streaming call; those of a list carry their `index`."""

    def __init__(self, native: NativeCall, tokenizer: Tokenizer | None, whole: bool, new_column: NewColumn = list) -> None:
        self._replies = [Reply(style, tokenizer, whole, new_column) for style in native.styles_of_sequences()]
        self._is_list = native.is_list

    async def of(self, out: GenerateOut) -> dict[str, Any]:
        return await self._replies[out.index].add(out)

    async def add(self, out: GenerateOut) -> dict[str, Any]:
        reply = await self.of(out)
        if self._is_list:
            reply["index"] = out.index
        return reply


async def stream_replies(
    native: NativeCall,
    outs: AsyncIterator[GenerateOut],
    tokenizer: Tokenizer | None,
    whole: bool,
    new_column: NewColumn = list,
) -> AsyncGenerator[dict[str, Any], None]:
    """The replies as they come."""
    replies = StreamReplies(native, tokenizer, whole, new_column)
    async for out in outs:
        yield await replies.add(out)


def core_of_load(stats: SchedulerStats) -> dict[str, Any]:
    """One element of /get_load. `num_reqs` counts those that wait, too."""
    waiting = _num_waiting(stats)
    return {
        "dp_rank": 0,
        "num_reqs": stats.num_running + waiting,
        "num_waiting_reqs": waiting,
        "num_tokens": stats.num_used_tokens,
        "ts_tic": time.perf_counter(),  # seconds of a clock that only differences are taken of
    }


def format_load(stats: SchedulerStats, max_running_requests: int) -> dict[str, Any]:
    """One element of `loads` of /v1/loads. `timestamp`: seconds since 1970; `gen_throughput`: tokens per second."""
    return {
        "dp_rank": 0,
        "timestamp": time.time(),
        "num_running_reqs": stats.num_running,
        "num_waiting_reqs": _num_waiting(stats),
        "num_used_tokens": stats.num_used_tokens,
        "num_total_tokens": stats.num_used_tokens,
        "max_total_num_tokens": stats.max_total_tokens,
        "max_running_requests": max_running_requests,
        "token_usage": stats.num_used_tokens / max(stats.max_total_tokens, 1),
        "gen_throughput": stats.gen_throughput,
        "cache_hit_rate": stats.cache_hit_rate,
    }


def _num_waiting(stats: SchedulerStats) -> int:
    return stats.num_waiting + stats.num_grammar_waiting
