"""The progress shown while weights are read."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from sglang.srt.checkpoint.resolve import resolve_model
from sglang.srt.config import ModelOptions
from sglang.srt.model.weights import loader, progress
from sglang.srt.model.weights.loader import load_checkpoint
from sglang.srt.model.weights.progress import LoadProgress
from tests.model.tiny import save_model

pytest.importorskip("torch")


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    with caplog.at_level(logging.INFO, "sglang"):
        shown = LoadProgress(4_000_000_000)
        for _ in range(4):
            shown.add(1_000_000_000)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3 and lines[0].startswith("Load weight: 1.0 of 4.0 GB (25%)")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = LoadProgress(4_000_000_000)
    shown.add(1_000_000_000)
    assert shown._bar is not None
    shown._bar.refresh()
    assert "Loading weights:  25%" in capsys.readouterr().err
    shown.add(3_000_000_000)


def test_every_byte_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[LoadProgress] = []

    def make(total: int) -> LoadProgress:
        made.append(LoadProgress(total))
        return made[-1]

    monkeypatch.setattr(loader, "LoadProgress", make)
    save_model(tmp_path, "llama")
    checkpoint = load_checkpoint(resolve_model(str(tmp_path)), ModelOptions(str(tmp_path)))
    for name in [*checkpoint.names, checkpoint.names[0]]:
        checkpoint.tensor(name)
    assert made[0]._read == made[0]._total > 0
