"""The offline engine: the server's classes without HTTP and without a second process.

the caller's thread   generate(...)                     blocks, or iterates a stream
event loop thread     TokenizerManager                  text to ids and back
scheduler thread      Scheduler and its model           native code runs without the interpreter lock
"""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import logging
import os
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, TypeVar

from sglang.srt.checkpoint.resolve import with_files
from sglang.srt.errors import ConfigError, EngineDeadError, RequestError, UnsupportedError
from sglang.srt.messages import ControlReply, ShutdownReq
from sglang.srt.process.logs import configure_logging
from sglang.srt.process.relay import Courier, LocalLink, Relay
from sglang.srt.process.scheduler_process import build_scheduler, read_tokenizer
from sglang.srt.server.calls import Call
from sglang.srt.server.fields import as_int, as_text
from sglang.srt.server.generate_req import GenerateOut, UnreadOuts
from sglang.srt.server.multimodal.opening import open_intake
from sglang.srt.server.native.encode import encode, read_encode
from sglang.srt.server.native.format import NativeCall, StreamReplies, collect, parse_generate, stream_replies
from sglang.srt.server.native.not_done import NOT_DONE_BY_ENGINE
from sglang.srt.server.native.score_choices import collect_scores, parse_score, plan_score
from sglang.srt.server.openai.prompts import chat_options, render_chat
from sglang.srt.server.tokenization.chat_roles import chat_roles
from sglang.srt.server.tokenizer_manager import TokenizerManager
from sglang.srt.server_args import ServerArgs

logger = logging.getLogger("sglang")

T = TypeVar("T")
Reply = dict[str, Any]


