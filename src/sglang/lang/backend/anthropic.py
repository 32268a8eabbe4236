"""Anthropic's messages API, through Anthropic's own client."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from sglang.common.install import needs_extra
from sglang.lang.backend.base import BaseBackend, Delta, Generation, Meta, Prompt
from sglang.lang.backend.cloud import TokenUsage, api_options, as_backend_error, conversation, split_data_uri, split_system
from sglang.lang.chat_template import ChatTemplate, get_chat_template
from sglang.lang.errors import UnsupportedFeatureError

_REST_OF_THE_CONTEXT = 4096
"""the API wants a number; every model of it can write so much"""


class Anthropic(BaseBackend):
    """Programs run on `model_name` of Anthropic. Further arguments are those of the client (`api_key`, `base_url`...)."""

    name = "Anthropic"
    is_chat_model = True

    def __init__(self, model_name: str, *args: Any, chat_template: ChatTemplate | None = None, **kwargs: Any) -> None:
        with needs_extra("anthropic"):
            import anthropic
        super().__init__(chat_template or get_chat_template("claude"))
        self.model_name = model_name
        self.token_usage = TokenUsage()
        self._errors = anthropic.AnthropicError
        self._connection_errors = (anthropic.APIConnectionError,)
        self._timeouts = (anthropic.APITimeoutError,)
        self._client: Any = anthropic.AsyncAnthropic(*args, **kwargs)
        self._keywords = frozenset(inspect.signature(self._client.messages.create).parameters)

    def get_model_name(self) -> str:
        return self.model_name

    def _fields(self, prompt: Prompt, options: Mapping[str, Any]) -> Meta:
        if (options.get("n") or 1) > 1:
            raise UnsupportedFeatureError(self.name, "several samples of one gen (n)", "use fork")
        kwargs = api_options(self, options, "anthropic", ("n", "seed"))
        kwargs["max_tokens"] = kwargs.get("max_tokens") or _REST_OF_THE_CONTEXT
        # the API refuses stop sequences of white space alone
        stops = [stop for stop in kwargs.pop("stop_sequences", []) if stop.strip()]
        if stops:
            kwargs["stop_sequences"] = stops
        system, messages = split_system(conversation(self, prompt))
        if system is not None:
            kwargs["system"] = system
        # newer clients have no keywords for sampling, which older models of the API take all the same
        extra = {name: kwargs.pop(name) for name in list(kwargs) if name not in self._keywords}
        if extra:
            kwargs["extra_body"] = extra
        return {"model": self.model_name, "messages": [_message(message) for message in messages], **kwargs}

    async def generate(self, prompt: Prompt, options: Mapping[str, Any], rid: str) -> Generation:
        try:
            reply = await self._client.messages.create(**self._fields(prompt, options))
        except self._errors as error:
            raise as_backend_error(error, self._connection_errors, self._timeouts) from error
        text = "".join(block.text for block in reply.content if block.type == "text")
        return Generation([text], [self._meta(reply)])

    async def generate_stream(self, prompt: Prompt, options: Mapping[str, Any], rid: str) -> AsyncGenerator[Delta, None]:
        try:
            async with self._client.messages.stream(**self._fields(prompt, options)) as stream:
                async for text in stream.text_stream:
                    yield Delta(text, {})
                yield Delta("", self._meta(await stream.get_final_message()))
        except self._errors as error:
            raise as_backend_error(error, self._connection_errors, self._timeouts) from error

    def _meta(self, reply: Any) -> Meta:
        usage = reply.usage
        self.token_usage.add(usage.input_tokens, usage.output_tokens)
        return {
            "id": reply.id,
            "finish_reason": reply.stop_reason,
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "cached_tokens": getattr(usage, "cache_read_input_tokens", None) or 0,
        }


def _message(message: Mapping[str, Any]) -> Meta:
    """A message of OpenAI's format in Anthropic's: images are named differently."""
    content = message["content"]
    if isinstance(content, str):
        return {"role": message["role"], "content": content}
    return {"role": message["role"], "content": [_part(part) for part in content]}


def _part(part: Mapping[str, Any]) -> Meta:
    if part["type"] != "image_url":
        return dict(part)
    url = part["image_url"]["url"]
    data = split_data_uri(url)
    if data is not None:
        return {"type": "image", "source": {"type": "base64", "media_type": data[0], "data": data[1]}}
    return {"type": "image", "source": {"type": "url", "url": url}}
