"""From a GenerateReq to the TokenizedReqs that the scheduler takes: tokens, pictures in their places, lengths, samples.

text or ids --tokenize--> ids of each prompt --media--> with placeholders --check, fit--> one TokenizedReq a sample
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.config import HttpOptions
from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.media_item import without_pixels
from sglang.srt.messages import TokenizedReq
from sglang.srt.server.aside import run_aside
from sglang.srt.server.generate_req import MAX_SEQUENCES, GenerateReq, check_count, for_each, rids_of, samples_of
from sglang.srt.server.request_scope import current_scope
from sglang.srt.server.tokenization.healing import Healer
from sglang.srt.server.tokenization.tokenizer import Tokenizer
from sglang.srt.server.validation import LogprobBudget, check_request, fit_length

if TYPE_CHECKING:  # these need an image library, which a server of text does without
    from sglang.srt.server.multimodal.intake import MediaIntake, MediaPrompt

LONG_TEXT = 50_000
"""characters above which a call is tokenized on another thread"""


class RequestMaker:
    """Knows the model's numbers (`info`: forward_batch.ModelInfo as a dict) and its tokenizer, and nothing of what runs."""

    def __init__(self, tokenizer: Tokenizer | None, info: dict[str, Any], http: HttpOptions, media: MediaIntake | None) -> None:
        self.tokenizer = tokenizer
        self.info = info
        self.http = http
        self.media = media
        self._healer: Healer | None = None
        self._longest_token = max(map(len, tokenizer.vocabulary.token_bytes)) if tokenizer is not None else 1

    @property
    def context_len(self) -> int:
        """Longest sequence the model and its KV pool take."""
        return min(int(self.info["context_len"]), int(self.info["max_total_tokens"]))

    def need_tokenizer(self) -> Tokenizer:
        """Raises RequestError if the server runs without one."""
        if self.tokenizer is None:
            raise RequestError("this server runs without a tokenizer: send input_ids, and no text, stop strings or messages")
        return self.tokenizer

    async def make(self, req: GenerateReq, before: list[int] | None = None) -> list[TokenizedReq]:
        """One TokenizedReq for every sample of every prompt, those of a prompt side by side. `before`: what stands before the
        prompt of a session. Raises RequestError."""
        prompts = await self._tokenize(req, special=req.add_special_tokens and not before)
        if before:
            prompts = [before + prompt for prompt in prompts]
        media = await self._take_media(req, prompts) if req.media is not None else {}
        return self._expand(req, prompts, media)

    async def _tokenize(self, req: GenerateReq, special: bool) -> list[list[int]]:
        if req.input_ids is not None:
            if req.text is not None:
                raise RequestError("give either text or input_ids, not both", "text")
            ids: Any = req.input_ids if req.is_batch else [req.input_ids]
            check_count(len(ids), "input_ids")
            return [self._check_len(list(prompt)) for prompt in ids]
        if req.text is None:
            raise RequestError("the request has no prompt: give text or input_ids", "text")
        tokenizer = self.need_tokenizer()
        check_count(1 if isinstance(req.text, str) else len(req.text), "text")
        texts = [self._check_size(text) for text in ([req.text] if isinstance(req.text, str) else req.text)]
        if sum(map(len, texts)) > LONG_TEXT:
            return await run_aside(tokenizer.encode_batch, texts, special)
        return [tokenizer.encode(text, special) for text in texts]

    async def _take_media(self, req: GenerateReq, prompts: list[list[int]]) -> dict[int, MediaPrompt]:
        """The prompts that have media, with these in place, by number. Raises RequestError."""
        assert req.media is not None
        if self.media is None:
            raise UnsupportedError("this model reads text only: it cannot take images or videos", "image_data")
        if len(req.media) != len(prompts):
            raise RequestError(f"there are media for {len(req.media)} prompts, and {len(prompts)} prompts", "image_data")
        for inputs in req.media:
            self.media.check(inputs)
        return {i: await self.media.take(prompts[i], inputs) for i, inputs in enumerate(req.media) if inputs}

    def _check_size(self, text: str) -> str:
        """Refuses, or truncates where that is allowed, what cannot fit however it is tokenized: before the work is done."""
        if len(text) <= self.max_chars:
            return text
        if self.http.allow_auto_truncate:
            return text[: self.max_chars]
        raise RequestError(
            f"the prompt has {len(text)} characters, more than {self.context_len} tokens (the context length) can hold", "text"
        )

    def _check_len(self, ids: list[int]) -> list[int]:
        """The same for ids: no work is done on what is far too long."""
        if len(ids) > self.context_len and self.http.allow_auto_truncate:
            return ids[: self.context_len]
        if len(ids) > self.context_len:
            raise RequestError(
                f"the prompt has {len(ids)} tokens, but this server takes fewer than {self.context_len} (its context length)",
                "input_ids",
            )
        return ids

    @property
    def max_chars(self) -> int:
        """No text longer than this fits in the context."""
        return self.context_len * self._longest_token

    def _expand(self, req: GenerateReq, prompts: list[list[int]], media: dict[int, MediaPrompt]) -> list[TokenizedReq]:
        """One TokenizedReq for every sample of every prompt."""
        if not prompts:
            raise RequestError("the batch is empty", "text" if req.input_ids is None else "input_ids")
        samplings = for_each("sampling_params", req.sampling, len(prompts))
        logprobs = for_each("logprobs", req.logprobs, len(prompts))
        rids = rids_of(req.rid, len(prompts), req.is_batch)
        num_sequences = sum(s.n for s in samplings)
        if num_sequences > MAX_SEQUENCES:
            raise RequestError(f"a request may ask for at most {MAX_SEQUENCES} sequences")
        budget = LogprobBudget(self.http.max_logprob_values, num_sequences)
        scope = current_scope()
        requests: list[TokenizedReq] = []
        for i, (prompt, sampling, options, rid) in enumerate(zip(prompts, samplings, logprobs, rids, strict=True)):
            seen = media.get(i)
            ids = seen.ids if seen is not None else prompt or self._empty_prompt()
            check_request(ids, sampling, options, int(self.info["vocab_size"]), has_text=self.tokenizer is not None)
            may_cut = self.http.allow_auto_truncate and seen is None
            ids, fitted = fit_length(ids, sampling, self.context_len, req.max_new_tokens_is_default, may_cut)
            is_default = req.max_new_tokens_is_default or sampling.max_new_tokens is None
            fitted = budget.spend(ids, fitted, options, is_default)
            items = seen.items if seen is not None else ()
            ids, healed = self._heal(ids) if req.token_healing and seen is None else (ids, "")
            for name, choice in samples_of(rid, fitted):
                requests.append(
                    TokenizedReq(
                        rid=name,
                        input_ids=ids,
                        sampling=choice,
                        logprobs=options,
                        stream=req.stream,
                        group=rid if sampling.n > 1 else rids[0] if req.begins_alike else None,
                        cache_salt=req.cache_salt,
                        priority=req.priority,
                        grammar_after=req.grammar_after,
                        media=items,
                        rope_positions=seen.rope_positions if seen is not None else b"",
                        rope_delta=seen.rope_delta if seen is not None else 0,
                        healed=healed,
                        client=scope.client,
                        received_at=scope.arrived_at,
                    )
                )
                items = tuple(without_pixels(item) for item in items)  # those of one prompt follow each other
        return requests

    def _heal(self, ids: list[int]) -> tuple[list[int], str]:
        """The prompt without the tokens at its end that the output begins anew, and their text."""
        if self._healer is None:
            self._healer = Healer(self.need_tokenizer().vocabulary)
        return self._healer.heal(ids)

    def _empty_prompt(self) -> list[int]:
        """What an empty text means: the token that begins a text, or for want of one a token that ends one."""
        vocabulary = self.tokenizer.vocabulary if self.tokenizer is not None else None
        if vocabulary is not None and vocabulary.bos_token_id is not None:
            return [vocabulary.bos_token_id]
        if vocabulary is not None and vocabulary.eos_token_ids:
            return [min(vocabulary.eos_token_ids)]
        raise RequestError("the prompt is empty", "text")
