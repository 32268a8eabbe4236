"""Google's Gemini models on Vertex AI, through Google's own client (google-genai)."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import os
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import Any, TypeVar

from sglang.common.install import needs_extra
from sglang.lang.backend.base import BaseBackend, Delta, Generation, Meta, Prompt
from sglang.lang.backend.cloud import TokenUsage, api_options, as_backend_error, conversation, split_data_uri, split_system
from sglang.lang.errors import BadReplyError, UnsupportedFeatureError

T = TypeVar("T")
_ROLES = {"user": "user", "assistant": "model"}


class VertexAI(BaseBackend):
    """Programs run on `model_name`. The project and place are those of the environment variables GCP_PROJECT_ID (required)
    and GCP_LOCATION, as in Google's tools. `safety_settings`: {category: threshold}, or a list as the client takes it.
    Further arguments are those of google.genai.Client (`credentials`, `http_options`...)."""

    name = "VertexAI"
    is_chat_model = True
    constraints = frozenset({"json_schema"})

    def __init__(self, model_name: str, safety_settings: Any = None, **kwargs: Any) -> None:
        with needs_extra("vertexai"):
            import google.auth.exceptions
            import httpx
            from google import genai
            from google.genai import errors
        if "GCP_PROJECT_ID" not in os.environ:
            raise ValueError("VertexAI needs the environment variable GCP_PROJECT_ID")
        super().__init__()
        place = {"project": os.environ["GCP_PROJECT_ID"], "location": os.environ.get("GCP_LOCATION", "us-central1")}
        self._client: Any = genai.Client(vertexai=True, **{**place, **kwargs})
        self.model_name = model_name
        self.safety_settings = _safety_list(safety_settings)
        self.token_usage = TokenUsage()
        self._timeouts: tuple[type[Exception], ...] = (httpx.TimeoutException, asyncio.TimeoutError)
        self._connection_errors: tuple[type[Exception], ...] = (httpx.TransportError, google.auth.exceptions.TransportError)
        if importlib.util.find_spec("aiohttp") is not None:  # the client prefers it to httpx
            aiohttp: Any = importlib.import_module("aiohttp")
            self._connection_errors += (aiohttp.ClientError,)
        self._errors = (errors.APIError, google.auth.exceptions.GoogleAuthError, *self._connection_errors, *self._timeouts)

    def get_model_name(self) -> str:
        return self.model_name

    async def _call(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except self._errors as error:
            raise as_backend_error(error, self._connection_errors, self._timeouts) from error

    def _request(self, prompt: Prompt, options: Mapping[str, Any]) -> Meta:
        """Keywords of the client."""
        config = api_options(self, options, "vertex", ("json_schema",))
        if config.get("max_output_tokens") is None:
            config.pop("max_output_tokens", None)
        if "json_schema" in options:
            config |= {"response_mime_type": "application/json", "response_json_schema": json.loads(options["json_schema"])}
        system, messages = split_system(conversation(self, prompt))
        if system is not None:
            config["system_instruction"] = system
        if self.safety_settings is not None:
            config["safety_settings"] = self.safety_settings
        contents = [{"role": _ROLES[message["role"]], "parts": _parts(message["content"])} for message in messages]
        return {"model": self.model_name, "contents": contents, "config": config}

    async def generate(self, prompt: Prompt, options: Mapping[str, Any], rid: str) -> Generation:
        reply = await self._call(self._client.aio.models.generate_content(**self._request(prompt, options)))
        candidates = reply.candidates or []
        if not candidates:
            raise BadReplyError(f"the API answered without any text{_block_reason(reply)}")
        self._count(reply)
        return Generation([_text_of(one) for one in candidates], [{**_usage(reply), **_ending(one)} for one in candidates])

    async def generate_stream(self, prompt: Prompt, options: Mapping[str, Any], rid: str) -> AsyncGenerator[Delta, None]:
        stream = await self._call(self._client.aio.models.generate_content_stream(**self._request(prompt, options)))
        chunks, last = aiter(stream), None
        while (chunk := await self._call(anext(chunks, None))) is not None:
            last = chunk
            for candidate in chunk.candidates or []:
                yield Delta(_text_of(candidate), {**_usage(chunk), **_ending(candidate)}, candidate.index or 0)
        if last is not None:  # usage grows with the chunks: the last one has the total
            self._count(last)

    def _count(self, reply: Any) -> None:
        usage = _usage(reply)
        self.token_usage.add(usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _text_of(candidate: Any) -> str:
    """The answer's text, without reasoning."""
    parts = (candidate.content.parts if candidate.content is not None else None) or []
    return "".join(part.text for part in parts if part.text and not part.thought)


def _ending(candidate: Any) -> Meta:
    return {} if candidate.finish_reason is None else {"finish_reason": candidate.finish_reason.value.lower()}


def _usage(reply: Any) -> Meta:
    usage = reply.usage_metadata
    if usage is None:
        return {}
    return {
        "prompt_tokens": usage.prompt_token_count or 0,
        "completion_tokens": usage.candidates_token_count or 0,
        "cached_tokens": usage.cached_content_token_count or 0,
    }


def _block_reason(reply: Any) -> str:
    feedback = reply.prompt_feedback
    return f": the prompt was blocked ({feedback.block_reason.value})" if feedback is not None and feedback.block_reason else ""


def _safety_list(settings: Any) -> list[Any] | None:
    """Settings as the client takes them; a mapping is the form of Google's older client."""
    if isinstance(settings, Mapping):
        return [{"category": category, "threshold": threshold} for category, threshold in settings.items()]
    return None if settings is None else list(settings)


def _parts(content: Any) -> list[Meta]:
    if isinstance(content, str):
        return [{"text": content}]
    return [{"text": part["text"]} if part["type"] == "text" else _image_part(part["image_url"]["url"]) for part in content]


def _image_part(url: str) -> Meta:
    data = split_data_uri(url)
    if data is None:
        raise UnsupportedFeatureError("VertexAI", "images by URL", "give the bytes")
    return {"inline_data": {"mime_type": data[0], "data": base64.b64decode(data[1])}}
