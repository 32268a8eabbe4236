"""A model is searched for once, whatever reads it: for a hub id every search is a call to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sglang.srt.checkpoint import resolve
from sglang.srt.checkpoint.resolve import find_files, with_files
from sglang.srt.config import RuntimeConfig
from sglang.srt.config_codec import decode_config, encode_config
from sglang.srt.engine import Engine
from sglang.srt.model.embedder import embeds_by_itself
from sglang.srt.process import launch, start
from sglang.srt.server_args import ServerArgs
from tests.conftest import ROOT, free_port

TOY = ROOT / "models" / "toy-vlm"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hub's models that were asked for. Each is the folder of a small model that sees."""
    asked: list[str] = []

    def fetch(name: str, *_: Any) -> Path:
        asked.append(name)
        return TOY

    monkeypatch.setattr(resolve, "fetch_repository", fetch)
    return asked


def test_by_an_engine(calls: list[str]) -> None:
    with Engine(model_path="org/sees", max_total_tokens=256, kernels="reference") as engine:
        assert engine.server_args.model_path == "org/sees"
    assert calls == ["org/sees"]


def test_by_a_server(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of its processes read what the server has found."""
    got: list[RuntimeConfig] = []

    class Stub:
        def __init__(self, config: RuntimeConfig, *_: Any) -> None:
            got.append(config)

        async def run(self) -> None:
            pass

    monkeypatch.setattr(launch, "Server", Stub)
    start.launch_server(ServerArgs(model_path="org/sees", port=free_port()))
    sent = decode_config(encode_config(got[0]), RuntimeConfig)
    assert sent == got[0]
    for config in (got[0], sent):
        assert not embeds_by_itself(config.model)
        assert find_files(config.model) == find_files(config.text)
        assert find_files(config.model).path == TOY
        assert find_files(config.model).name == "org/sees"
    assert calls == ["org/sees"]


def test_a_separate_tokenizer_is_another_search(calls: list[str]) -> None:
    config = with_files(ServerArgs(model_path="org/sees", tokenizer_path="org/words").resolve())
    assert find_files(config.text).name == "org/words"
    assert calls == ["org/sees", "org/words"]
    alone = with_files(ServerArgs(model_path="org/sees", tokenizer_path="org/words", skip_tokenizer_init=True).resolve())
    assert alone.text.files is None
    assert len(calls) == 3
