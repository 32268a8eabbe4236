"""Converts a GenerateReq to the TokenizedReqs of the scheduler: tokens, images, lengths, samples.

text or ids --tokenize--> ids of each prompt --media--> with placeholders --check, fit--> one TokenizedReq a sample
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from sglang.srt.config import BACKGROUND, HttpOptions
from sglang.srt.errors import ContextLengthError, RequestError, UnsupportedError
from sglang.srt.media_item import without_pixels
from sglang.srt.messages import LogprobOptions, TokenizedReq, pack_ids
from sglang.srt.sampling_params import SEED_BITS, SamplingParams
from sglang.srt.server.generate_req import MAX_SEQUENCES, GenerateReq, for_each, rids_of, samples_of, wire_rid
from sglang.srt.server.http.request_scope import RequestScope, current_scope
from sglang.srt.server.limits.parameter_room import check_parameters
from sglang.srt.server.multimodal.inputs import MediaTask
from sglang.srt.server.side_threads import run_in_thread
from sglang.srt.server.tokenization.healing import Healer
from sglang.srt.server.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:  # these need an image library, which a server of text does without
    from sglang.srt.server.multimodal.intake import MediaIntake, MediaPrompt

LONG_TEXT = 20_000
"""characters above which a call is tokenized on another thread"""
TEXT_COST = 100
"""what each text counts for besides its characters"""

MANY_IDS, MANY_PROMPTS = 100_000, 500
"""ids or prompts above which a call is made up on another thread"""


class RequestMaker:
    """Knows the model's numbers (`info`: forward_batch.ModelInfo as a dict) and its tokenizer, and nothing of what runs."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        info: dict[str, Any],
        http: HttpOptions,
        media: MediaIntake | None,
        find_adapter: Callable[[str], int],
    ) -> None:
        """`find_adapter`: its uid by its name."""
        self.tokenizer = tokenizer
        self.info = info
        self.http = http
        self.media = media
        self._find_adapter = find_adapter
        self._healer: Healer | None = None
        self._seeds = random.Random(http.random_seed)
        self._longest_token = max(map(len, tokenizer.vocabulary.token_bytes)) if tokenizer is not None else 1

    @property
    def info(self) -> dict[str, Any]:
        return self._info

    @info.setter
    def info(self, info: dict[str, Any]) -> None:
        """The model's facts; a restarted scheduler sends them again."""
        self._info = info
        self.vocab_size = int(info["vocab_size"])
        self.context_len = min(int(info["context_len"]), int(info["max_total_tokens"]))
        """longest sequence the model and its KV pool take"""

    def need_tokenizer(self) -> Tokenizer:
        """Raises RequestError if the server runs without one."""
        if self.tokenizer is None:
            raise RequestError("this server runs without a tokenizer: send input_ids, and no text, stop strings or messages")
        return self.tokenizer

    def need_embedder(self) -> None:
        """Raises RequestError unless the model embeds."""
        if not self.info.get("embedding_dim"):
            raise RequestError("this model generates: start the server with --is-embedding, or with an encoder, to embed")

    def check_embed(self, texts: Sequence[Sequence[int]]) -> None:
        """Raises RequestError for texts that do not fit, or are too many."""
        self.need_embedder()
        most = current_scope().share_of(self.http.max_queued_requests)
        if len(texts) > most:
            raise RequestError(f"at most {most} texts (--max-queued-requests) are embedded at once, got {len(texts)}", "input")
        limit = int(self.info["context_len"])
        for ids in texts:
            if not ids:
                raise RequestError("a text has no tokens", "input")
            if len(ids) > limit:
                raise ContextLengthError("input", len(ids), limit)
            check_ids("input", ids, self.vocab_size)

    async def make(self, req: GenerateReq, before: Sequence[int] | None = None) -> list[TokenizedReq]:
        """One TokenizedReq for every sample of every prompt, those of a prompt side by side. `before`: what stands before the
        prompt of a session. Raises RequestError."""
        self._check_count(req)
        prompts = await self._tokenize(req, special=req.add_special_tokens and not before)
        if self.media is not None:
            self._check_unseen(self.media, req, prompts)
        if before:
            prompts = [pack_ids(before) + pack_ids(prompt) for prompt in prompts]
        media = await self._take_media(req, prompts) if req.media is not None else {}
        if sum(map(len, prompts)) + MANY_IDS // MANY_PROMPTS * len(prompts) > MANY_IDS:
            return await run_in_thread(self._expand, req, prompts, media)
        return self._expand(req, prompts, media)

    def _check_count(self, req: GenerateReq) -> None:
        """Refuses what the queue can never take, before anything is done for each prompt. Raises RequestError."""
        prompts: Any = (req.text if req.input_ids is None else req.input_ids) if req.is_batch else [None]
        num_prompts = len(prompts)
        samplings = req.sampling if isinstance(req.sampling, list) else [req.sampling] * num_prompts
        count = sum(s.n for s in samplings)
        limit = min(MAX_SEQUENCES, current_scope().share_of(self.http.max_queued_requests))
        if count > limit:
            raise RequestError(
                f"a request may ask for at most {limit} sequences (--max-queued-requests), and this one asks for {count}", "n"
            )
        long = [sampling for sampling in samplings if not sampling.is_short]
        if long and self.http.max_text_tokens is not None:
            check_parameters(long)

    async def _tokenize(self, req: GenerateReq, special: bool) -> list[Sequence[int]]:
        if req.input_ids is not None:
            if req.text is not None:
                raise RequestError("give either text or input_ids, not both", "text")
            ids: Any = req.input_ids if req.is_batch else [req.input_ids]
            limit = self.context_len
            return [prompt if len(prompt) <= limit else self._fitted(prompt) for prompt in ids]
        if req.text is None:
            raise RequestError("the request has no prompt: give text or input_ids", "text")
        tokenizer = self.need_tokenizer()
        texts = [self.check_size(text) for text in ([req.text] if isinstance(req.text, str) else req.text)]
        if sum(map(len, texts)) + TEXT_COST * len(texts) > LONG_TEXT:
            return await run_in_thread(self.encode, texts, special)
        return [tokenizer.encode(text, special) for text in texts]

    def encode(self, texts: Iterable[str], special: bool = True) -> list[Sequence[int]]:
        """Ends at the first prompt that is too long, and when all are too many tokens, before the others are encoded. Texts that
        have a part in common are given one by one: together they may be much longer than the request. Raises RequestError."""
        return self._limited(self.need_tokenizer().encode_pieces(map(self.check_size, texts), special))

    def join(self, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> list[Sequence[int]]:
        """Ids that follow each other, as one prompt for each pair; with the same limits as `encode`."""
        return self._limited([self._joined(*pair)] for pair in pairs)

    def _joined(self, first: Sequence[int], then: Sequence[int]) -> Sequence[int]:
        limit, length = self.context_len, len(first) + len(then)
        if length > limit:
            self._check_may_cut(length)
        return pack_ids(first[:limit]) + pack_ids(then[: max(limit - len(first), 0)])

    def _limited(self, pieces: Iterable[Sequence[Sequence[int]]]) -> list[Sequence[int]]:
        prompts: list[Sequence[int]] = []
        num_tokens, limit = 0, self.http.max_text_tokens
        for piece in pieces:
            prompts += [pack_ids(ids if len(ids) <= self.context_len else self._fitted(ids)) for ids in piece]
            num_tokens += sum(map(len, piece))
            if limit is not None and num_tokens > limit:
                raise RequestError(
                    f"the texts of this request have more than {limit} tokens together: send several requests", "text"
                )
        return prompts

    async def _take_media(self, req: GenerateReq, prompts: list[Sequence[int]]) -> dict[int, MediaPrompt]:
        """The prompts that have media, with these in place, by number. Raises RequestError."""
        assert req.media is not None
        if self.media is None:
            if self._info.get("media_kinds"):
                what = "lacks packages that images and videos need; its log says which (the extra [vision])"
                raise UnsupportedError(f"this server {what}", "image_data")
            raise UnsupportedError("this model reads text only: it cannot take images or videos", "image_data")
        if len(req.media) != len(prompts):
            raise RequestError(f"there are media for {len(req.media)} prompts, and {len(prompts)} prompts", "image_data")
        tasks = {i: MediaTask(list(prompts[i]), inputs) for i, inputs in enumerate(req.media) if inputs}
        return dict(zip(tasks, await self.media.take(list(tasks.values()), self.context_len), strict=True))

    @staticmethod
    def _check_unseen(media: MediaIntake, req: GenerateReq, prompts: list[Sequence[int]]) -> None:
        """Refuses places for images in prompts that bring none: an answer would be about nothing. Raises RequestError."""
        for i, prompt in enumerate(prompts):
            if not (req.media is not None and i < len(req.media) and req.media[i]):
                media.check_places(prompt)

    def check_size(self, text: str) -> str:
        """Refuses, or truncates where that is allowed, what cannot fit however it is tokenized: before the work is done."""
        if len(text) <= self.max_chars:
            return text
        if self.http.allow_auto_truncate:
            return text[: self.max_chars]
        raise self.too_many_chars(len(text), "text")

    def too_many_chars(self, count: int, param: str) -> ContextLengthError:
        """The error for a text of more than `max_chars`."""
        return ContextLengthError(param, -(-count // self._longest_token), self.context_len, is_least=True)

    def _fitted(self, ids: Sequence[int]) -> Sequence[int]:
        """The same for ids that are more than the context can hold."""
        self._check_may_cut(len(ids))
        return ids[: self.context_len]

    def _check_may_cut(self, length: int) -> None:
        if not self.http.allow_auto_truncate:
            raise ContextLengthError("input_ids", length, self.context_len)

    @property
    def max_chars(self) -> int:
        """No text longer than this fits in the context."""
        return self.context_len * self._longest_token

    def _expand(self, req: GenerateReq, prompts: list[Sequence[int]], media: dict[int, MediaPrompt]) -> list[TokenizedReq]:
        """One TokenizedReq for every sample of every prompt."""
        if not prompts:
            raise RequestError("the batch is empty", "text" if req.input_ids is None else "input_ids")
        samplings = for_each("sampling_params", req.sampling, len(prompts))
        logprobs = for_each("logprobs", req.logprobs, len(prompts))
        adapters = for_each("lora_path", req.adapter, len(prompts))
        uids = [self._find_adapter(name) if name else 0 for name in adapters]
        budget = self._logprob_budget(samplings) if req.logprobs is not None else None
        scope = current_scope()
        rids = [wire_rid(scope.key, rid) for rid in rids_of(req.rid, len(prompts), req.is_batch)]
        common = self._common_fields(req, scope)
        requests: list[TokenizedReq] = []
        for i, (prompt, sampling, options, rid) in enumerate(zip(prompts, samplings, logprobs, rids, strict=True)):
            seen = media.get(i)
            ids = seen.ids if seen is not None else prompt or self._empty_prompt()
            check_request(ids, sampling, options, self.vocab_size, has_text=self.tokenizer is not None)
            may_cut = self.http.allow_auto_truncate and seen is None
            ids, fitted = fit_length(ids, sampling, self.context_len, req.max_new_tokens_is_default, may_cut)
            is_default = req.max_new_tokens_is_default or sampling.max_new_tokens is None
            if options is not None and budget is not None:
                fitted = budget.spend(ids, fitted, options, is_default)
            items = seen.items if seen is not None else ()
            ids, healed = self._heal(ids) if req.token_healing and seen is None else (ids, "")
            packed = pack_ids(ids)
            for name, choice in samples_of(rid, fitted):
                requests.append(
                    TokenizedReq(
                        rid=name,
                        input_ids=packed,
                        sampling=self._seeded(choice, scope),
                        logprobs=options,
                        group=rid if sampling.n > 1 else rids[0] if req.begins_alike else None,
                        media=items,
                        rope_positions=seen.rope_positions if seen is not None else b"",
                        rope_delta=seen.rope_delta if seen is not None else 0,
                        healed=healed,
                        adapter=uids[i],
                        **common,
                    )
                )
                if items:
                    items = tuple(map(without_pixels, items))  # those of one prompt follow each other
        return requests

    def _common_fields(self, req: GenerateReq, scope: RequestScope) -> dict[str, Any]:
        """The fields that are the same in all TokenizedReqs of a call."""
        # With a namespace for each key, no salt of a client leads into that of another.
        has_namespace = self.http.cache_per_key and (scope.key or req.cache_salt)
        may_overtake = scope.is_operator or self.http.allow_priority
        return {
            "origins": req.origins,
            "stream": req.stream,
            "cache_salt": f"{scope.key}/{req.cache_salt or ''}" if has_namespace else req.cache_salt,
            "priority": BACKGROUND if scope.is_background else req.priority if may_overtake else 0,
            "own_priority": 0 if may_overtake else req.priority,
            "grammar_after": req.grammar_after,
            "grammar_lead": req.grammar_lead,
            "client": scope.client,
            "received_at": scope.arrived_at,
        }

    def _seeded(self, choice: SamplingParams, scope: RequestScope) -> SamplingParams:
        """With a seed, if tokens are sampled: it is fixed here, for whichever scheduler generates them."""
        if choice.seed is not None or choice.is_greedy:
            return choice
        seed = scope.journal.seed() if scope.journal is not None else self._seeds.getrandbits(SEED_BITS)
        return msgspec.structs.replace(choice, seed=seed)

    def _logprob_budget(self, samplings: list[SamplingParams]) -> LogprobBudget:
        return LogprobBudget(self.http.max_logprob_values, sum(s.n for s in samplings))

    def _heal(self, ids: Sequence[int]) -> tuple[Sequence[int], str]:
        """The prompt without the tokens at its end that the output begins anew, and their text."""
        if self._healer is None:
            self._healer = Healer(self.need_tokenizer().vocabulary)
        return self._healer.heal(ids)

    def _empty_prompt(self) -> Sequence[int]:
        """The ids of an empty text: the token that begins a text, or without one a token that ends one."""
        vocabulary = self.tokenizer.vocabulary if self.tokenizer is not None else None
        if vocabulary is not None and vocabulary.bos_token_id is not None:
            return [vocabulary.bos_token_id]
        if vocabulary is not None and vocabulary.eos_token_ids:
            return [min(vocabulary.eos_token_ids)]
        raise RequestError("the prompt is empty", "text")


# --- rules that need the model's numbers: ids, lengths, log probabilities ---------------------------------------------------


MAX_TOP_LOGPROBS = 1024
MAX_LOGPROB_IDS = 4096


def check_request(
    ids: Sequence[int], sampling: SamplingParams, logprobs: LogprobOptions | None, vocab_size: int, has_text: bool
) -> None:
    """Raises RequestError for ids outside the vocabulary, positions outside the prompt and what needs a tokenizer."""
    check_ids("input_ids", ids, vocab_size)
    if sampling.logit_bias:
        check_ids("logit_bias", list(sampling.logit_bias), vocab_size)
    if len(sampling.stop_token_ids or ()) > MAX_LOGPROB_IDS:
        raise RequestError(f"stop_token_ids may name at most {MAX_LOGPROB_IDS} ids", "stop_token_ids")
    if sampling.stop_token_ids:
        check_ids("stop_token_ids", list(sampling.stop_token_ids), vocab_size)
    if not has_text and (sampling.stop or sampling.stop_regex or sampling.grammar):
        raise RequestError("this server runs without a tokenizer: stop strings and constraints are not possible", "stop")
    if logprobs is None:
        return
    if not -1 <= logprobs.start_len <= len(ids):
        raise RequestError(
            f"logprob_start_len must be between -1 and the prompt's length ({len(ids)}), got {logprobs.start_len}",
            "logprob_start_len",
        )
    if not 0 <= logprobs.top_num <= min(MAX_TOP_LOGPROBS, vocab_size):
        raise RequestError(
            f"top_logprobs_num must be between 0 and {min(MAX_TOP_LOGPROBS, vocab_size)}, got {logprobs.top_num}",
            "top_logprobs_num",
        )
    if len(logprobs.token_ids) > MAX_LOGPROB_IDS:
        raise RequestError(f"token_ids_logprob may name at most {MAX_LOGPROB_IDS} ids", "token_ids_logprob")
    if logprobs.token_ids:
        check_ids("token_ids_logprob", list(logprobs.token_ids), vocab_size)


class LogprobBudget:
    """The log probabilities that one request of `num_sequences` may ask for: `limit` in all; None: any number."""

    def __init__(self, limit: int | None, num_sequences: int) -> None:
        self._limit = limit
        self._share = (limit or 0) // max(num_sequences, 1)
        self._spent = 0

    def spend(
        self, ids: Sequence[int], sampling: SamplingParams, logprobs: LogprobOptions | None, is_default: bool
    ) -> SamplingParams:
        """Takes what the samples of one prompt ask for, whose `max_new_tokens` is decided: one that nobody gave (`is_default`)
        shrinks to the sequence's share. Raises RequestError when that is more than there may be."""
        limit, tokens = self._limit, sampling.max_new_tokens or 0
        if logprobs is None or limit is None:
            return sampling
        each = 1 + logprobs.top_num + len(logprobs.token_ids)
        num_scored = len(ids) - logprobs.start_len if logprobs.start_len >= 0 else 0
        if is_default:
            tokens = min(tokens, max(self._share // each - num_scored, sampling.min_new_tokens, 1))
        self._spent += sampling.n * (num_scored + tokens) * each
        if self._spent > limit:
            raise RequestError(
                f"the request asks for {self._spent} log probabilities or more ({each} at each position), and {limit} are the most: "
                "lower top_logprobs_num, max_new_tokens or n, or score fewer positions",
                "top_logprobs_num" if logprobs.top_num else "return_logprob",
            )
        return sampling if tokens == sampling.max_new_tokens else msgspec.structs.replace(sampling, max_new_tokens=tokens)


def check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raises RequestError for ids outside the vocabulary. There is at least one."""
    low, high = min(ids), max(ids)
    if low < 0 or high >= vocab_size:
        raise RequestError(f"{name}: id {low if low < 0 else high} is outside the vocabulary of {vocab_size} tokens", name)


def fit_length(
    ids: Sequence[int], sampling: SamplingParams, context_len: int, is_default: bool, truncate: bool
) -> tuple[Sequence[int], SamplingParams]:
    """The prompt and its parameters with `max_new_tokens` decided: the rest of the context where none was given.

    Raises RequestError if prompt and output do not fit in `context_len`. With `truncate` the prompt loses its end and the
    output shrinks instead; a default number of tokens (`is_default`) shrinks in any case.
    """
    if len(ids) >= context_len:
        if not truncate:
            raise ContextLengthError("input_ids", len(ids), context_len)
        ids = ids[: context_len - 1]
    room = context_len - len(ids)
    wanted = sampling.max_new_tokens
    if wanted is not None and wanted <= room:
        return ids, sampling
    if wanted is not None and not (is_default or truncate):
        raise ContextLengthError("max_new_tokens", len(ids), context_len, wanted)
    if sampling.min_new_tokens > room:
        raise RequestError(f"min_new_tokens is {sampling.min_new_tokens}, but only {room} fit in the context", "min_new_tokens")
    return ids, msgspec.structs.replace(sampling, max_new_tokens=room)
