"""POST /v1/chat/completions: messages in, one or more answers out, whole or streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from sglang.srt.errors import RequestError
from sglang.srt.messages import FinishReason, LogprobOptions, Logprobs, Position
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server.calls import Call
from sglang.srt.server.generate_req import GenerateOut, GenerateReq, client_names
from sglang.srt.server.http.json_pieces import encode_json
from sglang.srt.server.http.request_scope import created_at
from sglang.srt.server.multimodal.inputs import parse_pixels, with_pixels
from sglang.srt.server.openai.answers import PART_VALUES, Answer, ChunkWriter, Usage, finish_details, finish_name
from sglang.srt.server.openai.logprobs import chat_logprob_entries, chat_logprobs, token_bytes, token_origins
from sglang.srt.server.openai.prompts import ChatOptions, make_prompt, plan_for
from sglang.srt.server.openai.protocol import ChatRequest, field_names, left_open, sampling_params
from sglang.srt.server.openai.tools import parameters_of
from sglang.srt.server.parsers.answer import AnswerParser
from sglang.srt.server.parsers.harmony import (
    ANSWERING,
    HARMONY,
    HARMONY_ENDS,
    HARMONY_LEAD,
    MESSAGE,
    HarmonyCalls,
    HarmonyCounter,
    header_of,
)
from sglang.srt.server.parsers.pieces import Piece, Text
from sglang.srt.server.parsers.reasoning import (
    ReasoningCounter,
    ReasoningParser,
    ends_inside,
    opens_reasoning,
    starts_inside,
)
from sglang.srt.server.parsers.tool_calls import call_format
from sglang.srt.server.side_threads import run_in_thread
from sglang.srt.server.tokenization.tokenizer import Tokenizer

MAX_TOP_LOGPROBS = 20
PROMPT_END = 32
"""tokens at the end of a prompt that tell whether it has opened or closed the reasoning"""

_NAMES = dict.fromkeys(("text", "input_ids", "image_data"), "messages") | {
    "top_logprobs_num": "top_logprobs",
    "return_logprob": "logprobs",
}
LONG_ANSWER = 10_000
"""answers with more characters are parsed on another thread"""
T = TypeVar("T")

_NO_MORE = b',"reasoning_content":null,"tool_calls":null}'
_ROLE = b'"delta":{"role":"assistant","content":""' + _NO_MORE
_NOTHING = b'"delta":{"reasoning_content":null,"tool_calls":null}'


class ChatCall:
    """One chat request on its way: what to generate, and how its answer looks."""

    def __init__(self, request: ChatRequest, options: ChatOptions, takes_hints: bool = False) -> None:
        """`takes_hints`: for the APIs of agents, which do not know the model: messages that its template refuses or leaves out are
        joined. Raises RequestError."""
        self._takes_hints = takes_hints
        self._options = options
        self._tokenizer = options.tokenizer
        self._model = request.model or options.served_name
        self._created = created_at()
        self._with_usage, self._always_usage = usage_wishes(request.stream, request.stream_options)
        self._num_top = self._check_logprobs(request)
        self._wants_logprobs = bool(request.logprobs)
        sampling = sampling_params(
            request, _max_tokens(request), left_open(request, options.defaults, options.penalties), self._tokenizer.chat_stops
        )
        names = {**field_names(request), **_NAMES}
        with client_names(names):
            self._plan = plan_for(request, sampling, options)
        planned = self._plan.sampling
        if planned is not sampling and planned.grammar != sampling.grammar:  # what constrains the answer are the tools
            names |= dict.fromkeys(("json_schema", "structural_tag"), "tools")
        self._num_samples = sampling.n
        self._thinks = False
        self._header: str | None = None
        """in harmony, what the prompt has of the answer's first header"""
        self._splits = options.reasoning is not None and request.separate_reasoning is not False
        self._hold_reasoning = request.stream_reasoning is False
        self.req = self._generate_req(request, self._plan.sampling, names)
        self._parsers: dict[int, AnswerParser] = {}
        self._counters: dict[int, ReasoningCounter | HarmonyCounter] = {}

    def _generate_req(self, request: ChatRequest, sampling: SamplingParams, names: dict[str, str]) -> GenerateReq:
        prompt = make_prompt(request, self._plan, self._options)
        wishes = request.mm_processor_kwargs
        pixels = parse_pixels(wishes, "mm_processor_kwargs") if wishes is not None else None
        ids = prompt.ids(self._options, joins=self._takes_hints)
        after, lead = self._reasoning_end(ids, sampling, prompt.continued)
        media = None
        if prompt.media:
            media = [prompt.media if pixels is None else with_pixels(prompt.media, pixels)]
        return GenerateReq(
            input_ids=ids,
            media=media,
            sampling=self._with_markers(sampling),
            logprobs=LogprobOptions(top_num=self._num_top) if request.logprobs else None,
            origins=bool(request.return_token_origins),
            rid=request.rid or None,
            stream=bool(request.stream),
            cache_salt=join_salt(request.cache_salt, request.extra_key),
            priority=request.priority or 0,
            grammar_after=after,
            grammar_lead=lead,
            names=names,
        )

    def _with_markers(self, sampling: SamplingParams) -> SamplingParams:
        """Marks of calls and reasoning must reach the parsers, even where they are special tokens."""
        marks = (
            [*self._options.reasoning.begins, *self._options.reasoning.ends] if self._splits and self._options.reasoning else []
        )
        if self._is_harmony:
            marks += HarmonyCalls.markers
        if self._plan.parser is not None:
            marks += call_format(self._plan.parser).parser.markers
        if not any(self._tokenizer.is_special(mark) for mark in marks):
            return sampling
        spaced = sampling.spaces_specials  # where the client sees them; what only the parsers see is as the model wrote it
        return msgspec.structs.replace(sampling, skip_special_tokens=False, spaces_between_special_tokens=spaced)

    @property
    def _is_harmony(self) -> bool:
        return self._options.tool_parser == HARMONY

    def _reasoning_end(
        self, ids: list[int], sampling: SamplingParams, continued: str | None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What ends the reasoning before a constrained answer, and what must stand before it (TokenizedReq.grammar_lead)."""
        if self._is_harmony:
            return self._harmony_end(ids, sampling, continued)
        return self._expect_reasoning(ids, sampling, continued) if self._options.reasoning is not None else (), ()

    def _harmony_end(
        self, ids: list[int], sampling: SamplingParams, continued: str | None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        prompt_end = self._tokenizer.decode(ids[-PROMPT_END:], skip_special_tokens=False)
        self._header = ANSWERING if continued is not None else header_of(prompt_end)
        if sampling.grammar is None or MESSAGE in self._header:
            return (), ()
        ends = [self._tokenizer.token_id(end) for end in HARMONY_ENDS]
        lead = self._tokenizer.encode(HARMONY_LEAD, add_special_tokens=False)
        return (() if None in ends else tuple(end for end in ends if end is not None)), tuple(lead)

    def _expect_reasoning(self, ids: list[int], sampling: SamplingParams, continued: str | None) -> tuple[int, ...]:
        """Decides whether the answer begins with reasoning, or goes on with that of the message that is continued; the ids that end
        them, for a constraint to begin after."""
        format_ = self._options.reasoning
        assert format_ is not None
        if continued is not None:
            self._thinks = may_open = ends_inside(format_, continued)
        else:
            prompt_end = self._tokenizer.decode(ids[-PROMPT_END:], skip_special_tokens=False)
            self._thinks = starts_inside(format_, prompt_end)
            may_open = self._thinks or opens_reasoning(format_, prompt_end)
        if sampling.grammar is None or not may_open:
            return ()
        ends = [self._tokenizer.token_id(end) for end in format_.ends]
        if None in ends:  # no one token ends it: the constraint holds from the start, and leaves no room for reasoning
            self._thinks = self._splits = False
            return ()
        self._thinks = True  # all that stands before the constraint is reasoning, however it begins
        return tuple(end for end in ends if end is not None)

    @staticmethod
    def _check_logprobs(request: ChatRequest) -> int:
        top = request.top_logprobs or 0
        if top and not request.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", "top_logprobs")
        if not 0 <= top <= MAX_TOP_LOGPROBS:
            raise RequestError(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}, got {top}", "top_logprobs")
        return top

    @property
    def is_large(self) -> bool:
        """Whether the reply may be."""
        return self._wants_logprobs

    def token_bytes(self, token_id: int) -> bytes:
        return token_bytes(self._tokenizer, token_id)

    def logprob_entries(self, positions: Iterable[Position]) -> Iterable[dict[str, Any]]:
        """{token, bytes, logprob, top_logprobs} of each position."""
        return chat_logprob_entries(positions, self._tokenizer, self._num_top)

    def _logprobs(self, logprobs: Logprobs | None) -> dict[str, Any] | None:
        return chat_logprobs(logprobs or (), self._tokenizer, self._num_top) if self._wants_logprobs else None

    async def collect(self, call: Call) -> dict[str, Any]:
        """The whole answer."""
        outs: list[GenerateOut | None] = [None] * self._num_samples
        usage = Usage(self._num_samples)
        async for out in call:
            self.count(out, usage)
            outs[out.index] = out
        choices = await self._in_thread_if_long([out for out in outs if out is not None], self._choices)
        return {
            "id": call.name,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
            "usage": usage.as_dict(),
        }

    def _choices(self, outs: list[GenerateOut]) -> list[dict[str, Any]]:
        return [self._choice(out) for out in outs]

    async def _in_thread_if_long(self, outs: list[GenerateOut], work: Callable[[list[GenerateOut]], T]) -> T:
        """`work(outs)`; on another thread where there is much to parse."""
        is_long = self.is_parsed and sum(len(out.text) for out in outs) > LONG_ANSWER
        return await run_in_thread(work, outs) if is_long else work(outs)

    async def parsed(self, out: GenerateOut) -> list[Piece]:
        """`parse`, for outputs of any length."""
        return await self._in_thread_if_long([out], lambda outs: self.parse(outs[0]))

    def _choice(self, out: GenerateOut) -> dict[str, Any]:
        assert out.finish is not None
        answer = self.new_answer()
        for piece in self.parse(out):
            answer.add(piece)
        return {
            "index": out.index,
            "message": answer.message(),
            "logprobs": self._logprobs(out.output_logprobs),
            "finish_reason": ended_by(out.finish, answer),
            "matched_stop": out.finish.matched,
            **({"token_origins": token_origins(out, self._tokenizer)} if out.origins else {}),
            **finish_details(out.finish),
        }

    # --- pieces: also for the APIs that are made of this one ----------------------------------------------------------------

    @property
    def is_parsed(self) -> bool:
        """Whether answers may hold anything but text."""
        return self._splits or self._plan.parser is not None or self._is_harmony

    def new_answer(self) -> Answer:
        return Answer(self._options.tool_parser)

    def count(self, out: GenerateOut, usage: Usage) -> None:
        """Adds an output of this call to its usage."""
        usage.add(out)
        format_ = self._options.reasoning
        if format_ is None:
            return
        counter = self._counters.get(out.index)
        if counter is None:
            table = self._tokenizer.vocabulary.token_bytes
            counter = self._counters[out.index] = (
                HarmonyCounter(self._header, table)
                if self._header is not None
                else ReasoningCounter(format_, self._thinks, table)
            )
        counter.feed(out.ids)
        usage.note_reasoning(out.index, counter.num_tokens)

    def parse(self, out: GenerateOut) -> list[Piece]:
        """The pieces that an output of this call adds to its choice."""
        if not self.is_parsed:
            return [Text(out.text)] if out.text else []
        parser = self._parsers.get(out.index)
        if parser is None:
            parser = self._parsers[out.index] = self._new_parser()
        pieces = parser.feed(out.text)
        return pieces + parser.finish() if out.finish is not None else pieces

    def _new_parser(self) -> AnswerParser:
        if self._header is not None:
            return self._harmony_parser(self._header)
        reasoning = self._options.reasoning
        reasoning_parser = ReasoningParser(reasoning, self._thinks) if self._splits and reasoning is not None else None
        return AnswerParser(reasoning_parser, self._plan.new_parser(), self._hold_reasoning)

    def _harmony_parser(self, header: str) -> AnswerParser:
        """Calls that a constraint asks for stand in the answer, in a form of their own."""
        plan = self._plan
        own = parameters_of(plan.shown) if plan.parser == HARMONY else {}
        outer = HarmonyCalls(own, plan.max_calls, header=header, is_raw=not self._splits)
        return AnswerParser(outer, None if plan.parser == HARMONY else plan.new_parser(), self._hold_reasoning)

    async def events(self, call: Call) -> AsyncIterator[bytes]:
        """Chunks: the role, pieces of content, one chunk with the reason why it ended; for each choice. Then the usage."""
        chunks = ChunkWriter("chat.completion.chunk", call.name, self._created, self._model)
        usage = Usage(self._num_samples)
        answers: dict[int, Answer] = {}
        async for out in call:
            self.count(out, usage)
            now = usage.as_dict() if self._always_usage else None
            answer = answers.get(out.index)
            if answer is None:
                answer = answers[out.index] = self.new_answer()
                yield chunks.choice(out.index, _ROLE, usage=now)
            if out.origins:
                yield chunks.choice(out.index, _origins_body(out, self._tokenizer), usage=now)
            for body, logprobs in self._bodies(out, answer):
                yield chunks.choice(out.index, body, logprobs, usage=now)
            if out.finish is not None:
                yield chunks.choice(out.index, _NOTHING, finish=out.finish, usage=now, reason=ended_by(out.finish, answer))
        if self._with_usage:
            yield chunks.usage(usage.as_dict())

    def _bodies(self, out: GenerateOut, answer: Answer) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
        """The deltas of one output. Its log probabilities go with the first of them; a lot of them with more."""
        if out.output_logprobs is None and not self.is_parsed:
            if out.text:
                yield _text_delta(out.text), None
            return
        parts = map(self._logprobs, out.output_logprobs.parts(PART_VALUES) if out.output_logprobs else ())
        if self.is_parsed:
            for piece in self.parse(out):
                answer.add(piece)
                if (delta := answer.delta(piece)) is not None:
                    yield b'"delta":%b' % encode_json(delta), next(parts, None)
        elif out.text:
            yield _text_delta(out.text), next(parts, None)
        for logprobs in parts:
            yield _text_delta(""), logprobs


def _origins_body(out: GenerateOut, tokenizer: Tokenizer) -> bytes:
    """A delta that says nothing but where the tokens of the next ones come from."""
    return b'%b,"token_origins":%b' % (_NOTHING, encode_json(token_origins(out, tokenizer)))


def _text_delta(text: str) -> bytes:
    return b'"delta":{"content":' + encode_json(text) + _NO_MORE


def ended_by(finish: FinishReason, answer: Answer) -> str:
    """The reason in OpenAI's words. Calls of which one was cut off are not to be run."""
    may_run = answer.calls and all(call.is_whole for call in answer.calls)
    return "tool_calls" if may_run and finish.type == "stop" else finish_name(finish)


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
