"""OpenAI's API, and any server that speaks it (`base_url=...`), through OpenAI's own client."""

from __future__ import annotations

import asyncio
import importlib
import json
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from sglang.common.install import install_packages, needs_extra
from sglang.lang.backend.base import BaseBackend, Delta, Generation, Meta, Prompt
from sglang.lang.backend.cloud import TokenUsage, api_options, as_backend_error, conversation
from sglang.lang.chat_template import ChatTemplate
from sglang.lang.choices import ChoicesDecision
from sglang.lang.errors import BackendConnectionError, BadReplyError, UnsupportedFeatureError
from sglang.lang.ir import Select
from sglang.lang.sampling import ALL_WIRES

T = TypeVar("T")

_COMPLETION_MODELS = frozenset({"gpt-3.5-turbo-instruct", "davinci-002", "babbage-002"})
_REASONING_PREFIXES = ("o1", "o3", "o4", "gpt-5")
_OFFICIAL_HOSTS = ("api.openai.com", "openai.azure.com")
_OPEN_MODELS = {name: wire.open_models for name, wire in ALL_WIRES.items() if wire.open_models}
_HANDLED = ("json_schema", "return_logprob", "top_logprobs_num", "return_text_in_logprobs")


class OpenAI(BaseBackend):
    """Programs run on `model_name` of OpenAI, Azure (`is_azure`), or an OpenAI-compatible server.

    `is_chat_model`: by default every model but the old completion models. Further arguments are those of the client
    (`api_key`, `base_url`, `timeout`, `max_retries`...). A server other than OpenAI's also gets the fields that only open
    models have (`regex`, `top_k`...) and may continue a begun assistant message. `encoding`: the tiktoken.Encoding of a
    completion model, for `select`; by default tiktoken's own for that name, which it downloads once.
    """

    name = "OpenAI"

    def __init__(
        self,
        model_name: str,
        is_chat_model: bool | None = None,
        chat_template: ChatTemplate | None = None,
        is_azure: bool = False,
        *args: Any,
        encoding: Any = None,
        **kwargs: Any,
    ) -> None:
        with needs_extra("openai"):
            import openai
        super().__init__(chat_template)
        self.model_name = model_name
        self.is_chat_model = model_name not in _COMPLETION_MODELS if is_chat_model is None else is_chat_model
        self.token_usage = TokenUsage()
        self._encoding = encoding
        self._connection_errors = (openai.APIConnectionError,)
        self._timeouts = (openai.APITimeoutError,)
        self._errors = openai.OpenAIError
        self._client: Any = (openai.AsyncAzureOpenAI if is_azure else openai.AsyncOpenAI)(*args, **kwargs)
        host = self._client.base_url.host
        self._is_official = any(host == name or host.endswith("." + name) for name in _OFFICIAL_HOSTS)
        if self.is_chat_model or not self._is_official:
            self.constraints = frozenset({"json_schema"} if self._is_official else {"json_schema", "regex", "ebnf"})

    def get_model_name(self) -> str:
        return self.model_name

    async def _call(self, make: Callable[[], Awaitable[T]]) -> T:
        try:
            return await make()
        except self._errors as error:
            raise as_backend_error(error, self._connection_errors, self._timeouts) from error

    # --- requests ------------------------------------------------------------------------------------------------------------

    def _fields(self, options: Mapping[str, Any]) -> Meta:
        """Sampling options as keywords of the client."""
        extensions = {} if self._is_official else _OPEN_MODELS
        kwargs = api_options(self, options, "openai", (*extensions, *_HANDLED))
        extra = {theirs: options[name] for name, theirs in extensions.items() if options.get(name) is not None}
        if extra:
            kwargs["extra_body"] = extra
        if "json_schema" in options:
            schema = {"name": "value", "schema": json.loads(options["json_schema"])}
            kwargs["response_format"] = {"type": "json_schema", "json_schema": schema}
        if "logit_bias" in kwargs:
            kwargs["logit_bias"] = {str(token): bias for token, bias in kwargs["logit_bias"].items()}
        if kwargs.get("max_tokens") is None:
            kwargs.pop("max_tokens", None)
        elif self.is_chat_model and self.model_name.startswith(_REASONING_PREFIXES):
            kwargs["max_completion_tokens"] = kwargs.pop("max_tokens")
        return kwargs

    def _chat(self, prompt: Prompt, options: Mapping[str, Any]) -> Meta:
        fields = self._fields(options)
        if options.get("return_logprob"):
            fields["logprobs"] = True
            if options.get("top_logprobs_num"):
                fields["top_logprobs"] = options["top_logprobs_num"]
        if prompt.role == "assistant" and prompt.role_text.strip() and not self._is_official:
            fields["messages"] = [*map(dict, prompt.messages), {"role": "assistant", "content": prompt.role_text}]
            fields["extra_body"] = {**fields.get("extra_body", {}), "continue_final_message": True}
        else:
            fields["messages"] = conversation(self, prompt)
        return {"model": self.model_name, **fields}

    def _completion(self, prompt: Prompt, options: Mapping[str, Any]) -> Meta:
        if prompt.images:
            raise UnsupportedFeatureError(self.name, "images with a completion model")
        fields = self._fields(options)
        if options.get("return_logprob"):
            fields["logprobs"] = options.get("top_logprobs_num") or 1
        return {"model": self.model_name, "prompt": prompt.text, **fields}

    async def generate(self, prompt: Prompt, options: Mapping[str, Any], rid: str) -> Generation:
        if self.is_chat_model:
            fields = self._chat(prompt, options)
            reply = await self._call(lambda: self._client.chat.completions.create(**fields))
            texts = [choice.message.content or "" for choice in reply.choices]
        else:
            fields = self._completion(prompt, options)
            reply = await self._call(lambda: self._client.completions.create(**fields))
            texts = [choice.text for choice in reply.choices]
        if not texts:
            raise BadReplyError("the API answered without any choice")
        return Generation(texts, [self._meta(reply, choice) for choice in reply.choices])

    def _meta(self, reply: Any, choice: Any) -> Meta:
        meta: Meta = {"id": reply.id, "finish_reason": choice.finish_reason}
        usage = reply.usage
        if usage is not None:
            if choice is reply.choices[0]:
                self.token_usage.add(usage.prompt_tokens, usage.completion_tokens)
            meta |= {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
            details = getattr(usage, "prompt_tokens_details", None)
            if details is not None and details.cached_tokens is not None:
                meta["cached_tokens"] = details.cached_tokens
        if getattr(choice, "logprobs", None) is not None:
            meta["logprobs"] = choice.logprobs.model_dump()
        return meta

    async def generate_stream(self, prompt: Prompt, options: Mapping[str, Any], rid: str) -> AsyncGenerator[Delta, None]:
        api = self._client.chat.completions if self.is_chat_model else self._client.completions
        fields = self._chat(prompt, options) if self.is_chat_model else self._completion(prompt, options)
        stream = await self._call(lambda: api.create(**fields, stream=True, stream_options={"include_usage": True}))
        meta: Meta = {}
        async with stream:
            chunks = stream.__aiter__()
            while (chunk := await self._call(lambda: anext(chunks, None))) is not None:
                meta = {**meta, "id": chunk.id}
                if chunk.usage is not None:
                    self.token_usage.add(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
                    meta |= {
                        "prompt_tokens": chunk.usage.prompt_tokens,
                        "completion_tokens": chunk.usage.completion_tokens,
                    }
                    yield Delta("", meta)
                for choice in chunk.choices:
                    if choice.finish_reason is not None:
                        meta = {**meta, "finish_reason": choice.finish_reason}
                    text = choice.delta.content if self.is_chat_model else choice.text
                    yield Delta(text or "", meta, choice.index)

    # --- choosing --------------------------------------------------------------------------------------------------------------

    async def select(self, prompt: Prompt, select: Select, rid: str) -> ChoicesDecision:
        """Has a completion model generate one token wherever the choices differ, by logit bias one that continues some remaining
        choice (for one that ends there: the end of text). The API scores nothing else, so `choices_method` does not apply."""
        if self.is_chat_model:
            raise UnsupportedFeatureError(self.name, "select with a chat model", "ask with gen and check the answer")
        if select.lora:
            raise UnsupportedFeatureError(self.name, "lora", "a fine-tuned model has a name of its own here")
        if self._encoding is None:
            self._encoding = await asyncio.to_thread(_encoding_of, self.model_name)
        encoding = self._encoding
        tokens = [[*encoding.encode_ordinary(choice), encoding.eot_token] for choice in select.choices]
        scores = [0.0] * len(tokens)
        remaining, position = list(range(len(tokens))), 0
        while len(remaining) > 1 and position < len(tokens[remaining[0]]):
            allowed = {tokens[i][position] for i in remaining}
            if len(allowed) > 1:
                begun = encoding.decode(tokens[remaining[0]][:position], errors="ignore")
                written, logprob = await self._one_token(prompt.text + begun, allowed)
                fitting = [i for i in remaining if written == self._text_of_token(tokens[i][position])]
                if not fitting:
                    raise BadReplyError(f"the API wrote {written!r}, which matches none of the choices")
                for i in fitting:
                    scores[i] += logprob
                remaining = fitting
            position += 1
        return ChoicesDecision(select.choices[remaining[0]], {"scores": scores})

    def _text_of_token(self, token: int) -> str:
        """As the API writes it: the end of text is nothing."""
        return "" if token == self._encoding.eot_token else str(self._encoding.decode([token]))

    async def _one_token(self, text: str, allowed: set[int]) -> tuple[str, float]:
        bias = {str(token): 100 for token in allowed}
        reply = await self._call(
            lambda: self._client.completions.create(
                model=self.model_name, prompt=text, max_tokens=1, temperature=0, logprobs=1, logit_bias=bias
            )
        )
        if reply.usage is not None:
            self.token_usage.add(reply.usage.prompt_tokens, reply.usage.completion_tokens)
        choice = reply.choices[0]
        logprobs = choice.logprobs.token_logprobs if choice.logprobs is not None else None
        return choice.text, float(logprobs[0]) if logprobs and logprobs[0] is not None else -math.inf


def _encoding_of(model_name: str) -> Any:
    """The tokenizer of one of OpenAI's models."""
    try:
        tiktoken: Any = importlib.import_module("tiktoken")
    except ImportError as error:
        raise ImportError(
            f"select on OpenAI's API splits the choices into tokens with tiktoken: {install_packages('tiktoken')}"
        ) from error
    try:
        return tiktoken.encoding_for_model(model_name)
    except KeyError as error:
        raise UnsupportedFeatureError(
            "OpenAI", f"select with {model_name}, whose tokenizer is unknown", "pass encoding=, a tiktoken.Encoding"
        ) from error
    except OSError as error:  # tiktoken downloads a vocabulary at its first use
        raise BackendConnectionError(
            f"tiktoken cannot download the vocabulary of {model_name}; pass encoding=: {error}"
        ) from error
