"""API speculation: fewer requests to a remote model. One request generates more than one gen needs; later gens are served from it.

    completion model   a gen requests more tokens than it needs, without stop strings. Text that the unused tokens begin with
                       consumes them, other text discards them; the next gen takes from them before it makes a request.
    chat model         the text and gens of one assistant message are a pattern; when the message ends, one request generates
                       all of it, and the answer is matched against the pattern.

Lengths are counted in tokens, which the API's log probabilities list.
"""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from sglang.lang.backend.base import BaseBackend, Generation, Meta, Prompt
from sglang.lang.errors import ProgramError
from sglang.lang.ir import Expr, Gen, RoleBegin, RoleEnd, Text
from sglang.lang.run.writing import WritableState
from sglang.lang.sampling import as_list, resolve

MAX_TRIES = 3


class Speculation(Protocol):
    """How a state's gens share requests."""

    async def run(self, state: WritableState, piece: Expr) -> bool:
        """Runs the piece. False: it is to be run without speculation."""
        ...

    def flush(self, state: WritableState) -> None:
        """A reader waits for a variable: the collected pieces are to be generated now. Called from any thread."""
        ...


class Flush(Expr):
    """The collected pieces are to be generated now."""

    __slots__ = ()


def speculation_for(backend: BaseBackend, num_tokens: int) -> Speculation:
    if num_tokens < 1:
        raise ValueError(f"num_api_spec_tokens must be at least 1, got {num_tokens}")
    return ChatSpeculation(num_tokens) if backend.is_chat_model else CompletionSpeculation(num_tokens)


def _check_gen(piece: Gen) -> None:
    if (piece.options.get("n") or 1) > 1 or piece.typed is not None or piece.reasoning is not None:
        raise ProgramError("num_api_spec_tokens cannot be combined with n > 1, dtype or separate_reasoning")


def token_texts(meta: Meta) -> list[str] | None:
    """The texts of the generated tokens, where the API returns them."""
    logprobs = meta.get("logprobs")
    if isinstance(logprobs, dict) and logprobs.get("tokens"):
        return [str(token) for token in logprobs["tokens"]]
    entries = meta.get("output_token_logprobs")
    if entries and all(entry[2] is not None for entry in entries):
        return [str(entry[2]) for entry in entries]
    return None


