"""Requests of programs, kept while viewers look, for the code that the page shows: as bodies of the native API, with which anybody gets
the same answers.

What a body says is what was asked, and the seed that the server chose. It never says who asked, nor a salt of the prefix cache. Texts,
ids, images and constraints are kept whole within MAX_BYTES, of the newest requests. Of a request whose images and videos have more than
MAX_MEDIA together, what is large is told by its size and digest.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from sglang.common.lru import LruCache
from sglang.srt.config import HttpOptions
from sglang.srt.errors import RequestError
from sglang.srt.messages import LogprobOptions, TokenIds, TokenizedReq, pack_ids
from sglang.srt.sampling_params import SEED_BITS, SamplingParams
from sglang.srt.server.generate_req import GenerateReq
from sglang.srt.server.multimodal.inputs import MediaInput, Pixels
from sglang.srt.server.multimodal.sources import decode_base64
from sglang.srt.server.side_threads import run_in_thread
from sglang.srt.server.tokenization.tokenizer import Tokenizer

MAX_BYTES = 64 << 20
MAX_MEDIA = 16 << 20
"""characters of the images and videos of one request that are kept"""
LARGE = 1 << 20
"""characters of one of them that is left out where they are more"""
MIN_BYTES = 1000
"""that a request counts for at least"""

Prompt = str | TokenIds


class Omitted(msgspec.Struct, frozen=True):
    """An image or video that is not kept. `size` and `sha256` are those of its file, where its data were in the request."""

    name: str
    size: int
    sha256: str


class KeptRequest(msgspec.Struct, frozen=True, eq=False):
    """One sequence; or all choices that one call scored: then `choices` follow the prompt."""

    prompt: Prompt
    sampling: SamplingParams
    choices: tuple[Prompt, ...] = ()
    logprobs: LogprobOptions | None = None
    media: tuple[MediaInput | Omitted, ...] = ()
    adapter: str | None = None
    heals: bool = False
    is_unconditional: bool = False
    unsaid: tuple[str, ...] = ()
    """what was asked that /generate has no word for"""

    @property
    def num_bytes(self) -> int:
        """About what it holds."""
        params = self.sampling
        texts = (params.json_schema, params.regex, params.ebnf, params.structural_tag, *params.stop, *params.stop_regex)
        held = sum(map(_size, (self.prompt, *self.choices))) + sum(len(text) for text in texts if text)
        return MIN_BYTES + held + self.num_media_chars

    @property
    def num_media_chars(self) -> int:
        return sum(len(item.source) for item in self.media if isinstance(item, MediaInput))


class KeptRequests:
    """The newest of them, by the names under which viewers know them."""

    def __init__(self, http: HttpOptions) -> None:
        defaults = http.sampling_defaults.values if http.sampling_defaults is not None else {}
        self._said = {*defaults, *http.preferred_sampling_params, "max_new_tokens", "temperature"}
        """parameters that a body says in any case: otherwise the server's own would hold"""
        self._kept: LruCache[str, KeptRequest] = LruCache(MAX_BYTES)
        self._omitting: set[asyncio.Task[None]] = set()

    def note(self, requests: Sequence[TokenizedReq], req: GenerateReq) -> None:
        """Notes these sequences of a call that has begun, beginning with the first."""
        scored = _scored(requests, req)
        if scored is not None:
            self._take(requests[0].rid, scored, 1 + len(scored.choices))
            return
        samplings = req.sampling if isinstance(req.sampling, list) else [req.sampling] * _num_prompts(req)
        places = [i for i, sampling in enumerate(samplings) for _ in range(sampling.n)]
        for request, place in zip(requests, places, strict=False):
            self._take(request.rid, _kept_of(request, req, place))

    def clear(self) -> None:
        self._kept.clear()
        for task in self._omitting:
            task.cancel()

    async def told(self, rid: str, tokenizer: Tokenizer | None) -> dict[str, Any] | None:
        """{path, body, ...} as `_told` makes it; None if the request is not kept."""
        kept = self._kept.get(rid)
        return await run_in_thread(_told, kept, tokenizer, self._said) if kept is not None else None

    def _take(self, rid: str, kept: KeptRequest, copies: int = 1) -> None:
        """`copies`: how often its body has the images."""
        if kept.num_media_chars * copies <= MAX_MEDIA:
            self._kept.put(rid, kept, kept.num_bytes)
            return
        task = asyncio.create_task(self._take_without(rid, kept))
        self._omitting.add(task)
        task.add_done_callback(self._omitting.discard)

    async def _take_without(self, rid: str, kept: KeptRequest) -> None:
        media = await run_in_thread(lambda: tuple(_omitted(i, item) for i, item in enumerate(kept.media, 1)))
        kept = msgspec.structs.replace(kept, media=media)
        self._kept.put(rid, kept, kept.num_bytes)


