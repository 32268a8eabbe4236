"""Multiple choice by log probability, as lm-eval's `local-completions` asks for it: the prompt with each ending echoed back with
log probabilities. 100 items made here, against transformers on the same weights: the sums agree, and so does every choice.

In the suite a small random model stands in; `-m slow` does the same with the default model.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.conftest import DEFAULT_MODEL, start_server
from tests.model.tiny import save_model
from tests.server.models import train_byte_level

WHO = ["A woman", "The chef", "My neighbour", "A small dog", "The old teacher"]
WHERE = ["in the kitchen", "at the park", "near the river", "on a busy street"]
DOES = [
    (
        "picks up a knife",
        ["cuts the bread into slices.", "reads it a story.", "swims across the bread.", "turns into a spoon."],
    ),
    ("puts on a coat", ["walks out into the rain.", "eats the rain.", "boils it for ten minutes.", "paints the moon with it."]),
    (
        "opens a book",
        ["reads the first page slowly.", "drinks the first page.", "drives it to the station.", "waters the letters."],
    ),
    (
        "throws a ball",
        ["watches it roll over the grass.", "peels it with a fork.", "marries it in spring.", "sings it to sleep."],
    ),
    (
        "turns on the lamp",
        ["looks around the bright room.", "pours the light into a cup.", "calls the lamp a taxi.", "sews it shut."],
    ),
]
ITEMS = [
    (f"{who} {where} {does}. Then {who.lower()}", [f" {ending}" for ending in endings])
    for who, where, (does, endings) in itertools.product(WHO, WHERE, DOES)
]


def score_over_http(url: str, encode: Any) -> list[list[tuple[float, bool]]]:
    """For each item and ending: the sum of the ending's log probabilities, and whether greedy decoding would write it."""
    scores = []
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
        for context, endings in ITEMS:
            start = len(encode(context))
            prompts = [encode(context + ending) for ending in endings]
            body = {"prompt": prompts, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
            reply = client.post("/v1/completions", json=body)
            assert reply.status_code == 200, reply.text
            choices = sorted(reply.json()["choices"], key=lambda choice: int(choice["index"]))
            scores.append(
                [_ending_score(choice["logprobs"], start, len(ids)) for choice, ids in zip(choices, prompts, strict=True)]
            )
    return scores


def _ending_score(logprobs: dict[str, Any], start: int, end: int) -> tuple[float, bool]:
    """What lm-eval reads out of a choice: the last position is the generated token."""
    assert len(logprobs["tokens"]) == end + 1
    values, best = logprobs["token_logprobs"][start:end], logprobs["top_logprobs"][start:end]
    greedy = all(max(top.values()) <= value for top, value in zip(best, values, strict=True))
    return sum(values), greedy


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of torch wait for each other on a busy machine, and these models are small."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def score_by_transformers(model: Any, encode: Any) -> list[list[tuple[float, bool]]]:
    import torch

    scores = []
    for context, endings in ITEMS:
        start, item = len(encode(context)), []
        for ending in endings:
            ids = encode(context + ending)
            with torch.no_grad():
                logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1).numpy()
            at = np.arange(start, len(ids))
            values = logprobs[at - 1, np.array(ids)[at]]
            item.append((float(values.sum()), bool((values >= logprobs[at - 1].max(axis=1)).all())))
        scores.append(item)
    return scores


def check(found: list[list[tuple[float, bool]]], expected: list[list[tuple[float, bool]]]) -> None:
    assert len(found) == 100
    worst = max(abs(a - b) for x, y in zip(found, expected, strict=True) for (a, _), (b, _) in zip(x, y, strict=True))
    assert worst < 1e-3
    assert [[g for _, g in x] for x in found] == [[g for _, g in x] for x in expected]
    for i, (x, y) in enumerate(zip(found, expected, strict=True)):
        lengths = [len(ending.encode()) for ending in ITEMS[i][1]]
        for weigh in ([1] * len(lengths), lengths):  # lm-eval's acc and acc_norm
            assert np.argmax([a / w for (a, _), w in zip(x, weigh, strict=True)]) == np.argmax(
                [a / w for (a, _), w in zip(y, weigh, strict=True)]
            )


def test_a_hundred_items_agree_with_transformers(tmp_path: Path) -> None:
    corpus = [context + ending for context, endings in ITEMS for ending in endings]
    tokenizer = train_byte_level(800, corpus)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    model = save_model(tmp_path, "llama", vocab_size=tokenizer.get_vocab_size())
    expected = score_by_transformers(model, lambda text: tokenizer.encode(text).ids)
    flags = ("--kernels", "reference", "--max-total-tokens", "4096")
    server = start_server(tmp_path / "log", *flags, model=str(tmp_path))
    try:
        found = score_over_http(server.url, lambda text: tokenizer.encode(text).ids)
    finally:
        server.stop()
    check(found, expected)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_items_agree_with_transformers_on_the_default_model(tmp_path: Path) -> None:
    from sglang.srt.checkpoint.resolve import resolve_model
    from sglang.srt.config import TextOptions
    from sglang.srt.server.tokenization.tokenizer import open_tokenizer
    from tests.model.test_default_model import load_oracle

    tokenizer = open_tokenizer(TextOptions(DEFAULT_MODEL))
    assert tokenizer is not None
    expected = score_by_transformers(load_oracle(resolve_model(DEFAULT_MODEL, progress=False).path), tokenizer.encode)
    server = start_server(tmp_path / "log", "--kernels", "reference")
    try:
        found = score_over_http(server.url, tokenizer.encode)
    finally:
        server.stop()
    check(found, expected)
