"""Recordings of runs: all events as JSON lines, to view (viewer.py) and to replay (ReplayBackend).

    {"kind": "run", "run": ID, "program": NAME, "backend": NAME, "model": NAME, "time": UNIX SECONDS}
    {"kind": "text" | "var_end" | "call" | ..., "run": ID, "branch": "0.1", "time": SECONDS SINCE THE RUN BEGAN, ...}

A file may hold many runs, also at the same time: every line says which run it belongs to.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import fields
from typing import Any

from sglang.lang.backend.base import BaseBackend, Delta, Generation, Meta, Prompt
from sglang.lang.chat_template import ChatTemplate, get_chat_template_by_model_path
from sglang.lang.choices import ChoicesDecision
from sglang.lang.errors import BackendError
from sglang.lang.ir import Select
from sglang.lang.record.runlog import Event, RunLog

_STREAMED = frozenset({"var_delta"})
"""kinds that a file leaves out: the end of the variable says the same"""


class Recorder:
    """Appends runs to a file; give one to as many runs as you like (`record=recorder`), or a path, which makes one. When the file
    cannot be written any more, the runs go on, with a RuntimeWarning."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._lock = threading.Lock()

    def write(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False, default=repr)
        with self._lock, open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line + "\n")


def start_recording(log: RunLog, record: Any, program: str, backend: BaseBackend) -> None:
    """Has everything in `log` recorded: to a path or Recorder, or (record=True) in memory only. Raises TypeError."""
    log.records_calls = True
    if record is True:
        return
    if isinstance(record, (str, os.PathLike)):
        record = Recorder(record)
    if not isinstance(record, Recorder):
        raise TypeError(f"record must be a path, a Recorder or True, not {type(record).__name__}")
    recorder, run = record, uuid.uuid4().hex[:12]
    recorder.write({"kind": "run", "run": run, "program": program, **_about(backend), "time": time.time()})

    def sink(event: Event) -> None:
        if event.kind not in _STREAMED:
            recorder.write({"run": run, **event_row(event)})

    log.sink = sink


def _about(backend: BaseBackend) -> dict[str, str]:
    try:
        return {"backend": backend.name, "model": backend.get_model_name()}
    except BackendError:  # a backend without a name for its model
        return {"backend": backend.name, "model": ""}


def event_row(event: Event) -> dict[str, Any]:
    """An event as JSON data, without what it leaves empty."""
    row = {field.name: getattr(event, field.name) for field in fields(event)}
    return {name: value for name, value in row.items() if value not in (None, "", ()) or name in ("kind", "branch")}


def read_recording(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All rows of a file; a last line that was cut off is left out. Raises ValueError for what is not a recording."""
    rows: list[dict[str, Any]] = []
    with open(path, encoding="utf-8") as file:
        lines = file.read().split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{os.fspath(path)}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict) or "kind" not in row:
            raise ValueError(f"{os.fspath(path)}, line {number}: not a line of a recording")
        rows.append(row)
    return rows


class ReplayError(BackendError):
    """The recording has no answer to what the program asks."""


class ReplayBackend(BaseBackend):
    """Answers from a recording: the same prompts with the same options get the answers they got, in the same order; the last
    one is given again when there are no more. For tests of programs without a model."""

    name = "Replay"
    constraints = frozenset({"regex", "json_schema", "ebnf", "structural_tag"})

    def __init__(self, path: str | os.PathLike[str], chat_template: ChatTemplate | None = None) -> None:
        rows = read_recording(path)
        self._model = next((row["model"] for row in rows if row["kind"] == "run" and row.get("model")), "")
        super().__init__(chat_template or get_chat_template_by_model_path(self._model))
        self._answers: dict[str, list[Any]] = {}
        for row in rows:
            if row["kind"] == "call":
                value = row["value"]
                key = _key(value["kind"], row.get("text", ""), value["options"])
                self._answers.setdefault(key, []).append(value["answer"])

    def get_model_name(self) -> str:
        return str(self._model)

    def _answer(self, kind: str, prompt: Prompt, options: Mapping[str, Any]) -> Any:
        answers = self._answers.get(_key(kind, prompt.text, options))
        if not answers:
            raise ReplayError(f"the recording has no {kind} of this prompt with these options {dict(options)}")
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def generate(self, prompt: Prompt, options: Mapping[str, Any], rid: str) -> Generation:
        answer = self._answer("gen", prompt, options)
        return Generation(list(answer["texts"]), list(answer["metas"]))

    async def generate_stream(self, prompt: Prompt, options: Mapping[str, Any], rid: str) -> AsyncGenerator[Delta, None]:
        answer = self._answer("gen", prompt, options)
        for index, (text, meta) in enumerate(zip(answer["texts"], answer["metas"], strict=True)):
            for piece in _pieces(text):
                yield Delta(piece, meta, index)

    async def select(self, prompt: Prompt, select: Select, rid: str) -> ChoicesDecision:
        answer = self._answer("select", prompt, select.options)
        meta: Meta = answer["meta"]
        return ChoicesDecision(answer["decision"], meta)


def _key(kind: str, text: str, options: Mapping[str, Any]) -> str:
    return json.dumps([kind, text, options], sort_keys=True, default=repr)


def _pieces(text: str) -> Iterable[str]:
    """A text in words, so that a replayed stream is one."""
    words = text.split(" ")
    return [*(word + " " for word in words[:-1]), words[-1]]