# --- what is kept -----------------------------------------------------------------------------------------------------------


def _size(prompt: Prompt) -> int:
    return len(prompt) * (1 if isinstance(prompt, str) else 4)


def _num_prompts(req: GenerateReq) -> int:
    given = req.input_ids if req.text is None else req.text
    return len(given) if req.is_batch and given is not None else 1


def _kept_of(request: TokenizedReq, req: GenerateReq, place: int) -> KeptRequest:
    """A sequence of the prompt at `place`."""
    media = tuple(req.media[place]) if req.media is not None else ()
    adapter = req.adapter[place] if isinstance(req.adapter, list) else req.adapter
    unsaid = []
    if request.grammar_after:
        unsaid.append("the constraint held for what came after the reasoning")
    if abs(request.sampling.seed or 0) >= 1 << SEED_BITS:
        unsaid.append(f"its seed was {request.sampling.seed}")
    if any(item.detail != "auto" for item in media) or len({item.pixels for item in media}) > 1:
        unsaid.append("images had details or sizes of their own")
    return KeptRequest(
        _prompt_of(request, req, place),
        request.sampling,
        logprobs=request.logprobs,
        media=media,
        adapter=adapter,
        heals=req.token_healing,
        unsaid=tuple(unsaid),
    )


def _prompt_of(request: TokenizedReq, req: GenerateReq, place: int) -> Prompt:
    if req.session is not None or (req.text is not None and not req.add_special_tokens):
        return request.input_ids
    given: Any = req.input_ids if req.text is None else req.text
    prompt = given[place] if req.is_batch else given
    return prompt if isinstance(prompt, str) else pack_ids(prompt)


def bare_prompt(req: GenerateReq) -> str | None:
    """The first text of a batch that scores what follows it in the others: so our language scores choices where there are images. (Without
    images it uses /score_choices.)"""
    texts, scores = req.text, req.logprobs is not None
    if not isinstance(texts, list) or len(texts) < 2 or not scores or req.media is None:
        return None
    return texts[0] if all(text.startswith(texts[0]) for text in texts) else None


def _scored(requests: Sequence[TokenizedReq], req: GenerateReq) -> KeptRequest | None:
    """All choices of one call; None if it scores none, or none that have a prompt."""
    first, adapter = requests[0], req.adapter if isinstance(req.adapter, str) else None
    start = choice_start(first)
    if not start:
        return None
    prompt = bare_prompt(req)
    if prompt is not None and isinstance(req.text, list) and req.media is not None:
        adapter = req.adapter[0] if isinstance(req.adapter, list) else req.adapter
        choices = tuple(text[len(prompt) :] for text in req.text[1 : len(requests)])
        return KeptRequest(prompt, first.sampling, choices, first.logprobs, tuple(req.media[0]), adapter)
    if not req.begins_alike:
        return None
    tails = tuple(one.input_ids[start:] for one in requests if choice_start(one) == start)
    return KeptRequest(
        first.input_ids[:start], first.sampling, tails, adapter=adapter, is_unconditional=len(tails) < len(requests)
    )


def choice_start(request: TokenizedReq) -> int:
    """Where the choice begins that a request scores; 0 if it does something else."""
    scores = request.sampling.max_new_tokens == 0 and request.logprobs is not None
    return max(request.logprobs.start_len, 0) if scores and request.logprobs is not None else 0


def _omitted(number: int, item: MediaInput | Omitted) -> MediaInput | Omitted:
    if isinstance(item, Omitted) or len(item.source) <= LARGE:
        return item
    name = f"{item.kind}-{number}"
    try:
        source = item.source
        head, comma, _ = source.partition(",") if isinstance(source, str) and source.startswith("data:") else ("", "", "")
        data = decode_base64(source, name, len(head) + len(comma), bool(comma)) if isinstance(source, str) else source
    except RequestError:  # no base64 after all: its own characters are what there is
        data = str(item.source).encode()
    return Omitted(name, len(data), hashlib.sha256(data).hexdigest())


