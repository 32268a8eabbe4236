"""Generation on a state: gens (whole or streamed, typed, with reasoning separated) and selects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

from sglang.lang.backend.base import BaseBackend, Delta, Generation, Prompt
from sglang.lang.concurrency.place import variable
from sglang.lang.concurrency.watch import Watch
from sglang.lang.errors import BackendError, TypedValueError
from sglang.lang.ir import Expr, Gen, OutputType, Select
from sglang.lang.record.runlog import EventKind, RunLog
from sglang.lang.run.transcript import Transcript
from sglang.lang.run.variables import SAME, Name, Variables
from sglang.lang.sampling import resolve
from sglang.lang.typed.reasoning import AnswerSplitter


class WritableState(Protocol):
    """The part of a state that generation needs. `cached_len`: characters of the text that are in the server's prefix cache."""

    backend: BaseBackend
    options: dict[str, Any]
    stream: bool
    transcript: Transcript
    vars: Variables
    watch: Watch
    log: RunLog | None
    cached_len: int

    async def call(self, make: Callable[[Prompt, str], Awaitable[Any]], prompt: Prompt | None = None) -> Any:
        """The backend's answer to `make(prompt, request id)`; by default the prompt is the state's text so far."""
        ...

    def add_text(self, text: str) -> None: ...

    def store(self, name: Name, text: Any, meta: Any, value: Any = SAME) -> None:
        """Stores a variable that a piece has written; with the object behind its text, where it has a type."""
        ...

    def record(self, kind: EventKind, **fields: Any) -> None:
        """Adds an event to the run's log, if there is one."""
        ...

    def submit(self, expr: Expr) -> None: ...


async def write_gen(state: WritableState, piece: Gen) -> None:
    """Has the model write a gen, and stores its variables. Raises BackendError."""
    options = resolve(state.options, piece.options, state.transcript.template.stop_str)
    if piece.typed is not None:
        options = piece.typed.constrain(options, state.backend.constraints)
    num_samples = options.get("n") or 1
    writing = Writing(piece, num_samples, state.vars, state.record)
    variable.set(None if piece.name is None else str(piece.name))
    options = await _write_constrained(state, writing, piece, options)
    generation, value = writing.generation, SAME
    if piece.typed is not None:
        generation, value = await _check_typed(state, piece.typed, options, generation)
    state.cached_len = len(state.transcript.text)
    if piece.reasoning is not None:
        state.store(writing.reasoning_name, writing.reasoning, None)
    if num_samples > 1:
        state.store(piece.name, generation.texts, generation.metas, value)
    else:
        state.store(piece.name, generation.texts[0], generation.metas[0], value)


async def write_select(state: WritableState, piece: Select) -> None:
    """Has the backend choose, and stores the choice. Raises BackendError."""
    live = state.vars.begin(piece.name)
    variable.set(None if piece.name is None else str(piece.name))
    state.record("var_start", name=piece.name)
    piece = replace(piece, lora=piece.lora or state.options.get("lora"))
    prompt, started = state.transcript.prompt(), _now(state)
    decision = await state.call(lambda prompt, rid: state.backend.select(prompt, piece, rid))
    answer = {"decision": decision.decision, "meta": decision.meta_info}
    _record_call(state, "select", prompt, piece, piece.options, answer, started)
    state.transcript.text += decision.decision
    state.cached_len = len(state.transcript.text)
    live.text, live.meta = decision.decision, decision.meta_info
    state.record("var_delta", name=piece.name, text=decision.decision)
    state.store(piece.name, decision.decision, decision.meta_info)


