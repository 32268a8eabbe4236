"""Recordings: viewed, and replayed as answers."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint, cli
from sglang.lang.record import runlog
from sglang.lang.record.recording import Recorder, ReplayBackend, ReplayError, read_recording
from sglang.lang.record.viewer import main, render_fragment
from sglang.lang.run.streams import wait_until

from .native_server import NativeServer


@sgl.function
def program(s: ProgramState, question: str) -> None:
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=6, return_logprob=True, return_text_in_logprobs=True))
    forks = s.fork(2)
    forks += lambda i: f"<{i}>" + sgl.gen("note", max_tokens=2)
    forks.join()
    s += sgl.user("yes?")
    s += sgl.assistant(sgl.select("choice", ["yes", "no"]))


def test_a_recording_tells_everything(native: NativeServer, backend: RuntimeEndpoint, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    state = program.run("Who?", record=path)
    state.sync()
    rows = read_recording(path)
    assert rows[0]["kind"] == "run" and rows[0]["program"] == "program" and rows[0]["model"] == "smollm2-135m-instruct"
    assert len({row["run"] for row in rows}) == 1
    calls = [row for row in rows if row["kind"] == "call"]
    assert [row["name"] for row in calls] == ["answer", "note", "note", "choice"]
    assert calls[0]["value"]["answer"]["texts"] == [state["answer"]]
    assert calls[0]["value"]["answer"]["metas"][0]["prompt_tokens"] > 0
    assert all(0 <= row["started"] <= row["time"] for row in calls)
    assert [row["children"] for row in rows if row["kind"] == "fork"] == [["0.0", "0.1"]]


def test_replay_needs_no_model(native: NativeServer, backend: RuntimeEndpoint, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    recorder = Recorder(path)
    states = program.run_batch([("A?",), ("B?",)], record=recorder)
    sent = len(native.requests)
    replay = ReplayBackend(path)
    for question, state in zip(("A?", "B?"), states, strict=True):
        again = program.run(question, backend=replay)
        assert again.text() == state.text() and again["note"] == state["note"]
        streamed = program.run(question, backend=replay, stream=True)
        assert "".join(streamed.text_iter()) == state.text()
    assert len(native.requests) == sent
    with pytest.raises(ReplayError, match="prompt ending in"):
        program.run("C?", backend=replay).sync()


def test_the_page(native: NativeServer, backend: RuntimeEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.jsonl"
    state = program.run("<b>Who</b>?", record=path)
    state.sync()
    assert main(["view", str(path)]) == 0
    page = (tmp_path / "run.html").read_text()
    assert capsys.readouterr().out.strip() == str(tmp_path / "run.html")
    assert "&lt;b&gt;Who&lt;/b&gt;" in page and "<b>Who" not in page
    assert "fork 0.1" in page and "hsl(" in page and "Time line" in page
    assert "http" not in page.replace("smollm2", "")  # nothing is loaded from elsewhere
    rules = page.split("<style>.sglang-run")[0].count("{") if "<style>.sglang-run" in page else 0
    style = render_fragment(read_recording(path)).split("</style>")[0].removeprefix("<style>")
    selectors = re.findall(r"([^{}]+)\{", re.sub(r"@media\([^)]*\)\{", "", style))
    assert len(selectors) > 15 and rules <= 1
    assert all(one.strip().startswith(".sglang-run") for one in ",".join(selectors).split(",")), "a notebook keeps its look"
    assert 'class="fork"' in page and "prefers-color-scheme:dark" in page and page.count(" ms</span>") > 4
    for left, width in re.findall(r"left:([\d.]+)%;width:([\d.]+)%", page):
        assert float(left) + float(width) <= 100.01, "no bar leaves the page"
    assert main(["view", str(tmp_path / "nothing.jsonl")]) == 1
    path.write_text('{"kind": "run"}\n{"no": 1}\n')
    assert main(["view", str(path)]) == 1


def test_the_command(backend: RuntimeEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.jsonl"
    program.run("Who?", record=path).sync()
    monkeypatch.setattr(sys, "argv", ["sglang", "trace", "view", str(path), "-o", str(tmp_path / "page.html")])
    assert cli.main() == 0
    assert "Who?" in (tmp_path / "page.html").read_text()


def test_in_memory(backend: RuntimeEndpoint) -> None:
    state = program.run("Who?", record=True)
    assert "Who?" in state.to_html() and "Time line" in state.to_html()
    with pytest.raises(ValueError, match="record"):
        program("Who?").to_html()
    with pytest.raises(TypeError, match="record must be"):
        program.run("Who?", record=3)


def test_failures_are_recorded(native: NativeServer, backend: RuntimeEndpoint, tmp_path: Path) -> None:
    native.failures = [(400, {"error": {"message": "not today"}})]
    path = tmp_path / "run.jsonl"
    assert program.run("Who?", record=path).error() is not None
    assert any(row["kind"] == "error" and "not today" in row["text"] for row in read_recording(path))


class Watched(Recorder):
    """Keeps, with each kind of event, whether the state had ended when it was written."""

    def __init__(self, path: Path, full: str = "") -> None:
        super().__init__(path)
        self.state: ProgramState | None = None
        self.seen: list[tuple[str, bool]] = []
        self.full = full

    def write(self, row: Mapping[str, Any]) -> None:
        if self.state is not None:
            executor = self.state.stream_executor
            self.seen.append((row["kind"], not executor.body.running and executor.is_idle))
        if row["kind"] == self.full:
            raise OSError(errno.ENOSPC, "the disk is full")
        super().write(row)


@sgl.function
def fails(s: ProgramState, recorder: Watched, how: str) -> None:
    recorder.state = s
    s += sgl.user("Who?") + sgl.gen("answer", max_tokens=2)
    if how == "code":
        raise RuntimeError("the program's own")


@sgl.function
def forked(s: ProgramState) -> None:
    s += "x" + sgl.gen("answer", max_tokens=2)
    both = s.fork(2)
    both += sgl.gen("note", max_tokens=2)
    both.join()


@pytest.mark.parametrize("how", ["code", "request", "nothing"])
def test_a_recording_is_whole_before_the_state_ends(
    native: NativeServer, backend: RuntimeEndpoint, tmp_path: Path, how: str
) -> None:
    """Who has seen a run end can read how it ended: the state is not idle before the event is written."""
    native.failures = [(400, {"error": {"message": "not today"}})] if how == "request" else []
    recorder = Watched(tmp_path / "run.jsonl")
    state = fails.run(recorder, how, stream=True, record=recorder)
    assert (state.error() is None) == (how == "nothing")
    assert [ended for kind, ended in recorder.seen if kind == ("end" if how == "nothing" else "error")] == [False]


@pytest.mark.parametrize("kind", ["error", "end", "fork", "call", "var_end"])
def test_a_full_disk_ends_the_recording_alone(
    native: NativeServer, backend: RuntimeEndpoint, tmp_path: Path, kind: str, recwarn: pytest.WarningsRecorder
) -> None:
    native.failures = [(400, {"error": {"message": "not today"}})] if kind == "error" else []
    path = tmp_path / "run.jsonl"
    state = forked.run(stream=True, record=Watched(path, kind))
    wait_until(state.stream_executor, lambda: state.stream_executor.body.is_finished, 30)
    assert (state.error() is None) == (kind != "error")
    assert [str(one.message) for one in recwarn if one.category is RuntimeWarning] == [
        "the recording stops here: [Errno 28] the disk is full"
    ]
    assert kind not in {row["kind"] for row in read_recording(path)}


def test_half_a_character_is_recorded(native: NativeServer, backend: RuntimeEndpoint, tmp_path: Path) -> None:
    """JSON can say a surrogate without its pair, UTF-8 cannot."""
    recorder = Recorder(tmp_path / "run.jsonl")
    recorder.write({"kind": "text", "text": "é \ud83d"})
    assert read_recording(recorder.path) == [{"kind": "text", "text": "é \ud83d"}]


def test_a_cut_off_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps({"kind": "run", "run": "a"}) + '\n{"kind": "te')
    assert len(read_recording(path)) == 1


def test_images_are_recorded_once_and_large_ones_by_their_digest(
    native: NativeServer, backend: RuntimeEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    small.write_bytes(b"\x89PNG\r\n\x1a\nsmall")
    large.write_bytes(b"\x89PNG\r\n\x1a\n" + b"large" * 1000)
    monkeypatch.setattr(runlog, "MAX_IMAGE", 1000)

    @sgl.function
    def look(s: ProgramState) -> None:
        for _ in range(2):
            s += sgl.user("See" + sgl.image(small) + sgl.image(large) + sgl.image("http://x.y/z.png"))
            s += sgl.assistant(sgl.gen("seen", max_tokens=2))

    path = tmp_path / "run.jsonl"
    look.run(record=path).sync()
    rows = read_recording(path)
    images = [row for row in rows if row["kind"] == "image"]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (small, large)]
    assert [(row["name"], base64.b64decode(row["value"])) for row in images] == [(digests[0], small.read_bytes())]
    told = [{"sha256": digest, "size": file.stat().st_size} for digest, file in zip(digests, (small, large), strict=True)]
    told.append({"url": "http://x.y/z.png"})
    assert [row["value"]["images"] for row in rows if row["kind"] == "call"] == [told, told * 2]
