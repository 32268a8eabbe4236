"""The offline engine's methods that are there besides generating, and those that are not: each says why."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

import sglang
from sglang.srt.errors import EngineDeadError, RequestError, UnsupportedError
from sglang.srt.server.native.not_done import NOT_DONE_BY_ENGINE
from tests.conftest import DEFAULT_MODEL

GREEDY = {"max_new_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def engine() -> Iterator[sglang.Engine]:
    with sglang.Engine(model_path=DEFAULT_MODEL, max_total_tokens=1024, tp_size=1, dp_size=1) as engine:
        yield engine


@pytest.mark.parametrize("name", sorted(NOT_DONE_BY_ENGINE))
def test_what_is_not_done_says_so(engine: sglang.Engine, name: str) -> None:
    for args, kwargs in (((), {}), (("a", 1), {"load_format": None})):
        with pytest.raises(UnsupportedError, match=f"Engine.{name} is not possible here: ..."):
            getattr(engine, name)(*args, **kwargs)


def test_media_have_the_originals_places(engine: sglang.Engine) -> None:
    text = engine.generate("One, two,", GREEDY)["text"]
    assert engine.generate("One, two,", GREEDY, None, None, None, None)["text"] == text
    assert asyncio.run(engine.async_generate("One, two,", GREEDY, None, [], None))["text"] == text
    for place in range(3):
        with pytest.raises(UnsupportedError):
            engine.generate("One, two,", GREEDY, None, *[None] * place, ["x.png"])


def test_labels_are_scored(engine: sglang.Engine) -> None:
    ids = [engine.tokenizer.encode(word)[0] for word in (" Paris", " London")]
    (row,) = engine.score("The capital of France is", "", ids, apply_softmax=True)
    assert row[0] > row[1] and sum(row) == pytest.approx(1)
    rows = asyncio.run(engine.async_score("The capital of France is", ["", " not"], ids))
    assert len(rows) == 2 and rows[0][0] / rows[0][1] == pytest.approx(row[0] / row[1]) and sum(rows[0]) < 1
    with pytest.raises(RequestError, match="label_token_ids"):
        engine.score("a", ["b"], [])


def test_sessions_by_place(engine: sglang.Engine) -> None:
    name = engine.open_session(1000, "mine")
    assert name == "mine"
    engine.close_session(name)
    with pytest.raises(RequestError, match="session_id"):
        engine.open_session(None, 5)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="capacity_of_str_len"):
        engine.open_session("mine")  # type: ignore[arg-type]


def test_control(engine: sglang.Engine) -> None:
    engine.start_profile()
    with pytest.raises(RequestError):
        engine.start_profile()
    engine.pause_generation()

    async def while_paused() -> str:
        task = asyncio.create_task(engine.async_generate("One, two,", GREEDY))
        await asyncio.sleep(0)
        await asyncio.to_thread(engine.continue_generation)
        return str((await task)["text"])

    assert asyncio.run(while_paused())
    said = engine.stop_profile()
    assert Path(said.split()[-1]).is_file(), said


def test_an_engine_that_was_shut_down(engine: sglang.Engine) -> None:
    with sglang.Engine(model_path=DEFAULT_MODEL, max_total_tokens=256) as other:
        other.shutdown()
        for call in (other.flush_cache, other.pause_generation, other.start_profile, lambda: other.score("a", "b", [1])):
            with pytest.raises(EngineDeadError):
                call()


def test_its_tokenizer_as_transformers_has_it(engine: sglang.Engine) -> None:
    pytest.importorskip("transformers")
    assert engine.tokenizer is not None
    tokenizer = engine.get_tokenizer()
    for text in ("The capital of France is Paris.", "  two  spaces\n", "Ünïcödé 你好 🙂", "<|im_end|>"):
        ids = tokenizer.encode(text)
        assert ids == engine.tokenizer.encode(text) and tokenizer.decode(ids) == text
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