async def _write_constrained(state: WritableState, writing: Writing, piece: Gen, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options it was written with: without a constraint that the server refused."""

    async def write(options: dict[str, Any]) -> None:
        await state.call(lambda prompt, rid: _write(state, writing, piece, prompt, options, rid))

    try:
        await write(options)
    except BackendError as error:
        if piece.typed is None or not piece.typed.is_refused(error, options):
            raise
        options = piece.typed.unconstrain(options)
        await write(options)
    return options


async def _write(state: WritableState, writing: Writing, piece: Gen, prompt: Prompt, options: dict[str, Any], rid: str) -> None:
    started = _now(state)
    if state.stream or piece.stream:
        async with aclosing(state.backend.generate_stream(prompt, options, rid)) as deltas:
            async for delta in deltas:
                state.transcript.text += writing.add(delta)
                state.watch.bump()
    else:
        generation = await state.backend.generate(prompt, options, rid)
        for i, (text, meta) in enumerate(zip(generation.texts, generation.metas, strict=True)):
            state.transcript.text += writing.add(Delta(text, meta, i))
    state.transcript.text += writing.close()
    answer = {"texts": writing.raw_texts, "metas": writing.generation.metas}
    _record_call(state, "gen", prompt, piece, options, answer, started)


def _now(state: WritableState) -> float:
    return state.log.now if state.log is not None else 0.0


def _record_call(
    state: WritableState,
    kind: str,
    prompt: Prompt,
    piece: Gen | Select,
    options: Mapping[str, Any],
    answer: Mapping[str, Any],
    started: float,
) -> None:
    """Keeps a call whole, so that a recording can answer it again."""
    if state.log is not None and state.log.records_calls:
        value: dict[str, Any] = {"kind": kind, "options": dict(options), "answer": answer}
        if prompt.images:
            value["images"] = [state.log.note_image(image.data) for image in prompt.images]
        state.record("call", name=piece.name, text=prompt.text, value=value, started=started)


async def _check_typed(
    state: WritableState, typed: OutputType, options: dict[str, Any], generation: Generation
) -> tuple[Generation, Any]:
    """Parses the texts; where decoding was not constrained to the type, asks again with the error. Returns the answer and its value."""
    written = state.transcript.prompt()
    prompt = replace(written, text=written.text[: len(written.text) - len(generation.texts[0])])

    async def again(wrong: TypedValueError) -> Generation:
        retry = _retry_prompt(prompt, wrong, typed.wanted)
        generation: Generation = await state.call(lambda _, rid: state.backend.generate(retry, options, rid), prompt)
        return generation

    checked, values = await typed.check(generation, options, again)
    if checked is not generation:
        state.transcript.text = prompt.text + checked.texts[0]
    return checked, values if len(values) > 1 else values[0]


def _retry_prompt(prompt: Prompt, wrong: TypedValueError, wanted: str) -> Prompt:
    """`prompt` once more, with the wrong answer to it and what is wrong with it."""
    advice = f"{wrong}. Answer again, only with {wanted}, and nothing else."
    if prompt.role is None:
        return replace(prompt, text=f"{prompt.text}{wrong.text}\n\n{advice}\n")
    more = (
        {"role": prompt.role, "content": (prompt.role_text + wrong.text).strip()},
        {"role": "user", "content": advice},
    )
    messages, turns = (*prompt.messages, *more), (*prompt.turns, *more)
    return replace(prompt, messages=messages, role_start=len(prompt.text), turns=turns, places=())


class Writing:
    """One gen while the model writes it: collects the pieces of all samples, and shows the first sample's to streams.
    Pieces go in with `add`; what comes out belongs to the prompt (nothing of a sample but the first, and no reasoning where
    that is kept apart)."""

    def __init__(self, piece: Gen, num_samples: int, variables: Variables, record: Callable[..., None]) -> None:
        self._name = piece.name
        self._record = record
        self._texts = [""] * num_samples
        self.raw_texts = [""] * num_samples
        """as the model wrote them, reasoning included"""
        self._metas: list[dict[str, Any]] = [{} for _ in self._texts]
        self._splitters = [AnswerSplitter(piece.reasoning) for _ in self._texts] if piece.reasoning else []
        self._reasoning = [""] * num_samples
        self._live = variables.begin(piece.name)
        self._live_reasoning = variables.begin(self.reasoning_name) if piece.reasoning else None
        record("var_start", name=piece.name)

    @property
    def reasoning_name(self) -> str:
        return f"{self._name}_reasoning_content"

    def add(self, delta: Delta) -> str:
        """Takes a piece; returns what of it the prompt gets."""
        self._metas[delta.index] = delta.meta
        self.raw_texts[delta.index] += delta.text
        if not self._splitters:
            return self._show(delta.index, "", delta.text)
        return self._show(delta.index, *self._splitters[delta.index].feed(delta.text))

    def close(self) -> str:
        """The end of all samples; returns what was held back of the prompt's."""
        rest = ""
        for index, splitter in enumerate(self._splitters):
            rest += self._show(index, *splitter.close())
        return rest

    def _show(self, index: int, reasoning: str, text: str) -> str:
        self._texts[index] += text
        self._reasoning[index] += reasoning
        if index:
            return ""
        if reasoning and self._live_reasoning is not None:
            self._live_reasoning.text += reasoning
            self._record("var_delta", name=self.reasoning_name, text=reasoning)
        self._live.text += text
        self._live.meta = self._metas[0]
        if text:
            self._record("var_delta", name=self._name, text=text, meta=self._metas[0])
        return text

    @property
    def generation(self) -> Generation:
        return Generation(self._texts, self._metas)

    @property
    def reasoning(self) -> str | list[str]:
        """The reasoning, split from the answer: one text, or one for each sample."""
        stripped = [text.strip() for text in self._reasoning]
        return stripped if len(stripped) > 1 else stripped[0]
