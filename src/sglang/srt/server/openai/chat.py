"""POST /v1/chat/completions: messages in, one or more answers out, at once or as they grow."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.messages import LogprobOptions, Position
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server.generate_req import GenerateOut, GenerateReq
from sglang.srt.server.multimodal.inputs import MediaInput
from sglang.srt.server.openai.logprobs import chat_logprobs
from sglang.srt.server.openai.messages import parse_messages
from sglang.srt.server.openai.protocol import ChatRequest
from sglang.srt.server.openai.sampling import sampling_params
from sglang.srt.server.openai.sse import ChunkWriter, Usage, finish_name
from sglang.srt.server.responses import encode_json
from sglang.srt.server.tokenization.tokenizer import Tokenizer
from sglang.srt.server.tokenizer_manager import Call

MAX_TOP_LOGPROBS = 20

_ROLE = b'"delta":{"role":"assistant","content":""}'
_NOTHING = b'"delta":{}'


class ChatCall:
    """One chat request on its way: what to generate, and how its answer looks."""

    def __init__(
        self,
        request: ChatRequest,
        tokenizer: Tokenizer,
        defaults: dict[str, Any],
        served_name: str,
        max_chars: int,
        sees: bool = False,
    ) -> None:
        self._max_chars = max_chars
        self._sees = sees
        self._tokenizer = tokenizer
        self._model = request.model or served_name
        self._created = int(time.time())
        self._with_usage, self._always_usage = usage_wishes(request.stream, request.stream_options)
        self._num_top = self._check_logprobs(request)
        self._wants_logprobs = bool(request.logprobs)
        sampling = sampling_params(request, _max_tokens(request), defaults)
        self._num_samples = sampling.n
        self.req = self._generate_req(request, sampling)

    def _generate_req(self, request: ChatRequest, sampling: SamplingParams) -> GenerateReq:
        template = self._tokenizer.chat_template()
        media: list[MediaInput] | None = [] if self._sees else None
        messages = parse_messages(request.messages, template, media)
        variables = dict(request.chat_template_kwargs or {})
        if request.reasoning_effort is not None:
            if not template.mentions("reasoning_effort"):
                raise UnsupportedError("reasoning_effort: this model's chat template does not know it", "reasoning_effort")
            variables["reasoning_effort"] = request.reasoning_effort
        ids = self._tokenizer.encode_chat(
            messages,
            continue_final_message=bool(request.continue_final_message),
            template_variables=variables,
            max_chars=self._max_chars,
        )
        if request.add_generation_prompt is False and not request.continue_final_message:
            raise UnsupportedError("add_generation_prompt: false is not supported; use continue_final_message")
        return GenerateReq(
            input_ids=ids,
            media=[media] if media else None,
            sampling=sampling,
            logprobs=LogprobOptions(top_num=self._num_top) if request.logprobs else None,
            rid=request.rid or None,
            stream=bool(request.stream),
            cache_salt=join_salt(request.cache_salt, request.extra_key),
            priority=request.priority or 0,
        )

    @staticmethod
    def _check_logprobs(request: ChatRequest) -> int:
        top = request.top_logprobs or 0
        if top and not request.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", "top_logprobs")
        if not 0 <= top <= MAX_TOP_LOGPROBS:
            raise RequestError(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}, got {top}", "top_logprobs")
        return top

    def _logprobs(self, positions: list[Position] | None) -> dict[str, Any] | None:
        return chat_logprobs(positions or [], self._tokenizer, self._num_top) if self._wants_logprobs else None

    async def collect(self, call: Call) -> dict[str, Any]:
        """The whole answer."""
        outs: list[GenerateOut | None] = [None] * self._num_samples
        usage = Usage(self._num_samples)
        async for out in call:
            usage.add(out)
            outs[out.index] = out
        return {
            "id": call.name,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [self._choice(out) for out in outs if out is not None],
            "usage": usage.as_dict(),
        }

    def _choice(self, out: GenerateOut) -> dict[str, Any]:
        assert out.finish is not None
        return {
            "index": out.index,
            "message": {"role": "assistant", "content": out.text, "reasoning_content": None, "tool_calls": None},
            "logprobs": self._logprobs(out.output_logprobs),
            "finish_reason": finish_name(out.finish),
            "matched_stop": out.finish.matched,
        }

    async def events(self, call: Call) -> AsyncIterator[bytes]:
        """Chunks: the role, pieces of content, one chunk with the reason why it ended; for each choice. Then the usage."""
        chunks = ChunkWriter("chat.completion.chunk", call.name, self._created, self._model)
        usage = Usage(self._num_samples)
        begun: set[int] = set()
        async for out in call:
            usage.add(out)
            now = usage.as_dict() if self._always_usage else None
            if out.index not in begun:
                begun.add(out.index)
                yield chunks.choice(out.index, _ROLE, usage=now)
            if out.text or (self._wants_logprobs and out.output_logprobs):
                body = b'"delta":{"content":%b}' % encode_json(out.text)
                yield chunks.choice(out.index, body, self._logprobs(out.output_logprobs), usage=now)
            if out.finish is not None:
                yield chunks.choice(out.index, _NOTHING, finish=out.finish, usage=now)
        if self._with_usage:
            yield chunks.usage(usage.as_dict())


def _max_tokens(request: ChatRequest) -> int | None:
    """None: as many as fit."""
    return request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens


def usage_wishes(stream: bool | None, options: Any) -> tuple[bool, bool]:
    """Whether a stream ends with its usage, and whether every chunk carries it."""
    if options is None:
        return False, False
    if not stream:
        raise RequestError("stream_options is for streams: set stream to true", "stream_options")
    return bool(options.include_usage), bool(options.continuous_usage_stats)


def join_salt(salt: str | None, extra_key: str | None) -> str | None:
    """One name for the namespace that both together mean."""
    parts = [part for part in (salt, extra_key) if part is not None]
    return "\x1f".join(parts) if parts else None
