"""A tiny Llama 3.2 Vision behind HTTP: pictures by data URI, cached prefixes, texts and pictures at once."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import tokenizers
from PIL import Image

from tests.conftest import start_server
from tests.model.mllama import IMAGE, expected_logits, save_mllama
from tests.model.test_vision_pictures import picture

TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|image|>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, httpx.Client]]:
    folder = tmp_path_factory.mktemp("mllama")
    model = save_mllama(folder)
    words = {f"w{i}": i for i in range(IMAGE)} | {"<|image|>": IMAGE}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|image|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    flags = ["--kernels", "reference", "--max-total-tokens", "2048", "--chunked-prefill-size", "16"]
    running = start_server(tmp_path_factory.mktemp("log") / "log", *flags, model=str(folder))
    with httpx.Client(base_url=running.url, timeout=120, trust_env=False) as client:
        yield model, client
    running.process.terminate()
    running.process.wait(30)


def uri(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def ask(client: httpx.Client, parts: list[Any]) -> Any:
    """A chat message of texts and pictures."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image_url", "image_url": {"url": uri(part)}}
        for part in parts
    ]
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 5, "temperature": 0}
    reply = client.post("/v1/chat/completions", json=body | {"ignore_eos": True})
    assert reply.status_code == 200, reply.text
    return reply.json()


def wanted(model: Any, parts: list[Any]) -> str:
    images = [part for part in parts if not isinstance(part, str)]
    ids = [i for part in parts for i in ([int(w[1:]) for w in part.split()] if isinstance(part, str) else [IMAGE])]
    start = len(ids)
    for _ in range(5):
        ids.append(int(expected_logits(model, ids, images)[-1].argmax()))
    return "".join(f"w{i}" for i in ids[start:])


def test_chats_with_pictures_among_others(served: tuple[Any, httpx.Client]) -> None:
    model, client = served
    rng = np.random.default_rng(1)
    a, b, c = picture(rng, (40, 30)), picture(rng, (20, 90)), picture(rng, (64, 64))
    chats: list[list[Any]] = [
        ["w5 w6", a, "w7 w8"],
        [b, "w9", c, "w10 w11"],
        [b, c, "w4"],
        ["w12 w13"],
        [c, "w9", b, "w10 w11"],
    ]
    with ThreadPoolExecutor(10) as pool:
        replies = list(pool.map(lambda parts: ask(client, parts), chats * 2))
    for parts, reply, again in zip(chats, replies[: len(chats)], replies[len(chats) :], strict=True):
        text = reply["choices"][0]["message"]["content"]
        assert text == wanted(model, parts) == again["choices"][0]["message"]["content"], parts
    again = ask(client, chats[1])
    usage = again["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1
    assert again["choices"][0]["message"]["content"] == replies[1]["choices"][0]["message"]["content"]
