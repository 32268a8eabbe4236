"""Any provider that litellm supports."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from sglang.common.install import needs_extra
from sglang.lang.backend.base import BaseBackend, Delta, Generation, Meta, Prompt
from sglang.lang.backend.cloud import TokenUsage, api_options, as_backend_error, conversation
from sglang.lang.chat_template import ChatTemplate, get_chat_template_by_model_path


class LiteLLM(BaseBackend):
    """Programs run on `model_name` as litellm names it ("provider/model")."""

    name = "LiteLLM"
    is_chat_model = True

    def __init__(
        self,
        model_name: str,
        chat_template: ChatTemplate | None = None,
        api_key: str | None = None,
        organization: str | None = None,
        base_url: str | None = None,
        timeout: float | None = 600,
        max_retries: int | None = None,
        default_headers: Mapping[str, str] | None = None,
    ) -> None:
        with needs_extra("litellm"):
            import litellm
        super().__init__(chat_template or get_chat_template_by_model_path(model_name))
        self.model_name = model_name
        self.token_usage = TokenUsage()
        self._litellm: Any = litellm
        settings = {
            "api_key": api_key,
            "organization": organization,
            "base_url": base_url,
            "timeout": timeout,
            "max_retries": max_retries,
            "extra_headers": dict(default_headers) if default_headers else None,
        }
        self._settings = {name: value for name, value in settings.items() if value is not None}

    def get_model_name(self) -> str:
        return self.model_name

    async def _create(self, prompt: Prompt, options: Mapping[str, Any], **more: Any) -> Any:
        fields = api_options(self, options, "openai")
        if fields.get("max_tokens") is None:
            fields.pop("max_tokens", None)
        fields |= {"model": self.model_name, "messages": conversation(self, prompt), **self._settings, **more}
        return await self._litellm.acompletion(**fields)

    def _failure(self, error: Exception) -> Exception:
        module = self._litellm
        cause: BaseException | None = error
        seen: list[BaseException] = []
        while cause is not None and cause not in seen:  # litellm calls a refused connection an internal server error
            if isinstance(cause, (ConnectionError, module.exceptions.openai.APIConnectionError)):
                return as_backend_error(error, (type(error),), (module.Timeout,))
            seen.append(cause)
            cause = cause.__cause__ or cause.__context__
        return as_backend_error(error, (module.APIConnectionError,), (module.Timeout,))

    async def generate(self, prompt: Prompt, options: Mapping[str, Any], rid: str) -> Generation:
        try:
            reply = await self._create(prompt, options)
        except self._litellm.exceptions.openai.OpenAIError as error:
            raise self._failure(error) from error
        metas = [self._meta(reply, choice.finish_reason, i == 0) for i, choice in enumerate(reply.choices)]
        return Generation([choice.message.content or "" for choice in reply.choices], metas)

    async def generate_stream(self, prompt: Prompt, options: Mapping[str, Any], rid: str) -> AsyncGenerator[Delta, None]:
        try:
            stream = await self._create(prompt, options, stream=True)
            async for chunk in stream:
                for choice in chunk.choices:
                    meta = {"id": chunk.id, "finish_reason": choice.finish_reason}
                    yield Delta(choice.delta.content or "", meta, choice.index)
        except self._litellm.exceptions.openai.OpenAIError as error:
            raise self._failure(error) from error

    def _meta(self, reply: Any, finish_reason: Any, is_first: bool) -> Meta:
        usage = reply.usage
        if is_first:
            self.token_usage.add(usage.prompt_tokens, usage.completion_tokens)
        return {
            "id": reply.id,
            "finish_reason": finish_reason,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        }