# --- what is told of it -----------------------------------------------------------------------------------------------------


def _told(kept: KeptRequest, tokenizer: Tokenizer | None, said: set[str]) -> dict[str, Any]:
    """{path, body, omitted: of images, unsaid}; `scores`: the body of /score_choices that would be the same, did that take images."""
    omitted = [msgspec.to_builtins(item) for item in kept.media if isinstance(item, Omitted)]
    told: dict[str, Any] = {"path": "/generate", "omitted": omitted, "unsaid": kept.unsaid}
    if not kept.choices:
        return {**told, "body": {**_fields(kept.prompt, tokenizer), **_settings(kept, said)}}
    scores = _score_body(kept, tokenizer)
    if not kept.media:
        return {**told, "path": "/score_choices", "body": scores}
    texts = [scores["text"], *(scores["text"] + choice for choice in scores["choices"])]
    beside = {name: [value] * len(texts) for name, value in _media(kept).items()}
    return {**told, "scores": scores, "body": {"text": texts, **_settings(kept, said), **beside}}


def _fields(prompt: Prompt, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """As text where that is the same prompt."""
    if isinstance(prompt, str):
        return {"text": prompt}
    text = _text(prompt, tokenizer)
    is_same = tokenizer is not None and pack_ids(tokenizer.encode(text)) == prompt
    return {"text": text} if is_same else {"input_ids": list(prompt)}


def _settings(kept: KeptRequest, said: set[str]) -> dict[str, Any]:
    """All but the prompt."""
    sampling = {name: getattr(kept.sampling, name) for name in sorted(said) if name in kept.sampling.__struct_fields__}
    params: dict[str, Any] = {**sampling, **msgspec.to_builtins(kept.sampling, str_keys=True)}
    if abs(params.get("seed") or 0) >= 1 << SEED_BITS:
        del params["seed"]  # browsers would make another number of it
    body: dict[str, Any] = {"sampling_params": params, **_media(kept)}
    if kept.heals:
        body["token_healing"] = True
    if kept.logprobs is not None:
        options = {"logprob_start_len": kept.logprobs.start_len, "top_logprobs_num": kept.logprobs.top_num}
        body |= {"return_logprob": True, **options}
        if kept.logprobs.token_ids:
            body["token_ids_logprob"] = list(kept.logprobs.token_ids)
    pixels = next((item.pixels for item in kept.media if isinstance(item, MediaInput)), Pixels())
    if pixels != Pixels():
        limits = {"min_pixels": pixels.least, "max_pixels": pixels.most}
        body["mm_processor_kwargs"] = {name: value for name, value in limits.items() if value}
    return body


def _media(kept: KeptRequest) -> dict[str, Any]:
    """What a batch has for each prompt."""
    adapter = {"lora_path": kept.adapter} if kept.adapter else {}
    return {"image_data": [_source(item) for item in kept.media], **adapter} if kept.media else adapter


def _score_body(kept: KeptRequest, tokenizer: Tokenizer | None) -> dict[str, Any]:
    body = {**_fields(kept.prompt, tokenizer), "choices": [_text(choice, tokenizer) for choice in kept.choices]}
    if kept.is_unconditional:
        body["unconditional"] = True
    if kept.adapter:
        body["lora_path"] = kept.adapter
    return body


def _text(prompt: Prompt, tokenizer: Tokenizer | None) -> str:
    if isinstance(prompt, str):
        return prompt
    if tokenizer is None:
        return " ".join(map(str, prompt))
    return text_of(prompt, tokenizer)


def text_of(ids: Iterable[int], tokenizer: Tokenizer) -> str:
    """Their text, special tokens included."""
    table = tokenizer.vocabulary.token_bytes
    return b"".join(table[i] if 0 <= i < len(table) else b"" for i in ids).decode(errors="replace")


def _source(item: MediaInput | Omitted) -> str:
    if isinstance(item, Omitted):
        return item.name
    assert isinstance(item.source, str), "what comes over HTTP is text"
    return f"video:{item.source}" if item.kind == "video" else item.source
