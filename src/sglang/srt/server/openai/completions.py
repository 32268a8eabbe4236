"""POST /v1/completions: text or ids in, their continuation out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.messages import LogprobOptions, Logprobs
from sglang.srt.server.calls import Call
from sglang.srt.server.generate_req import GenerateOut, GenerateReq, check_count
from sglang.srt.server.http.json_pieces import encode_json
from sglang.srt.server.http.request_scope import created_at
from sglang.srt.server.openai.answers import PART_VALUES, ChunkWriter, Usage, finish_details, finish_name
from sglang.srt.server.openai.chat import join_salt, usage_wishes
from sglang.srt.server.openai.logprobs import CompletionLogprobs
from sglang.srt.server.openai.protocol import CompletionRequest, field_names, sampling_params
from sglang.srt.server.tokenization.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 16
MAX_LOGPROBS = 20
_NAMES = dict.fromkeys(("text", "input_ids"), "prompt") | dict.fromkeys(("top_logprobs_num", "return_logprob"), "logprobs")
MAX_ECHO_BYTES = 16 << 20
"""of prompts that the answer repeats, once for each sample"""


class CompletionCall:
    """One completion request on its way: what to generate, and how its answer looks."""

    def __init__(
        self, request: CompletionRequest, tokenizer: Tokenizer | None, defaults: dict[str, Any], served_name: str
    ) -> None:
        self._tokenizer = tokenizer
        self._model = request.model or served_name
        self._created = created_at()
        self._with_usage, self._always_usage = usage_wishes(request.stream, request.stream_options)
        self._echo = bool(request.echo)
        self._num_top = self._check_logprobs(request)
        max_tokens = request.max_tokens if request.max_tokens is not None else DEFAULT_MAX_TOKENS
        if max_tokens < (0 if self._echo else 1):
            raise RequestError("max_tokens must be at least 1 (0 with echo)", "max_tokens")
        sampling = sampling_params(request, max_tokens, defaults)
        if request.best_of is not None and request.best_of != sampling.n:
            raise UnsupportedError("best_of is not supported unless it equals n", "best_of")
        self._skip_special = sampling.skip_special_tokens
        prompts, text, ids = _prompts(request.prompt)
        self._prompts = prompts if self._echo else []
        self._num_samples = sampling.n
        self._check_echo()
        logprobs = None
        if request.logprobs is not None:
            logprobs = LogprobOptions(start_len=0 if self._echo else -1, top_num=self._num_top)
        self.req = GenerateReq(
            text=text,
            input_ids=ids,
            sampling=sampling,
            logprobs=logprobs,
            rid=request.rid or None,
            stream=bool(request.stream),
            max_new_tokens_is_default=request.max_tokens is None,
            add_special_tokens=request.add_special_tokens is not False,
            cache_salt=join_salt(request.cache_salt, request.extra_key),
            priority=request.priority or 0,
            names={**field_names(request), **_NAMES},
        )
        self._wants_logprobs = logprobs is not None
        self._logprobs: dict[int, CompletionLogprobs] = {}

    def _check_logprobs(self, request: CompletionRequest) -> int:
        if request.logprobs is None:
            return 0
        if not 0 <= request.logprobs <= MAX_LOGPROBS:
            raise RequestError(f"logprobs must be between 0 and {MAX_LOGPROBS}, got {request.logprobs}", "logprobs")
        if self._tokenizer is None:
            raise RequestError("logprobs: this server runs without a tokenizer; use /generate", "logprobs")
        return request.logprobs

    def _check_echo(self) -> None:
        """Raises RequestError if what is repeated is too long. (Ids outside the vocabulary are found later.)"""
        table = self._tokenizer.vocabulary.token_bytes if self._tokenizer is not None else []

        def size(prompt: str | list[int]) -> int:
            return len(prompt) if isinstance(prompt, str) else sum(len(table[i]) for i in prompt if 0 <= i < len(table))

        if self._num_samples * sum(map(size, self._prompts)) > MAX_ECHO_BYTES:
            raise RequestError(f"echo: the prompts would be repeated in more than {MAX_ECHO_BYTES} bytes", "echo")

    async def collect(self, call: Call) -> dict[str, Any]:
        """The whole answer."""
        outs: dict[int, GenerateOut] = {}
        usage = Usage(self._num_samples)
        async for out in call:
            usage.add(out)
            outs[out.index] = out
        return {
            "id": call.name,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [self._choice(outs[index]) for index in sorted(outs)],
            "usage": usage.as_dict(),
        }

    def _choice(self, out: GenerateOut) -> dict[str, Any]:
        assert out.finish is not None
        return {
            "index": out.index,
            "text": self._echoed(out.index) + out.text,
            "logprobs": self._piece(out.index, _logprobs_of(out)),
            "finish_reason": finish_name(out.finish),
            "matched_stop": out.finish.matched,
            **finish_details(out.finish),
        }

    async def events(self, call: Call) -> AsyncIterator[bytes]:
        """Chunks of text; the last of each choice says why it ended. Then the usage."""
        chunks = ChunkWriter("text_completion", call.name, self._created, self._model)
        usage = Usage(self._num_samples)
        begun: set[int] = set()
        async for out in call:
            usage.add(out)
            text = out.text
            if out.index not in begun:
                begun.add(out.index)
                text = self._echoed(out.index) + text
            now = usage.as_dict() if self._always_usage else None
            *before, last = _logprobs_of(out).parts(PART_VALUES)
            for part in before:
                yield chunks.choice(out.index, b'"text":' + encode_json(text), self._piece(out.index, part), usage=now)
                text = ""
            if text or out.finish is not None or len(last):
                logprobs = self._piece(out.index, last)
                yield chunks.choice(out.index, b'"text":' + encode_json(text), logprobs, out.finish, now)
        if self._with_usage:
            yield chunks.usage(usage.as_dict())

    def _echoed(self, index: int) -> str:
        """The prompt's text, when it is to be repeated."""
        if not self._echo:
            return ""
        prompt = self._prompts[index // self._num_samples]
        if isinstance(prompt, str):
            return prompt
        return self._tokenizer.decode(prompt, self._skip_special) if self._tokenizer is not None else ""

    @property
    def is_large(self) -> bool:
        """Whether the reply may be."""
        return self._wants_logprobs

    def _piece(self, index: int, logprobs: Logprobs) -> dict[str, Any] | None:
        if not self._wants_logprobs or self._tokenizer is None:
            return None
        state = self._logprobs.get(index)
        if state is None:
            state = self._logprobs[index] = CompletionLogprobs(self._tokenizer, self._num_top, self._skip_special)
        return state.piece(logprobs)


def _logprobs_of(out: GenerateOut) -> Logprobs:
    """The prompt's and those of the output."""
    return Logprobs.join([part for part in (out.input_logprobs, out.output_logprobs) if part is not None])


def _prompts(prompt: Any) -> tuple[list[Any], str | list[str] | None, Any]:
    """All prompts as a list; and as GenerateReq wants them: (prompts, text, input_ids)."""
    if isinstance(prompt, str):
        return [prompt], prompt, None
    if not prompt:
        raise RequestError("prompt must not be empty", "prompt")
    check_count(1 if isinstance(prompt[0], int) else len(prompt), "prompt")
    if isinstance(prompt[0], str):
        return prompt, prompt, None
    return ([prompt], None, prompt) if isinstance(prompt[0], int) else (prompt, None, prompt)
