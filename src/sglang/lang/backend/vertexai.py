"""Google's Gemini models on Vertex AI, through Google's own client."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from sglang.lang.backend.base import BaseBackend, Delta, Generation, Meta, Prompt
from sglang.lang.backend.cloud import TokenUsage, api_options, as_backend_error, conversation, split_system
from sglang.lang.errors import UnsupportedFeatureError


class VertexAI(BaseBackend):
    """Programs run on `model_name`. The project and place are those of the environment variables GCP_PROJECT_ID (required)
    and GCP_LOCATION, as Google's tools read them."""

    name = "VertexAI"
    is_chat_model = True

    def __init__(self, model_name: str, safety_settings: Any = None) -> None:
        try:
            import vertexai
            from google.api_core import exceptions
        except ImportError as error:
            raise ImportError("VertexAI needs Google's client: pip install google-cloud-aiplatform") from error
        if "GCP_PROJECT_ID" not in os.environ:
            raise ValueError("VertexAI needs the environment variable GCP_PROJECT_ID")
        super().__init__()
        vertexai.init(project=os.environ["GCP_PROJECT_ID"], location=os.environ.get("GCP_LOCATION"))
        self.model_name = model_name
        self.safety_settings = safety_settings
        self.token_usage = TokenUsage()
        self._errors = exceptions.GoogleAPIError
        self._timeouts = (exceptions.DeadlineExceeded,)
        self._connection_errors = (exceptions.ServiceUnavailable, exceptions.RetryError)

    def get_model_name(self) -> str:
        return self.model_name

    def _request(self, prompt: Prompt, options: Mapping[str, Any]) -> tuple[Any, list[Any], Meta]:
        """(model, contents, generation config)"""
        from vertexai.generative_models import Content, GenerativeModel, Part

        if (options.get("n") or 1) > 1:
            raise UnsupportedFeatureError(self.name, "several samples of one gen (n)", "use fork")
        config = api_options(self, options, "vertex", ("n", "seed"))
        if config.get("max_output_tokens") is None:
            config.pop("max_output_tokens", None)
        system, messages = split_system(conversation(self, prompt))
        roles = {"user": "user", "assistant": "model"}
        contents = [Content(role=roles[m["role"]], parts=_parts(m["content"], Part)) for m in messages]
        return GenerativeModel(self.model_name, system_instruction=system), contents, {"candidate_count": 1, **config}

    async def generate(self, prompt: Prompt, options: Mapping[str, Any], rid: str) -> Generation:
        model, contents, config = self._request(prompt, options)
        try:
            reply = await model.generate_content_async(contents, generation_config=config, safety_settings=self.safety_settings)
        except self._errors as error:
            raise as_backend_error(error, self._connection_errors, self._timeouts) from error
        return Generation([reply.text], [self._meta(reply)])

    async def generate_stream(self, prompt: Prompt, options: Mapping[str, Any], rid: str) -> AsyncGenerator[Delta, None]:
        model, contents, config = self._request(prompt, options)
        try:
            stream = await model.generate_content_async(
                contents, generation_config=config, safety_settings=self.safety_settings, stream=True
            )
            async for chunk in stream:
                yield Delta(chunk.text, {})
        except self._errors as error:
            raise as_backend_error(error, self._connection_errors, self._timeouts) from error

    def _meta(self, reply: Any) -> Meta:
        usage = reply.usage_metadata
        self.token_usage.add(usage.prompt_token_count, usage.candidates_token_count)
        return {"prompt_tokens": usage.prompt_token_count, "completion_tokens": usage.candidates_token_count}


def _parts(content: Any, part_type: Any) -> list[Any]:
    if isinstance(content, str):
        return [part_type.from_text(content)]
    parts = []
    for part in content:
        if part["type"] == "text":
            parts.append(part_type.from_text(part["text"]))
            continue
        found = re.match(r"data:([^;]+);base64,(.*)", part["image_url"]["url"], re.DOTALL)
        if found is None:
            raise UnsupportedFeatureError("VertexAI", "images by URL", "give the bytes")
        parts.append(part_type.from_data(data=base64.b64decode(found.group(2)), mime_type=found.group(1)))
    return parts
