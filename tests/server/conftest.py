from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sglang.srt.checkpoint.resolve import ModelFiles
from sglang.srt.config import HttpOptions, TextOptions
from sglang.srt.forward_batch import ModelInfo
from sglang.srt.server import fields
from sglang.srt.server.http.app import create_app
from sglang.srt.server.tokenization.tokenizer import Tokenizer, load_tokenizer
from sglang.srt.server.tokenizer_manager import TokenizerManager
from tests.server.echo_scheduler import EchoScheduler
from tests.server.models import CHATML, train_byte_level

CONTEXT_LEN = 256


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder's text files: byte-level BPE, ChatML."""
    path = tmp_path_factory.mktemp("model")
    train_byte_level().save(str(path / "tokenizer.json"))
    config = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": CHATML}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(TextOptions(str(folder)), ModelFiles("folder", folder, "test"))


def model_info(tokenizer: Tokenizer, **changes: Any) -> dict[str, Any]:
    """As a scheduler process tells it, with every field."""
    info = ModelInfo(
        "llama",
        tokenizer.vocabulary.size,
        CONTEXT_LEN,
        max_total_tokens=4096,
        slot_run=1,
        max_batch_tokens=512,
        max_running_requests=64,
        kernels="echo",
        deterministic=True,
        weight_bytes=0,
        kv_bytes_per_token=0,
    )
    return dataclasses.asdict(info) | changes


class Stand:
    """A manager wired to an echo scheduler, and the application on top."""

    def __init__(
        self, tokenizer: Tokenizer | None, info: dict[str, Any], options: HttpOptions, scheduler: EchoScheduler
    ) -> None:
        self.scheduler = scheduler
        self.options = options
        self.manager = TokenizerManager(tokenizer, info, options, TextOptions("test-path"), scheduler.send)
        scheduler.reply = self.manager.handle
        self.app = create_app(self.manager, options, {"model_path": "test-path"})


@pytest.fixture(autouse=True)
def fresh_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told once a process is told once a test."""
    monkeypatch.setattr(fields, "_noted", set())


MakeStand = Callable[..., Stand]


@pytest.fixture
def make_stand(tokenizer: Tokenizer) -> MakeStand:
    def make(
        tokens_per_step: int = 1, with_tokenizer: bool = True, info: dict[str, Any] | None = None, **options: Any
    ) -> Stand:
        scheduler = EchoScheduler(tokenizer.vocabulary, tokens_per_step)
        http = replace(HttpOptions(served_model_name="test-model"), **options)
        return Stand(tokenizer if with_tokenizer else None, model_info(tokenizer, **(info or {})), http, scheduler)

    return make


@pytest.fixture
def stand(make_stand: MakeStand) -> Iterator[Stand]:
    stand = make_stand()
    yield stand
    assert stand.manager.num_in_flight == 0, "a request was left behind"