class Engine:
    """A model in this process. Keyword arguments are the server's flags (`model_path`, `max_total_tokens`, ...).

    Answers are the dicts of the native API's /generate. Use it as a context manager, or call `shutdown`. Raises ConfigError
    when the model cannot be loaded, RequestError for a bad request, EngineDeadError once it has been shut down.
    """

    def __init__(self, server_args: ServerArgs | None = None, **flags: Any) -> None:
        args = server_args or ServerArgs(**{"log_level": "error", **flags})
        configure_logging(args.log_level)
        for name in ("models", "max_loaded", "keep_alive"):
            if getattr(args, name) is not None:
                raise ConfigError(
                    f"{name} is for sglang serve: an Engine holds one model, and a program may have several engines"
                )
        if args.replicas > 1:
            raise ConfigError("replicas is for sglang serve: an Engine has one scheduler")
        config = args.resolve()
        if config.nodes is not None and config.nodes.rank > 0:
            raise ConfigError(
                "an Engine is node 0: on the other machines, start sglang serve with the same flags and their --node-rank"
            )
        if config.adapters is not None:
            config = dataclasses.replace(config, adapters=dataclasses.replace(config.adapters, at_run_time=True))
        config = with_files(config)
        self.server_args = args
        self._flags, self._text = config.flags, config.text
        self._dead: str | None = None
        self._loop = asyncio.new_event_loop()
        self._link = LocalLink(self._loop)
        self._courier = Courier(self._link.unread)
        tokenizer = read_tokenizer(config)
        scheduler, info = build_scheduler(config, tokenizer, self._link, self._link)
        self.tokenizer = tokenizer.result()
        facts = dataclasses.asdict(info)
        media = open_intake(config, facts, self.tokenizer)
        # these limits protect other clients, and an engine has none
        http = dataclasses.replace(config.http, max_logprob_values=None, max_text_tokens=None)
        self._manager = TokenizerManager(self.tokenizer, facts, http, config.text, self._link.post, media, config.adapters)
        self._link.handler = self._manager.handle
        self._loop_thread = threading.Thread(target=self._loop.run_forever, name="sglang-loop", daemon=True)
        self._scheduler_thread = threading.Thread(target=self._run, args=(scheduler,), name="sglang-scheduler", daemon=True)
        self._loop_thread.start()
        self._scheduler_thread.start()
        atexit.register(_shutdown_at_exit, weakref.ref(self))
        _engines.add(self)

    def _run(self, scheduler: Any) -> None:
        """The scheduler's thread. An error here is a bug: it is logged, and every request ends with it."""
        try:
            scheduler.run()
        except Exception as error:  # noqa: BLE001  one of the two outermost loops
            logger.exception("the scheduler died")
            message = f"the scheduler died: {error}"
            self._loop.call_soon_threadsafe(self._manager.scheduler_died, message)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the loop and waits for it. Ctrl-C cancels it."""
        if self._dead is not None:
            work.close()
            raise EngineDeadError(self._dead)
        if threading.current_thread() is self._loop_thread:
            work.close()
            raise RuntimeError("a blocking call of the Engine was made on its own event loop")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    # --- generation ---------------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        image_data: Any = None,
        audio_data: Any = None,
        video_data: Any = None,
        *,
        return_logprob: bool | list[bool] | None = None,
        logprob_start_len: int | list[int] | None = None,
        top_logprobs_num: int | list[int] | None = None,
        token_ids_logprob: list[int] | list[list[int]] | None = None,
        stream: bool = False,
        **fields: Any,
    ) -> Any:
        """One prompt or a batch, as text or ids. Returns a dict, or a list of them for a batch or n > 1; with `stream` an
        iterator of dicts holding the text so far. `image_data` and `fields` are further fields of /generate."""
        native = self._parse(
            fields
            | {
                "text": prompt,
                "sampling_params": sampling_params,
                "input_ids": input_ids,
                "image_data": image_data,
                "audio_data": audio_data,
                "video_data": video_data,
                "return_logprob": return_logprob,
                "logprob_start_len": logprob_start_len,
                "top_logprobs_num": top_logprobs_num,
                "token_ids_logprob": token_ids_logprob,
                "stream": stream,
            }
        )
        return self._iterate(native) if stream else self._wait(self._collect(native))

    async def async_generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        image_data: Any = None,
        audio_data: Any = None,
        video_data: Any = None,
        *,
        stream: bool = False,
        **fields: Any,
    ) -> Any:
        """`generate` for an event loop of the caller's: awaiting gives the dict or list, or with `stream` an async iterator."""
        media = {"image_data": image_data, "audio_data": audio_data, "video_data": video_data}
        body = fields | media | {"text": prompt, "sampling_params": sampling_params, "input_ids": input_ids, "stream": stream}
        native = self._parse(body)
        if stream:
            return self._aiterate(native)
        return await self._elsewhere(self._collect(native))

    def encode(
        self,
        prompt: str | list[str] | None = None,
        *,
        input_ids: Any = None,
        rid: str | None = None,
        prompt_name: str | None = None,
    ) -> Any:
        """The vector of a text, or of each of a list, with a model that embeds (an encoder, or `is_embedding=True`): the
        dicts of /encode. `prompt_name`: of the model's prompts, what is to stand before each text. Raises RequestError for a model
        that generates."""
        return self._wait(self._encode(prompt, input_ids, rid, prompt_name))

    async def async_encode(
        self,
        prompt: str | list[str] | None = None,
        *,
        input_ids: Any = None,
        rid: str | None = None,
        prompt_name: str | None = None,
    ) -> Any:
        """`encode` for an event loop of the caller's."""
        return await self._elsewhere(self._encode(prompt, input_ids, rid, prompt_name))

    async def _encode(self, prompt: str | list[str] | None, input_ids: Any, rid: str | None, prompt_name: str | None) -> Any:
        if (prompt is None) == (input_ids is None):
            raise RequestError("give exactly one of prompt and input_ids", "prompt")
        body = {"text": prompt, "input_ids": input_ids, "rid": rid, "prompt_name": prompt_name}
        call = read_encode(self._manager, {name: value for name, value in body.items() if value is not None})
        return await encode(self._manager, call)

    def open_session(self, capacity_of_str_len: int | None = None, session_id: str | None = None) -> str:
        """A conversation that the engine keeps; its id is for `session_params` of `generate`."""
        body = {"capacity_of_str_len": capacity_of_str_len, "session_id": session_id}

        async def work() -> str:
            capacity = as_int(body, "capacity_of_str_len", 0, 0, 2**31 - 1)
            return self._manager.open_session(as_text(body, "session_id"), capacity or None)

        return self._wait(work())

    def close_session(self, session_id: str) -> None:
        """Forgets a conversation. Raises RequestError if there is none of this id."""

        async def work() -> None:
            self._manager.close_session(session_id)

        self._wait(work())

    def score_choices(self, **fields: Any) -> Reply:
        """The body of /score_choices as keyword arguments; its reply."""
        return self._wait(self._score(fields))

    async def async_score_choices(self, **fields: Any) -> Reply:
        """`score_choices` for an event loop of the caller's."""
        return await self._elsewhere(self._score(fields))

    def score(
        self,
        query: str | list[int] | None = None,
        items: str | list[str] | list[list[int]] | None = None,
        label_token_ids: list[int] | None = None,
        apply_softmax: bool = False,
        item_first: bool = False,
        lora_path: str | None = None,
    ) -> list[list[float]]:
        """The probability of each label as the next token after query and item; a row for each item, as /v1/score has them."""
        return self._wait(self._score_items(query, items, label_token_ids, apply_softmax, item_first, lora_path))

    async def async_score(
        self,
        query: str | list[int] | None = None,
        items: str | list[str] | list[list[int]] | None = None,
        label_token_ids: list[int] | None = None,
        apply_softmax: bool = False,
        item_first: bool = False,
        lora_path: str | None = None,
    ) -> list[list[float]]:
        """`score` for an event loop of the caller's."""
        return await self._elsewhere(self._score_items(query, items, label_token_ids, apply_softmax, item_first, lora_path))

    async def _score_items(
        self, query: Any, items: Any, labels: Any, softmax: bool, first: bool, adapter: str | None
    ) -> list[list[float]]:
        body = {"query": query, "items": items, "label_token_ids": labels, "apply_softmax": softmax, "item_first": first}
        body["lora_path"] = adapter
        from sglang.srt.server.openai.scoring import ScoringApi  # brings HTTP along, which others do without

        return await ScoringApi(self._manager, "").scores(body)

    async def _score(self, body: dict[str, Any]) -> Reply:
        plan = await plan_score(self._manager.maker, parse_score(body))
        call = await self._manager.start(plan.req)
        try:
            return await collect_scores(plan, call, self._manager.need_tokenizer())
        finally:
            call.cancel()

    def _parse(self, body: dict[str, Any]) -> NativeCall:
        if self._dead is not None:
            raise EngineDeadError(self._dead)
        given = {k: v for k, v in body.items() if v is not None}
        if isinstance(ids := given.get("input_ids"), list):  # the caller's own, and free to change
            given["input_ids"] = [row.copy() if isinstance(row, list) else row for row in ids]
        return parse_generate(given, self._manager.http.preferred_sampling_params)

    async def _collect(self, native: NativeCall) -> Any:
        return await collect(native, self._manager.generate(native.req), self.tokenizer)

    async def _start(self, native: NativeCall) -> AsyncGenerator[Reply, None]:
        call = await self._manager.start(native.req)
        return _closing(stream_replies(native, call, self.tokenizer, not self._manager.http.stream_output), call.cancel)

    def _iterate(self, native: NativeCall) -> Iterator[Reply]:
        replies = self._wait(self._start(native))
        try:
            while (reply := self._wait(_next(replies))) is not None:
                yield reply
        finally:
            if self._dead is None:
                self._wait(_close(replies))

    async def _aiterate(self, native: NativeCall) -> AsyncIterator[Reply]:
        relay: Relay[GenerateOut] = Relay(self._courier, UnreadOuts())
        call = await self._elsewhere(self._forward(native, relay))
        try:
            replies = StreamReplies(native, self.tokenizer, not self._manager.http.stream_output)
            async for out in relay:  # no generator in between: this is run for every token of every stream
                yield await replies.add(out)
        finally:
            if self._dead is None:
                self._loop.call_soon_threadsafe(call.cancel)

    async def _forward(self, native: NativeCall, relay: Relay[GenerateOut]) -> Call:
        call = await self._manager.start(native.req)
        call.forward(relay)
        return call

    async def _elsewhere(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the engine's loop from the caller's."""
        if self._dead is not None:
            work.close()
            raise EngineDeadError(self._dead)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    # --- control ------------------------------------------------------------------------------------------------------------

    def get_server_info(self) -> dict[str, Any]:
        """The flags, facts about the model, and the scheduler's state."""
        stats = self._wait(self._manager.state())
        state = {name: getattr(stats, name) for name in stats.__struct_fields__} | {"num_inflight": self._manager.num_in_flight}
        return self._flags | self._manager.info | {"internal_states": [state]}

    def get_tokenizer(self) -> Any:
        """The served model's tokenizer, as an object of transformers (an extra). `tokenizer` needs none."""
        from sglang.srt.server.tokenization.as_transformers import load_transformers_tokenizer

        text = self._text
        path = text.tokenizer_path if text.files is None else str(text.files.path)
        return load_transformers_tokenizer(path, text.revision, text.download_dir)

    async def async_apply_chat_template(self, **fields: Any) -> Reply:
        """The body of /apply_chat_template as keyword arguments; its reply."""
        return render_chat(fields, chat_options(self._manager, self.server_args.tool_call_parser))

    def get_chat_roles(self) -> dict[str, Any] | None:
        """The template's text around each role and for an image (see chat_roles), as in /get_model_info."""
        if self.tokenizer is None:
            return None
        media = self._manager.media
        return chat_roles(self.tokenizer, media.image_token if media is not None else None)

    def load_lora_adapter(self, lora_name: str, lora_path: str, pinned: bool = False) -> None:
        """Loads an adapter while requests go on; from then on `lora_path` of a request may name it. Needs `enable_lora` or
        `lora_paths`. Raises RequestError."""
        self._wait(self._manager.adapters.load(lora_name, lora_path, pinned))

    async def async_load_lora_adapter(self, lora_name: str, lora_path: str, pinned: bool = False) -> None:
        """`load_lora_adapter` for an event loop of the caller's."""
        await self._elsewhere(self._manager.adapters.load(lora_name, lora_path, pinned))

    def unload_lora_adapter(self, lora_name: str) -> None:
        """Forgets an adapter, once the requests that have it have ended. Raises RequestError if there is none of this name."""
        self._wait(self._manager.adapters.unload(lora_name))

    async def async_unload_lora_adapter(self, lora_name: str) -> None:
        """`unload_lora_adapter` for an event loop of the caller's."""
        await self._elsewhere(self._manager.adapters.unload(lora_name))

    def flush_cache(self) -> bool:
        """Empties the prefix cache. False if requests run or wait."""
        return self._wait(self._manager.flush_cache()).ok

    def pause_generation(self) -> None:
        """No more steps are taken until `continue_generation`. Raises RequestError where that cannot be."""
        _check_done(self._wait(self._manager.pause(True)))

    def continue_generation(self) -> None:
        """Steps are taken again."""
        _check_done(self._wait(self._manager.pause(False)))

    def start_profile(self) -> None:
        """Starts cProfile in the scheduler's thread. Raises RequestError if one runs."""
        _check_done(self._wait(self._manager.profile(True)))

    def stop_profile(self) -> str:
        """Writes the profile to a file; what it says names the file. Raises RequestError if none runs."""
        return _check_done(self._wait(self._manager.profile(False)))

    def abort_request(self, rid: str | None = None, abort_all: bool = False) -> None:
        """Aborts a request, or all of them."""
        if abort_all:
            self._loop.call_soon_threadsafe(self._manager.abort_all)
        elif rid is not None:
            self._loop.call_soon_threadsafe(self._manager.abort, rid)
        else:
            raise RequestError("give a rid, or abort_all", "rid")

    def shutdown(self) -> None:
        """Aborts what runs and frees the threads. May be called again."""
        if self._dead is not None:
            return
        self._dead = "the engine was shut down"
        self._link.post(ShutdownReq())
        self._scheduler_thread.join(30)
        self._loop.call_soon_threadsafe(self._manager.scheduler_died, self._dead)
        asyncio.run_coroutine_threadsafe(_settle(), self._loop).result(10)
        self._manager.close()
        if self._manager.media is not None:
            asyncio.run_coroutine_threadsafe(self._manager.media.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._loop_thread.join(10)
        self._loop.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown()


def _check_done(reply: ControlReply) -> str:
    if not reply.ok:
        raise RequestError(reply.message)
    return reply.message


def _not_done(name: str, why: str) -> Callable[..., Any]:
    """A method that says so."""

    def refuse(self: Engine, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedError(f"Engine.{name} is not possible here: {why}", name)

    refuse.__name__, refuse.__doc__ = name, f"Not possible here: {why}."
    return refuse


for _name, _why in NOT_DONE_BY_ENGINE.items():
    setattr(Engine, _name, _not_done(_name, _why))

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _forget_in_child() -> None:
    """After a fork: the child has none of the engine's threads. Calls there raise an error instead of waiting for them."""
    for engine in _engines:
        engine._dead = "the engine belongs to the process that this one was forked from: make another after the fork"


os.register_at_fork(after_in_child=_forget_in_child)


def _shutdown_at_exit(reference: weakref.ref[Engine]) -> None:
    engine = reference()
    if engine is not None:
        engine.shutdown()


async def _closing(replies: AsyncIterator[Reply], close: Any) -> AsyncGenerator[Reply, None]:
    """The replies; a consumer that stops early calls `close`."""
    try:
        async for reply in replies:
            yield reply
    finally:
        close()


async def _settle() -> None:
    """Waits until every task of the loop has ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=5)


async def _next(replies: AsyncIterator[Reply]) -> Reply | None:
    try:
        return await replies.__anext__()
    except StopAsyncIteration:
        return None


async def _close(replies: Any) -> None:
    await replies.aclose()