class CompletionSpeculation:
    """For completion models, which continue text."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._unused: list[str] = []
        self._is_truncated = False
        """whether generation ended at the token limit"""

    def flush(self, state: WritableState) -> None:
        """Gens are never delayed here."""

    async def run(self, state: WritableState, piece: Expr) -> bool:
        if isinstance(piece, Text):
            self._literal(piece.value)
        elif isinstance(piece, Gen):
            await self._gen(state, piece)
            return True
        else:
            self._unused = []
        return False

    def _literal(self, text: str) -> None:
        self._unused = _after(self._unused, len(text)) if "".join(self._unused).startswith(text) else []

    async def _gen(self, state: WritableState, piece: Gen) -> None:
        _check_gen(piece)
        options = resolve(state.options, piece.options, state.transcript.template.stop_str)
        stops, limit = as_list(options.pop("stop", None)), options["max_new_tokens"]
        meta: Meta = {}
        taken = _take(self._unused, stops, limit)
        while taken is None:  # the unused tokens reach neither a stop string nor the limit
            if self._unused and not self._is_truncated:
                taken = len("".join(self._unused))
                break
            generation = await state.call(self._ask(state, options, limit))
            meta = generation.metas[0]
            self._unused += token_texts(meta) or [generation.texts[0]]
            self._is_truncated = meta.get("finish_reason") == "length"
            if not generation.texts[0]:
                self._is_truncated = False
                taken = len("".join(self._unused))
                break
            taken = _take(self._unused, stops, limit)
        text = "".join(self._unused)[:taken]
        self._unused = _after(self._unused, taken)
        state.transcript.text += text
        state.store(piece.name, text, meta)

    def _ask(
        self, state: WritableState, options: Mapping[str, Any], limit: int | None
    ) -> Callable[[Prompt, str], Awaitable[Generation]]:
        wanted = None if limit is None else max(limit, self._num_tokens)
        more = {**options, "max_new_tokens": wanted, "return_logprob": True, "return_text_in_logprobs": True}
        unused = "".join(self._unused)

        async def call(prompt: Prompt, rid: str) -> Generation:
            return await state.backend.generate(replace(prompt, text=prompt.text + unused), more, rid)

        return call


def _take(tokens: Sequence[str], stops: Sequence[str], limit: int | None) -> int | None:
    """The number of characters of the tokens that a gen takes; None if the tokens do not determine it."""
    text = "".join(tokens)
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    if limit is not None and len(tokens) >= limit:
        ends.append(len("".join(tokens[:limit])))
    return min(ends) if ends else None


def _after(tokens: Sequence[str], num_chars: int) -> list[str]:
    """The tokens without their first characters."""
    left: list[str] = []
    for token in tokens:
        if num_chars >= len(token):
            num_chars -= len(token)
        else:
            left.append(token[num_chars:])
            num_chars = 0
    return left


class ChatSpeculation:
    """For chat models, which generate whole messages."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._pattern: list[Text | Gen] = []
        self._collecting = False
        self._flush_queued = False

    def flush(self, state: WritableState) -> None:
        if not self._flush_queued:
            self._flush_queued = True
            state.submit(Flush())

    async def run(self, state: WritableState, piece: Expr) -> bool:
        if isinstance(piece, Flush):
            self._flush_queued = False
            await self._generate(state)
            return True
        if isinstance(piece, RoleBegin):
            self._collecting = piece.role == "assistant"
            return False
        if self._collecting and isinstance(piece, (Text, Gen)):
            self._pattern.append(piece)
            return True
        await self._generate(state)
        if isinstance(piece, RoleEnd):
            self._collecting = False
        return False

    async def _generate(self, state: WritableState) -> None:
        """Generates the collected pattern with one request."""
        pattern, self._pattern = self._pattern, []
        gens = [piece for piece in pattern if isinstance(piece, Gen)]
        if not gens:
            for piece in pattern:
                if isinstance(piece, Text):
                    state.add_text(piece.value)
            return
        options = self._common_options(state, gens)
        for attempt in range(MAX_TRIES):
            generation = await state.call(lambda prompt, rid: state.backend.generate(prompt, options, rid))
            texts, fits = match_pattern(pattern, generation.texts[0])
            if fits:
                break
            if attempt == MAX_TRIES - 1:
                warnings.warn(f"the model's answer does not follow the message's text: {generation.texts[0]!r}", stacklevel=2)
        for piece, text in zip(pattern, texts, strict=True):
            state.add_text(text)
            if isinstance(piece, Gen):
                state.store(piece.name, text, generation.metas[0])

    def _common_options(self, state: WritableState, gens: Sequence[Gen]) -> dict[str, Any]:
        for piece in gens:
            _check_gen(piece)
        own = [{k: v for k, v in piece.options.items() if k not in ("stop", "max_new_tokens")} for piece in gens]
        if any(options != own[0] for options in own):
            raise ProgramError("with num_api_spec_tokens all gens of a message must have the same sampling parameters")
        options = resolve(state.options, own[0])
        options.pop("stop", None)
        return {**options, "max_new_tokens": self._num_tokens}


def match_pattern(pattern: Sequence[Text | Gen], answer: str) -> tuple[list[str], bool]:
    """The text of each piece, and whether the answer followed the pattern. What cannot be found is empty (or the literal)."""
    texts: list[str] = []
    position, fits = 0, True
    for i, piece in enumerate(pattern):
        if isinstance(piece, Text):
            texts.append(piece.value)
            literal = piece.value
            if i == 0:  # chat models do not begin with white space
                answer, literal = answer.lstrip(), literal.lstrip()
            if answer.startswith(literal, position):
                position += len(literal)
            else:
                fits = False
            continue
        end = _gen_end(pattern, i, answer, position)
        fits = fits and end is not None
        end = len(answer) if end is None else end
        texts.append(answer[position:end])
        position = end
    return texts, fits


def _gen_end(pattern: Sequence[Text | Gen], i: int, answer: str, position: int) -> int | None:
    """Where a gen's text ends: at its stop string, or where the next literal begins."""
    piece, following = pattern[i], pattern[i + 1] if i + 1 < len(pattern) else None
    assert isinstance(piece, Gen)
    marks = as_list(piece.options.get("stop"))
    if isinstance(following, Text):
        marks.append(following.value)
    found = [at for mark in marks if (at := answer.find(mark, position)) >= 0]
    if found:
        return min(found)
    return len(answer) if following is None else None
