"""The backend for an Engine in this process. The only file of the language that imports the runtime."""

from __future__ import annotations

import weakref
from collections.abc import AsyncGenerator
from typing import Any

from sglang.lang.backend.base import Meta
from sglang.lang.backend.native import NativeBackend, needs_server_rendering, request_failure, template_of_model
from sglang.lang.chat_template import get_chat_template

_backends: weakref.WeakKeyDictionary[Any, EngineBackend] = weakref.WeakKeyDictionary()


class EngineBackend(NativeBackend):
    """Programs run on `engine`, which stays its owner's to shut down."""

    name = "Engine"

    def __init__(self, engine: Any, chat_template_name: str | None = None) -> None:
        # the backend must not keep the engine alive through the table of backends
        self._engine = weakref.ref(engine)
        if chat_template_name is not None:
            super().__init__(get_chat_template(chat_template_name))
        else:
            chat_roles = engine.get_chat_roles()
            super().__init__(template_of_model(self.get_model_name(), chat_roles), needs_server_rendering(chat_roles))

    @property
    def engine(self) -> Any:
        engine = self._engine()
        if engine is None:
            raise RuntimeError("the Engine of this backend no longer exists")
        return engine

    def get_model_name(self) -> str:
        return str(self.engine.server_args.model_path)

    async def post(self, path: str, payload: Any) -> Any:
        from sglang.srt.errors import SglangError

        engine = self.engine
        calls = {"/generate": self._generate, "/score_choices": engine.async_score_choices}
        call = calls.get(path) or engine.async_apply_chat_template
        try:
            return await call(**payload)
        except SglangError as error:
            raise request_failure(str(error), getattr(error, "status_code", 500)) from error

    async def _generate(self, text: str | list[str] | None = None, **fields: Any) -> Any:
        return await self.engine.async_generate(text, **fields)

    async def stream_replies(self, payload: Meta) -> AsyncGenerator[Meta, None]:
        from sglang.srt.errors import SglangError

        replies: Any = None
        try:
            replies = await self._generate(**payload)
            async for reply in replies:
                yield reply
        except SglangError as error:
            raise request_failure(str(error), getattr(error, "status_code", 500)) from error
        finally:
            if replies is not None:
                await replies.aclose()

    async def _are_pieces_disjoint(self) -> bool:
        return bool(getattr(self.engine.server_args, "stream_output", False))

    def flush_cache(self) -> bool:
        return bool(self.engine.flush_cache())

    def get_server_info(self) -> Meta:
        info: Meta = self.engine.get_server_info()
        return info

    def shutdown(self) -> None:
        self.engine.shutdown()


def engine_backend(engine: Any) -> EngineBackend:
    """The backend of an engine, always the same one."""
    found = _backends.get(engine)
    if found is None:
        found = _backends[engine] = EngineBackend(engine)
    return found


__all__ = ["EngineBackend", "engine_backend"]
